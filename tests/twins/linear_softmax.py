from __future__ import annotations

import torch
from torch import Tensor

from torch_lsh import ops

from .largest_rows import largest_rows
from .softmax import sampled_softmax_loss


def labels_weigh_one(log_weights: Tensor, positions: Tensor) -> Tensor:
    log_weights = log_weights.expand(len(positions), -1).clone()
    for weights, own in zip(log_weights, positions):
        weights[own[own >= 0]] = 0
    return log_weights


def rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """What products with numbers of ``dtype`` take, and what the slopes of such inputs are."""
    return numbers if dtype is torch.bfloat16 and not ops.multiplies_bfloat16() else numbers.to(dtype)


def active_logits(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, dtype: torch.dtype) -> Tensor:
    logits = x.to(dtype) @ rounded(weight[rows], x.dtype).to(dtype).T
    return logits if bias is None else logits + bias[rows].to(dtype)


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
    logits = active_logits(x, weight, bias, rows, shares.dtype)
    largest = (logits if log_weights is None else logits + log_weights).amax(1, keepdim=True)
    if log_weights is not None:
        log_weights = labels_weigh_one(log_weights, positions)
    loss, _ = sampled_softmax_loss(logits, log_weights, positions, shares)
    powers = ((logits if log_weights is None else logits + log_weights) - largest).exp()
    total = powers.sum(1, keepdim=True)
    present = shares.masked_fill(positions < 0, 0)
    slopes = present.sum(1, keepdim=True) * powers
    slopes = slopes.scatter_add(1, positions.clamp(min=0), -present * total)
    scale = 1 / total.squeeze(1)
    if divisor is not None:
        loss, scale = loss.sum() / divisor, scale / divisor
    return loss, rounded(slopes.T.contiguous(), x.dtype), scale


def linear_softmax_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, log_weights: Tensor | None, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = active_logits(x, weight, bias, rows, torch.promote_types(x.dtype, torch.float32))
    at_labels = logits.new_zeros(positions.shape)
    for b, i in (positions >= 0).nonzero():
        at_labels[b, i] = logits[b, positions[b, i]]
    if len(rows) == 0:
        nothing = logits.new_zeros(len(x))
        return nothing - torch.inf, at_labels, rounded(logits.T.contiguous(), x.dtype), nothing
    largest = (logits if log_weights is None else logits + log_weights).amax(1, keepdim=True)
    if log_weights is not None:
        logits = logits + labels_weigh_one(log_weights, positions)
    powers = (logits - largest).exp()
    total = powers.sum(1)
    return largest.squeeze(1) + total.log(), at_labels, rounded(powers.T.contiguous(), x.dtype), 1 / total


def linear_softmax_loss_backward(
    slopes: Tensor,
    factors: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    needs_weight: bool = True,
    grad: Tensor | None = None,
    hardest: int = 0,
    log_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    factors = factors if grad is None else factors * grad
    dtype = factors.dtype
    slopes, active = slopes.to(dtype), rounded(weight[rows], x.dtype).to(dtype)
    gradient, scaled = slopes * factors, rounded(x.to(dtype) * factors.unsqueeze(1), x.dtype)
    of_weight = slopes @ scaled.to(dtype) if needs_weight else active[:0]
    hardest_rows = largest_rows(gradient.clamp(min=0).sum(1).float(), rows, hardest, log_weights)
    if x.dtype is not dtype:
        scaled = factors.new_empty(0, x.shape[1])
    return gradient.T @ active, of_weight, gradient.sum(1), hardest_rows, scaled
