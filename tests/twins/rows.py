from __future__ import annotations

import torch
from torch import Tensor


def is_increasing(rows: Tensor, below: int | None = None) -> bool:
    increasing = bool((rows.diff() > 0).all())
    return increasing and (below is None or bool(((rows >= 0) & (rows < below)).all()))


def extremes(numbers: Tensor) -> tuple[int, int]:
    least, largest = numbers.aminmax()
    return int(least), int(largest)


def take_runs(start: Tensor, values: Tensor, runs: Tensor) -> tuple[Tensor, Tensor]:
    chosen = [values[start[run] : start[run + 1]] for run in runs.tolist()]
    lengths = torch.tensor([0, *map(len, chosen)])
    return lengths.cumsum(0), torch.cat([values[:0], *chosen])
