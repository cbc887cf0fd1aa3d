"""Shared by all benchmarks: systems that take turns, medians with their spread, JSON lines, tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import ops


def machine(threads: int | None = None) -> dict[str, Any]:
    """Pins the number of threads and describes the machine."""
    torch.set_num_threads(threads or os.cpu_count() or 1)
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": ops.simd_level(),
        "bfloat16_products": bfloat16_products(),
        "tuning": ops.cpu_tuning(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def bfloat16_products() -> str:
    """What operators multiply bfloat16 numbers as, on the instruction set in use."""
    return "bfloat16" if ops.multiplies_bfloat16() else "float32"


def simd_levels() -> list[str]:
    """The instruction sets that this CPU runs, the simplest first."""
    levels = []
    before = ops.simd_level()
    for level in ("scalar", "neon", "neon_bf16", "sve256", "avx2", "avx512", "avx512_bf16", "amx_bf16"):
        try:
            ops.use_simd_level(level)
        except RuntimeError:
            continue
        levels.append(level)
    ops.use_simd_level(before)
    return levels


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def in_turn(
    systems: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 2, calls: int = 1
) -> dict[str, list[float]]:
    """Times systems that take turns (A B C A B C ...), so that all see the same drift of the machine.

    A turn has ``calls`` calls. Systems that run alone in real use need more than one: the first call of a turn starts
    with the caches that the other systems filled.
    """
    for run in systems.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, run in systems.items():
            for _ in range(calls):
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def profiled(run: Callable[[], Any], calls: int) -> tuple[float, float]:
    """Seconds of a call by PyTorch's profiler: in all, and inside of the operators of this library.

    The profiler adds some microseconds per operator, PyTorch's included.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        seconds = time.perf_counter() - start
    inside = sum(event.self_cpu_time_total for event in profile.key_averages() if "torch_lsh::" in event.key)
    return seconds / calls, inside / calls / 1e6


def summary(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "median_ms": statistics.median(seconds) * 1e3,
        "mean_ms": statistics.mean(seconds) * 1e3,
        "min_ms": min(seconds) * 1e3,
        "max_ms": max(seconds) * 1e3,
        "runs": len(seconds),
    }


class MemoryBandwidth:
    """Bytes per second of a sum over 512 MiB in huge pages."""

    def __init__(self) -> None:
        self._array = torch.empty(1 << 27)
        ops.prefer_huge_pages(self._array)
        self._array.fill_(1)

    def now(self) -> float:
        return self._array.nbytes / statistics.median(in_turn({"": self._array.sum}, 7)[""])

    def around(self, measure: Callable[[], float]) -> tuple[float, float]:
        """Runs ``measure`` between two measurements of the bandwidth; returns its result and their mean.

        If the two differ by a tenth, all of it is repeated, up to ten times.
        """
        for _ in range(10):
            before, value, after = self.now(), measure(), self.now()
            if max(before, after) < 1.1 * min(before, after):
                break
        return value, (before + after) / 2


def peak_memory_kib() -> int:
    """Largest resident size of this process so far (VmHWM), in KiB."""
    return next(int(line.split()[1]) for line in _lines("/proc/self/status") if line.startswith("VmHWM"))


def resident_kib() -> int:
    """Resident size of this process, in KiB."""
    return next(int(line.split()[1]) for line in _lines("/proc/self/status") if line.startswith("VmRSS"))


def parse_options(text: str) -> tuple[str, dict[str, Any]]:
    """Parses a system of the command line.

    >>> parse_options("torch_lsh:random_fraction=0.5,hash=dwta,active=4096")
    ('torch_lsh', {'random_fraction': 0.5, 'hash': 'dwta', 'active': 4096})
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        options[key] = float(value) if "." in value else int(value) if value.isdigit() else value
    return name, options


def write_json(records: Sequence[dict[str, Any]], path: str | None) -> None:
    if path:
        with open(path, "a") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in cells)
