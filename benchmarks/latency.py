"""Latency of the five best classes of a very wide layer, by batch size: dense, exact, quantized, approximate.

    python benchmarks/latency.py --json out.jsonl --plot latency.png
    python benchmarks/latency.py --model model.pt --test test.txt     # a trained XMCClassifier: adds precision@1
    python benchmarks/latency.py --layers synthetic --opponents --threads 1    # single inputs: recall, p50, p99
    python benchmarks/latency.py --clustered 6700910                           # the same for generated rows

The last two measure ``topk(exact=False)`` of one input at a time at several recalls, the ten best; ``--opponents`` adds
faiss and hnswlib (``pip install faiss-cpu hnswlib``), whose indexes are built once and kept.

Systems take turns on the same inputs; the approximate one is also timed alone. The bound is the bytes of the weights
over the measured bandwidth, or the operations over the measured rate of PyTorch's matrix product (float32 or bfloat16),
whichever takes longer.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import single_queries
import torch
from torch import Tensor, nn
from trained_layers import trained_layer

from torch_lsh import LSHLinear, plots
from torch_lsh.benchmarking import harness, latency
from torch_lsh.data import XMCDataset, collate_xmc
from torch_lsh.metrics import PrecisionAtK
from torch_lsh.models import XMCClassifier

BYTES = {"layer.topk": 4, "layer.topk bf16": 2, "layer.topk int8": 1}


def best_seconds(run: Callable[[], Any], repetitions: int = 5) -> float:
    return min(harness.in_turn({"": run}, repetitions)[""])


def peaks() -> tuple[float, dict[int, float]]:
    """Bytes per second of memory; flops per second of products by the bytes of a weight."""
    speed = {}
    for dtype, sizes in ((torch.float32, (4, 1)), (torch.bfloat16, (2,))):
        a = torch.randn(2048, 2048).to(dtype)
        flops = 2 * 2048**3 / best_seconds(lambda a=a: a @ a)
        speed.update(dict.fromkeys(sizes, flops))
    return harness.MemoryBandwidth().now(), speed


def precision(systems: dict[str, latency.System], hidden: Tensor, labels: Tensor) -> dict[str, float]:
    result = {}
    for name, system in systems.items():
        metric = PrecisionAtK((1,))
        for x, y in zip(hidden.split(256), labels.split(256)):
            metric.update(system(x)[1], y)
        result[name] = metric.compute()[1]
    return result


def print_single_queries(arguments: argparse.Namespace, info: dict[str, Any]) -> None:
    records: list[dict[str, Any]] = []
    for name in (*arguments.layers, *arguments.clustered):
        if isinstance(name, int):
            layer, name = single_queries.clustered_layer(name, arguments.width), f"clustered-{name}"
        else:
            layer = trained_layer(name, arguments.folder)
        folder = arguments.folder / f"{name}-opponents" if arguments.opponents else None
        records += single_queries.measure(name, layer, arguments.recalls, folder)
    columns = single_queries.COLUMNS
    print(harness.table([[record.get(column, "") for column in columns] for record in records], columns))
    harness.write_json([{**record, "machine": info} for record in records], arguments.json)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=670_091, help="outputs of a layer of random weights")
    parser.add_argument("--width", type=int, default=128, help="features of an input")
    parser.add_argument("--model", help="file of a trained XMCClassifier; default: random weights")
    parser.add_argument("--test", help="test rows in the XMC format, for --model")
    parser.add_argument("--normalize", choices=["l2"], help="of the test rows")
    parser.add_argument(
        "--layers", nargs="+", default=[], help="trained layers (trained_layers.py): single inputs only"
    )
    parser.add_argument(
        "--clustered", type=int, nargs="+", default=[], help="rows of generated layers: single inputs only"
    )
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.9, 0.95, 0.99], help="of single inputs")
    parser.add_argument("--opponents", action="store_true", help="measure faiss and hnswlib on single inputs, too")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "torch_lsh_layers", help="for layers"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[2**i for i in range(11)], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=200, help="most rounds per batch size")
    parser.add_argument("--seconds", type=float, default=10, help="most seconds per batch size, after five rounds")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--plot", help="draw a plot into this file")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.test is None):
        parser.error("--model and --test go together")
    info = harness.machine(arguments.threads)
    print(info)
    if arguments.layers or arguments.clustered:
        print_single_queries(arguments, info)
        return
    torch.manual_seed(0)
    quality: dict[str, float] = {}
    if arguments.model is None:
        linear: nn.Linear = nn.Linear(arguments.width, arguments.rows).eval()
        pool = torch.randn(max(1024, *arguments.batches), arguments.width)
        systems = latency.systems_of(linear)
    else:
        model = XMCClassifier.load(arguments.model).eval()
        linear = model.output if not isinstance(model.output, LSHLinear) else model.output.to_linear()
        test = XMCDataset(arguments.test, normalize=arguments.normalize)
        features, labels = collate_xmc(test.__getitems__(list(range(min(len(test), 10_000)))))
        pool = model.hidden(features)
        systems = latency.systems_of(linear)
        quality = precision(systems, pool, labels)
    bandwidth, speed = peaks()
    print(
        f"{bandwidth / 1e9:.0f} GB/s; GFLOP/s by bytes of a weight: { {k: round(v / 1e9) for k, v in speed.items()} }"
    )
    records = latency.measure(systems, pool, arguments.batches, arguments.rounds, arguments.seconds)
    for record in records:
        name, batch = record["system"], record["batch"]
        if name in BYTES:
            read = linear.weight.numel() * BYTES[name] / bandwidth
            multiplied = 2 * batch * linear.weight.numel() / speed[BYTES[name]]
            record["bound_ms"] = max(read, multiplied) * 1e3
        if name.removesuffix(", alone") in quality:
            record["precision@1"] = quality[name.removesuffix(", alone")]
        record.update(benchmark="latency", rows=linear.out_features, width=linear.in_features, machine=info)
    columns = (
        "batch",
        "system",
        "median_ms",
        "p99_ms",
        "min_ms",
        "max_ms",
        "runs",
        "bound_ms",
        "speedup",
        "precision@1",
    )
    header = ("batch", "system", "p50 ms", "p99", "min", "max", "runs", "bound ms", "times F.linear + topk", "P@1")
    print(harness.table([[record.get(column, "") for column in columns] for record in records], header))
    harness.write_json(records, arguments.json)
    if arguments.plot:
        plots.draw(arguments.plot, lambda axis: latency.draw(axis, records))


if __name__ == "__main__":
    main()
