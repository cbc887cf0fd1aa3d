"""Inner products of each sample with rows of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .declaration import operator
from .embedding_bag import embedding_bag, embedding_bag_backward
from .gradients import RowGradient, check_first_order


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, table, rows = inputs
    ctx.save_for_backward(x, table, rows)
    ctx.of_table = RowGradient(table)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    check_first_order()
    x, table, rows = ctx.saved_tensors
    present = rows >= 0
    crow = F.pad(present.sum(1).cumsum(0), (1, 0))
    col, values = rows[present], grad[present]
    grad_x = embedding_bag(table, crow, col, values) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return grad_x, None, None
    touched, sums = embedding_bag_backward(x, crow, col, values)
    return grad_x, ctx.of_table.deliver(ctx, touched, sums, unique=True), None


def _autocast(call: Callable[..., Tensor], x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    return call(x.to(table.dtype), table, rows)


@operator(setup_context=_setup_context, backward=_backward, autocast=_autocast)
def sampled_dot(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Logits of one active set per sample, as in SLIDE: ``out[b, j] = x[b] · table[rows[b, j]]``.

    A sampled dense-dense matrix product. Differentiable (once) in ``x`` and ``table`` (row-sparse as in
    :func:`gather_rows`).

    Args:
        x: ``[B, width]`` float32, float64 or bfloat16.
        table: ``[N, width]`` of the same dtype, contiguous. CPU autocast converts ``x`` to the dtype of ``table``.
        rows: ``[B, A]`` int64, each in ``0 .. N - 1``, or negative: the result is 0 there.

    Returns:
        ``[B, A]``.

    >>> import torch
    >>> sampled_dot(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([[1, 0, -1]]))
    tensor([[2., 1., 0.]])

    Chen et al., *SLIDE: In Defense of Smart Algorithms over Hardware Acceleration for Large-Scale Deep Learning
    Systems*, MLSys 2020.
    """
    return x.new_empty(rows.shape)
