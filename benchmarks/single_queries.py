"""What approximate top-k of single inputs finds and costs, beside nearest-neighbour libraries at their recall."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nearest_neighbours
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trained_layers import TrainedLayer

from torch_lsh import LSHLinear, QuantizedLinear
from torch_lsh.benchmarking import harness
from torch_lsh.index.lookup import Effort
from torch_lsh.index.partition import PartitionIndex

K = 10
COLUMNS = ("layer", "system", "recall@1", "recall@10", "p50_ms", "p99_ms", "bound_ms", "build_s", "index_mb")
_TAUGHT = 1280  # inputs that a layer may learn from; the others are measured


class Measured(NamedTuple):
    """A system: ``find(x)`` returns the ``K`` best classes ``[1, K]`` of one input."""

    name: str
    find: Callable[[Tensor], Tensor]
    build_seconds: float = 0.0
    index_bytes: int = 0
    bytes_read: float | None = None  # per query


def clustered_layer(rows: int, width: int, queries: int = 2 * _TAUGHT) -> TrainedLayer:
    """Rows around centers, a hundred to each, and inputs behind a ReLU near some centers more often than others."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(max(1, rows // 100), width, generator=generator)
    weight = torch.empty(rows, width)
    for some in weight.split(1 << 16):
        some.normal_(generator=generator).mul_(0.5)
        some += centers[torch.randint(len(centers), (len(some),), generator=generator)]
    popular = (len(centers) * torch.rand(queries, generator=generator) ** 2).long()
    x = F.relu(centers[popular] + 0.7 * torch.randn(queries, width, generator=generator) + 0.5)
    return TrainedLayer(weight, 0.3 * torch.randn(rows, generator=generator), x)


def _linear(layer: TrainedLayer) -> nn.Linear:
    linear = nn.Linear(layer.weight.shape[1], len(layer.weight), device="meta")
    linear.weight, linear.bias = nn.Parameter(layer.weight), nn.Parameter(layer.bias)
    return linear.eval()


def _own(layer: TrainedLayer, taught: Tensor, recalls: Sequence[float]) -> Iterator[Measured]:
    lsh = LSHLinear.from_linear(_linear(layer)).eval()
    quantized = QuantizedLinear.from_linear(_linear(layer))
    yield Measured("exact", lambda x: lsh.topk(x, K).indices, bytes_read=layer.weight.nbytes)
    yield Measured("exact int8", lambda x: quantized.topk(x, K).indices, bytes_read=layer.weight.numel())
    start = time.perf_counter()
    lsh.topk(taught, K, exact=False)
    seconds = time.perf_counter() - start
    print(f"built in {seconds:.0f} s", flush=True)
    for recall in recalls:
        lsh.topk(taught[:1], K, exact=False, recall=recall)
        topk = lsh.stats().topk
        assert topk is not None
        effort = next(one for one in topk.efforts if (one.k, one.target) == (K, recall))

        def find(x: Tensor, recall: float = recall) -> Tensor:
            return lsh.topk(x, K, exact=False, recall=recall).indices

        name = (
            f"topk(exact=False, recall={recall}): {topk.kind}, {effort.examined} examined, {effort.candidates} scored"
            + ("" if effort.route is None else f", {effort.route}")
        )
        yield Measured(name, find, seconds, topk.index_bytes, _bytes_read(lsh, effort))


def _bytes_read(layer: LSHLinear, effort: Effort) -> float:
    """Codes of buckets and of the rows examined, and the rows scored."""
    index, width = layer.sampler.look_up_index, layer.in_features
    scored = effort.candidates * width * 4
    if index is None or effort.route is None or not isinstance(index.kind, PartitionIndex):
        return effort.examined * (width / 8 + 4) + scored
    of_buckets = index.kind.family.num_centers * (width * effort.route.bits / 8 + 4)
    return effort.examined * (width / 4 + 4) + of_buckets + scored


