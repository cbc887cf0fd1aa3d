"""Dense matrix products of active sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..row_sparse.parameters import updater
from .declaration import operator
from .gather import gather_rows
from .gradients import RowGradient, check_first_order


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    need_a, need_b, *need_bias = ctx.needs_input_grad  # a bias that was left out is not listed
    return (
        product(grad, b.T) if need_a else None,
        product(grad.T, a).T if need_b else None,  # transposed, because the operator packs its right side
        grad.sum(1) if any(need_bias) else None,
    )


@operator(setup_context=_setup_context, backward=_backward)
def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes ``a @ b + bias.unsqueeze(1)`` in float32, float64 or bfloat16, for operands of any strides.

    Made for active sets: thousands of rows on the left, a batch on the right. An element is summed in the same order
    for any number of threads; in bfloat16 it is summed in float32 and rounded once. Differentiable.

    Args:
        a: ``[M, K]``.
        b: ``[K, N]`` of the same dtype.
        bias: ``[M]`` of the same dtype, contiguous, or None.

    Returns:
        ``[M, N]``, contiguous.

    >>> product(torch.eye(2), torch.tensor([[1.0], [2.0]]), torch.tensor([10.0, 20.0]))
    tensor([[11.],
            [22.]])
    """
    return a.new_empty(a.shape[0], b.shape[1])


def gather_matmul(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    """Logits of an active set that the batch shares: ``x @ weight[rows].T + bias[rows]``.

    The rows are gathered once; forward and backward then run as dense matrix products, those of :func:`product`.
    Differentiable in ``x``, ``weight`` and ``bias`` (row-sparse as in :func:`gather_rows`).

    Args:
        x: ``[B, in]``.
        weight: ``[N, in]``, of the dtype of ``x`` unless autocast is on.
        bias: ``[N]`` or None.
        rows: ``[A]`` int64.

    Returns:
        ``[B, A]``, the transpose of a contiguous tensor.

    >>> gather_matmul(torch.tensor([[1.0, 2.0]]), torch.eye(2), None, torch.tensor([1, 0]))
    tensor([[2., 1.]])
    """
    offset = None if bias is None else gather_rows(bias, rows)
    if weight.requires_grad and torch.is_grad_enabled() and updater(weight) is not None:
        logits: Tensor = _ProductWithUpdate.apply(weight, x, offset, rows)
    else:
        logits = _product_with_rows(gather_rows(weight, rows), x, offset)
    return logits.T


def _product_with_rows(active: Tensor, x: Tensor, offset: Tensor | None) -> Tensor:
    return product(active, x.to(active.dtype).T, offset)


class _ProductWithUpdate(torch.autograd.Function):
    """The product with rows of a weight that its optimizer updates in the backward pass."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, offset: Tensor | None, rows: Tensor) -> Tensor:
        active = gather_rows(weight, rows)
        ctx.of_weight, ctx.x_dtype = RowGradient(weight), x.dtype
        x = x.to(active.dtype)
        ctx.save_for_backward(active, x, rows)
        return _product_with_rows(active, x, offset)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_first_order()
        (grad,) = grads
        active, x, rows = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = product(grad.T, active).to(ctx.x_dtype)
        grad_offset = grad.sum(1) if ctx.needs_input_grad[2] else None
        _, updater = ctx.of_weight.asked(ctx)
        grad_weight = None
        if updater is None or active.dtype is torch.bfloat16 or active.dtype is not ctx.of_weight.dtype:
            grad_weight = ctx.of_weight.deliver(ctx, rows, grad @ x)
        else:
            updater.update_in_backward(ctx.of_weight.parameter, rows, grad, x)
        return grad_weight, grad_x, grad_offset, None
