"""Peak memory of training a wide layer, and of hash tables of up to 10 million rows.

    python benchmarks/memory.py --json out.jsonl
    python benchmarks/memory.py --systems torch_lsh --tables

Each system runs in its own process. The peak is the largest resident size after a few steps, minus the resident size
before the layer exists. It splits into parameters, optimizer state (every page is written first) and the rest: tables,
active rows, gradients, temporaries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from torch import nn

from torch_lsh.benchmarking import harness, step, systems
from torch_lsh.index.hash_tables import HashTableIndex

SYSTEMS = {
    system.name: system
    for system in (systems.Dense, systems.Uniform, systems.LSH, systems.LSHInBackward, systems.LSHBFloat16Weights)
}


def training(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes of some steps in this process."""
    torch.manual_seed(0)
    kind = SYSTEMS[name]
    # Libraries and thread pools are not the layer's.
    step.make_step(kind(nn.Linear(8, 5000), 1e-3, 100), 5000, 8, 4)()
    before = harness.resident_kib()
    layer = nn.Linear(arguments.width, arguments.rows)
    system = kind(layer, 1e-3, arguments.active)
    del layer
    run = step.make_step(system, arguments.rows, arguments.width, arguments.batch)
    run()
    optimizer = system.optimizer
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    for moment in moments:
        moment.mul_(1)
    for _ in range(3 if kind is systems.Dense else 60):
        run()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sizes = {
        "peak": (harness.peak_memory_kib() - before) * 1024,
        "parameters": sum(parameter.nbytes for parameter in parameters),
        "moments": sum(moment.nbytes for moment in moments),
    }
    return {"system": name, **sizes, "beyond both": sizes["peak"] - sizes["parameters"] - sizes["moments"]}


def tables(rows: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes of the tables of ``rows`` rows and of building them, in this process."""
    weight, bias = torch.empty(rows, arguments.width), torch.empty(rows)
    nn.init.uniform_(weight, -0.1, 0.1)
    nn.init.uniform_(bias, -0.1, 0.1)
    before = harness.resident_kib()
    index = HashTableIndex(rows, arguments.width)
    start = time.perf_counter()
    index.build(weight, bias)
    seconds = time.perf_counter() - start
    peak = (harness.peak_memory_kib() - before) * 1024
    return {
        "rows": rows,
        "seconds": seconds,
        "weights": weight.nbytes + bias.nbytes,
        "tables": index.nbytes,
        "peak of building": peak,
    }


def apart(arguments: argparse.Namespace, **what: Any) -> dict[str, Any]:
    """What a process of its own measures."""
    options = [f"--{key}={value}" for key, value in what.items()]
    options += [f"--{key}={getattr(arguments, key)}" for key in ("rows", "width", "batch", "active")]
    output = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True).stdout
    record: dict[str, Any] = json.loads(output.splitlines()[-1])
    return record


def report(records: list[dict[str, Any]], title: str) -> None:
    print(title)
    cells = [[v if k in ("system", "rows", "seconds") else f"{v / 1e6:,.0f}" for k, v in r.items()] for r in records]
    header = [key if key in ("system", "rows", "seconds") else f"{key} MB" for key in records[0]]
    print(harness.table(cells, header))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS), help="what to compare")
    parser.add_argument("--tables", action="store_true", help="measure tables instead of training")
    parser.add_argument("--rows", type=int, default=670_091, help="outputs of the layer")
    parser.add_argument("--width", type=int, default=128, help="features of an input")
    parser.add_argument("--batch", type=int, default=256, help="samples per step")
    parser.add_argument("--active", type=int, default=8192, help="active rows per step")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--one-system", help=argparse.SUPPRESS)
    parser.add_argument("--one-table", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_system:
        print(json.dumps(training(arguments.one_system, arguments)))
    elif arguments.one_table:
        print(json.dumps(tables(arguments.one_table, arguments)))
    else:
        info = harness.machine()
        print(info)
        if not arguments.tables:
            records = [apart(arguments, **{"one-system": name}) for name in arguments.systems]
            report(records, f"{arguments.rows:,} x {arguments.width}, {arguments.active:,} active rows, Adam")
        else:
            records = [apart(arguments, **{"one-table": rows}) for rows in (670_091, 2_000_000, 10_000_000)]
            report(records, f"tables of rows of {arguments.width} numbers")
        harness.write_json([{"benchmark": "memory", "machine": info, **r} for r in records], arguments.json)


if __name__ == "__main__":
    main()
