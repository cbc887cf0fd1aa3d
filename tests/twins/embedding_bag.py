from __future__ import annotations

import torch
from torch import Tensor


def coalesce_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    unique, inverse = rows.unique(return_inverse=True)
    return unique, values.new_zeros(len(unique), *values.shape[1:]).index_add_(0, inverse, values)


def embedding_bag(weight: Tensor, crow: Tensor, col: Tensor, values: Tensor | None = None) -> Tensor:
    sample = torch.repeat_interleave(crow.diff())
    rows = weight[col] if values is None else weight[col] * values.unsqueeze(1)
    return weight.new_zeros(len(crow) - 1, weight.shape[1]).index_add(0, sample, rows)


def embedding_bag_backward(grad: Tensor, crow: Tensor, col: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
    terms = grad[torch.repeat_interleave(crow.diff())]
    return coalesce_rows(col, terms if values is None else terms * values.unsqueeze(1))


def embedding_bag_values_backward(grad: Tensor, weight: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return (grad[torch.repeat_interleave(crow.diff())] * weight[col]).sum(1)
