"""LSHConfig: the settings of an LSH layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from .index.checks import check_choice
from .index.config import HashTableConfig, IndexConfig, named_index_config
from .rehash import ExponentialBackoff, RehashPolicy

SCOPES = ("batch", "sample")
RANKINGS = ("exact", "active")
CORRECTIONS = ("auto", "stratified", "even", "none")
SAMPLERS = ("lsh", "uniform", "log_uniform", "frequency", "in_batch")


@dataclass(frozen=True)
class LSHConfig:
    """The settings of an LSH layer. Every field has a default that works.

    The defaults are cheap: the cost of a step hardly grows with the layer. :func:`torch_lsh.autotune` measures what a
    layer's own weights and inputs ask for.

    Attributes:
        active: active rows per step: an int, or a fraction of the layer. None: ``8 * sqrt(N)`` of the layer's N rows,
            at least 1024; an eighth of that in scope "sample", whose samples do not share their rows. This lies between
            a fixed number, which is an ever smaller share of a larger layer, and a fixed share, which makes a step
            linear in N: it is 3.5 % of 50 thousand rows, 1 % of 670 thousand, 0.25 % of 10 million. Below 1024 rows,
            most of a step does not depend on their number.
        scope: ``"batch"``: the batch shares one active set (one matrix product). ``"sample"``: each sample has its own,
            as in SLIDE.
        random_fraction: the least share of ``active`` that is drawn uniformly; 0: no random rows.
        carry: in scope "batch": keep the rows that the last step pushed down most as candidates for the next one. Only
            some samples of the batch are then looked up. 0.5 keeps half as many rows as are active; 0 keeps none.
        sampler: what finds the active rows beside the labels. ``"lsh"``: the index. For comparison: ``"uniform"``
            draws; ``"log_uniform"``: Zipf's law, for rows in order of decreasing frequency; ``"frequency"``: in
            proportion to label counts, given (:meth:`torch_lsh.LSHLinear.set_label_counts`) or counted while training;
            ``"in_batch"``: the labels of the other samples (ignores ``active``; scope "batch" only). Each has its own
            correction.
        correction: of the softmax over the active rows. ``"stratified"`` weighs random rows by the inverse of their
            sampling probability, which makes the sampled partition function an unbiased estimate of the full one
            (Kool et al. 2019). ``"even"`` lets every active row except the sample's own labels stand for N / active
            rows, as if all were drawn uniformly. Active rows score high, so this overestimates the partition function:
            labels keep being learned until they beat that many rivals, and the labels of one sample hardly compete
            with each other. ``"none"`` leaves the softmax as it is. ``"auto"``: "even" for cross entropy with several
            labels per sample (ranking), else "stratified" (probabilities, binary cross entropy).
        ranking: what ``topk``, ``argmax`` and ``max`` rank while training: ``"exact"``: all rows; ``"active"``: the
            active rows of the loss on the same logits, or those that a look-up finds. In ``eval()`` mode all rows.
        rehash: when the index follows the weights in training: :class:`torch_lsh.rehash.FixedInterval`,
            :class:`torch_lsh.rehash.ExponentialBackoff`, :class:`torch_lsh.rehash.Drift` (measures how many codes
            changed) or any object with ``interval(rehashes) -> steps``.
        seed: of the index and of all draws.
        index: which index finds rows, and its settings: :class:`torch_lsh.HashTableConfig`,
            :class:`torch_lsh.PartitionConfig` or :class:`torch_lsh.SignCodeConfig`.

    Raises:
        ValueError, TypeError: a value is of no use.

    >>> LSHConfig(active=0.01).active_rows(out_features=50_000)
    500
    >>> LSHConfig(index=HashTableConfig(hash="dwta", num_tables=50)).index.num_tables
    50
    """

    active: int | float | None = None
    scope: str = "batch"
    random_fraction: float = 0.1
    carry: float = 0.5
    sampler: str = "lsh"
    correction: str = "auto"
    ranking: str = "exact"
    rehash: RehashPolicy = field(default_factory=ExponentialBackoff)
    seed: int = 0
    index: IndexConfig = field(default_factory=HashTableConfig)

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, SCOPES)
        check_choice("correction", self.correction, CORRECTIONS)
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("ranking", self.ranking, RANKINGS)
        if not isinstance(self.index, IndexConfig):
            raise TypeError(f"index is {self.index!r}; wanted a HashTableConfig, PartitionConfig or SignCodeConfig")
        if self.sampler == "in_batch" and self.scope != "batch":
            raise ValueError("sampler is 'in_batch', whose rows the batch shares; wanted scope 'batch'")
        for name in ("active", "random_fraction", "carry", "seed"):
            number: Any = getattr(self, name)
            missing = number is None and name == "active"
            if isinstance(number, bool) or not (missing or isinstance(number, int if name == "seed" else (int, float))):
                raise TypeError(f"{name} is {number!r}; wanted a number")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; wanted a 64-bit integer")
        if isinstance(self.active, float) and not 0 < self.active <= 1:
            raise ValueError(f"active is {self.active}; wanted a fraction of the layer in (0, 1]")
        if isinstance(self.active, int) and self.active < 1:
            raise ValueError(f"active is {self.active}; wanted at least 1 row")
        for name, share in (("random_fraction", self.random_fraction), ("carry", self.carry)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; wanted 0 to 1")
        if not isinstance(self.rehash, RehashPolicy):
            raise ValueError(f"rehash is {self.rehash!r}; wanted an object with interval(rehashes) -> steps")

    def active_rows(self, out_features: int) -> int:
        """Active rows per step of a layer with ``out_features`` rows, at most all of them."""
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
        """The least number of ``active`` rows that are drawn uniformly."""
        return math.ceil(self.random_fraction * active)

    @classmethod
    def from_options(cls, hash: str = HashTableConfig.hash, **options: Any) -> LSHConfig:
        """The settings from one flat set of names and values, as command lines give them.

        Args:
            hash: a hash family, ``"learned"`` or ``"sign_codes"``; see
                :func:`torch_lsh.index.config.named_index_config`.
            options: fields of :class:`LSHConfig`; all others are fields of the index.

        >>> LSHConfig.from_options(hash="learned", probes=100, active=0.01).index
        PartitionConfig(probes=100)
        """
        own = {name: options.pop(name) for name in [item.name for item in fields(cls)] if name in options}
        return cls(**{"index": named_index_config(hash, **options), **own})

    @classmethod
    def slide_amazon670k(cls) -> LSHConfig:
        """The output layer of SLIDE's Amazon-670K run, for comparison; batches of 128.

        From the published configuration: DWTA with K = 6 and L = 50, FIFO buckets of 128, 0.5 % active rows per sample
        in the order they are met, no correction, a re-hash every 50 batches with exponential back-off. (SLIDE has 2^18
        buckets per table; here there are as many as codes.)

        References:
            Chen et al., "SLIDE: In Defense of Smart Algorithms over Hardware Acceleration", MLSys 2020.

        >>> LSHConfig.slide_amazon670k().active_rows(670_091)
        3351
        """
        return cls(
            active=0.005,
            scope="sample",
            random_fraction=0.0,
            correction="none",
            rehash=ExponentialBackoff(initial=50, factor=1.1, maximum=1000, touches=1),
            index=HashTableConfig(
                hash="dwta",
                hashes_per_table=6,
                num_tables=50,
                bucket_size=128,
                selection="vanilla",
                bucket_policy="fifo",
            ),
        )

    @classmethod
    def bolt(cls, out_features: int, active: int | float) -> LSHConfig:
        """A layer as BOLT tunes it, for comparison.

        With a share s of active rows: K = round(log2(128 / s) / 3) DWTA hashes, 2 to 8; L = s * 8^K tables, so that the
        buckets of a query hold the active rows in expectation; buckets for four times their mean load; one active set
        per sample; labels inserted into the buckets of queries that miss them.

        Args:
            out_features: rows of the layer.
            active: active rows: an int or a fraction of the layer.

        Raises:
            ValueError: an argument is not positive.

        References:
            Meisburger et al., "BOLT: An Automated Deep Learning Framework for Training and Deploying Large-Scale Search
            and Recommendation Models on Commodity CPU Hardware", CIKM 2023.

        >>> index = LSHConfig.bolt(670_091, 0.005).index
        >>> index.hashes_per_table, index.num_tables, index.bucket_size
        (5, 164, 80)
        """
        if out_features < 1:
            raise ValueError(f"out_features is {out_features}; wanted at least 1")
        rows = cls(active=active).active_rows(out_features)
        share = rows / out_features
        hashes = min(max(round(math.log2(128 / share) / 3), 2), 8)
        buckets = 8**hashes
        return cls(
            active=active,
            scope="sample",
            random_fraction=0.0,
            correction="none",
            rehash=ExponentialBackoff(initial=50, factor=1.1, maximum=1000, touches=1),
            index=HashTableConfig(
                hash="dwta",
                hashes_per_table=hashes,
                num_tables=max(1, round(share * buckets)),
                bucket_size=4 * max(1, out_features // buckets),
                selection="vanilla",
                insert_labels=True,
            ),
        )
