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
    run()
    moments = [state[name] for state in system.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    for moment in moments:
        moment.mul_(1)  # every page is written, so that all of the moments are resident
    for _ in range(60):
        run()
    sizes = {
        "parameters": sum(parameter.nbytes for parameter in layer.parameters()),
        "moments": sum(moment.nbytes for moment in moments),
    }
    peak = (harness.peak_memory_kib() - before) * 1024
    print(
        f"peak {peak / 1e6:.0f} MB, "
        + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sizes.items())
        + f", beyond both: {(peak - sum(sizes.values())) / 1e6:.0f} MB"
    )


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
