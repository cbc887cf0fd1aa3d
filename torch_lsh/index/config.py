"""Settings of an index: one dataclass for each kind, with the fields that this kind knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

from .base import Index
from .checks import check_bool, check_choice, check_int, check_optional_int
from .families import FAMILIES, family_type
from .families.learned import LearnedPartition
from .hash_tables import BUCKET_POLICIES, SELECTIONS, HashTableIndex, table_bytes
from .partition import PartitionIndex
from .sign_codes import SignCodeIndex

_MOST_TABLES = 4096
_MOST_PROBES = 4096  # of a table
_MOST_SKETCH_BITS = 65536


class QueryHistory(NamedTuple):
    """Which inputs of training steps a sampler keeps for the next :meth:`Index.build`.

    Until it has any, it keeps the last ``total`` inputs of the first step.

    Attributes:
        every: keep inputs of every n-th step.
        per_step: inputs to keep of such a step, spread over its batch; if ``every`` is 1, the last ones.
        total: inputs to keep in all, the latest; if no more than ``per_step``, those of one step only.
    """

    every: int
    per_step: int
    total: int


class IndexConfig(ABC):
    """The settings of one kind of index; prints the ones that are not the default."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that :func:`named_index_config` knows: a hash family or a kind of index."""

    @abstractmethod
    def make(self, num_rows: int, in_features: int, seed: int) -> Index:
        """An index with these settings, which is not built.

        Args:
            num_rows: N, rows of the weight.
            in_features: width of the weight.
            seed: of everything random in the index.

        Raises:
            ValueError: an argument is out of range.
        """

    @abstractmethod
    def nbytes(self, num_rows: int, in_features: int) -> int:
        """Bytes that these settings make an index of so many rows take, about. Nothing is allocated."""

    @property
    def insert_labels(self) -> bool:
        """Whether training inserts labels into the index."""
        return False

    @property
    def query_history(self) -> QueryHistory:
        """Which inputs of training steps the index wants to be built with."""
        return QueryHistory(every=4, per_step=64, total=64)

    def __repr__(self) -> str:
        default = type(self)()
        names = (item.name for item in fields(self))  # type: ignore[arg-type]  # all kinds are dataclasses
        changed = (name for name in names if getattr(self, name) != getattr(default, name))
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"


@dataclass(frozen=True, repr=False)
class HashTableConfig(IndexConfig):
    """Settings of a :class:`HashTableIndex`, L hash tables of K hashes.

    The defaults bound the cost of a look-up and of a row that moves, whatever N is. L is 24, and a bucket holds 64 ids:
    four cache lines. A look-up meets at most 24 times 64 rows, and a row that moves is written to 24 places. The codes
    of 24 tables, some 10 bits each, are 240 bits of a row's angle, which rank the rows met.

    K makes ``N / 128`` buckets, rounded up to a power of two. One to two times as many rows belong to a bucket as fit,
    and the ids take about ``N * L`` numbers. For the same memory, more tables that hold a sample of their rows find
    more than fewer that hold all of them.

    Attributes:
        hash: the hash family. ``"simhash"``: Gaussian projections; ``"simhash_hadamard"``: the same by fast transforms;
            ``"cross_polytope"``; ``"dwta"``: densified winner-take-all, the family of SLIDE and BOLT.
        hashes_per_table: K, the hashes of one code; None: from N.
        num_tables: L; None: 24.
        bucket_size: row ids that a bucket holds at most; None: 64, or from N if K is given.
        probes: buckets that a query looks up in each table: its own, then those that a small move of the query would
            lead to.
        selection: which rows of these buckets are taken. ``"ranked"``: those in most of them, ranked again by the bits
            of their codes; ``"frequency"``: those in most of them; ``"vanilla"``: the first ones met. ``"auto"``:
            "frequency" with ``insert_labels``, else "ranked".
        min_matches: leave out rows in fewer of a query's buckets.
        sketch_bits: with "ranked": rank by sketches of this many SimHash bits (480: one cache line per row) instead of
            the codes of the tables; 0: no sketches.
        bucket_policy: which rows an overfull bucket keeps: ``"reservoir"``, a uniform sample; ``"fifo"``, the latest.
        insert_labels: while training, put labels into the buckets of queries that miss them, as BOLT does. The next
            full re-hash removes them. Has no use with "ranked", which compares the rows' own codes.
        mips: hash augmented rows, whose angle to a query follows the inner product; else the rows as they are.
        balance: hash in coordinates in which rows and queries have the same second moment. Inner products stay the
            same. Finds more where queries have much in common, as behind a ReLU. Needs ``mips``. The queries are the
            inputs of the last step before a full re-hash.

    Raises:
        ValueError, TypeError: a value is of no use.

    >>> HashTableConfig(hash="dwta", num_tables=50).make(1000, 16, seed=0).num_tables
    50
    """

    hash: str = "simhash"
    hashes_per_table: int | None = None
    num_tables: int | None = None
    bucket_size: int | None = None
    probes: int = 1
    selection: str = "auto"
    min_matches: int = 1
    sketch_bits: int = 0
    bucket_policy: str = "reservoir"
    insert_labels: bool = False
    mips: bool = False
    balance: bool = False

    def __post_init__(self) -> None:
        check_choice("hash", self.hash, FAMILIES)
        check_choice("selection", self.selection, ("auto", *SELECTIONS))
        check_choice("bucket_policy", self.bucket_policy, BUCKET_POLICIES)
        check_optional_int("hashes_per_table", self.hashes_per_table, family_type(self.hash).max_hashes_per_table())
        check_optional_int("num_tables", self.num_tables, _MOST_TABLES)
        check_optional_int("bucket_size", self.bucket_size)
        check_int("probes", self.probes, most=_MOST_PROBES)
        check_int("min_matches", self.min_matches)
        check_int("sketch_bits", self.sketch_bits, least=0, most=_MOST_SKETCH_BITS)
        for name in ("insert_labels", "mips", "balance"):
            check_bool(name, getattr(self, name))
        if self.balance and not self.mips:
            raise ValueError("balance is True and mips is False; wanted mips=True with balance")
        if self.insert_labels and self.selection == "ranked":
            raise ValueError(
                "selection is 'ranked', which ignores inserted labels; "
                "wanted 'auto', 'frequency' or 'vanilla' with insert_labels"
            )

    @property
    def name(self) -> str:
        return self.hash

    @property
    def selection_mode(self) -> str:
        """``selection`` with "auto" resolved."""
        if self.selection != "auto":
            return self.selection
        return "frequency" if self.insert_labels else "ranked"

    @property
    def query_history(self) -> QueryHistory:
        return QueryHistory(every=1, per_step=512, total=512) if self.balance else super().query_history

    def make(self, num_rows: int, in_features: int, seed: int) -> HashTableIndex:
        return HashTableIndex(
            num_rows,
            in_features,
            hash=self.hash,
            hashes_per_table=self.hashes_per_table,
            num_tables=self.num_tables,
            bucket_size=self.bucket_size,
            mips=self.mips,
            probes=self.probes,
            selection=self.selection_mode,
            min_matches=self.min_matches,
            sketch_bits=self.sketch_bits,
            bucket_policy=self.bucket_policy,
            balance=self.balance,
            seed=seed,
        )

    def nbytes(self, num_rows: int, in_features: int) -> int:
        tables = table_bytes(num_rows, in_features, self.hash, self.hashes_per_table, self.num_tables, self.bucket_size)
        return tables + num_rows * self.sketch_bits // 8


