from __future__ import annotations

import math

import torch
from torch import Tensor


def linear_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return rows_topk(x, weight, bias, torch.arange(len(weight)).expand(len(x), -1), k, scale)


def rows_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    logits = x.to(dtype) @ weight.to(dtype).T
    if scale is not None:
        logits = logits * scale
    if bias is not None:
        logits = logits + bias.to(dtype)
    values, classes = x.new_full((len(x), k), -math.inf, dtype=dtype), torch.full((len(x), k), -1)
    for b, candidates in enumerate(rows):
        # A stable sort puts NaN first and keeps the lower class first among equals.
        mine = candidates[candidates >= 0].sort().values
        best = logits[b, mine].sort(descending=True, stable=True)
        count = min(k, len(mine))
        values[b, :count], classes[b, :count] = best.values[:count], mine[best.indices[:count]]
    return values, classes
