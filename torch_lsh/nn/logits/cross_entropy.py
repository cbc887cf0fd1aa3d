"""Cross entropy of lazy logits, also as log_softmax with nll_loss: over active rows, or exactly block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...sampling.active_set import ActiveSet
from ...sampling.sampler import Sampler
from ...stopwatch import part
from ..paths import EXACT
from .losses import (
    accurate_dtype,
    check_class_weight,
    check_reduction,
    class_weighted,
    correction_of,
    finish,
    grad_mode,
    is_log_softmax,
    log_weights,
    log_weights_of_logits,
    result_dtype,
    sampled_logits,
)
from .recipe import Recipe
from .targets import Target, as_target
from .tensor import SampledLogits, handles


class Options(NamedTuple):
    """Arguments of :func:`torch.nn.functional.cross_entropy`; ``class_weight`` is its ``weight``."""

    class_weight: Tensor | None = None
    label_smoothing: float = 0.0
    reduction: str = "mean"


_DEFAULT = Options()


# --- functions of lazy logits -----------------------------------------------------------------------------------------


@handles(F.cross_entropy)
def _cross_entropy(
    logits: SampledLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    if size_average is not None or reduce is not None:
        return NotImplemented
    return cross_entropy_of(logits.recipe, target, weight, ignore_index, reduction, label_smoothing, logits)


def cross_entropy_of(
    recipe: Recipe,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    logits: SampledLogits | None = None,
) -> Any:
    """:func:`torch.nn.functional.cross_entropy` of lazy logits; NotImplemented: it takes the dense tensor.

    Args:
        recipe: of the logits.
        target, weight, ignore_index, reduction, label_smoothing: as in that function.
        logits: these logits, which may be stale; None: the layer is called now.
    """
    sizes, owner = recipe.input.shape, recipe.owner
    # PyTorch's losses take the second dimension for the classes, or the only one.
    classes_fit = recipe.class_dim == (1 if len(sizes) > 1 else 0)
    if recipe.log_softmax or not classes_fit:
        return NotImplemented
    check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; wanted 0 to 1")
    if logits is not None:
        logits.refuse_stale()
    dtype = accurate_dtype(recipe.dtype)
    parsed = as_target(target, sizes[:-1], owner.out_features, ignore_index, dtype)
    if parsed is None:
        return NotImplemented
    options = _DEFAULT
    if weight is not None or label_smoothing != 0.0 or reduction != "mean":
        options = Options(check_class_weight(weight, "weight", owner.out_features, dtype), label_smoothing, reduction)
        if weight is not None and weight.dtype is not recipe.dtype and not torch.is_autocast_enabled("cpu"):
            raise TypeError(f"weight has dtype {weight.dtype}; wanted {recipe.dtype}, the dtype of the logits")
    sampler = owner.sampler if owner.training else None
    if sampler is not None:
        loss = _of_active_rows(recipe, sampler, parsed, options)
    else:
        owner.paths.took(EXACT)
        loss = (_of_all_rows if recipe.wants_grad() else _in_blocks)(recipe, parsed, options)
    return finish(loss, recipe, reduction)


@handles(F.log_softmax, torch.log_softmax, Tensor.log_softmax)
def _log_softmax(
    logits: SampledLogits, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Any:
    recipe = logits.recipe
    if dim is None or recipe.log_softmax or not recipe.is_class_dim(dim):
        return NotImplemented
    return logits.remade(log_softmax=True, dtype=dtype or result_dtype(recipe))


@handles(F.softmax, torch.softmax, Tensor.softmax)
def _softmax(
    logits: SampledLogits, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Any:
    recipe = logits.recipe
    if dim is None or recipe.log_softmax or not recipe.is_class_dim(dim):
        return NotImplemented
    return logits.remade(log_softmax=True, exponential=True, dtype=dtype or result_dtype(recipe))


@handles(Tensor.log, torch.log)
def _log_of_softmax(logits: SampledLogits) -> Any:
    recipe = logits.recipe
    return logits.remade(exponential=False) if recipe.exponential and recipe.factor == 1.0 else NotImplemented


@handles(F.nll_loss)
def _nll_loss(
    logits: SampledLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    recipe = logits.recipe
    if not is_log_softmax(recipe) or recipe.factor != 1.0:
        return NotImplemented
    if not isinstance(target, Tensor) or target.shape != recipe.lead:
        return NotImplemented
    unnormalised = SampledLogits.unattached(replace(recipe, log_softmax=False), logits.is_stale())
    return _cross_entropy(unnormalised, target, weight, size_average, ignore_index, reduce, reduction)


def _of_active_rows(recipe: Recipe, sampler: Sampler, target: Target, options: Options) -> Tensor:
    x, owner = recipe.flat_input(), recipe.owner
    weight, bias = owner.weight_and_bias()
    active = sampler.draw(weight, bias, x, target.labels)
    owner.paths.sampled(recipe.input, active)
    if sampler.stopwatch is None and not recipe.detached:  # entering contexts takes microseconds
        return _of_drawn_rows(recipe, sampler, x, weight, bias, active, target, options)
    with part(sampler.stopwatch, "loss"), grad_mode(recipe):
        return _of_drawn_rows(recipe, sampler, x, weight, bias, active, target, options)


def _of_drawn_rows(
    recipe: Recipe,
    sampler: Sampler,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    active: ActiveSet,
    target: Target,
    options: Options,
) -> Tensor:
    correction = correction_of(sampler, target.several)
    corrected = correction == "stratified"
    if not _is_fusible(recipe, active, correction, options):
        logits = sampled_logits(recipe, sampler, x, active, corrected)
        return sampled_cross_entropy(logits, active, target, correction, options)
    hardest = sampler.hardest_rows(active, corrected)
    if x.dtype is not recipe.product_dtype:
        x = x.to(recipe.product_dtype)
    return fused_cross_entropy(x, weight, bias, active, target, correction, options, hardest)


def _is_fusible(recipe: Recipe, active: ActiveSet, correction: str, options: Options) -> bool:
    """Whether :func:`fused_cross_entropy` computes what :func:`sampled_cross_entropy` would."""
    return (
        options.label_smoothing == 0
        and not active.per_sample
        and (correction != "stratified" or active.inclusion is None or active.inclusion.dim() == 1)
        and not recipe.steps
        and (
            recipe.product_dtype is recipe.dtype or accurate_dtype(recipe.product_dtype) is accurate_dtype(recipe.dtype)
        )
    )


def _of_all_rows(recipe: Recipe, target: Target, options: Options) -> Tensor:
    """Exact and differentiable."""
    owner = recipe.owner
    every_row = torch.arange(owner.out_features, device="cpu")
    none_random = torch.zeros_like(every_row, dtype=torch.bool)
    active = ActiveSet(every_row, none_random, target.labels, owner.out_features)
    with recipe.autocast():
        product = F.linear(recipe.flat_input(), owner.weight, owner.bias)
    logits = recipe.transform(product.to(accurate_dtype(recipe.dtype)))
    return sampled_cross_entropy(logits, active, target, "none", options)


def _in_blocks(recipe: Recipe, target: Target, options: Options) -> Tensor:
    """Exact, without gradients."""
    with torch.no_grad():
        return exact_cross_entropy(recipe.blocks(), recipe.owner.out_features, target, options)


# --- functions of tensors ---------------------------------------------------------------------------------------------


def fused_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    active: ActiveSet,
    target: Target,
    correction: str,
    options: Options,
    hardest: ops.HardestRows | None = None,
) -> Tensor:
    """Computes :func:`sampled_cross_entropy` in one operator with the layer, without label smoothing.

    Args:
        x: ``[B, in_features]``.
        weight: ``[N, in_features]``.
        bias: ``[N]`` or None.
        active: an active set that the batch shares.
        target: see :func:`as_target`.
        correction: see :func:`sampled_cross_entropy`.
        options: see :class:`Options`.
        hardest: see :func:`torch_lsh.ops.active_rows_loss`.
    """
    weights = log_weights(active, correction, target.shares.dtype)
    shares = class_weighted(target, options.class_weight)
    divisor = None
    if options.reduction == "sum":
        divisor = 1.0
    elif options.reduction == "mean" and _divides_by_batch(shares, target):
        divisor = float(shares.shape[0])
    loss = ops.active_rows_loss(x, weight, bias, active.rows, weights, active.positions, shares, divisor, hardest)
    return reduced(loss, shares, target, options.reduction) if divisor is None else loss


def sampled_cross_entropy(
    logits: Tensor, active: ActiveSet, target: Target, correction: str, options: Options
) -> Tensor:
    """Computes cross entropy over an active set; with every row active it is exact.

    Args:
        logits: ``[B, A]`` of the active rows, float32 or float64.
        active: the active set; its positions are those of ``target.labels``.
        target: see :func:`as_target`.
        correction: how rows count in ``sum(exp(logits))``. ``"stratified"``: with their importance weights, which makes
            it an unbiased estimate of the sum over all rows; ``"even"``: own labels with 1, all other rows with the
            same weight; ``"none"``: all with 1.
        options: see :class:`Options`. Label smoothing estimates the mean over all classes with the importance weights.

    Returns:
        A scalar, or ``[B]`` with reduction "none".
    """
    weights = log_weights_of_logits(active, correction, logits.dtype)
    shares = class_weighted(target, options.class_weight)
    if active.per_sample or (weights is not None and weights.dim() == 2):
        logits = logits.contiguous()
    loss, _ = ops.sampled_softmax_loss(logits, weights, active.positions, shares)
    if options.label_smoothing > 0:
        adjusted = logits if weights is None else logits + weights
        class_shares = active.weights().to(logits.dtype)
        class_shares = class_shares / class_shares.sum(-1, keepdim=True)
        if options.class_weight is not None:
            class_shares = class_shares * options.class_weight[active.rows.clamp(min=0)]
        smooth = adjusted.logsumexp(1) * class_shares.sum(-1) - (class_shares * logits).sum(1)
        loss = smoothed(loss, smooth, target, options.label_smoothing)
    return reduced(loss, shares, target, options.reduction)


def exact_cross_entropy(
    blocks: Iterator[tuple[slice, Tensor]], num_classes: int, target: Target, options: Options
) -> Tensor:
    """Computes cross entropy over all classes without a ``[B, N]`` tensor; not differentiable.

    Args:
        blocks: the logits ``[B, block]`` of each slice of classes.
        num_classes: N.
        target: see :func:`as_target`.
        options: see :class:`Options`.
    """
    class_weight, label_smoothing, reduction = options
    dtype = target.shares.dtype
    log_z = target.shares.new_full((len(target.shares),), -math.inf)
    total = torch.zeros_like(log_z)
    at_labels = torch.zeros_like(target.shares)
    for classes, logits in blocks:
        log_z = torch.logaddexp(log_z, logits.logsumexp(1))
        position = target.labels - classes.start
        inside = (position >= 0) & (position < logits.shape[1])
        at_labels = torch.where(inside, logits.gather(1, position.clamp(0, logits.shape[1] - 1)), at_labels)
        if label_smoothing > 0:
            total += logits.sum(1) if class_weight is None else logits @ class_weight[classes].to(dtype)
    log_z = log_z.masked_fill(log_z == math.inf, math.nan)  # as in PyTorch
    shares = class_weighted(target, class_weight)
    # masked_fill: the share 0 of padding would not remove the NaN of an ignored sample.
    loss = (shares * (log_z.unsqueeze(1) - at_labels)).masked_fill(target.labels < 0, 0).sum(1)
    if label_smoothing > 0:
        mass = num_classes if class_weight is None else class_weight.sum()
        loss = smoothed(loss, (log_z * mass - total) / num_classes, target, label_smoothing)
    return reduced(loss, shares, target, reduction)


def _divides_by_batch(shares: Tensor, target: Target) -> bool:
    """Whether the mean divides by the batch size: for a distribution, and if the shares add up to the batch size."""
    return target.probabilities or (target.complete and shares is target.shares)


def reduced(loss: Tensor, shares: Tensor, target: Target, reduction: str) -> Tensor:
    """Reduces losses ``[B]``; the mean divides by the sum of ``shares`` ``[B, P]``, which are weighted by class."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if _divides_by_batch(shares, target):
        return loss.mean()
    divisor = shares.sum()
    nothing = divisor == 0
    labelled = (target.labels >= 0).any(1)
    if shares is not target.shares and bool(nothing & labelled.any()):
        # Labels whose classes all weigh 0: NaN with the gradient NaN, as in PyTorch.
        return loss.where(labelled, 0).sum() / divisor
    # As in PyTorch, the mean of nothing is NaN and its gradient 0.
    return (loss.sum() / divisor.masked_fill(nothing, 1)).masked_fill(nothing, math.nan)


def smoothed(loss: Tensor, smooth: Tensor, target: Target, label_smoothing: float) -> Tensor:
    """Smooths losses ``[B]``; ``smooth`` ``[B]`` is the mean of ``-log p`` over all classes."""
    # Ignored samples have no loss over class indices; a distribution has no ignored samples.
    if not target.probabilities:
        smooth = smooth.masked_fill((target.labels < 0).all(1), 0)
    return (1 - label_smoothing) * loss + label_smoothing * smooth
