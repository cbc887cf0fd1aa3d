"""Instructions per multiply-add of the kernels for AArch64, or for x86 with AMX, counted by an emulator.

    python benchmarks/instructions.py product topk
    python benchmarks/instructions.py --amx product topk

Compiles the kernels (they need no PyTorch), compares every level with the scalar one, and counts the instructions of a
run. Counts say nothing of caches and stalls; they are what can be known of a CPU that is not at hand.

AArch64 needs Debian 12's ``g++-aarch64-linux-gnu`` and ``qemu-user`` (QEMU 7 or 8: later ones have other plugins), AMX
what ``.ci/amx`` needs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch_lsh.benchmarking import harness

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path(__file__).parent / "emulated"
LEVELS = ("neon", "neon_bf16", "sve256")
AMX_LEVELS = ("avx2", "avx512", "avx512_bf16", "amx_bf16")
# Vectors of 256 bits, as the Neoverse V1 has.
CPU = "max,sve256=on,sve512=off"
# As setup.py compiles.
FLAGS = ["-std=c++20", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
FLAGS += ["-Wno-unknown-pragmas"]
AARCH64_FLAGS = ["-msve-vector-bits=256", "-DTORCH_LSH_SVE256"]


def build(folder: Path, program: Path, compiler: list[str]) -> None:
    """Compiles the program of all kernels; its objects go to ``folder``."""
    sources = [SOURCES / "kernels.cpp", *(ROOT / "csrc" / "kernels").rglob("*.cpp")]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, to: Path) -> None:
        command = [*compiler, *FLAGS, f"-I{ROOT / 'csrc'}", "-c", source, "-o", to]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    subprocess.run([compiler[0], "-static", *objects, "-o", program], check=True)


def count_on_aarch64(folder: Path, chosen: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, float]]]:
    """Runs each kernel once and twice: the difference is what a run takes."""
    program, plugin = folder / "kernels", folder / "counter.so"
    build(folder, program, ["aarch64-linux-gnu-g++", *AARCH64_FLAGS])
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", SOURCES / "counter.c", "-o", plugin], check=True)
    emulated = ["qemu-aarch64", "-cpu", CPU, program]

    def count(level: str, kernel: str, times: int) -> int:
        command = ["qemu-aarch64", "-cpu", CPU, "-plugin", plugin, program, level, kernel, str(times)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stderr)

    for level in LEVELS:
        subprocess.run([*emulated, level], check=True, stdout=subprocess.DEVNULL)
    names = subprocess.run(emulated, check=True, capture_output=True, text=True).stdout
    for line in names.splitlines():
        kernel, products = line.split()
        if chosen(kernel):
            yield (
                kernel,
                {level: (count(level, kernel, 2) - count(level, kernel, 1)) / int(products) for level in LEVELS},
            )


def count_with_amx(folder: Path, chosen: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, float]]]:
    """Runs the program in an emulated PC, where it counts by itself."""
    program = Path("build") / "amx" / "kernels"
    (ROOT / program).parent.mkdir(parents=True, exist_ok=True)
    build(folder, ROOT / program, ["g++"])
    command = [ROOT / ".ci" / "amx", "count", *AMX_LEVELS]
    environment = {**os.environ, "AMX_COMMAND": str(program)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stdout + run.stderr)
    for line in run.stdout.splitlines():
        kernel, *counts = line.split()
        if len(counts) == len(AMX_LEVELS) and "of" not in counts and chosen(kernel):
            yield kernel, dict(zip(AMX_LEVELS, map(float, counts), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", help="parts of the names of kernels; default: all")
    parser.add_argument("--amx", action="store_true", help="count for x86 with AMX, in Bochs")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    levels, count = (AMX_LEVELS, count_with_amx) if arguments.amx else (LEVELS, count_on_aarch64)

    def chosen(kernel: str) -> bool:
        return not arguments.kernels or any(part in kernel for part in arguments.kernels)

    records = []
    with tempfile.TemporaryDirectory() as folder:
        for kernel, counts in count(Path(folder), chosen):
            if not records:
                print(f"Results of {', '.join(levels)} are those of scalar, but for rounding.\n")
                print(f"| instructions per multiply-add | {' | '.join(levels)} |\n|---|{'---|' * len(levels)}")
            print(f"| {kernel} | {' | '.join(f'{value:.3f}' for value in counts.values())} |", flush=True)
            records.append({"benchmark": "instructions", "kernel": kernel, **counts})
    harness.write_json(records, arguments.json)


if __name__ == "__main__":
    main()
