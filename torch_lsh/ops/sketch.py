"""Estimates of inner products from sign codes."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import operator


@operator
def sketch_candidates(x: Tensor, codes: Tensor, factors: Tensor, num_rows: int, count: int) -> Tensor:
    """Finds the rows with the largest estimates ``factor * (x · signs) + addend``.

    For every four dimensions, the products of ``x`` with the 16 possible signs are rounded to 127 levels or fewer.

    Args:
        x: ``[B, width]`` float32, rotated queries; ``width`` is a multiple of 8.
        codes: ``[blocks, width / 8, 64]`` uint8: bit ``i`` of byte ``j`` is the sign (1: positive) of dimension
            ``8 * j + i``. Row ``r`` of a block is at place ``2 * (r % 32) + r // 32``.
        factors: ``[blocks, 2, 64]`` bfloat16: factors and addends of the rows of a block, in order.
        num_rows: N. The last block may be partly empty.
        count: M, 1 to N.

    Returns:
        ``[B, M]`` int64, increasing.

    >>> codes = torch.zeros(1, 1, 64, dtype=torch.uint8)
    >>> factors = torch.stack([torch.zeros(64), torch.arange(64.0)]).bfloat16().unsqueeze(0)
    >>> sketch_candidates(torch.ones(1, 8), codes, factors, num_rows=10, count=3)
    tensor([[7, 8, 9]])
    """
    return x.new_empty((x.shape[0], count), dtype=torch.int64)
