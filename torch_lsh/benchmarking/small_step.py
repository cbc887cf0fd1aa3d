"""A training step of so few rows that hardly any of it is arithmetic: what Python and PyTorch cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from . import harness
from .step import make_step
from .systems import LSH, LSHInBackward, LSHOneCall

ROWS, WIDTH, BATCH, ACTIVE = 30_000, 64, 16, 64
_TURNS, _STEPS_OF_A_TURN = 10, 100
_PROFILED = 200


def measure_small_step(systems: Sequence[type[LSH]] = (LSH, LSHInBackward, LSHOneCall)) -> list[dict[str, Any]]:
    """Times a step in one thread, prints its microseconds inside and outside of operators, and returns a record each.

    PyTorch's profiler says how long the operators of this library take. It slows Python down, so the whole step is
    timed without it.
    """
    threads = torch.get_num_threads()
    info = harness.machine(1)
    steps = {}
    for system in systems:
        torch.manual_seed(0)
        steps[system.name] = make_step(system(nn.Linear(WIDTH, ROWS), 1e-3, ACTIVE), ROWS, WIDTH, BATCH)
    seconds = harness.in_turn(steps, _TURNS, warm_up=50, calls=_STEPS_OF_A_TURN)
    records = []
    for name, step in steps.items():
        _, inside = harness.profiled(step, _PROFILED)
        whole = statistics.median(seconds[name])
        record = {"system": name, "us": whole * 1e6, "us_outside_operators": (whole - inside) * 1e6}
        records.append({"benchmark": "small_step", **record, **harness.summary(seconds[name]), "machine": info})
    torch.set_num_threads(threads)
    print(f"{ROWS:,} x {WIDTH}, batch {BATCH}, {ACTIVE} active rows, Adam, one thread")
    keys = ("system", "us", "us_outside_operators", "min_ms")
    header = ("system", "median us", "outside of operators", "min ms")
    print(harness.table([[record[key] for key in keys] for record in records], header))
    return records
