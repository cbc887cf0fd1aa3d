"""What an LSH layer finds and what its parts cost: LayerStats and estimates of recall."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..config import LSHConfig
from ..index.base import Index
from ..index.lookup import Effort, LookupIndex
from .active_set import Budget, choose_active_rows
from .label_counts import LabelCounts

WATCHED = 512  # inputs of the last step that are kept while a sampler is being watched


class Estimate(NamedTuple):
    """A mean over a random sample, and its standard error (NaN for a sample of one)."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Tensor, population: float = math.inf) -> Estimate:
        """Estimates the mean of a population from a sample ``[n]`` of it, drawn without replacement.

        The mean and the square of the error are unbiased (Cochran 1977, theorems 2.1 and 2.4). A sample of everything
        has no error.

        >>> Estimate.of(torch.tensor([1.0, 0.0]), population=2)
        Estimate(mean=0.5, error=0.0)
        """
        n = len(values)
        mean = values.double().mean().item()
        if n < 2:
            return cls(mean, 0.0 if n == population else math.nan)
        return cls(mean, math.sqrt(values.double().var().item() / n * (1 - n / population)))


def share_found(rows: Tensor, best: Tensor) -> Tensor:
    """The share ``[Q]`` of each query's best rows ``[Q, k]`` that is among ``rows``, ``[A]`` or ``[Q, A]`` (-1: none).

    >>> share_found(torch.tensor([[1, 2, -1], [7, 9, 8]]), torch.tensor([[2, 3], [8, 7]]))
    tensor([0.5000, 1.0000])
    """
    if rows.dim() == 1:
        return torch.isin(best, rows).float().mean(1)
    if rows.shape[1] == 0:
        return torch.zeros(len(best), dtype=torch.float32, device="cpu")
    rows = rows.sort(1).values.contiguous()
    at = torch.searchsorted(rows, best.contiguous()).clamp_(max=rows.shape[1] - 1)
    return (rows.gather(1, at) == best).float().mean(1)


