"""Weighted sums of rows of a table, their gradients, and sums over equal rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .declaration import autocast_dtype, operator
from .gradients import RowGradient, check_first_order


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    weight, crow, col, values = inputs
    ctx.save_for_backward(weight, crow, col, values)
    ctx.of_weight = RowGradient(weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
    check_first_order()
    weight, crow, col, values = ctx.saved_tensors
    grad = grad.contiguous()
    grad_weight = grad_values = None
    if any(ctx.needs_input_grad[3:]):  # values that were left out are not listed
        grad_values = embedding_bag_values_backward(grad, weight, crow, col)
    if ctx.needs_input_grad[0]:  # last, because an optimizer may update the weight
        grad_weight = ctx.of_weight.deliver(ctx, *embedding_bag_backward(grad, crow, col, values), unique=True)
    return grad_weight, None, None, grad_values


def _autocast(
    call: Callable[..., Tensor], weight: Tensor, crow: Tensor, col: Tensor, values: Tensor | None = None
) -> Tensor:
    bags = call(weight, crow, col, None if values is None else values.to(weight.dtype))
    return bags.to(autocast_dtype(weight) or weight.dtype)


@operator(setup_context=_setup_context, backward=_backward, autocast=_autocast)
def embedding_bag(weight: Tensor, crow: Tensor, col: Tensor, values: Tensor | None = None) -> Tensor:
    """Weighted sums of rows: the product of a sparse CSR batch ``[B, F]`` and a table.

    Differentiable (once) in ``weight`` (row-sparse as in :func:`gather_rows`) and ``values``. Under CPU autocast the
    sums are made in the dtype of the table and converted to the autocast dtype.

    Args:
        weight: ``[F, width]`` float32, float64 or bfloat16, contiguous.
        crow: ``[B + 1]`` int64: sample ``b`` has the features ``crow[b] .. crow[b + 1] - 1``.
        col: ``[nnz]`` int64 feature numbers, each in ``0 .. F - 1``.
        values: ``[nnz]`` of the dtype of ``weight``; None: ones.

    Returns:
        ``[B, width]``; zeros for a sample without features.

    >>> embedding_bag(torch.eye(3), torch.tensor([0, 2, 2]), torch.tensor([0, 2]), torch.tensor([1.0, 5.0]))
    tensor([[1., 0., 5.],
            [0., 0., 0.]])
    """
    return weight.new_empty(crow.shape[0] - 1, weight.shape[1])


@operator
def embedding_bag_backward(grad: Tensor, crow: Tensor, col: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient of the table of :func:`embedding_bag`, for the features that occur.

    Args:
        grad: ``[B, width]``, the gradient of the result, contiguous.
        crow, col, values: as in :func:`embedding_bag`.

    Returns:
        The features that occur, increasing, ``[A]`` int64; and their gradients ``[A, width]``.

    >>> grad = torch.tensor([[1.0], [10.0]])
    >>> embedding_bag_backward(grad, torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2]), None)
    (tensor([0, 2]), tensor([[ 1.],
            [11.]]))
    """
    count = torch.library.get_ctx().new_dynamic_size()
    return col.new_empty(count), grad.new_empty(count, grad.shape[1])


@operator
def embedding_bag_values_backward(grad: Tensor, weight: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """The gradient of the values of :func:`embedding_bag`: ``[nnz]``.

    Args:
        grad: ``[B, width]``, the gradient of the result, contiguous.
        weight, crow, col: as in :func:`embedding_bag`.

    >>> embedding_bag_values_backward(torch.ones(1, 3), torch.eye(3), torch.tensor([0, 2]), torch.tensor([0, 2]))
    tensor([1., 1.])
    """
    return grad.new_empty(col.shape)


@operator
def coalesce_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the values of equal rows, in an order that does not depend on the number of threads.

    Args:
        rows: ``[A]`` int64, not negative.
        values: ``[A, width]`` or ``[A]``.

    Returns:
        The rows without repetition, increasing; and the sums of their values. Not differentiable.

    >>> coalesce_rows(torch.tensor([5, 2, 5]), torch.tensor([1.0, 2.0, 3.0]))
    (tensor([2, 5]), tensor([2., 4.]))
    """
    count = torch.library.get_ctx().new_dynamic_size()
    return rows.new_empty(count), values.new_empty((count, *values.shape[1:]))
