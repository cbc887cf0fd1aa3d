"""Instructions per multiply-add of the AArch64 kernels, counted by an emulator.

    python benchmarks/instructions.py product topk

Compiles the kernels for AArch64 (they need no PyTorch), compares every level with the scalar one, and runs each kernel
once and twice: the difference is what a run takes. Counts say nothing of caches and stalls; they are what can be known
of a CPU that is not at hand.

Needs Debian 12's ``g++-aarch64-linux-gnu`` and ``qemu-user`` (QEMU 7 or 8: later ones have other plugins).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch_lsh.benchmarking import harness

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path(__file__).parent / "emulated"
LEVELS = ("neon", "neon_bf16", "sve256")
# Vectors of 256 bits, as the Neoverse V1 has.
CPU = "max,sve256=on,sve512=off"
# As setup.py compiles for AArch64.
FLAGS = ["-std=c++20", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
FLAGS += ["-Wno-unknown-pragmas", "-msve-vector-bits=256", "-DTORCH_LSH_SVE256"]


def build(folder: Path) -> tuple[Path, Path]:
    """Returns the program of all kernels and the emulator's plugin that counts instructions."""
    sources = [SOURCES / "kernels.cpp", *(ROOT / "csrc" / "kernels").rglob("*.cpp")]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, to: Path) -> None:
        command = ["aarch64-linux-gnu-g++", *FLAGS, f"-I{ROOT / 'csrc'}", "-c", source, "-o", to]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    program, plugin = folder / "kernels", folder / "counter.so"
    subprocess.run(["aarch64-linux-gnu-g++", "-static", *objects, "-o", program], check=True)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", SOURCES / "counter.c", "-o", plugin], check=True)
    return program, plugin


def count_instructions(program: Path, plugin: Path, level: str, kernel: str) -> int:
    def count(times: int) -> int:
        command = ["qemu-aarch64", "-cpu", CPU, "-plugin", plugin, program, level, kernel, str(times)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stderr)

    return count(2) - count(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", help="parts of the names of kernels; default: all")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program, plugin = build(Path(folder))
        emulated = ["qemu-aarch64", "-cpu", CPU, program]
        for level in LEVELS:
            subprocess.run([*emulated, level], check=True, stdout=subprocess.DEVNULL)
        print(f"Results of {', '.join(LEVELS)} are those of scalar, but for rounding.\n")
        names = subprocess.run(emulated, check=True, capture_output=True, text=True).stdout
        print(f"| instructions per multiply-add | {' | '.join(LEVELS)} |\n|---|{'---|' * len(LEVELS)}")
        records = []
        for line in names.splitlines():
            kernel, products = line.split()
            if arguments.kernels and not any(part in kernel for part in arguments.kernels):
                continue
            counts = {level: count_instructions(program, plugin, level, kernel) / int(products) for level in LEVELS}
            print(f"| {kernel} | {' | '.join(f'{value:.3f}' for value in counts.values())} |", flush=True)
            records.append({"benchmark": "instructions", "kernel": kernel, **counts})
    harness.write_json(records, arguments.json)


if __name__ == "__main__":
    main()