class TopkStats(NamedTuple):
    """What ``topk(exact=False)`` looks rows up in, and what that finds.

    Attributes:
        kind: the class of the index.
        index_bytes: its memory.
        build_seconds: of its last build.
        efforts: what was measured for each ``k`` and recall; see :class:`torch_lsh.index.lookup.Effort`.
    """

    kind: str
    index_bytes: int
    build_seconds: float
    efforts: tuple[Effort, ...]

    @classmethod
    def of(cls, index: LookupIndex | None) -> TopkStats | None:
        """The figures of an index; None: there is none."""
        if index is None or index.kind is None:
            return None
        return cls(type(index.kind).__name__, index.nbytes, index.build_seconds, index.efforts)

    def as_dict(self) -> dict[str, float]:
        """The numbers, by names such as ``"topk_bytes"`` and ``"topk@10/0.95/recall"``."""
        numbers: dict[str, float] = {"topk_bytes": self.index_bytes, "topk_build_seconds": self.build_seconds}
        for effort in self.efforts:
            prefix = f"topk@{effort.k}/{effort.target:g}"
            numbers[f"{prefix}/candidates"], numbers[f"{prefix}/examined"] = effort.candidates, effort.examined
            if effort.route is not None:
                numbers[f"{prefix}/route_learned"], numbers[f"{prefix}/route_bits"] = effort.route
            if not math.isnan(effort.recall):
                numbers[f"{prefix}/recall"], numbers[f"{prefix}/recall_error"] = effort.recall, effort.error
        return numbers

    def __str__(self) -> str:
        """Prints a line for the index and one for each effort.

        >>> effort = Effort(10, 0.95, 4882, 33, 0.9625, 0.0054)
        >>> print(TopkStats("PartitionIndex", 62_400_000, 13.2, (effort,)))
        PartitionIndex, 62.4 MB, built in 13.2 s
        recall@10 0.963 ± 0.005 (wanted 0.95): 33 candidates of 4,882 rows examined
        """
        lines = [f"{self.kind}, {self.index_bytes / 1e6:,.1f} MB, built in {self.build_seconds:.1f} s"]
        for effort in self.efforts:
            recall = "not measured" if math.isnan(effort.recall) else f"{effort.recall:.3f} ± {effort.error:.3f}"
            route = "" if effort.route is None else f", buckets by {effort.route}"
            lines.append(
                f"recall@{effort.k} {recall} (wanted {effort.target:g}): "
                f"{effort.candidates:,} candidates of {effort.examined:,} rows examined{route}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class LayerStats:
    """What an LSH layer finds and costs; see :meth:`torch_lsh.LSHLinear.stats`. None: not measured.

    Attributes:
        out_features: N.
        active: rows of a step; labels may need more.
        k: the number of best rows that recall is about.
        queries: inputs that recall is measured on.
        recall: the share of a query's ``k`` best rows that are active in a training step on the inputs; an estimate of
            the mean over all inputs.
        lookup_recall: the share among the rows that a look-up of the query alone finds, if it may return as many rows
            as are active.
        candidates: rows that such a look-up finds.
        tables: L.
        hashes_per_table: K.
        buckets: buckets per table.
        bucket_size: rows that a bucket holds at most; also None if there is no limit.
        load_mean: rows that belong to a bucket, whether they fit or not; the mean over the buckets.
        load_max: the largest load.
        empty: the share of buckets to which no row belongs.
        overflowing: the share of buckets to which more rows belong than fit.
        stale_rows: rows that changed since they were last hashed.
        rehashes: re-hashes so far.
        since_rehash: training steps since the last re-hash.
        index_bytes: of the index.
        topk: what ``topk(exact=False)`` looks up in, and the effort for each ``k`` and recall that was asked for; None:
            nothing was looked up, or the weights changed since in a way that nobody recorded.
        milliseconds: per call of each part while the layer is watched, without the parts within it: "look-up",
            "choosing" the rest of the active set, "loss", "logits" (unless one operator computes both), "re-hash".
        calls: the calls of each part.
        paths: results of the layer by the way that they were computed; see :class:`torch_lsh.nn.paths.Paths`.
    """

    out_features: int
    active: int
    k: int
    queries: int = 0
    recall: Estimate | None = None
    lookup_recall: Estimate | None = None
    candidates: Estimate | None = None
    tables: int | None = None
    hashes_per_table: int | None = None
    buckets: int | None = None
    bucket_size: int | None = None
    load_mean: float | None = None
    load_max: int | None = None
    empty: float | None = None
    overflowing: float | None = None
    stale_rows: int | None = None
    rehashes: int = 0
    since_rehash: int = 0
    index_bytes: int | None = None
    topk: TopkStats | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    paths: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """The numbers measured, by flat names such as ``"recall"``, ``"recall_error"`` and ``"ms/look-up"``."""
        numbers: dict[str, float] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Estimate):
                numbers[item.name] = value.mean
                numbers[f"{item.name}_error"] = value.error
            elif item.name in ("milliseconds", "calls", "paths"):
                prefix = "ms" if item.name == "milliseconds" else item.name
                numbers.update({f"{prefix}/{name}": number for name, number in value.items()})
            elif isinstance(value, TopkStats):
                numbers.update(value.as_dict())
            elif value is not None:
                numbers[item.name] = value
        return numbers

    def __str__(self) -> str:
        """Prints a table.

        >>> print(LayerStats(50_000, active=1788, k=10, stale_rows=0))
        rows        50,000, of which 1,788 (3.58 %) are active in a step
        recall@10   not measured: no inputs
        stale       0 rows since the last re-hash, 0 steps ago; 0 re-hashes
        """
        share = 100 * self.active / self.out_features
        lines = [("rows", f"{self.out_features:,}, of which {self.active:,} ({share:.3g} %) are active in a step")]
        recall = "not measured: no inputs"
        if self.recall is not None:
            recall = f"{_plus_minus(self.recall, 3)} among the active rows, on {self.queries} queries"
        lines.append((f"recall@{self.k}", recall))
        if self.lookup_recall is not None and self.candidates is not None:
            found = f"{_plus_minus(self.candidates, 0)} rows per query, recall {_plus_minus(self.lookup_recall, 3)}"
            lines.append(("look-up", found))
        if self.tables is not None and self.index_bytes is not None and self.empty is not None:
            capacity = "without limit" if self.bucket_size is None else f"for {self.bucket_size:,} rows each"
            lines += [
                (
                    "tables",
                    f"L = {self.tables} of K = {self.hashes_per_table} hashes: {self.buckets:,} buckets "
                    f"{capacity}; {self.index_bytes / 1e6:,.1f} MB",
                ),
                (
                    "load",
                    f"{self.load_mean:.1f} rows per bucket, at most {self.load_max:,}; "
                    f"{100 * self.empty:.1f} % are empty, {100 * (self.overflowing or 0):.1f} % overflow",
                ),
            ]
        if self.stale_rows is not None:
            lines.append(
                (
                    "stale",
                    f"{self.stale_rows:,} rows since the last re-hash, {self.since_rehash} steps ago; "
                    f"{self.rehashes} re-hashes",
                )
            )
        if self.topk is not None:
            lines += [("top-k", text) for text in str(self.topk).splitlines()]
        for name, milliseconds in self.milliseconds.items():
            lines.append((name, f"{milliseconds:.3f} ms per call, {self.calls[name]:,} calls"))
        if self.paths:
            lines.append(("paths", ", ".join(f"{path} {count:,}" for path, count in self.paths.items())))
        return "\n".join(f"{name:<12}{text}" for name, text in lines)


