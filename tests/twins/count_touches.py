from __future__ import annotations

from torch import Tensor


def count_touches_(touches: Tensor, rows: Tensor) -> None:
    for row in rows.tolist():
        touches[row] = min(int(touches[row]) + 1, 255)
