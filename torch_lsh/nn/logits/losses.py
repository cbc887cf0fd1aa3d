"""What the losses share: arguments, importance weights of active rows, and logits of active rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ...sampling.active_set import ActiveSet
from ...sampling.sampler import Sampler
from .recipe import Recipe, run_before_backward
from .targets import Target

_UNCHANGED: AbstractContextManager[None] = nullcontext()


def check_reduction(reduction: str) -> None:
    """Raises a ValueError unless ``reduction`` is "mean", "sum" or "none"."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction!r} is not a valid value for reduction; wanted 'mean', 'sum' or 'none'")


def check_class_weight(weight: Tensor | None, name: str, num_classes: int, dtype: torch.dtype) -> Tensor | None:
    """Checks a weight per class, and converts it to ``dtype``."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} is a {type(weight).__name__}; wanted a tensor")
    if weight.shape != (num_classes,):
        raise ValueError(f"{name} has shape {tuple(weight.shape)}; wanted {(num_classes,)}")
    if weight.device.type != "cpu":
        raise RuntimeError(f"{name} is on {weight.device}; wanted cpu, the device of the logits")
    if weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{name} requires a gradient, which losses do not have for it; wanted {name}.detach()")
    return weight.to(dtype)


def accurate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype for sums over classes: at least float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def result_dtype(recipe: Recipe) -> torch.dtype:
    """Returns the dtype of a loss: that of the logits, but float32 under autocast."""
    return torch.float32 if torch.is_autocast_enabled("cpu") and recipe.dtype is not torch.float64 else recipe.dtype


def finish(loss: Tensor, recipe: Recipe, reduction: str) -> Tensor:
    """Gives a loss the shape and dtype that PyTorch gives it."""
    if reduction == "none":
        loss = loss.reshape(recipe.lead)
    if loss.dtype is not recipe.dtype or torch.is_autocast_enabled("cpu"):
        loss = loss.to(result_dtype(recipe))
    if recipe.before_backward and loss.requires_grad:
        run_before_backward(loss, recipe)
    return loss


def sampler_in_training(recipe: Recipe) -> Sampler | None:
    """Returns the layer's sampler; None if the loss is exact."""
    return recipe.owner.sampler if recipe.owner.training else None


def is_log_softmax(recipe: Recipe) -> bool:
    """Whether the result is a multiple of the logarithm of the softmax."""
    return recipe.log_softmax and not recipe.exponential


def grad_mode(recipe: Recipe) -> AbstractContextManager[None]:
    """Disables gradients for detached logits."""
    return torch.no_grad() if recipe.detached else _UNCHANGED


def correction_of(sampler: Sampler, several_labels: bool) -> str:
    """Returns the configured correction, with "auto" resolved."""
    correction = sampler.config.correction
    if correction == "auto":
        return "even" if several_labels else "stratified"
    return correction


def sampled_logits(recipe: Recipe, sampler: Sampler, x: Tensor, active: ActiveSet, corrected: bool) -> Tensor:
    """Computes the scaled logits ``[B, A]`` of the active rows, in at least float32.

    Their backward pass shows the sampler which rows are the hardest. ``corrected``: gradients of random rows include
    their importance weights.
    """
    with recipe.autocast():
        logits = recipe.owner.active_logits(x, active.rows)
    logits = logits.to(accurate_dtype(recipe.dtype))
    if recipe.steps:
        logits = recipe.transform(logits, active.rows)
    hardest = sampler.hardest_rows(active, corrected)
    if hardest is not None and logits.requires_grad:
        logits.register_hook(hardest.find)
    return logits


def weighted_logits(recipe: Recipe, sampler: Sampler, active: ActiveSet) -> tuple[Tensor, Tensor]:
    """Computes :func:`sampled_logits`, and the same plus log importance weights, as the partition function has them."""
    correction = correction_of(sampler, several_labels=False)
    logits = sampled_logits(recipe, sampler, recipe.flat_input(), active, correction == "stratified")
    weights = log_weights_of_logits(active, correction, logits.dtype)
    return logits, logits if weights is None else logits + weights


def class_weighted(target: Target, class_weight: Tensor | None) -> Tensor:
    """Returns the shares of a target, multiplied by the weights of their classes."""
    if class_weight is None:
        return target.shares
    return target.shares * class_weight[target.labels.clamp(min=0)]


def log_weights(active: ActiveSet, correction: str, dtype: torch.dtype) -> Tensor | None:
    """Returns the log importance weights, ``[A]`` or ``[B, A]``, of rows that are no label of a sample; None: all 0."""
    if correction == "stratified":
        weights = active.log_weights()
        return weights if weights.dtype is dtype else weights.to(dtype)
    if correction == "even":
        return active.even_log_weights().to(dtype)
    return active.present.to(dtype).log() if active.per_sample else None


def log_weights_of_logits(active: ActiveSet, correction: str, dtype: torch.dtype) -> Tensor | None:
    """Returns :func:`log_weights` with 0 at each sample's own labels.

    Only "even" gives labels another weight.
    """
    weights = log_weights(active, correction, dtype)
    if correction != "even" or weights is None:
        return weights
    weights = weights.expand(len(active.positions), -1).clone()
    sample, label = (active.positions >= 0).nonzero(as_tuple=True)
    weights[sample, active.positions[sample, label]] = 0
    return weights
