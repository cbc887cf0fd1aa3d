from __future__ import annotations

from torch import Tensor


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return a @ b if bias is None else a @ b + bias.unsqueeze(1)


def gather_matmul(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    logits = x @ weight[rows].T
    return logits if bias is None else logits + bias[rows]
