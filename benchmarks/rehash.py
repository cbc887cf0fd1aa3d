"""Time to build hash tables, and to keep them in step with the weights.

    python benchmarks/rehash.py --rows 670091 10000000

Measures, per hash family: a build, by number of rows; a re-hash, by number of changed rows, which either moved as far
as in a training step or were replaced; and the share of a build that computes hash codes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from torch_lsh.benchmarking import harness
from torch_lsh.index.families import FAMILIES
from torch_lsh.index.hash_tables import HashTableIndex


def seconds_of(run: Callable[[], Any], runs: int = 5) -> float:
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(rows: int, width: int, family: str, changes: list[int]) -> dict[str, Any]:
    torch.manual_seed(0)
    weight = torch.randn(rows, width).mul_(0.1)
    index = HashTableIndex(rows, width, hash=family, mips=False)
    build = seconds_of(lambda: index.build(weight), runs=5 if rows < 1_000_000 else 1)
    blocks = torch.arange(rows).split(16_384)
    codes = seconds_of(lambda: [index.drift(weight, None, block) for block in blocks], runs=1)
    record: dict[str, Any] = {"rows": rows, "hash": family, "build_s": build, "codes_s": codes}
    record.update(index_mb=index.nbytes / 1e6, build_us_per_row=build / rows * 1e6)
    for changed in changes:
        for kind, size in (("moved", 0.003), ("replaced", 1.0)):
            taken = []
            for _ in range(5 if changed <= rows else 0):
                some = torch.randperm(rows)[:changed].sort().values
                weight[some] += size * torch.randn(changed, width)
                taken.append(seconds_of(lambda some=some: index.update(weight, None, some), runs=1))
            if taken:
                record[f"{kind}_{changed}_us_per_row"] = statistics.median(taken) / changed * 1e6
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[67_000, 670_091, 2_000_000], help="outputs of the layer"
    )
    parser.add_argument("--width", type=int, default=128, help="features of an input")
    parser.add_argument("--changed", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="rows to re-hash")
    parser.add_argument("--hash", nargs="+", default=list(FAMILIES), help="hash families")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    info = harness.machine(arguments.threads)
    print(info)
    records = []
    for rows in arguments.rows:
        for family in arguments.hash if rows == arguments.rows[0] else arguments.hash[:1]:
            record = measure(rows, arguments.width, family, arguments.changed)
            records.append({"benchmark": "rehash", "machine": info, **record})
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in record.items()})
    harness.write_json(records, arguments.json)


if __name__ == "__main__":
    main()
