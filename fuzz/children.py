"""Runs cases in child processes, which may crash, hang or run out of memory.

A case is a function of a seed. A child runs many, and says in shared memory which one it is at; when it dies, the
parent notes that seed and goes on with the next one in a new child. Children are forked, so a parent must not have used
PyTorch's threads before.
"""

from __future__ import annotations

import mmap
import os
import re
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

#: Runs the case of a seed; returns how it ended, such as "accepted" or "refused", and raises what is a failure.
Case = Callable[[int], str]

_CASES = 2000  # per child
_SECONDS = 20  # of processor time for one case; ten times as many by the clock, as the process may have to wait
_MINUTE = 60  # between reports on the way
_MEMORY = 3 << 30  # bytes, beyond what the parent takes
_MESSAGE = 4096  # bytes of a failure that are kept
#: What a sanitizer says instead of std::bad_alloc.
_OUT_OF_MEMORY = "allocation-size-too-big", "out-of-memory", "requested allocation size", "calloc parameters overflow"


@dataclass(frozen=True)
class Failure:
    seed: int
    text: str


@dataclass
class Report:
    """How many cases ended in which way, and the failures among them."""

    ends: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    next_seed: int = 0

    def distinct(self) -> list[Failure]:
        """One failure of each kind, as their last lines say without the numbers in them."""
        kinds: dict[str, Failure] = {}
        for failure in self.failures:
            kinds.setdefault(re.sub(r"\d+", "", failure.text.strip().rpartition("\n")[2])[:60], failure)
        return list(kinds.values())


def run(case: Case, first: int, seconds: float, most: int | None = None, failures: int = 20) -> Report:
    """Runs the cases of seeds from ``first`` on.

    Args:
        case: see :data:`Case`.
        first: the first seed.
        seconds: stop after so many.
        most: cases to run; None: as many as there is time for.
        failures: stop after so many.
    """
    report = Report(next_seed=first)
    stop = time.monotonic() + seconds
    end = sys.maxsize if most is None else first + most
    told = time.monotonic()
    while report.next_seed < end and time.monotonic() < stop and len(report.distinct()) < failures:
        known = len(report.distinct())
        _run_child(case, report, min(end, report.next_seed + _CASES), stop)
        for failure in report.distinct()[known:]:
            print(f"seed {failure.seed}: {failure.text}", file=sys.stderr, flush=True)
        if time.monotonic() > told + _MINUTE:
            told = time.monotonic()
            print(f"{sum(report.ends.values()):,} cases, {len(report.failures)} failures", file=sys.stderr, flush=True)
    return report


def _run_child(case: Case, report: Report, end: int, stop: float) -> None:
    at = mmap.mmap(-1, 8)
    errors = os.memfd_create("stderr")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        try:
            _cases(case, report.next_seed, end, stop, at, write)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        records = pipe.read()
    status = os.waitpid(child, 0)[1]
    (seed,) = struct.unpack("q", at[:8])
    report.next_seed = seed + 1
    for record in records.split(b"\0")[:-1]:
        end_of_case, _, text = record.decode(errors="replace").partition("\n")
        if end_of_case.isdigit():
            report.failures.append(Failure(int(end_of_case), text))
        else:
            report.ends[end_of_case] += int(text)
    if status != 0:
        said = os.pread(errors, 1 << 20, 0).decode(errors="replace")
        if any(words in said for words in _OUT_OF_MEMORY):
            report.ends["out of memory"] += 1
        else:
            report.failures.append(Failure(seed, f"{_why(status)}\n{said[-_MESSAGE:]}"))
    os.close(errors)
    at.close()


def _why(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"the process ended with exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    hang = ": took too long" if number in (signal.SIGALRM, signal.SIGPROF) else ""
    return f"the process was ended by {signal.Signals(number).name}{hang}"


def _cases(case: Case, first: int, end: int, stop: float, at: mmap.mmap, pipe: int) -> None:
    if not under_sanitizer():
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + _MEMORY, own + _MEMORY))
    ends: Counter[str] = Counter()
    for seed in range(first, end):
        at[:8] = struct.pack("q", seed)
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)  # ends the process
        signal.alarm(10 * _SECONDS)
        try:
            ends[case(seed)] += 1
        except Exception:
            _send(pipe, str(seed), traceback.format_exc()[-_MESSAGE:])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        if seed % 100 == 99 or seed == end - 1 or time.monotonic() > stop:
            for name, count in ends.items():
                _send(pipe, name, str(count))
            ends.clear()
            if time.monotonic() > stop:
                return


def _send(pipe: int, end_of_case: str, text: str) -> None:
    os.write(pipe, f"{end_of_case}\n{text}".replace("\0", "?").encode(errors="replace") + b"\0")


def under_sanitizer() -> bool:
    """Whether memory is managed by AddressSanitizer or ThreadSanitizer."""
    return any(name in os.environ.get("LD_PRELOAD", "") for name in ("asan", "tsan"))
