"""Locality-sensitive hash families: hashes that agree more often for more similar vectors."""

from ..checks import check_choice
from .base import MAX_CODE_BITS, HashFamily
from .cross_polytope import CrossPolytope
from .dwta import DWTA
from .learned import LearnedPartition
from .simhash import HadamardSimHash, SimHash

__all__ = [
    "DWTA",
    "FAMILIES",
    "MAX_CODE_BITS",
    "CrossPolytope",
    "HadamardSimHash",
    "HashFamily",
    "LearnedPartition",
    "SimHash",
    "family_type",
    "make_family",
]

FAMILIES: dict[str, type[HashFamily]] = {
    "simhash": SimHash,
    "simhash_hadamard": HadamardSimHash,
    "cross_polytope": CrossPolytope,
    "dwta": DWTA,
}


def family_type(name: str) -> type[HashFamily]:
    """The class of a hash family by name.

    Raises:
        ValueError: there is no family of that name.
    """
    check_choice("hash", name, FAMILIES)
    return FAMILIES[name]


def make_family(name: str, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> HashFamily:
    """A hash family by its name in :data:`FAMILIES`.

    Raises:
        ValueError: there is no family of that name, or an argument does not fit.

    >>> make_family("simhash", 128, hashes_per_table=10, num_tables=16)
    SimHash(128, hashes_per_table=10, num_tables=16, seed=0)
    """
    return family_type(name)(in_features, hashes_per_table, num_tables, seed)