@dataclass(frozen=True, repr=False)
class PartitionConfig(IndexConfig):
    """Settings of a :class:`PartitionIndex`: ``2**K`` buckets, learned from rows and from inputs of the latest steps.

    They are learned anew when they find less than they did.

    Attributes:
        hashes_per_table: K; None: from N.
        probes: how many rows a look-up examines, in buckets of average size; None: ``N / 16 + 4096`` rows.

    Raises:
        ValueError: a value is of no use.

    >>> PartitionConfig(hashes_per_table=5).make(1000, 16, seed=0).hashes_per_table
    5
    """

    hashes_per_table: int | None = None
    probes: int | None = None

    name: ClassVar[str] = "learned"

    def __post_init__(self) -> None:
        check_optional_int("hashes_per_table", self.hashes_per_table, LearnedPartition.max_hashes_per_table)
        check_optional_int("probes", self.probes)

    @property
    def query_history(self) -> QueryHistory:
        return QueryHistory(every=4, per_step=64, total=1024)

    def make(self, num_rows: int, in_features: int, seed: int) -> PartitionIndex:
        return PartitionIndex(
            num_rows, in_features, hashes_per_table=self.hashes_per_table, probes=self.probes, seed=seed
        )

    def nbytes(self, num_rows: int, in_features: int) -> int:
        buckets = 0 if self.hashes_per_table is None else 1 << self.hashes_per_table
        return num_rows * (in_features // 4 + 32) + 2 * buckets * in_features * 4


@dataclass(frozen=True, repr=False)
class SignCodeConfig(IndexConfig):
    """A :class:`SignCodeIndex`: one bit per dimension of each row, all compared with each query.

    Finds most for its time where N is small or few queries are looked up.

    >>> SignCodeConfig().make(1000, 16, seed=0).best_first
    False
    """

    name: ClassVar[str] = "sign_codes"

    def make(self, num_rows: int, in_features: int, seed: int) -> SignCodeIndex:
        return SignCodeIndex(num_rows, in_features, seed=seed)

    def nbytes(self, num_rows: int, in_features: int) -> int:
        return num_rows * (in_features // 8 + 4)


INDEX_CONFIGS: dict[str, type[IndexConfig]] = {
    kind.__name__: kind for kind in (HashTableConfig, PartitionConfig, SignCodeConfig)
}
_OTHER_KINDS: dict[str, type[IndexConfig]] = {kind.name: kind for kind in (PartitionConfig, SignCodeConfig)}
INDEX_NAMES = (*FAMILIES, *_OTHER_KINDS)


def named_index_config(name: str, **settings: Any) -> IndexConfig:
    """Settings of an index by one name, as command lines give it: a hash family, ``"learned"`` or ``"sign_codes"``.

    Args:
        name: one of :data:`INDEX_NAMES`.
        settings: fields of the kind's dataclass.

    >>> named_index_config("dwta", num_tables=50).num_tables
    50
    >>> named_index_config("learned", probes=100)
    PartitionConfig(probes=100)
    """
    check_choice("hash", name, INDEX_NAMES)
    kind = _OTHER_KINDS.get(name)
    return HashTableConfig(hash=name, **settings) if kind is None else kind(**settings)
