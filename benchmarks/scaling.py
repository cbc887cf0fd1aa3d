"""Time of a training step by number of rows, at the same number of active rows.

    python benchmarks/scaling.py --plot scaling.png --json out.jsonl

Layers of all sizes take turns; means include re-hashes. The time should not grow: inactive rows cost only the cache
and TLB misses of a larger table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torch_lsh import plots
from torch_lsh.benchmarking import harness
from torch_lsh.benchmarking.step import make_step
from torch_lsh.benchmarking.systems import LSH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[67_000, 670_000, 2_000_000, 6_700_000], help="outputs of the layer"
    )
    parser.add_argument("--width", type=int, default=128, help="features of an input")
    parser.add_argument("--batch", type=int, default=256, help="samples per step")
    parser.add_argument("--active", type=int, default=8192, help="active rows per step")
    parser.add_argument("--rounds", type=int, default=10, help="turns of ten steps each")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--plot", help="draw a plot into this file")
    arguments = parser.parse_args()
    info = harness.machine(arguments.threads)
    print(info)

    steps: dict[str, Callable[[], Any]] = {}
    records: list[dict[str, Any]] = []
    for rows in arguments.rows:
        torch.manual_seed(0)
        system = LSH(nn.Linear(arguments.width, rows), 1e-3, arguments.active)
        start = time.perf_counter()
        system.layer.rehash(full=True)
        build = time.perf_counter() - start
        steps[str(rows)] = make_step(system, rows, arguments.width, arguments.batch)
        index = system.layer.sampler.tables
        assert index is not None
        records.append({"rows": rows, "build_s": build, "index_mb": index.nbytes / 1e6})
    for record, seconds in zip(records, harness.in_turn(steps, arguments.rounds, calls=10).values()):
        record.update(harness.summary(seconds), benchmark="scaling", active=arguments.active, machine=info)
    smallest = records[0]["median_ms"]
    columns = ("rows", "median_ms", "mean_ms", "min_ms", "max_ms", "build_s", "index_mb")
    print(
        harness.table(
            [[*(record[column] for column in columns), record["median_ms"] / smallest] for record in records],
            ("rows", "median ms", "mean", "min", "max", "build s", "index MB", "times smallest"),
        )
    )
    harness.write_json(records, arguments.json)
    if arguments.plot:
        plots.draw(arguments.plot, lambda axis: draw(axis, records))


def draw(axis: Any, records: list[dict[str, Any]]) -> None:
    rows = [record["rows"] for record in records]
    axis.plot(rows, [record["median_ms"] for record in records], marker="o", label="median step")
    axis.plot(rows, [record["mean_ms"] for record in records], marker="o", label="mean, re-hashes included")
    axis.set(xscale="log", xlabel="rows of the layer", ylabel="milliseconds", ylim=(0, None))
    axis.legend()


if __name__ == "__main__":
    main()
