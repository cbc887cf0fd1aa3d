from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return table[rows].to(dtype or table.dtype)