def _opponents(layer: TrainedLayer, folder: Path) -> Iterator[Measured]:
    for library, package in nearest_neighbours.missing().items():
        print(f"{library} is not installed and not measured; pip install {package}")
    folder.mkdir(parents=True, exist_ok=True)
    for opponent in nearest_neighbours.opponents(layer.weight, layer.bias, folder):

        def find(x: Tensor, opponent: nearest_neighbours.Opponent = opponent) -> Tensor:
            query = nearest_neighbours.augmented(x, torch.ones(1))
            return torch.from_numpy(opponent.find(query, K))

        yield Measured(opponent.name, find, opponent.build_seconds, opponent.index_bytes)


@torch.no_grad()
def measure(
    name: str,
    layer: TrainedLayer,
    recalls: Sequence[float],
    folder: Path | None,
    *,
    queries: int = 500,
    seconds: float = 5.0,
) -> list[dict[str, Any]]:
    """Single inputs, one after the other: recall, median and 99th percentile of the milliseconds of each system.

    Args:
        name: of the layer, for the records.
        layer: rows and inputs; the layer may learn from the first half of the inputs, in random order.
        recalls: that are asked for.
        folder: where indexes of other libraries are kept; None: these are not measured.
        queries: to measure, at most.
        seconds: that a system may take, with at least 20 queries.
    """
    order = torch.randperm(len(layer.queries), generator=torch.Generator().manual_seed(0))
    taught = layer.queries[order[: min(_TAUGHT, len(order) // 2)]]
    x = layer.queries[order[len(taught) : len(taught) + queries]].contiguous()
    best = LSHLinear.from_linear(_linear(layer)).eval().topk(x, K).indices
    bandwidth = harness.MemoryBandwidth().now()
    records = []
    systems = [*_own(layer, taught, recalls), *([] if folder is None else _opponents(layer, folder))]
    print(f"measuring {name}", flush=True)
    for system in systems:
        taken, found, begin = [], [], time.perf_counter()
        for one in (x[:1], *x.split(1)):  # the first warms up
            start = time.perf_counter()
            found.append(system.find(one))
            taken.append(time.perf_counter() - start)
            if len(taken) > 20 and time.perf_counter() - begin > seconds:
                break
        hits = (best[: len(found) - 1].unsqueeze(2) == torch.cat(found[1:]).unsqueeze(1)).any(2).float()
        taken = sorted(taken[1:])
        record = {"benchmark": "single queries", "layer": name, "rows": len(layer.weight), "system": system.name}
        record |= {"recall@1": hits[:, 0].mean().item(), "recall@10": hits.mean().item(), "queries": len(taken)}
        record |= {"p50_ms": taken[len(taken) // 2] * 1e3, "p99_ms": taken[int(0.99 * len(taken))] * 1e3}
        record |= {"build_s": system.build_seconds, "index_mb": system.index_bytes / 1e6}
        if system.bytes_read is not None:
            record["bound_ms"] = system.bytes_read / bandwidth * 1e3
        records.append(record)
        print(f"{system.name}: recall@10 {record['recall@10']:.3f}, {record['p50_ms']:.3f} ms", flush=True)
    return records


def draw(axis: Any, records: list[dict[str, Any]]) -> None:
    """Median milliseconds by the share of the ten best that is missed, a line per library and layer."""
    for layer in dict.fromkeys(record["layer"] for record in records):
        for library in ("topk(", "faiss IVF", "faiss HNSW", "hnswlib"):
            mine = [r for r in records if r["layer"] == layer and r["system"].startswith(library)]
            points = sorted((1 - r["recall@10"], r["p50_ms"]) for r in mine)
            if points:
                axis.plot(*zip(*points), marker="o", linestyle="", label=f"{library.rstrip('(')}, {layer}")
    axis.set(yscale="log", xlabel="share of the ten best classes that is missed", ylabel="milliseconds for one input")
    axis.legend()
