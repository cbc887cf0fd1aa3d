"""Ranking: topk, argmax, max and amax over the class dimension, exact and without the dense tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tensor import SampledLogits, handles


def _best(logits: SampledLogits, k: int) -> tuple[Tensor, Tensor] | None:
    """Returns the best ``k`` values and their classes, ``[*lead, k]`` each.

    None if the dense tensor exists already, or if larger logits of the layer are not larger results.
    """
    recipe = logits.recipe
    owner = recipe.owner
    if logits.is_computed or recipe.log_softmax or not float(recipe.scale) > 0:
        return None
    if logits.is_stale():
        owner.warn_stale()
    x = recipe.flat_input()
    values, classes = owner.largest_logits(x, k)
    if logits.wants_grad():
        with recipe.autocast():
            values = owner.active_logits(x, classes)
    values = (values.to(recipe.dtype) * recipe.scale).to(recipe.dtype)
    best = values.reshape(*recipe.lead, k), classes.reshape(*recipe.lead, k)
    logits.keep_best(*best)
    return best


def _best_class(logits: SampledLogits, keepdim: bool) -> tuple[Tensor, Tensor] | None:
    """Returns the largest values and their classes, where the class dimension has size 1 or is gone."""
    best = _best(logits, 1)
    if best is None:
        return None
    if not keepdim:
        return best[0].squeeze(-1), best[1].squeeze(-1)
    return best[0].movedim(-1, logits.recipe.class_dim), best[1].movedim(-1, logits.recipe.class_dim)


@handles(torch.topk, Tensor.topk)
def _topk(
    logits: SampledLogits, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, **kwargs: Any
) -> Any:
    recipe = logits.recipe
    if kwargs or not largest or not recipe.is_class_dim(dim):
        return NotImplemented
    if not 0 <= k <= recipe.owner.out_features:
        raise ValueError(f"k is {k}; wanted 0 to {recipe.owner.out_features}")
    best = _best(logits, k) if k > 0 else None
    if best is None:
        return NotImplemented
    values, classes = (part.movedim(-1, recipe.class_dim) for part in best)
    return torch.return_types.topk((values, classes))


@handles(torch.argmax, Tensor.argmax)
def _argmax(logits: SampledLogits, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None or not logits.recipe.is_class_dim(dim):
        return NotImplemented
    best = _best_class(logits, keepdim)
    return NotImplemented if best is None else best[1]


@handles(torch.max, Tensor.max)
def _max(logits: SampledLogits, *args: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    if len(args) in (1, 2) and dim is None and isinstance(args[0], int):
        dim, keepdim = args[0], (bool(args[1]) if len(args) == 2 else keepdim)
    elif args:
        return NotImplemented
    if dim is None or not logits.recipe.is_class_dim(dim):
        return NotImplemented
    best = _best_class(logits, keepdim)
    return NotImplemented if best is None else torch.return_types.max(best)


@handles(torch.amax, Tensor.amax)
def _amax(logits: SampledLogits, dim: Any = (), keepdim: bool = False) -> Any:
    if not isinstance(dim, int) or not logits.recipe.is_class_dim(dim):
        return NotImplemented
    best = _best_class(logits, keepdim)
    return NotImplemented if best is None else best[0]
