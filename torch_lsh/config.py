"""LSHConfig: everything that can be set about an LSH layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .rehash import ExponentialBackoff, RehashPolicy

HASHES = ("simhash", "simhash_hadamard", "srp_sparse", "cross_polytope", "dwta")  # whatever the rows
SCOPES = ("batch", "sample")
CORRECTIONS = ("auto", "stratified", "even", "none")
SAMPLERS = ("lsh", "uniform", "log_uniform", "frequency", "in_batch")
SELECTIONS = ("auto", "ranked", "frequency", "vanilla")
BUCKET_POLICIES = ("reservoir", "fifo")


@dataclass(frozen=True)
class LSHConfig:
    """The settings of an LSH layer; every field has a default that works.

    The defaults are the cheap end: a step whose cost hardly grows with the layer. What a layer's own weights and inputs
    ask for is measured by :func:`torch_lsh.autotune`. Where a field is None it follows from the layer's N rows:

    * ``active``: ``8 * sqrt(N)``, at least 1024: between a fixed number, which is an ever smaller share of a larger
      layer, and a fixed share, which makes a step linear in N. It is 3.5 % of 50 thousand rows, 1 % of 670 thousand,
      0.25 % of 10 million. (With fewer than 1024, what does not depend on them is most of a step.) With a set per
      sample an eighth of that, because samples do not share it.
    * ``num_tables`` L = 24, ``bucket_size`` 64: a bucket's ids are four cache lines, a look-up meets at most 24 times
      64 rows whatever N is, and a row that moves is written to 24 places. Codes of 24 tables of some 10 bits, which
      rank the rows met, are 240 bits of its angle.
    * ``hashes_per_table`` K: so many that there are ``N / (2 * bucket_size)`` buckets, rounded up to a power of two, to
      each of which one to two times as many rows belong as fit. The ids take about ``N * L`` numbers then: for as much
      memory, more tables that hold a sample of their rows find more than fewer that hold all of them.

    Attributes:
        hash: hash family: ``"simhash"`` (Gaussian projections), ``"simhash_hadamard"`` (the same by fast transforms),
            ``"srp_sparse"`` (sparse ±1 projections), ``"cross_polytope"`` or ``"dwta"`` (densified winner-take-all, the
            family of SLIDE and BOLT). Or ``"learned"``: one table of ``2**K`` buckets that are learned from the rows
            and from inputs of the latest steps, and learned anew where they find less than they did
            (:class:`LearnedIndex`); ``num_tables``, ``bucket_size``, ``selection``, ``min_matches``,
            ``sketch_bits``, ``bucket_policy``, ``insert_labels``, ``mips`` and ``balance`` are of the others.
        hashes_per_table: K, the hashes that make one code; None: from the layer's shape.
        num_tables: L; None: from the layer's shape.
        bucket_size: row ids that a bucket holds at most; None: from the layer's shape.
        probes: buckets that a query looks up in each table: its own, and those that a small move of it would lead to.
            None: 1, or with "learned" from the layer's shape.
        selection: which rows in a query's buckets are taken: ``"ranked"``, those in most of them, ranked again by the
            bits of their codes; ``"frequency"``, those in most of them; ``"vanilla"``, what comes first; ``"auto"``:
            "ranked", but "frequency" with ``insert_labels``.
        min_matches: leave out rows in fewer of a query's buckets.
        sketch_bits: with "ranked": compare sketches of this many SimHash bits (480: a cache line per row) rather than
            the codes of the tables; 0: none.
        bucket_policy: what an overfull bucket keeps: ``"reservoir"``, a uniform sample, or ``"fifo"``, the latest rows.
        insert_labels: while training, put labels into the buckets of their own queries, where these would miss them
            (as BOLT does). The next full re-hash takes them out.
        active: active rows per step: an int, a fraction of the layer, or None for a number derived from the layer:
            ``max(1024, 8 * sqrt(out_features))`` in scope "batch", an eighth of that in scope "sample".
        scope: ``"batch"``: one active set that the batch shares (one matrix product); ``"sample"``: one per
            sample, as in SLIDE.
        random_fraction: share of ``active`` drawn uniformly, at least; 0: no random row at all.
        carry: scope "batch": rows that the last step pushed down most are candidates again, beside rows found by
            hashing, and hashing then looks only some samples of the batch up. At 0.5 as many of ``active`` rows are
            remembered; 0: none.
        sampler: what finds the active rows beside the labels: ``"lsh"``, hashing; or, for comparison, ``"uniform"``
            draws; ``"log_uniform"``, by Zipf's law for rows numbered by decreasing frequency; ``"frequency"``, in
            proportion to label counts, given (:meth:`torch_lsh.LSHLinear.set_label_counts`) or counted while training;
            ``"in_batch"``, the labels of the other samples (``active`` does not count; scope "batch"). Each with its
            correction. Rows are hashed with "lsh" only, and for ``topk(exact=False)``.
        correction: of the softmax over the active rows. ``"stratified"`` weighs random rows by their known sampling
            probability, which makes the sampled partition function an unbiased estimate of the full one (Kool et al.
            2019 and DESIGN in README). ``"even"`` lets every active row, but the sample's own labels, stand for as many
            of the N rows as any other: as if they were drawn uniformly. It overestimates the partition function, since
            the active rows score high; labels are learned from as long as that many rivals of theirs are not ruled out,
            and a sample's labels hardly compete with each other. ``"none"`` leaves the softmax as it is. ``"auto"``:
            "even" for cross entropy with several labels per sample (ranking), else "stratified" (probabilities; binary
            cross entropy).
        rehash: when the tables follow the weights while training: :class:`torch_lsh.rehash.FixedInterval`,
            :class:`torch_lsh.rehash.ExponentialBackoff`, :class:`torch_lsh.rehash.Drift` (measures how many codes
            changed) or any object with ``interval(rehashes) -> steps``.
        mips: augment rows so that the angle follows the inner product, instead of hashing the row as it is.
        balance: change coordinates before hashing so that rows and queries have the same second moment; inner products
            stay. Finds more where queries point much the same way, as behind a ReLU. The queries are inputs of the
            steps before a full re-hash. Needs ``mips``.
        seed: of hash functions and draws.

    >>> LSHConfig(active=0.01).active_rows(out_features=50_000)
    500
    """

    hash: str = "simhash"
    hashes_per_table: int | None = None
    num_tables: int | None = None
    bucket_size: int | None = None
    probes: int | None = None
    selection: str = "auto"
    min_matches: int = 1
    sketch_bits: int = 0
    bucket_policy: str = "reservoir"
    insert_labels: bool = False
    active: int | float | None = None
    scope: str = "batch"
    random_fraction: float = 0.1
    carry: float = 0.5
    sampler: str = "lsh"
    correction: str = "auto"
    rehash: RehashPolicy = field(default_factory=ExponentialBackoff)
    mips: bool = False
    balance: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, wanted in (
            ("hash", self.hash, (*HASHES, "learned")),
            ("scope", self.scope, SCOPES),
            ("correction", self.correction, CORRECTIONS),
            ("sampler", self.sampler, SAMPLERS),
            ("selection", self.selection, SELECTIONS),
            ("bucket_policy", self.bucket_policy, BUCKET_POLICIES),
        ):
            if value not in wanted:
                raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(repr, wanted))}")
        for name in ("hashes_per_table", "num_tables", "bucket_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; wanted a positive int or None")
        for name in ("insert_labels", "mips", "balance"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; wanted True or False")
        for name in ("probes", "min_matches"):
            value = getattr(self, name)
            if value is None and name == "probes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; wanted a positive int")
        if isinstance(self.sketch_bits, bool) or not isinstance(self.sketch_bits, int) or self.sketch_bits < 0:
            raise ValueError(f"sketch_bits is {self.sketch_bits!r}; wanted an int, 0 or more")
        if self.hash == "learned":
            self._check_learned()
        if self.balance and not self.mips:
            raise ValueError("balance is True, which needs mips=True: it leaves rows of very different lengths")
        if self.sampler == "in_batch" and self.scope != "batch":
            raise ValueError("sampler is 'in_batch', whose rows the batch shares; wanted scope 'batch'")
        if self.insert_labels and self.selection == "ranked":
            raise ValueError(
                "selection is 'ranked', by the rows' own codes, which makes nothing of insert_labels; "
                "wanted 'auto', 'frequency' or 'vanilla'"
            )
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

    def _check_learned(self) -> None:
        for name, wanted in (
            ("num_tables", (None, 1)),
            ("bucket_size", (None,)),
            ("selection", ("auto", "ranked")),
            ("min_matches", (1,)),
            ("sketch_bits", (0,)),
            ("bucket_policy", ("reservoir",)),
            ("insert_labels", (False,)),
            ("balance", (False,)),
        ):
            value = getattr(self, name)
            if value not in wanted:
                raise ValueError(
                    f"{name} is {value!r}, which hash 'learned' has no use for; wanted {' or '.join(map(repr, wanted))}"
                )

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

    @property
    def selection_mode(self) -> str:
        """``selection`` with "auto" resolved."""
        if self.selection != "auto":
            return self.selection
        return "frequency" if self.insert_labels else "ranked"

    @classmethod
    def slide_amazon670k(cls) -> LSHConfig:
        """The output layer of SLIDE's Amazon-670K run (Chen et al., MLSys 2020), for comparison; batches of 128.

        From the published configuration: DWTA with K = 6 and L = 50, FIFO buckets of 128, 0.5 % active rows per sample,
        taken as they come, no correction, re-hashed every 50 batches with exponential back-off. (SLIDE takes 2^18
        buckets per table; here there are as many as codes.)

        >>> LSHConfig.slide_amazon670k().active_rows(670_091)
        3351
        """
        return cls(
            hash="dwta",
            hashes_per_table=6,
            num_tables=50,
            bucket_size=128,
            selection="vanilla",
            bucket_policy="fifo",
            active=0.005,
            scope="sample",
            random_fraction=0.0,
            correction="none",
            rehash=ExponentialBackoff(initial=50, factor=1.1, maximum=1000, touches=1),
        )

    @classmethod
    def bolt(cls, out_features: int, active: int | float) -> LSHConfig:
        """A layer as BOLT (Meisburger et al., 2023) tunes it, for comparison.

        With a share s of active rows, K = round(log2(128 / s) / 3) DWTA hashes, 2 to 8; L = s * 8^K tables, so that the
        buckets of a query hold the active rows in expectation; buckets for four times their mean load; one set per
        sample; labels are inserted into the buckets of queries that miss them.

        Args:
            out_features: rows of the layer.
            active: active rows: an int or a fraction of the layer.

        Raises:
            ValueError: an argument is not positive.

        >>> config = LSHConfig.bolt(670_091, 0.005)
        >>> config.hashes_per_table, config.num_tables, config.bucket_size
        (5, 164, 80)
        """
        if out_features < 1:
            raise ValueError(f"out_features is {out_features}; wanted at least 1")
        rows = cls(active=active).active_rows(out_features)
        share = rows / out_features
        hashes = min(max(round(math.log2(128 / share) / 3), 2), 8)
        buckets = 8**hashes
        return cls(
            hash="dwta",
            hashes_per_table=hashes,
            num_tables=max(1, round(share * buckets)),
            bucket_size=4 * max(1, out_features // buckets),
            selection="vanilla",
            insert_labels=True,
            active=active,
            scope="sample",
            random_fraction=0.0,
            correction="none",
            rehash=ExponentialBackoff(initial=50, factor=1.1, maximum=1000, touches=1),
        )

    def random_rows(self, active: int) -> int:
        """How many of ``active`` rows are drawn uniformly, at least."""
        return math.ceil(self.random_fraction * active)
