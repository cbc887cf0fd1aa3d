"""Time and memory of one training step at 670,091 x 128, beside PyTorch's, after one of few rows.

    python benchmarks/step.py --json out.jsonl

Memory is measured by benchmarks/memory.py. The step of few rows alone: --small.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from torch_lsh.benchmarking import harness, step
from torch_lsh.benchmarking.small_step import measure_small_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=670_091, help="outputs of the layer")
    parser.add_argument("--width", type=int, default=128, help="features of an input")
    parser.add_argument("--batch", type=int, default=256, help="samples per step")
    parser.add_argument("--active", type=int, default=8192, help="active rows per step")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each system")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--plot", help="draw a plot into this file")
    parser.add_argument("--small", action="store_true", help="only the step of few rows, which is mostly Python")
    arguments = parser.parse_args()
    harness.write_json(measure_small_step(), arguments.json)
    if arguments.small:
        return
    del arguments.small
    step.compare_steps(**vars(arguments), systems=step.ALL_SYSTEMS)
    memory = [f"--{key}={getattr(arguments, key)}" for key in ("rows", "width", "batch", "active")]
    subprocess.run(
        [sys.executable, Path(__file__).with_name("memory.py"), "--systems", "torch_lsh", *memory], check=True
    )


if __name__ == "__main__":
    main()
