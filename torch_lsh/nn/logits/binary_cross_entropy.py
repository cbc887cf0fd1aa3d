"""Binary cross entropy of lazy logits with sparse targets, over active rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...sampling.active_set import ActiveSet
from ...stopwatch import part
from .losses import (
    accurate_dtype,
    check_class_weight,
    check_reduction,
    correction_of,
    finish,
    grad_mode,
    log_weights_of_logits,
    sampled_logits,
    sampler_in_training,
)
from .targets import Target, as_target, multi_hot
from .tensor import SampledLogits, handles


@handles(F.binary_cross_entropy_with_logits)
def _binary_cross_entropy(
    logits: SampledLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Any:
    recipe = logits.recipe
    if size_average is not None or reduce is not None or recipe.log_softmax or not recipe.classes_last:
        return NotImplemented
    check_reduction(reduction)
    logits.refuse_stale()
    is_sparse = isinstance(target, Tensor) and target.layout is torch.sparse_csr
    is_indices = isinstance(target, Tensor) and target.dtype is torch.int64 and target.shape != recipe.shape
    if not (is_sparse or is_indices):
        return NotImplemented
    sampler = sampler_in_training(recipe)
    if reduction == "none" or sampler is None or (weight is not None and weight.dim() != 1):
        # The loss of every class is wanted, or an exact one.
        with torch.no_grad():
            dense = target.to_dense() if is_sparse else multi_hot(_parse(logits, target), recipe.owner.out_features)
        return F.binary_cross_entropy_with_logits(
            logits.announced_dense("binary_cross_entropy_with_logits"),
            dense.reshape(recipe.shape).to(recipe.dtype),
            weight,
            reduction=reduction,
            pos_weight=pos_weight,
        )
    parsed = _parse(logits, target)
    if is_indices:
        parsed = parsed.as_multi_hot()
    num_classes, dtype = recipe.owner.out_features, accurate_dtype(recipe.dtype)
    weight = check_class_weight(weight, "weight", num_classes, dtype)
    pos_weight = check_class_weight(pos_weight, "pos_weight", num_classes, dtype)
    x, owner = recipe.flat_input(), recipe.owner
    active = sampler.draw(owner.weight, owner.bias, x.detach(), parsed.labels)
    owner.paths.sampled(recipe.input, active)
    with part(sampler.stopwatch, "loss"), grad_mode(recipe):
        correction = correction_of(sampler, several_labels=False)
        loss = sampled_binary_cross_entropy(
            sampled_logits(recipe, sampler, x, active, correction == "stratified"),
            active,
            parsed,
            correction=correction,
            class_weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
        )
    return finish(loss, recipe, reduction)


def _parse(logits: SampledLogits, target: Tensor) -> Target:
    recipe = logits.recipe
    parsed = as_target(target, recipe.lead, recipe.owner.out_features, -100, accurate_dtype(recipe.dtype))
    assert parsed is not None  # the target is not dense
    return parsed


def sampled_binary_cross_entropy(
    logits: Tensor,
    active: ActiveSet,
    target: Target,
    *,
    correction: str,
    class_weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Computes binary cross entropy over an active set; with every row active it is exact.

    Args:
        logits: ``[B, A]`` of the active rows.
        active: the active set; its positions are those of ``target.labels``.
        target: labels; their shares are the values of the target.
        correction: ``"stratified"``: an unbiased estimate of the loss over all N classes; ``"even"`` and ``"none"`` as
            in :func:`~torch_lsh.nn.logits.cross_entropy.sampled_cross_entropy`.
        class_weight: ``[N]``, the weight of each class.
        pos_weight: ``[N]``, the weight of each class where it is a label.
        reduction: ``"mean"`` or ``"sum"``.
    """
    values, weight = values_and_weights(logits, active, target, correction)
    count = weight.expand_as(logits).sum() if correction == "none" else active.num_rows * len(logits)
    rows = active.rows.clamp(min=0)
    if class_weight is not None:
        weight = weight * class_weight[rows]
    loss = F.binary_cross_entropy_with_logits(
        logits, values, weight, pos_weight=None if pos_weight is None else pos_weight[rows], reduction="sum"
    )
    return loss / count if reduction == "mean" else loss


def values_and_weights(logits: Tensor, active: ActiveSet, target: Target, correction: str) -> tuple[Tensor, Tensor]:
    """The target of each active row ``[B, A]``, and what its loss counts, ``[A]`` or ``[B, A]``.

    Args:
        logits, active, target, correction: as in :func:`sampled_binary_cross_entropy`.
    """
    values = torch.zeros_like(logits).scatter_add_(1, active.positions.clamp(min=0), target.shares)
    log_weights = log_weights_of_logits(active, correction, logits.dtype)
    return values, logits.new_ones(logits.shape[1]) if log_weights is None else log_weights.exp()
