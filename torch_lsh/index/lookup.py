"""LookupIndex: the best rows of few queries, with as little effort as a recall takes."""

from __future__ import annotations

import bisect
import logging
import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .base import Index, StoredTensor, best_rows, finite_queries
from .partition import PartitionIndex, Route
from .sign_codes import SignCodeIndex

LEAST_QUERIES = 256  # recall is measured, and buckets are learned, from so many queries
_LEAST_PARTITIONED = 1 << 15  # rows; comparing fewer with the query takes no longer than learned buckets
_JUDGES = 256  # queries that recall is measured on; buckets learn from others, at least three quarters of those given
_CANDIDATES, _CANDIDATES_PER_RESULT = 512, 16  # rows scored exactly where recall was not measured
_MOST_CANDIDATES = 4096
# Standard errors by which measured recall exceeds the target: 99 % confidence in one effort, and about 95 % in the
# cheapest of many, which are measured on the same queries.
_CONFIDENCE = 2.33
_LEAST_MISSES = 10  # expected among the rows that are judged, at the target: fewer say little
_MOST_JUDGED = 100  # rows per query for that, where k is less
_K, _RECALL = 10, 0.95  # what the kinds are compared at
_BUCKETS_PER_ROOT = 10  # buckets: so many times the root of the number of rows
_ROWS_PER_BUCKET = 64  # of clustered rows, at most: where that takes more buckets
_COMPARED = 128  # groups of buckets that clustered rows are compared with, at most
_SAMPLED_ROWS, _LEAST_STEP = 1 << 18, 8  # the quick way is tried on so many first, of so many times more
_EXAMINED = 128, 256, 512  # rows, before 1,024 and more
_CLEARLY = 4  # buckets that cost so many times less than sign codes are taken without another try
# A byte of a code that is examined in its bucket costs as much as so many of codes read in order, where a cache may
# hold all codes and where none does. Measured: 5 times among 670,091 rows on AMD EPYC (Zen 4: 4 to 7 ns per row, 0.03
# per byte in order; width 128), 2 to 4 times on an Intel Xeon (4.4 ns per row; 0.03 per byte in order by two threads,
# 0.05 by one), 23 times among 6.7 million rows (25 ns per row; Zen 4).
_EXAMINED_COST, _EXAMINED_FAR_COST, _NEAR_BYTES = 5, 10, 32 << 20
_GATHERED = 2  # a byte of a row scored exactly costs as much as so many of codes read in order

_log = logging.getLogger("torch_lsh")


class Effort(NamedTuple):
    """What a look-up spends for a recall, and what it found when that was measured.

    Attributes:
        k: results.
        target: recall@k that was asked for.
        examined: rows that are compared with the query by their codes.
        candidates: rows of these that are scored exactly; all rows: codes are of no use for this recall.
        recall: the share of the ``k`` best rows among the candidates; NaN: not measured.
        error: standard error of ``recall``.
        route: how learned buckets are scored; None: there are none.
    """

    k: int
    target: float
    examined: int
    candidates: int
    recall: float
    error: float
    route: Route | None = None


