"""One training step of a wide output layer: forward, loss, backward, optimizer."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import plots
from . import harness
from .systems import (
    LSH,
    AdaptiveLogSoftmax,
    Dense,
    DenseBFloat16,
    LinearCrossEntropy,
    LSHBFloat16,
    LSHBFloat16Weights,
    LSHInBackward,
    Uniform,
)

ALL_SYSTEMS = (
    Dense,
    DenseBFloat16,
    LinearCrossEntropy,
    AdaptiveLogSoftmax,
    Uniform,
    LSH,
    LSHInBackward,
    LSHBFloat16,
    LSHBFloat16Weights,
)
_BATCHES = 100
_SAMPLED_TURNS, _STEPS_OF_A_TURN = 20, 10  # enough for some re-hashes to fall due


def make_step(system: Any, rows: int, width: int, batch: int) -> Callable[[], Tensor]:
    """A function that trains ``system`` on the next batch: activations like those of a ReLU layer, Zipf labels.

    Batches are made beforehand, as the workers of a ``DataLoader`` make them.
    """
    generator = torch.Generator().manual_seed(0)

    def make_batch() -> tuple[Tensor, Tensor]:
        h = torch.randn(batch, width, generator=generator).relu_()
        ranks = torch.rand(batch, 1, generator=generator).mul_(torch.log(torch.tensor(float(rows)))).exp_()
        return h, ranks.long().clamp_(1, rows) - 1

    batches = itertools.cycle([make_batch() for _ in range(_BATCHES)])

    def step() -> Tensor:
        h, y = next(batches)
        loss: Tensor = system.loss(h.detach().requires_grad_(), y)
        loss.backward()
        system.step()
        return loss

    return step


def compare_steps(
    rows: int = 670_091,
    width: int = 128,
    batch: int = 256,
    active: int = 8192,
    rounds: int = 5,
    systems: Sequence[Any] = (Dense, Uniform, LSH, LSHBFloat16),
    threads: int | None = None,
    json: str | None = None,
    plot: str | None = None,
) -> list[dict[str, Any]]:
    """Times a step of each system in turn, prints a table and returns a record per system.

    Sampled systems then take turns of 10 steps, 200 in all, by themselves, so that the means of the LSH layers include
    the re-hashes that fall due, and none meets caches and page tables that the dense systems left.
    """
    active = min(active, rows)
    info = harness.machine(threads)
    print(info)
    print(f"{rows:,} x {width}, batch {batch}, {active:,} active rows, Adam")
    steps: dict[str, Callable[[], Any]] = {}
    for system in systems:
        torch.manual_seed(0)
        steps[system.name] = make_step(system(nn.Linear(width, rows), 1e-3, active), rows, width, batch)
    seconds = harness.in_turn(steps, rounds)
    sampled = {system.name: steps[system.name] for system in systems if issubclass(system, (Uniform, LSH))}
    seconds.update(harness.in_turn(sampled, _SAMPLED_TURNS, calls=_STEPS_OF_A_TURN))
    ours = {name: statistics.median(seconds.get(name, [math.nan])) for name in (LSH.name, LSHBFloat16.name)}
    records: list[dict[str, Any]] = [
        {
            "benchmark": "step",
            "system": name,
            **harness.summary(measured),
            "times_ours": statistics.median(measured) / ours[LSH.name],
            "times_ours_bfloat16": statistics.median(measured) / ours[LSHBFloat16.name],
            "machine": info,
        }
        for name, measured in seconds.items()
    ]
    keys = ("system", "median_ms", "mean_ms", "min_ms", "max_ms", "runs", "times_ours", "times_ours_bfloat16")
    header = ("system", "median ms", "mean", "min", "max", "runs", "times torch_lsh", "times torch_lsh bfloat16")
    print(f"{info['cpu']}, {info['threads']} threads, {info['simd']}, bfloat16 products in {info['bfloat16_products']}")
    print(harness.table([[record[key] for key in keys] for record in records], header))
    harness.write_json(records, json)
    if plot:
        plots.draw(plot, lambda axis: draw(axis, records))
    return records


def draw(axis: Any, records: list[dict[str, Any]]) -> None:
    """Milliseconds per step, a bar per system."""
    axis.barh([r["system"] for r in records], [r["median_ms"] for r in records])
    axis.set(xscale="log", xlabel="milliseconds per training step")
