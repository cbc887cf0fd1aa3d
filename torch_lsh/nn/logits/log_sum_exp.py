"""logsumexp over the classes: the logarithm of the partition function, which z-losses take.

In training it is the estimate over the active rows of a loss on the same logits, which has to come first: rows drawn
for no labels miss the ones that count most, and a loss made of such an estimate does not learn well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...sampling.active_set import ActiveSet
from ...sampling.sampler import Sampler
from ..paths import EXACT
from .losses import finish, grad_mode, sampler_in_training, weighted_logits
from .recipe import Recipe
from .tensor import SampledLogits, handles


@handles(Tensor.logsumexp, torch.logsumexp)
def _logsumexp(logits: SampledLogits, dim: Any, keepdim: bool = False) -> Any:
    recipe = logits.recipe
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        (dim,) = dim
    if not isinstance(dim, int) or recipe.log_softmax or not recipe.is_class_dim(dim):
        return NotImplemented
    logits.refuse_stale()
    sampler = sampler_in_training(recipe)
    if sampler is not None:
        active = recipe.owner.paths.active_rows_of(recipe.input, stale=False)
        if active is None:
            return torch.logsumexp(logits.announced_dense("logsumexp before a loss on the same logits"), dim, keepdim)
        result = _of_active_rows(recipe, sampler, active)
    elif recipe.wants_grad():
        return NotImplemented
    else:
        recipe.owner.paths.took(EXACT)
        result = recipe.log_partition()
    result = finish(result, recipe, "none").to(recipe.dtype)
    return result.unsqueeze(recipe.class_dim) if keepdim else result


def _of_active_rows(recipe: Recipe, sampler: Sampler, active: ActiveSet) -> Tensor:
    """The estimate ``[B]``."""
    recipe.owner.paths.sampled(recipe.input, active)
    with grad_mode(recipe):
        return weighted_logits(recipe, sampler, active)[1].logsumexp(1)
