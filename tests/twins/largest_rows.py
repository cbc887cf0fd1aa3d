from __future__ import annotations

from torch import Tensor


def largest_rows(values: Tensor, rows: Tensor, count: int, log_weights: Tensor | None = None) -> Tensor:
    if log_weights is not None:
        values = values * (-log_weights).exp()
    return rows[values.argsort(descending=True, stable=True)[:count]]
