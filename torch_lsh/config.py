"""LSHConfig: everything that can be set about an LSH layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .rehash import ExponentialBackoff, RehashPolicy

HASHES = ("simhash", "simhash_hadamard", "srp_sparse", "cross_polytope", "dwta")
SCOPES = ("batch", "sample")
CORRECTIONS = ("auto", "stratified", "none")


@dataclass(frozen=True)
class LSHConfig:
    """The settings of an LSH layer; every field has a default that works.

    Attributes:
        hash: hash family: ``"simhash"`` (Gaussian projections), ``"simhash_hadamard"`` (the same by fast transforms),
            ``"srp_sparse"`` (sparse ±1 projections), ``"cross_polytope"`` or ``"dwta"`` (densified winner-take-all, the
            family of SLIDE and BOLT).
        hashes_per_table: K, the hashes that make one code; None: from the layer's shape.
        num_tables: L; None: from the layer's shape.
        bucket_size: row ids that a bucket holds at most; None: from the layer's shape.
        active: active rows per step: an int, a fraction of the layer, or None for a number derived from the layer:
            ``max(1024, 8 * sqrt(out_features))`` in scope "batch", an eighth of that in scope "sample".
        scope: ``"batch"``: one active set that the batch shares (a matrix product at BLAS speed); ``"sample"``: one per
            sample, as in SLIDE.
        random_fraction: share of ``active`` drawn uniformly, at least; 0: no random row at all.
        carry: scope "batch": rows that the last step pushed down most are candidates again, beside rows found by
            hashing, and hashing then looks only some samples of the batch up. At 0.5 as many of ``active`` rows are
            remembered; 0: none.
        correction: ``"stratified"`` weighs random rows by their known sampling probability, which makes the
            sampled partition function an unbiased estimate of the full one (Kool et al. 2019 and DESIGN in README);
            ``"none"`` leaves the softmax over the active set as it is, which ranks labels sooner;
            ``"auto"``: "none" for targets with several labels per sample (ranking), else "stratified" (probabilities).
        rehash: when the tables follow the weights while training: :class:`torch_lsh.rehash.FixedInterval`,
            :class:`torch_lsh.rehash.ExponentialBackoff` or any object with ``interval(rehashes) -> steps``.
        mips: augment rows so that the angle follows the inner product, instead of hashing the row as it is.
        seed: of hash functions and draws.

    >>> LSHConfig(active=0.01).active_rows(out_features=50_000)
    500
    """

    hash: str = "simhash"
    hashes_per_table: int | None = None
    num_tables: int | None = None
    bucket_size: int | None = None
    active: int | float | None = None
    scope: str = "batch"
    random_fraction: float = 0.1
    carry: float = 0.5
    correction: str = "auto"
    rehash: RehashPolicy = field(default_factory=ExponentialBackoff)
    mips: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, wanted in (
            ("hash", self.hash, HASHES),
            ("scope", self.scope, SCOPES),
            ("correction", self.correction, CORRECTIONS),
        ):
            if value not in wanted:
                raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(repr, wanted))}")
        for name in ("hashes_per_table", "num_tables", "bucket_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; wanted a positive int or None")
        for name in ("active", "random_fraction", "carry", "seed"):
            number: Any = getattr(self, name)
            missing = number is None and name == "active"
            if isinstance(number, bool) or not (missing or isinstance(number, int if name == "seed" else (int, float))):
                raise TypeError(f"{name} is {number!r}; wanted a number")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; wanted a 64-bit integer")
        if isinstance(self.active, float) and not 0 < self.active <= 1:
            raise ValueError(f"active is {self.active}; as a fraction of the layer it must be in (0, 1]")
        if isinstance(self.active, int) and self.active < 1:
            raise ValueError(f"active is {self.active}; wanted at least 1 row")
        for name, share in (("random_fraction", self.random_fraction), ("carry", self.carry)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; wanted 0 to 1")
        if not isinstance(self.rehash, RehashPolicy):
            raise ValueError(f"rehash is {self.rehash!r}; wanted an object with interval(rehashes) -> steps")

    def active_rows(self, out_features: int) -> int:
        """Active rows per step for a layer of ``out_features`` rows; more than the layer has means all of them."""
        if self.active is None:
            wanted = max(1024, 8 * math.isqrt(out_features))
            if self.scope == "sample":
                wanted //= 8
        elif isinstance(self.active, float):
            wanted = math.ceil(self.active * out_features)
        else:
            wanted = self.active
        return max(1, min(wanted, out_features))

    def random_rows(self, active: int) -> int:
        """How many of ``active`` rows are drawn uniformly, at least."""
        return math.ceil(self.random_fraction * active)
