"""Ranking: topk, argmax, max and amax over the class dimension, exact and without the dense tensor.

In training with ``LSHConfig(ranking="active")`` they rank the active rows.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...sampling.active_set import ActiveSet
from ..paths import RANKED, RANKED_ACTIVE, SAMPLED
from .losses import grad_mode, sampler_in_training
from .recipe import Recipe
from .steps import Unranked, ranking_offset, transformed_best
from .tensor import SampledLogits, gradients_of_dense, handles


class _Best(NamedTuple):
    """Logits of the layer before the steps, and their classes, ``[B, k]`` each."""

    logits: Tensor
    classes: Tensor


def _best(logits: SampledLogits, k: int, name: str, values: bool = True) -> tuple[Tensor | None, Tensor] | None:
    """Returns the best ``k`` values, if they are wanted, and their classes, ``[*lead, k]`` each.

    None if the dense tensor exists already, or if larger logits of the layer are not larger results.
    """
    recipe = logits.recipe
    if logits.is_computed or not recipe.factor > 0:
        return None
    try:
        offset = ranking_offset(recipe.steps) if recipe.steps else None
        if logits.is_stale():
            recipe.owner.paths.say("stale")
        active = _active_rows(logits, k)
        best = _best_of_all(recipe, k, offset, name) if active is None else _best_of_active(recipe, k, offset, active)
        shape = (*recipe.lead, k)
        if not values:
            return None, best.classes.reshape(shape)
        result = _values(logits, best).reshape(shape), best.classes.reshape(shape)
    except Unranked:
        return None
    if active is None:
        logits.keep_best(*result)
    return result


def _best_of_all(recipe: Recipe, k: int, offset: Tensor | None, name: str) -> _Best:
    owner = recipe.owner
    if owner.training and owner.paths.counts[SAMPLED] > 0:
        owner.paths.say("ranking", what=name)
    owner.paths.took(RANKED)
    x = recipe.flat_input()
    values, classes = owner.largest_logits(x, k, offset)
    if offset is not None:
        with torch.no_grad(), recipe.autocast():
            values = owner.active_logits(x, classes)
    return _Best(values, classes)


def _active_rows(logits: SampledLogits, k: int) -> ActiveSet | None:
    """The rows to rank; None: all. Those of a loss on the same logits, or else rows that a look-up finds."""
    recipe = logits.recipe
    owner, sampler = recipe.owner, sampler_in_training(recipe)
    if sampler is None or sampler.config.ranking != "active":
        return None
    active = owner.paths.active_rows_of(recipe.input)
    if active is None:
        active = sampler.look_up(owner.weight, owner.bias, recipe.flat_input())
    return active if k <= active.rows.shape[-1] else None


def _best_of_active(recipe: Recipe, k: int, offset: Tensor | None, active: ActiveSet) -> _Best:
    recipe.owner.paths.took(RANKED_ACTIVE)
    rows = active.rows
    with torch.no_grad(), recipe.autocast():
        logits = recipe.owner.active_logits(recipe.flat_input(), rows)
    keys = logits if offset is None else logits + offset.to(logits.dtype)[rows.clamp(min=0)]
    if active.per_sample:
        keys = keys.masked_fill(rows < 0, -math.inf)
    at = keys.topk(k).indices
    classes = rows.clamp(min=0).expand(len(logits), -1).gather(1, at)
    return _Best(logits.gather(1, at), classes)


def _values(logits: SampledLogits, best: _Best) -> Tensor:
    """The results ``[B, k]`` of the best logits, differentiable if that is wanted."""
    recipe = logits.recipe
    values, classes = best
    if recipe.wants_grad():
        with recipe.autocast():
            values = recipe.owner.active_logits(recipe.flat_input(), classes)
    with grad_mode(recipe):
        if recipe.log_softmax:
            values = transformed_best(
                recipe.steps, values.to(torch.promote_types(recipe.dtype, torch.float32)), classes
            )
            values = values - _log_partition(logits).unsqueeze(1)
            values = values.exp() if recipe.exponential else values
        else:
            values = transformed_best(recipe.steps, values.to(recipe.dtype), classes)
        return (values * recipe.factor if recipe.factor != 1.0 else values).to(recipe.dtype)


def _log_partition(logits: SampledLogits) -> Tensor:
    """``logsumexp`` over all classes after the steps, ``[B]``."""
    recipe = logits.recipe
    if not recipe.wants_grad():
        return recipe.log_partition()
    owner = recipe.owner
    partition: Tensor = _LogPartition.apply(recipe, recipe.input, owner.weight, owner.bias, *recipe.step_tensors)
    return partition


class _LogPartition(torch.autograd.Function):
    """:meth:`Recipe.log_partition`; the backward pass, which few want, computes the dense tensor."""

    @staticmethod
    def forward(
        ctx: Any, recipe: Recipe, input: Tensor, weight: Tensor, bias: Tensor | None, *step_tensors: Tensor
    ) -> Tensor:
        ctx.recipe = recipe
        ctx.save_for_backward(input, weight, bias, *step_tensors)
        return recipe.log_partition()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plain = replace(ctx.recipe, log_softmax=False, exponential=False, factor=1.0, class_dim=ctx.recipe.rank - 1)

        def partition(*operands: Any) -> Tensor:
            logits = plain.compute(*operands)
            return logits.reshape(-1, logits.shape[-1]).to(grads[0].dtype).logsumexp(1)

        return gradients_of_dense(ctx, partition, grads[0])


def _without_k(logits: SampledLogits, part: Tensor, keepdim: bool) -> Tensor:
    """``part`` ``[*lead, 1]`` with the class dimension in its place, or gone."""
    return part.movedim(-1, logits.recipe.class_dim) if keepdim else part.squeeze(-1)


@handles(torch.topk, Tensor.topk)
def _topk(
    logits: SampledLogits, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, **kwargs: Any
) -> Any:
    recipe = logits.recipe
    if kwargs or not largest or not recipe.is_class_dim(dim):
        return NotImplemented
    if not 0 <= k <= recipe.owner.out_features:
        raise ValueError(f"k is {k}; wanted 0 to {recipe.owner.out_features}")
    best = _best(logits, k, "topk") if k > 0 else None
    if best is None:
        return NotImplemented
    values, classes = (part.movedim(-1, recipe.class_dim) for part in best if part is not None)
    return torch.return_types.topk((values, classes))


@handles(torch.argmax, Tensor.argmax)
def _argmax(logits: SampledLogits, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None or not logits.recipe.is_class_dim(dim):
        return NotImplemented
    best = _best(logits, 1, "argmax", values=not logits.recipe.log_softmax)
    return NotImplemented if best is None else _without_k(logits, best[1], keepdim)


@handles(torch.max, Tensor.max)
def _max(logits: SampledLogits, *args: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    if len(args) in (1, 2) and dim is None and isinstance(args[0], int):
        dim, keepdim = args[0], (bool(args[1]) if len(args) == 2 else keepdim)
    elif args:
        return NotImplemented
    if dim is None or not logits.recipe.is_class_dim(dim):
        return NotImplemented
    best = _best(logits, 1, "max")
    if best is None:
        return NotImplemented
    values, classes = (_without_k(logits, part, keepdim) for part in best if part is not None)
    return torch.return_types.max((values, classes))


@handles(torch.amax, Tensor.amax)
def _amax(logits: SampledLogits, dim: Any = (), keepdim: bool = False) -> Any:
    if not isinstance(dim, int) or not logits.recipe.is_class_dim(dim):
        return NotImplemented
    best = _best(logits, 1, "amax")
    return NotImplemented if best is None or best[0] is None else _without_k(logits, best[0], keepdim)
