from __future__ import annotations

import torch
from torch import Tensor


def sampled_dot(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    sums = torch.promote_types(x.dtype, torch.float32)
    products = (x.to(sums).unsqueeze(1) * table[rows.clamp(min=0)].to(sums)).sum(2)
    return products.to(x.dtype).masked_fill(rows < 0, 0)
