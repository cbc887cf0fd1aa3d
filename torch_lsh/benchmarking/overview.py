"""A training step and the top-k look-up beside PyTorch's, on the user's machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import plots
from . import harness, latency, step

_BATCHES = (1, 16, 256)


def overview(
    rows: int, width: int, batch: int, active: int, rounds: int, threads: int | None, plot: str | None
) -> list[dict[str, Any]]:
    """Runs both comparisons, prints their tables, and draws them to the file ``plot``."""
    steps = step.compare_steps(rows, width, batch, active, rounds, threads=threads)
    torch.manual_seed(0)
    systems = latency.systems_of(nn.Linear(width, rows).eval())
    best = latency.measure(systems, torch.randn(1024, width), _BATCHES, rounds=50, seconds=5)
    columns = ("batch", "system", "median_ms", "p99_ms", "runs", "speedup")
    print(f"the best {latency.K} of {rows:,} classes")
    print(
        harness.table(
            [[record[column] for column in columns] for record in best],
            ("batch", "system", "p50 ms", "p99", "runs", "times F.linear + topk"),
        )
    )
    if plot:
        plots.draw(plot, lambda axis: step.draw(axis, steps), lambda axis: latency.draw(axis, best))
    return steps + best
