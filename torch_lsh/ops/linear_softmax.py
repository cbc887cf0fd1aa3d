"""Cross entropy over the active rows of a layer, with the layer's product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .declaration import operator
from .gradients import RowGradient, check_first_order


@operator
def linear_softmax_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    log_weights: Tensor | None,
    positions: Tensor,
    shares: Tensor,
    divisor: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`sampled_softmax_loss` of the logits ``x @ weight[rows].T + bias[rows]``, and the gradient of the logits.

    Not differentiable; :func:`active_rows_loss` is. All arguments are contiguous. The logits are float32 for a bfloat16
    ``x``, else of its dtype.

    Args:
        x: ``[B, in]`` float32, float64 or bfloat16.
        weight: ``[N, in]`` of the same dtype; or float32 with a bfloat16 ``x``, which rounds the active rows if
            :func:`multiplies_bfloat16`.
        bias: ``[N]`` of the dtype of ``weight``, or None.
        rows: ``[A]`` int64.
        log_weights: ``[A]`` of the dtype of the logits, or None: as in :func:`sampled_softmax_loss`, except that a
            sample's own labels always have weight 1.
        positions: ``[B, P]`` int64: as in :func:`sampled_softmax_loss`.
        shares: ``[B, P]`` of the dtype of the logits: as in :func:`sampled_softmax_loss`.
        divisor: returns the sum of the losses over this rather than the loss of each sample.

    Returns:
        ``loss`` ``[B]``, or ``[]`` with a divisor; ``slopes`` ``[A, B]`` and ``scale`` ``[B]``: the gradient of the
        loss in sample ``b``'s logit of row ``a`` is ``slopes[a, b] * scale[b]``. All have the dtype of the logits.

    >>> x = torch.zeros(1, 3)
    >>> loss, slopes, scale = linear_softmax_loss(
    ...     x, torch.eye(3), None, torch.tensor([0, 2]), None, torch.tensor([[1]]), torch.ones(1, 1)
    ... )
    >>> loss.exp(), slopes.T * scale
    (tensor([2.]), tensor([[ 0.5000, -0.5000]]))
    """
    batch, count = x.shape[0], rows.shape[0]
    return (
        shares.new_empty(batch if divisor is None else ()),
        shares.new_empty(count, batch),
        shares.new_empty(batch),
    )


@operator
def linear_softmax_loss_backward(
    slopes: Tensor,
    factors: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    needs_weight: bool = True,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients that follow from ``slopes * factors * grad``, the gradient of the logits.

    Args:
        slopes: ``[A, B]``, from :func:`linear_softmax_loss`.
        factors: ``[B]``, its ``scale``.
        x, weight, rows: as in :func:`linear_softmax_loss`. Where a bfloat16 ``x`` rounds the active rows, it rounds the
            gradient of the logits, too.
        needs_weight: computes the gradient of the weight.
        grad: ``[B]`` or ``[]``, the gradient of the loss; None: 1.

    Returns:
        The gradients of ``x`` ``[B, in]``, of the active rows of ``weight`` ``[A, in]`` (``[0, in]`` without
        ``needs_weight``) and of ``bias`` ``[A]``; the sums of the positive gradients of each row's logits ``[A]``; and
        ``x * factors * grad`` ``[B, in]`` (``[0, in]`` for a bfloat16 ``x``): the gradient of the active rows is the
        product of ``slopes`` and this. All have the dtype of ``slopes``.
    """
    count, (batch, width) = rows.shape[0], x.shape
    of_weight = slopes.new_empty(count * needs_weight, width)
    scaled = slopes.new_empty(batch if x.dtype is slopes.dtype else 0, width)
    return slopes.new_empty(x.shape), of_weight, slopes.new_empty(count), slopes.new_empty(count), scaled


def active_rows_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    log_weights: Tensor | None,
    positions: Tensor,
    shares: Tensor,
    divisor: float | None = None,
    pushed_down: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Cross entropy over the active rows of a layer, as most models need it in a training step.

    Equals :func:`gather_matmul` and :func:`sampled_softmax_loss` in turn, but takes each exponential once and keeps no
    gradient of the logits beside the logits. Differentiable (once) in ``x``, ``weight`` and ``bias`` (row-sparse as in
    :func:`gather_rows`).

    Args:
        x, weight, bias, log_weights, positions, shares, divisor: as in :func:`linear_softmax_loss`, but ``x`` may have
            any strides.
        rows: ``[A]`` int64, strictly increasing.
        pushed_down: called in the backward pass with the sums of the positive gradients of each row's logits ``[A]``.

    Returns:
        ``[B]``, or ``[]`` with a divisor, of the dtype of ``shares``.
    """
    others = (rows, log_weights, positions, shares, divisor, pushed_down)  # as one argument: apply() looks at each
    loss: Tensor = _ActiveRowsLoss.apply(x, weight, bias, others)
    return loss


class _ActiveRowsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        others: tuple[Any, ...],
    ) -> Tensor:
        x = x.contiguous()
        rows, log_weights, positions, shares, divisor, pushed_down = others
        loss, slopes, scale = linear_softmax_loss(x, weight, bias, rows, log_weights, positions, shares, divisor)
        ctx.save_for_backward(x, weight, rows, slopes, scale)
        ctx.of_weight, ctx.of_bias = RowGradient(weight), None if bias is None else RowGradient(bias)
        ctx.pushed_down = pushed_down
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_first_order()
        x, weight, rows, slopes, scale = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        # An optimizer takes the gradient as its two factors, except in bfloat16, which is multiplied faster here.
        as_factors = ctx.of_weight.goes_to_updater and x.dtype is slopes.dtype
        grad_x, of_rows, of_offset, positive, scaled = linear_softmax_loss_backward(
            slopes, scale, x, weight, rows, needs_weight and not as_factors, grads[0].contiguous()
        )
        if ctx.pushed_down is not None:
            ctx.pushed_down(positive)
        grad_weight = grad_bias = None
        if needs_bias:
            grad_bias = ctx.of_bias.deliver(rows, of_offset, unique=True)
        if needs_weight and as_factors:
            ctx.of_weight.deliver_product(rows, slopes, scaled)
        elif needs_weight:
            grad_weight = ctx.of_weight.deliver(rows, of_rows, unique=True)
        if grad_x.dtype is not x.dtype:
            grad_x = grad_x.to(x.dtype)
        return grad_x if needs_x else None, grad_weight, grad_bias, None
