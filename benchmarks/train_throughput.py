"""Samples per second of a whole training job of the shape of Amazon-670K, its parts and its quality.

    python benchmarks/train_throughput.py --active 2300 8192
    python benchmarks/train_throughput.py --train train.txt --test test.txt --lr 5e-3 --epochs 6

The job: text file -> XMCDataset -> DataLoader with collate_xmc -> XMCClassifier -> torch_lsh.optim.Adam, with the
re-hashes that fall due. Without files, synthetic data is written to a temporary file first. Evaluation is exact and
does not count.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import torch_lsh
from torch_lsh.benchmarking import harness
from torch_lsh.data import XMCDataset, collate_xmc, synthetic_xmc, write_xmc
from torch_lsh.models import XMCClassifier


class Clock:
    """Seconds per part of a loop."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


def seconds_of_rehashes(layer: torch_lsh.LSHLinear) -> float:
    stopwatch = layer.sampler.stopwatch
    assert stopwatch is not None
    return 1e-3 * stopwatch.milliseconds().get("re-hash", 0.0) * stopwatch.calls().get("re-hash", 0)


def job(
    train: XMCDataset, test: XMCDataset | None, active: int | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = XMCClassifier(train.num_features, train.num_labels, arguments.hidden, torch_lsh.LSHConfig(active=active))
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=arguments.lr)
    clock = Clock()
    model.output.watch()
    samples, active_rows, curve = 0, 0, []
    for epoch in range(arguments.epochs):
        generator = torch.Generator().manual_seed(epoch)
        loader = DataLoader(
            train, arguments.batch, shuffle=True, generator=generator, collate_fn=collate_xmc, drop_last=True
        )
        clock.lap("evaluation")
        for x, y in with_clock(loader, clock):
            hidden = model.hidden(x)
            clock.lap("input forward")
            loss = F.cross_entropy(model.output(hidden), y)
            clock.lap("output forward")
            loss.backward()
            clock.lap("backward")
            active_rows += model.output.weight.grad._nnz()
            optimizer.step()
            optimizer.zero_grad()
            clock.lap("optimizer")
            samples += len(y)
        seconds = sum(value for part, value in clock.seconds.items() if part != "evaluation")
        if test is not None:
            precision = model.evaluate(test)
            curve.append({"epoch": epoch + 1, "seconds": seconds, **precision})
            print(
                f"active {active}  epoch {epoch + 1}  {seconds:.2f} s  {samples / seconds:,.0f} samples/s  "
                + "  ".join(f"{name} {value:.4f}" for name, value in precision.items()),
                flush=True,
            )
            model.train()
    clock.seconds.pop("evaluation")
    total = sum(clock.seconds.values())
    clock.seconds["re-hash"] = seconds_of_rehashes(model.output)
    clock.seconds["output forward"] -= clock.seconds["re-hash"]
    return {
        "active": active_rows * arguments.batch / samples,
        "samples_per_second": samples / total,
        "shares": {part: value / total for part, value in clock.seconds.items()},
        "curve": curve,
    }


def with_clock(loader: DataLoader[Any], clock: Clock) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in loader:
        clock.lap("data")
        yield batch


def generated(rows: int) -> tuple[XMCDataset, XMCDataset]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("train.txt", "test.txt")]
        for dataset, path in zip(synthetic_xmc(rows, 2_000), paths):
            write_xmc(dataset, path)
        start = time.perf_counter()
        train, test = (XMCDataset(path) for path in paths)
        megabytes = sum(path.stat().st_size for path in paths) / 1e6
        print(f"read {megabytes:.0f} MB in {time.perf_counter() - start:.2f} s")
    return train, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="training file in the XMC format; default: synthetic data")
    parser.add_argument("--test", help="test file in the XMC format")
    parser.add_argument("--rows", type=int, default=50_000, help="rows of synthetic data")
    parser.add_argument("--take", type=int, help="train on the first rows only")
    parser.add_argument("--normalize", choices=["l2"], help="scale rows to unit length")
    parser.add_argument(
        "--active", type=int, nargs="+", default=[None], help="active rows per step; default: LSHConfig's"
    )
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training data")
    parser.add_argument("--batch", type=int, default=256, help="samples per step")
    parser.add_argument("--hidden", type=int, default=128, help="width of the hidden layer")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    info = harness.machine(arguments.threads)
    print(info)
    test: XMCDataset | None
    if arguments.train is None:
        train, test = generated(arguments.rows)
    else:
        train = XMCDataset(arguments.train, normalize=arguments.normalize)
        test = None if arguments.test is None else XMCDataset(arguments.test, normalize=arguments.normalize)
    if arguments.take is not None:
        train = XMCDataset.from_rows(train.rows.take(torch.arange(min(arguments.take, len(train)))))
    print(train)
    records = [job(train, test, active, arguments) for active in arguments.active]
    parts = list(records[0]["shares"])
    print(
        harness.table(
            [
                [f"{r['active']:.0f}", f"{r['samples_per_second']:,.0f}", *(r["shares"][p] for p in parts)]
                for r in records
            ],
            ("active rows", "samples/s", *parts),
        )
    )
    harness.write_json(
        [{"benchmark": "train_throughput", "machine": info, "lr": arguments.lr, **r} for r in records], arguments.json
    )


if __name__ == "__main__":
    main()
