"""Cross entropy over the active rows, given their logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .declaration import operator


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *inputs)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
    if torch.is_grad_enabled():  # create_graph=True
        return _differentiable_gradient(grad, *ctx.saved_tensors[1:]), None, None, None
    return sampled_softmax_loss_backward(grad.contiguous(), *ctx.saved_tensors), None, None, None


def _differentiable_gradient(
    grad: Tensor, logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor
) -> Tensor:
    """:func:`sampled_softmax_loss_backward`, whose result can be differentiated."""
    present = shares.masked_fill(positions < 0, 0)
    weighted = logits if log_weights is None else logits + log_weights
    slopes = present.sum(1, keepdim=True) * weighted.softmax(1)
    return grad.unsqueeze(1) * slopes.scatter_add(1, positions.clamp(min=0), -present)


@operator(setup_context=_setup_context, backward=_backward)
def sampled_softmax_loss(
    logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each sample over its active rows. Differentiable in ``logits``.

    Args:
        logits: ``[B, A]`` float32 or float64; contiguous, or the transpose of a contiguous tensor.
        log_weights: ``[A]`` or ``[B, A]`` of the same dtype, or None: zeros. Log importance weights, added to the
            logits in the partition function only; ``-inf`` leaves a row out. With ``[B, A]`` logits must be contiguous.
        positions: ``[B, P]`` int64: the columns of the labels' logits; negative: no label.
        shares: ``[B, P]`` of the dtype of ``logits``: the weight of each label.

    Returns:
        ``loss`` ``[B]``: the sum of ``shares[p] * (log_z - logits[positions[p]])`` over p; and ``log_z`` ``[B]``, the
        log partition function, which is not differentiable.

    >>> loss, log_z = sampled_softmax_loss(torch.zeros(1, 4), None, torch.tensor([[2]]), torch.ones(1, 1))
    >>> loss.exp(), log_z.exp()
    (tensor([4.]), tensor([4.]))

    Bengio & Senécal, *Quick Training of Probabilistic Neural Nets by Importance Sampling*, AISTATS 2003.
    """
    return logits.new_empty(logits.shape[0]), logits.new_empty(logits.shape[0])


@operator
def sampled_softmax_loss_backward(
    grad: Tensor, log_z: Tensor, logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor
) -> Tensor:
    """The gradient of the logits of :func:`sampled_softmax_loss`, in their shape and layout.

    Args:
        grad: ``[B]``, the gradient of the loss, contiguous.
        log_z: ``[B]``, from :func:`sampled_softmax_loss`.
        logits, log_weights, positions, shares: as in :func:`sampled_softmax_loss`.

    >>> sampled_softmax_loss_backward(
    ...     torch.ones(1), torch.tensor([4.0]).log(), torch.zeros(1, 4), None, torch.tensor([[2]]), torch.ones(1, 1)
    ... )
    tensor([[ 0.2500,  0.2500, -0.7500,  0.2500]])
    """
    return torch.empty_like(logits)


@operator
def positive_sums(gradient: Tensor) -> Tensor:
    """Sums the positive entries of every column.

    Args:
        gradient: ``[B, A]`` float32 or float64; contiguous, or the transpose of a contiguous tensor.

    Returns:
        ``[A]`` of the same dtype.

    >>> positive_sums(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    tensor([1.5000, 3.0000])
    """
    return gradient.new_empty(gradient.shape[1])
