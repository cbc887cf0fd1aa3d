"""Time and memory of one training step at 670,091 x 128, beside PyTorch's.

    python benchmarks/step.py --json out.jsonl

benchmarks/memory.py measures the memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from torch_lsh.benchmarking import step


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
    arguments = parser.parse_args()
    step.compare_steps(**vars(arguments), systems=step.ALL_SYSTEMS)
    memory = [f"--{key}={getattr(arguments, key)}" for key in ("rows", "width", "batch", "active")]
    subprocess.run(
        [sys.executable, Path(__file__).with_name("memory.py"), "--systems", "torch_lsh", *memory], check=True
    )


if __name__ == "__main__":
    main()