class LookupIndex(Index):
    """Finds the best rows of single queries: sign codes of all rows, or learned buckets where these cost less.

    A build decides by the number of rows and by measurement. Below 32,768 rows, or with fewer than 256 queries to
    learn from, it makes a :class:`SignCodeIndex`, whose cost per query is ``width / 8 + 4`` bytes of every row. Above,
    it makes a :class:`PartitionIndex` of about ``10 * sqrt(N)`` buckets and measures how many rows that has to examine
    for a recall@10 of 0.95. If reading these takes more than a quarter of all sign codes (clustered rows), it makes
    one of up to ``N / 32`` buckets, one per cluster where that is fewer, with a closer look at each row; and sign
    codes after all if these cost less than both (rows without structure). From two million rows on, the first is made
    only if it suffices among a sample of the rows.

    :meth:`effort` finds, by measurement on the latest queries, how to score buckets, how many rows to examine and how
    many to score exactly for a recall: all, where that costs less or where measurement cannot show the recall. Costs
    are bytes read, not seconds, so equal builds have equal results; bytes that are read here and there count several
    times. :meth:`judge` gives other queries to measure on.

    One thread may change the index or measure; any number may call :meth:`search`.

    Args:
        num_rows: N, rows of the weight.
        in_features: width of the weight.
        seed: of everything random.

    Raises:
        ValueError: an argument is out of range.

    >>> weight = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    >>> index = LookupIndex(1000, 16)
    >>> index.build(weight, None, weight + 0.1)
    >>> effort = index.effort(weight, None, k=3, recall=0.9)
    >>> effort.recall > 0.9, 3 <= effort.candidates < 500
    (True, True)
    >>> 7 in index.search(weight[[7]], effort)
    True
    """

    best_first = False

    def __init__(self, num_rows: int, in_features: int, *, seed: int = 0) -> None:
        super().__init__(num_rows, in_features, seed)
        self._clear()

    def _clear(self) -> None:
        self._kind: SignCodeIndex | PartitionIndex | None = None
        self._judges = torch.zeros(0, self.in_features, dtype=torch.float32, device="cpu")
        self._efforts: dict[tuple[int, float], Effort] = {}
        self._updated = 0  # rows taken in since efforts were measured
        self.build_seconds = math.nan

    @property
    def is_built(self) -> bool:
        return self._kind is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of what was learned."""
        return 0 if self._kind is None else self._kind.nbytes + self._judges.nbytes

    @property
    def kind(self) -> Index | None:
        """The index that was made; None: not built."""
        return self._kind

    @property
    def hashes_per_table(self) -> int | None:
        return None if self._kind is None else self._kind.hashes_per_table

    @property
    def is_measured(self) -> bool:
        """Whether queries are known to measure recall on."""
        return len(self._judges) > 0

    @property
    def efforts(self) -> tuple[Effort, ...]:
        """What was measured so far."""
        return tuple(self._efforts.values())

    # --- rows ---

    def _build(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None:
        start = time.perf_counter()
        taught = self._take_judges(queries)
        kind: SignCodeIndex | PartitionIndex | None = None
        if self.num_rows >= _LEAST_PARTITIONED and self.is_measured:
            kind = self._partition(weight, bias, taught)
        if kind is None:
            kind = SignCodeIndex(self.num_rows, self.in_features, seed=self.seed)
            kind.build(weight, bias, queries)
            if queries is not None:
                self.judge(queries)  # nothing was learned from these but their mean
        self._kind = kind
        self.build_seconds = time.perf_counter() - start

    def _take_judges(self, queries: Tensor | None) -> Tensor | None:
        """Keeps the latest queries to measure with; returns the others."""
        self._judges = self._judges[:0]
        self._forget_efforts()
        if queries is None:
            return None
        queries = finite_queries(queries)
        judges = min(_JUDGES, len(queries) // 4)
        self.judge(queries, judges)
        return queries[: len(queries) - judges] if self.is_measured else queries

    def judge(self, queries: Tensor, count: int = _JUDGES) -> None:
        """Measures recall on the last ``count`` of these from now on.

        Fewer than 256 finite ones change nothing, nor do those that it is measured on already.

        Args:
            queries: ``[Q, in_features]``, the latest last. Buckets must not have learned from the last ones.
        """
        queries = finite_queries(queries)
        if len(queries) >= LEAST_QUERIES and not torch.equal(queries[-count:], self._judges):
            self._judges = queries[-count:].clone()
            self._forget_efforts()

    def _forget_efforts(self) -> None:
        self._efforts, self._updated = {}, 0

    def _partition(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> PartitionIndex | None:
        """Learned buckets; None where sign codes cost less.

        Rows in tight clusters need more buckets and a closer look at each row, which takes several times longer to
        build; so the quick way is tried first: of very many rows, on a sample.
        """
        all_codes = self.num_rows * (self.in_features // 8 + 4)
        best = best_rows(self._judges, weight, bias, _K)
        found: PartitionIndex | None = None
        least = float(all_codes)
        for compared in (1, _COMPARED) if self._is_quick_enough(weight, bias, queries) else (_COMPARED,):
            bits = _bucket_bits(self.num_rows, compared)
            partition = PartitionIndex(
                self.num_rows, self.in_features, hashes_per_table=bits, compared=compared, seed=self.seed
            )
            partition.build(weight, bias, queries)
            effort = _measured(partition, self._judges, best, _K, _RECALL, most=all_codes)
            cost = _cost(partition, effort)
            _log.info(
                "look-ups among %d rows: %d buckets (%s) need %d bytes for recall %.3f, sign codes %d",
                *(self.num_rows, partition.family.num_centers, effort.route, cost, effort.recall, all_codes),
            )
            if effort.recall >= _RECALL and cost < least:
                found, least = partition, cost
            if _CLEARLY * least < all_codes:
                break
        return found

    def _is_quick_enough(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> bool:
        """Whether the quick way is worth a try: of very many rows, where it reaches the recall among a sample."""
        step = self.num_rows // _SAMPLED_ROWS
        if step < _LEAST_STEP:
            return True
        weight, bias = weight[::step].contiguous(), None if bias is None else bias[::step].contiguous()
        num_rows = len(weight)
        partition = PartitionIndex(
            num_rows, self.in_features, hashes_per_table=_bucket_bits(num_rows, 1), seed=self.seed
        )
        partition.build(weight, bias, queries)
        most = num_rows * (self.in_features // 8 + 4) / _CLEARLY
        best = best_rows(self._judges, weight, bias, _K)
        effort = _measured(partition, self._judges, best, _K, _RECALL, most=most)
        cost = _cost(partition, effort)
        _log.info("look-ups among a sample of %d rows need %d bytes for recall %.3f", num_rows, cost, effort.recall)
        return effort.recall >= _RECALL and cost < most

    def _rehash(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None:
        kind = self._built()
        kind.rehash(weight, bias, queries)
        self._forget_efforts()
        if queries is not None:
            self.judge(queries, min(_JUDGES, len(queries) // 4) if isinstance(kind, PartitionIndex) else _JUDGES)

    def _update(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> int:
        self._updated += len(rows)
        if 2 * self._updated > self.num_rows:
            self._forget_efforts()
        return self._built()._update(weight, bias, rows)

    def _differs(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        return self._built()._differs(weight, bias, rows)

    def _outdated(self, weight: Tensor, bias: Tensor | None, queries: Tensor) -> str | None:
        return self._built()._outdated(weight, bias, queries)

    # --- queries ---

    def _query(self, x: Tensor, max_candidates: int, labels: Tensor | None) -> Tensor:
        return self._built()._query(x, max_candidates, labels)

    def search(self, x: Tensor, effort: Effort) -> Tensor:
        """The candidates of queries, at an effort that :meth:`effort` returned.

        Args:
            x: ``[B, in_features]`` float32.

        Returns:
            ``[B, effort.candidates]`` int64, in no order of quality, padded with -1.
        """
        kind = self._built()
        if isinstance(kind, PartitionIndex):
            assert effort.route is not None
            return kind.search(x, effort.candidates, effort.examined, effort.route)
        return kind.query(x, effort.candidates)

    def known_effort(self, k: int, recall: float) -> Effort | None:
        """What :meth:`effort` found with these arguments; None: not measured since much changed."""
        return self._efforts.get((k, recall))

    def effort(self, weight: Tensor, bias: Tensor | None, k: int, recall: float) -> Effort:
        """The least effort whose recall@k is at least ``recall`` with 95 % confidence; measured once.

        Costs the exact best rows of 256 queries and some look-ups. Few queries miss few rows: where ``k`` is small and
        ``recall`` near 1, more of the best rows count. A recall that nothing else is known to reach scores all rows.
        Without queries to measure on: 512 candidates and at least ``16 * k``.

        Args:
            weight, bias: as in :meth:`build`.
            k: 1 to N.
            recall: over 0, at most 1.
        """
        known = self.known_effort(k, recall)
        if known is not None:
            return known
        kind = self._built()
        if not self.is_measured:
            count = min(self.num_rows, max(_CANDIDATES, _CANDIDATES_PER_RESULT * k))
            found = Effort(k, recall, self.num_rows, count, math.nan, math.nan)
        else:
            judged = _judged_rows(len(self._judges), k, recall, self.num_rows)
            best = best_rows(self._judges, weight, bias, judged)
            found = _measured(kind, self._judges, best, k, recall)
        self._efforts[k, recall] = found
        return found

    # --- state ---

    def _settings(self) -> dict[str, Any]:
        return {"num_rows": self.num_rows, "in_features": self.in_features, "seed": self.seed}

    def _stored(self) -> dict[str, StoredTensor]:
        return {}

    def _state(self) -> dict[str, Any]:
        kind = self._built()
        return {
            "judges": self._judges,
            "kind": kind.state_dict(),
            "is_partitioned": isinstance(kind, PartitionIndex),
        }

    def _load(self, state: dict[str, Any]) -> None:
        settings = {name: value for name, value in state["kind"]["config"].items() if name not in self._settings()}
        of_kind = PartitionIndex if state["is_partitioned"] else SignCodeIndex
        kind = of_kind(self.num_rows, self.in_features, seed=self.seed, **settings)
        kind.load_state_dict(state["kind"])
        self._clear()
        self._kind, self._judges = kind, state["judges"]

    def _built(self) -> SignCodeIndex | PartitionIndex:
        self._check_built()
        assert self._kind is not None
        return self._kind


def _bucket_bits(num_rows: int, compared: int) -> int:
    """The logarithm of the number of buckets."""
    bits = round(math.log2(_BUCKETS_PER_ROOT * math.sqrt(num_rows)))
    return bits if compared == 1 else max(bits, math.ceil(math.log2(num_rows / _ROWS_PER_BUCKET)))


def _judged_rows(judges: int, k: int, recall: float, num_rows: int) -> int:
    """How many of the best rows of each query tell whether the ``k`` best are found often enough."""
    expected = judges * (1 - recall)
    wanted = _MOST_JUDGED if _MOST_JUDGED * expected < _LEAST_MISSES else math.ceil(_LEAST_MISSES / expected)
    return min(num_rows, max(k, wanted))


def _measured(
    kind: SignCodeIndex | PartitionIndex,
    judges: Tensor,
    best: Tensor,
    k: int,
    recall: float,
    most: float = math.inf,
) -> Effort:
    """The effort that reaches the recall for the least cost, which is up to ``most``, or to score all rows."""
    all_rows = Effort(k, recall, kind.num_rows, kind.num_rows, 1.0, 0.0)
    found = [(_cost(kind, all_rows), all_rows)]
    most = min(most, found[0][0])
    routes: list[Route | None] = [*kind.routes()] if isinstance(kind, PartitionIndex) else [None]
    for route in routes if recall < 1 else []:
        found += _reaching(kind, route, judges, best, k, recall, most)
        most = min(most, *(cost for cost, _ in found))
    return min(found, key=lambda one: one[0])[1]


def _reaching(
    kind: SignCodeIndex | PartitionIndex,
    route: Route | None,
    judges: Tensor,
    best: Tensor,
    k: int,
    recall: float,
    most: float,
) -> list[tuple[float, Effort]]:
    """Efforts that reach the recall for up to ``most``, with their costs, with more and more rows examined."""
    num_rows = kind.num_rows
    counts = _grid(k, min(num_rows, max(_MOST_CANDIDATES, 64 * k)))
    numbers = [num_rows]
    if route is not None:
        numbers = [*(few for few in _EXAMINED if few < num_rows), *_grid(min(num_rows, 1024), num_rows)]
    reaching = []
    for examined in numbers:
        if most < _cost(kind, Effort(k, recall, examined, k, math.nan, math.nan, route)):
            break  # what follows costs more
        found = _Found.of(kind, route, judges, best, counts[-1], examined)
        tried = [Effort(k, recall, examined, count, math.nan, math.nan, route) for count in counts]
        at = bisect.bisect_left(tried, True, key=lambda effort: found.reaches(effort))
        if at < len(tried):
            mean, error = found.recall(tried[at])
            effort = tried[at]._replace(recall=mean, error=error)
            cost = _cost(kind, effort)
            reaching.append((cost, effort))
            most = min(most, cost)
    return reaching


def _grid(least: int, most: int) -> list[int]:
    """Numbers from ``least`` to ``most``, each about a quarter more than the one before."""
    numbers = [least]
    while numbers[-1] < most:
        numbers.append(min(most, max(numbers[-1] + 1, numbers[-1] * 5 // 4)))
    return numbers


class _Found(NamedTuple):
    """Which of the best rows ``best`` ``[Q, R]`` of the queries look-ups find."""

    kind: SignCodeIndex | PartitionIndex
    judges: Tensor
    best: Tensor
    ranks: Tensor | None  # [Q, R]: how many candidates precede a row, best first; None: candidates have no order

    @classmethod
    def of(
        cls,
        kind: SignCodeIndex | PartitionIndex,
        route: Route | None,
        judges: Tensor,
        best: Tensor,
        most: int,
        examined: int,
    ) -> _Found:
        """What up to ``most`` candidates of so many rows examined hold."""
        if not isinstance(kind, PartitionIndex):
            return cls(kind, judges, best, None)
        assert route is not None
        found = kind.search(judges, most, examined, route)
        ranks = torch.full(best.shape, most, device="cpu")
        for some in range(0, len(judges), 16):
            hits = found[some : some + 16].unsqueeze(1) == best[some : some + 16].unsqueeze(2)
            ranks[some : some + 16] = torch.where(hits.any(2), hits.int().argmax(2), most)
        return cls(kind, judges, best, ranks)

    def hits(self, effort: Effort) -> Tensor:
        """``[Q, R]`` float64: 1 where a row is among the candidates, else 0."""
        if self.ranks is not None:
            return (self.ranks < effort.candidates).double()
        found = self.kind.query(self.judges, effort.candidates)  # in order
        at = torch.searchsorted(found, self.best.contiguous()).clamp_(max=effort.candidates - 1)
        return (found.gather(1, at) == self.best).double()

    def recall(self, effort: Effort) -> tuple[float, float]:
        """Of the ``k`` best rows, with its standard error."""
        return _mean(self.hits(effort)[:, : effort.k])

    def reaches(self, effort: Effort) -> bool:
        """Whether recall of the best rows is at least the target with confidence, and the measured recall@k is.

        Queries that miss nothing would have no error; so it is no less than if rows were missed independently, as many
        as the target allows.
        """
        hits, target = self.hits(effort), effort.target
        mean, error = _mean(hits)
        error = max(error, math.sqrt(target * (1 - target) / hits.numel()))
        return mean - _CONFIDENCE * error >= target and _mean(hits[:, : effort.k])[0] >= target


def _mean(hits: Tensor) -> tuple[float, float]:
    """The mean of ``[Q, R]``, and its standard error over the queries."""
    shares = hits.mean(1)
    return float(shares.mean()), float(shares.std() / math.sqrt(len(shares)))


def _cost(kind: SignCodeIndex | PartitionIndex, effort: Effort) -> float:
    """Bytes that a look-up reads; those of rows that are examined or scored exactly count as what they take longer."""
    of_row = 4 * kind.in_features
    if effort.candidates == kind.num_rows:
        return kind.num_rows * of_row  # in order
    scored = _GATHERED * of_row * effort.candidates
    if isinstance(kind, PartitionIndex):
        assert effort.route is not None
        of_bucket = kind.in_features * effort.route.bits // 8 + 4
        of_code = kind.in_features // 4 + 4
        is_near = kind.num_rows * of_code <= _NEAR_BYTES
        of_code *= _EXAMINED_COST if is_near else _EXAMINED_FAR_COST
        return effort.examined * of_code + kind.family.num_centers * of_bucket + scored
    return kind.num_rows * (kind.in_features // 8 + 4) + scored
