from __future__ import annotations

from torch import Tensor


def sampled_dot(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    products = (x.unsqueeze(1) * table[rows.clamp(min=0)]).sum(2)
    return products.masked_fill(rows < 0, 0)
