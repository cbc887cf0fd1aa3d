from __future__ import annotations

from torch import Tensor


def is_increasing(rows: Tensor, below: int | None = None) -> bool:
    increasing = bool((rows.diff() > 0).all())
    return increasing and (below is None or bool(((rows >= 0) & (rows < below)).all()))


def extremes(numbers: Tensor) -> tuple[int, int]:
    least, largest = numbers.aminmax()
    return int(least), int(largest)
