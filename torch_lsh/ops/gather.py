"""Copies of single rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .declaration import autocast_dtype, operator
from .gradients import RowGradient


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, rows, _ = inputs
    ctx.save_for_backward(rows)
    ctx.of_table = RowGradient(table)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
    (rows,) = ctx.saved_tensors
    return ctx.of_table.deliver(ctx, rows, grad), None, None


def _autocast(call: Callable[..., Tensor], table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return call(table, rows, dtype or autocast_dtype(table))


@operator(setup_context=_setup_context, backward=_backward, autocast=_autocast)
def gather_rows(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Computes ``table[rows]`` with software prefetch and, where asked, in another dtype.

    Differentiable in ``table``. The gradient is row-sparse where
    :func:`~torch_lsh.row_sparse.parameters.wants_row_sparse` says so, else dense. Under CPU autocast the result has the
    autocast dtype; only the gathered rows are converted.

    Args:
        table: ``[N, width]`` or ``[N]``; float32, float64 or bfloat16, contiguous.
        rows: ``[A]`` int64, each in ``0 .. N - 1``.
        dtype: dtype of the result; default: that of ``table``. float32 and bfloat16 convert into each other.

    Returns:
        ``[A, width]`` or ``[A]``.

    >>> gather_rows(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0]))
    tensor([[3.],
            [1.]])
    """
    return table.new_empty((rows.shape[0], *table.shape[1:]), dtype=dtype)
