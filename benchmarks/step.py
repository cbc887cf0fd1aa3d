"""One training step at 670,091 x 128 beside PyTorch's, and the memory that it takes.

    python benchmarks/step.py --json out.jsonl

Peak memory is taken in a process of its own: the largest resident size after some steps, less the resident size
before the layer was made, less the bytes of parameters and of the two Adam moments. It holds tables, active rows,
gradients and temporaries.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch
from torch import nn

from torch_lsh.benchmarking import harness, step
from torch_lsh.benchmarking.systems import LSH


def measure_memory(arguments: argparse.Namespace) -> None:
    warm = LSH(nn.Linear(8, 5000), 1e-3, 100)  # libraries and thread pools are not the layer's
    step.make_step(warm, 5000, 8, 4)()
    before = harness.resident_kib()
    layer = nn.Linear(arguments.width, arguments.rows)
    system = LSH(layer, 1e-3, arguments.active)
    run = step.make_step(system, arguments.rows, arguments.width, arguments.batch)
    for _ in range(60):
        run()
    touched = sum(p.nbytes for p in layer.parameters())
    moments = resident_of_moments(system)
    peak = harness.peak_memory_kib() * 1024 - before * 1024
    print(
        f"peak {peak / 1e6:.0f} MB, parameters {touched / 1e6:.0f} MB, moments at most {2 * touched / 1e6:.0f} MB "
        f"(rows touched: {moments / 1e6:.0f} MB), beyond both: {(peak - touched - moments) / 1e6:.0f} MB"
    )


def resident_of_moments(system: LSH) -> int:
    """Bytes of the moments' pages that were touched: rows of zeros were never given memory (lower bound)."""
    total = 0
    for parameter in system.layer.parameters():
        state = system.optimizer.state[parameter]
        touched = (state["exp_avg_sq"].reshape(len(parameter), -1) != 0).any(1)
        row_bytes = parameter.nbytes // len(parameter)
        pages = (touched.nonzero()[:, 0] * row_bytes // 4096).unique()
        total += 2 * 4096 * len(pages)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=670_091)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--active", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json")
    parser.add_argument("--plot")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_only:
        torch.manual_seed(0)
        measure_memory(arguments)
        return
    options = {key: value for key, value in vars(arguments).items() if key != "memory_only"}
    step.compare_steps(**options, systems=step.ALL_SYSTEMS)
    sizes = [f"--{key}={getattr(arguments, key)}" for key in ("rows", "width", "batch", "active")]
    subprocess.run([sys.executable, __file__, "--memory-only", *sizes], check=True)


if __name__ == "__main__":
    main()
