"""LSHFeedForward beside the dense block: 512 -> 65,536 -> 512.

    python benchmarks/feedforward.py step --json out.jsonl
    python benchmarks/feedforward.py quality --json out.jsonl

``step`` times one training step (forward, backward, Adam) and prints its lower bound. Per projection, a dense step does
three matrix products of 2 * batch * d_model * d_hidden operations, and Adam moves seven numbers per weight. A share
``a`` of active neurons scales both by ``a``; gathering the active weights moves one more number per weight. Hashing and
look-ups come on top. Rates of arithmetic and memory are measured in the same run.

``quality`` reports precision@1 per epoch on citeulike-t (52,946 labels) with either block and with none. The model:
sparse features -> 512 ReLU -> block, added to its input, ReLU -> LSHLinear. Only the block differs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from classification import Trainee, Weights, some_batches
from corpora import read_xmc
from torch import Tensor, nn

import torch_lsh
from torch_lsh.benchmarking import harness, systems
from torch_lsh.data import collate_xmc

# --- one step ---------------------------------------------------------------------------------------------------------


def training_step(block: nn.Module, optimizer: torch.optim.Optimizer, batch: int, width: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        x = torch.randn(batch, width, generator=generator).requires_grad_()
        block(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bound_seconds(share: float, batch: int, width: int, hidden: int) -> float:
    """Seconds of the products and of the memory traffic of a share of the block, at the speeds of this machine."""
    active = max(1, round(share * hidden))
    rows = min(active, 2048)
    x, w = torch.randn(batch, width), torch.randn(rows, width)
    products = statistics.median(harness.in_turn({"": lambda: x @ w.t()}, 9)[""]) * active / rows
    a, b = torch.empty(1 << 24), torch.empty(1 << 24)
    per_number = statistics.median(harness.in_turn({"": lambda: a.copy_(b)}, 9)[""]) / (2 * a.numel())
    weights = 2 * width * active
    gathering = 0 if share == 1 else 2 * weights
    return 6 * products + per_number * (7 * weights + gathering)


def compare_steps(arguments: argparse.Namespace, info: dict[str, Any]) -> list[dict[str, Any]]:
    width, hidden, batch = arguments.d_model, arguments.d_hidden, arguments.batch
    steps = {}
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
    steps["dense"] = training_step(dense, torch.optim.Adam(dense.parameters(), 1e-3, fused=True), batch, width)
    for scope in arguments.scope:
        config = torch_lsh.LSHConfig(active=arguments.active, scope=scope)
        block = torch_lsh.LSHFeedForward(width, hidden, "relu", config=config)
        optimizer = torch_lsh.optim.Adam(block.parameters(), 1e-3)
        steps[f"torch_lsh {scope}"] = training_step(block, optimizer, batch, width)
    seconds = harness.in_turn(steps, arguments.rounds)
    for name in steps:
        if name != "dense":  # so many that re-hashes fall due
            seconds[name] = harness.in_turn({"": steps[name]}, 60)[""]
    bounds = {
        name: bound_seconds(1.0 if name == "dense" else arguments.active, batch, width, hidden) * 1e3 for name in steps
    }
    of_dense = statistics.median(seconds["dense"]) * 1e3
    records = [
        {"benchmark": "feedforward step", "system": name, **harness.summary(measured), "bound_ms": bounds[name]}
        for name, measured in seconds.items()
    ]
    print(f"{width} -> {hidden:,} -> {width}, {arguments.active:.1%} active, batch {batch}, Adam")
    columns = ("median_ms", "mean_ms", "min_ms", "max_ms", "runs", "bound_ms")
    print(
        harness.table(
            [
                [r["system"], *(r[key] for key in columns), of_dense / r["median_ms"], of_dense / r["mean_ms"]]
                for r in records
            ],
            ("system", "median ms", "mean", "min", "max", "runs", "bound ms", "times faster", "by mean"),
        )
    )
    return [{**record, "machine": info} for record in records]


# --- quality ----------------------------------------------------------------------------------------------------------


class WideInput:
    """Sparse features -> ``width`` ReLU units -> a block, its result added to what it was given -> ReLU."""

    def __init__(self, features: Tensor, block: nn.Module | None, lr: float) -> None:
        self.bag = systems.SparseInput(features, lr, "torch_lsh")
        self.block = block
        self.optimizer = None if block is None else torch_lsh.optim.Adam(block.parameters(), lr=lr)

    def __call__(self, x: Tensor) -> Tensor:
        hidden = self.bag(x)
        if self.block is None:
            return hidden
        self.block.train(torch.is_grad_enabled())
        return F.relu(hidden + self.block(hidden))

    def step(self) -> None:
        self.bag.step()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()


def parse_system(text: str) -> tuple[str, dict[str, Any]]:
    """``torch_lsh:active=0.05,scope=sample`` -> kind of block and options of LSHConfig."""
    kind, options = harness.parse_options(text)
    if kind not in ("none", "dense", "torch_lsh"):
        raise SystemExit(f"--systems names {kind!r}; wanted none, dense or torch_lsh")
    return kind, options


def make_block(kind: str, arguments: argparse.Namespace, options: dict[str, Any]) -> nn.Module | None:
    width, hidden = arguments.d_model, arguments.d_hidden
    if kind == "none":
        return None
    if kind == "dense":
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
    config = torch_lsh.LSHConfig.from_options(**{"active": arguments.active, **options})
    return torch_lsh.LSHFeedForward(width, hidden, "relu", config=config)


def compare_quality(arguments: argparse.Namespace, info: dict[str, Any]) -> list[dict[str, Any]]:
    train, test = read_xmc(arguments.dataset)
    test_batches = some_batches(test, arguments.test_rows)
    print(f"{arguments.dataset}: {train}, {min(len(test), arguments.test_rows)} test rows")
    records = []
    for text in arguments.systems:
        kind, options = parse_system(text)
        for seed in range(arguments.seeds):
            torch.manual_seed(seed)
            weights = Weights.draw(train, arguments.input_std, seed, arguments.d_model)
            block = make_block(kind, arguments, options)
            output = systems.LSH(weights.output_layer(), arguments.lr, arguments.output_active)
            trainee = Trainee(text, WideInput(weights.features, block, arguments.lr), output)
            for epoch in range(1, arguments.epochs + 1):
                generator = torch.Generator().manual_seed(seed * 1000 + epoch)
                for rows in torch.randperm(len(train), generator=generator).split(arguments.batch):
                    trainee.train([collate_xmc(train.__getitems__(rows))])
                trainee.evaluate(test_batches, epoch)
            records += [{"benchmark": "feedforward quality", "seed": seed, **point} for point in trainee.curve]
    report_quality(records, arguments.epochs)
    return [{**record, "machine": info} for record in records]


def report_quality(records: list[dict[str, Any]], epochs: int) -> None:
    """Medians over the seeds."""
    rows = []
    for system in dict.fromkeys(record["system"] for record in records):
        runs: dict[int, list[dict[str, Any]]] = {}
        for record in records:
            if record["system"] == system:
                runs.setdefault(record["seed"], []).append(record)
        best = statistics.median(max(point["precision@1"] for point in curve) for curve in runs.values())
        last = statistics.median(curve[-1]["precision@1"] for curve in runs.values())
        seconds = statistics.median(curve[-1]["seconds"] for curve in runs.values())
        rows.append((system, len(runs), best, last, seconds))
    print(harness.table(rows, ("block", "seeds", "best P@1", f"P@1 at epoch {epochs}", "seconds")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["step", "quality"], help="which measurement")
    parser.add_argument("--d-model", type=int, default=512, help="width of the input")
    parser.add_argument("--d-hidden", type=int, default=65_536, help="neurons of the block")
    parser.add_argument("--active", type=float, default=0.02, help="share of active neurons")
    parser.add_argument(
        "--scope", nargs="+", default=["batch"], choices=["batch", "sample"], help="who shares an active set"
    )
    parser.add_argument("--batch", type=int, default=256, help="samples per step")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each system")
    parser.add_argument("--systems", nargs="+", default=["none", "dense", "torch_lsh"], help="what to compare")
    parser.add_argument("--dataset", default="citeulike-t", help="name of a data set")
    parser.add_argument("--output-active", type=int, default=3072, help="active rows of the output layer")
    parser.add_argument("--input-std", type=float, default=0.1, help="of the input table; nn.EmbeddingBag's is 1")
    parser.add_argument("--test-rows", type=int, default=5166, help="test rows to evaluate on")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the training data")
    parser.add_argument("--seeds", type=int, default=1, help="runs with different seeds")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    info = harness.machine(arguments.threads)
    print(info)
    parts = {"step": compare_steps, "quality": compare_quality}
    harness.write_json([record for what in arguments.what for record in parts[what](arguments, info)], arguments.json)


if __name__ == "__main__":
    main()
