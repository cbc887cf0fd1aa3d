from __future__ import annotations

import math

from torch import Tensor


def sampled_softmax_loss(
    logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    log_z = (logits if log_weights is None else logits + log_weights).logsumexp(1)
    at_labels = logits.gather(1, positions.clamp(min=0))
    subtracted = log_z.masked_fill(log_z == math.inf, math.nan).unsqueeze(1)  # as in PyTorch's loss
    loss = (shares * (subtracted - at_labels)).masked_fill(positions < 0, 0).sum(1)
    return loss, log_z.detach()


def positive_sums(gradient: Tensor) -> Tensor:
    return gradient.clamp(min=0).sum(0)


def sampled_softmax_loss_backward(
    grad: Tensor, log_z: Tensor, logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor
) -> Tensor:
    present = shares.masked_fill(positions < 0, 0)
    powers = ((logits if log_weights is None else logits + log_weights) - log_z.unsqueeze(1)).exp()
    slopes = present.sum(1, keepdim=True) * powers
    return grad.unsqueeze(1) * slopes.scatter_add(1, positions.clamp(min=0), -present)