def _plus_minus(estimate: Estimate, digits: int) -> str:
    return f"{estimate.mean:,.{digits}f} ± {estimate.error:,.{digits}f}"


def measure(
    tables: Index | None,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    config: LSHConfig,
    *,
    carried: Tensor | None,
    counts: LabelCounts | None,
    k: int,
    queries: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """The fields of :class:`LayerStats` about the index and about recall.

    Args:
        tables: the index as it is, or None where there is none yet: one is built for this call.
        x: ``[n, in]`` inputs, or None: recall is not measured.
        weight, bias: of the layer, without gradients.
        config: of the layer.
        carried, counts: as for :func:`torch_lsh.sampling.active_set.choose_active_rows`.
        k, queries, batch_size, seed: as for :func:`measure_recall`.

    Raises:
        ValueError: a number does not fit.
    """
    for name, number in (("k", k), ("queries", queries), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}; wanted at least 1")
    if k > len(weight):
        raise ValueError(f"k is {k}; wanted 1 to {len(weight)}")
    index = None
    budget = Budget.of(config, len(weight))
    if budget.needs_index:
        if tables is not None:
            index = copy.copy(tables)
            index.stopwatch = None  # these look-ups are no part of a step
        else:
            index = config.index.make(len(weight), weight.shape[1], config.seed)
            index.build(weight, bias, None if x is None else x[-WATCHED:])
    measured = {} if index is None else measure_tables(index)
    # Without labels there is no recall of rows that are drawn from labels.
    from_labels = config.sampler == "in_batch" or (config.sampler == "frequency" and counts is None)
    if x is not None and x.numel() > 0 and not from_labels:
        recall = measure_recall(
            index,
            x,
            weight,
            bias,
            budget,
            k=k,
            queries=queries,
            batch_size=batch_size,
            seed=seed,
            carried=carried,
            counts=counts,
        )
        measured.update(recall)
    return measured


def measure_tables(index: Index) -> dict[str, Any]:
    """The fields of :class:`LayerStats` about the index."""
    loads, size = index.bucket_loads(), index.bucket_size
    if loads is None:
        return {"index_bytes": index.nbytes}
    return {
        "tables": loads.shape[0],
        "hashes_per_table": index.hashes_per_table,
        "buckets": loads.shape[1],
        "bucket_size": size,
        "load_mean": loads.double().mean().item(),
        "load_max": int(loads.max()),
        "empty": (loads == 0).double().mean().item(),
        "overflowing": 0.0 if size is None else (loads > size).double().mean().item(),
        "index_bytes": index.nbytes,
    }


def measure_recall(
    index: Index | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    budget: Budget,
    *,
    k: int,
    queries: int,
    batch_size: int,
    seed: int = 0,
    carried: Tensor | None = None,
    counts: LabelCounts | None = None,
) -> dict[str, Any]:
    """The fields of :class:`LayerStats` about recall, on a random sample of inputs.

    Active sets are drawn for whole batches, as a training step draws them, without labels; the exact best rows are
    computed for a sample of ``queries`` inputs, drawn without replacement. So, given the active sets, the mean over the
    sample is an unbiased estimate of the mean over all inputs.

    Args:
        index: tables, or None where nothing is looked up.
        x: ``[n, in]`` inputs, in the order in which they form batches.
        weight, bias: of the layer.
        budget, carried, counts: as for :func:`torch_lsh.sampling.active_set.choose_active_rows`.
        k, queries: see above.
        batch_size: inputs of a step.
        seed: of the sample and of random rows.
    """
    generator = torch.Generator().manual_seed(seed)
    sampled = torch.randperm(len(x), generator=generator, device="cpu")[:queries].sort().values
    best = ops.linear_topk(x[sampled].to(weight.dtype).contiguous(), weight, bias, k)[1]
    shares = []
    for number, begin in enumerate(range(0, len(x), batch_size)):
        inside = (sampled >= begin) & (sampled < begin + batch_size)
        if not inside.any():
            continue
        batch = x[begin : begin + batch_size]
        none = torch.empty(len(batch), 0, dtype=torch.int64, device="cpu")
        step_seed = (seed * 1_000_003 + number) % 2**63
        active = choose_active_rows(index, batch, none, budget, step_seed, carried, counts)
        rows = active.rows if not active.per_sample else active.rows[sampled[inside] - begin]
        shares.append(share_found(rows, best[inside]))
    measured: dict[str, Any] = {"queries": len(sampled), "recall": Estimate.of(torch.cat(shares), len(x))}
    if index is not None:
        found = index.query(x[sampled], budget.active)
        measured["lookup_recall"] = Estimate.of(share_found(found, best), len(x))
        measured["candidates"] = Estimate.of((found >= 0).sum(1), len(x))
    return measured
