"""Every operator again in plain PyTorch: the oracle of the tests, and the documentation of what each one computes.

Same names and arguments as in :mod:`torch_lsh.ops`; clarity before speed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return table[rows].to(dtype or table.dtype)
