"""log_softmax with sum and mean: label smoothing, written by hand.

In training these are estimates over active rows, as in the losses of PyTorch: those of a loss on the same logits, if
there was one before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...sampling.sampler import Sampler
from .losses import grad_mode, is_log_softmax, sampler_in_training, weighted_logits
from .recipe import Recipe
from .tensor import SampledLogits, handles


@handles(Tensor.sum, torch.sum)
def _sum(logits: SampledLogits, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    mean = _mean(logits, dim, keepdim, dtype=dtype)
    return mean if mean is NotImplemented else mean * logits.recipe.owner.out_features


@handles(Tensor.mean, torch.mean)
def _mean(logits: SampledLogits, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    recipe = logits.recipe
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        (dim,) = dim
    if not isinstance(dim, int) or not is_log_softmax(recipe) or not recipe.is_class_dim(dim):
        return NotImplemented
    sampler = sampler_in_training(recipe)
    if sampler is None:
        return NotImplemented
    logits.refuse_stale()
    mean = (recipe.factor * _mean_of_active(recipe, sampler)).to(dtype or recipe.dtype).view(recipe.lead)
    return mean.unsqueeze(recipe.class_dim) if keepdim else mean


def _mean_of_active(recipe: Recipe, sampler: Sampler) -> Tensor:
    """Estimates the mean of log_softmax over the classes, ``[B]``."""
    owner = recipe.owner
    active = owner.paths.active_rows_of(recipe.input, stale=False)
    if active is None:
        x = recipe.flat_input().detach()
        none = torch.empty(len(x), 0, dtype=torch.int64, device="cpu")
        active = sampler.draw(owner.weight, owner.bias, x, none)
    with grad_mode(recipe):
        logits, weighted = weighted_logits(recipe, sampler, active)
        shares = active.weights().to(logits.dtype)
        shares = shares / shares.sum(-1, keepdim=True)
        return (shares * logits).sum(1) - weighted.logsumexp(1)
