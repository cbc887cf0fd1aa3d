"""Single classes of each sample: their logits, exact, and changes of them, such as the margin of a label.

Changes are steps of the recipe, so losses see them. The logarithm of the softmax is an estimate in training, as in the
losses of PyTorch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from .losses import grad_mode
from .recipe import Recipe
from .steps import MOST_PICKED, Picked, Shift
from .tensor import SampledLogits, handles

# --- reading ----------------------------------------------------------------------------------------------------------


@handles(Tensor.gather, torch.gather)
def _gather(logits: SampledLogits, dim: int, index: Tensor, **kwargs: Any) -> Any:
    recipe = logits.recipe
    classes = None if kwargs else _classes(recipe, dim, index)
    if classes is None:
        return NotImplemented
    logits.refuse_stale()
    if not recipe.log_softmax:
        values = _single_logits(recipe, classes.reshape(-1, classes.shape[-1]))
    elif classes.shape[-1] == 1:
        at = min(1, recipe.rank - 1)
        plain = replace(recipe, log_softmax=False, exponential=False, factor=1.0, class_dim=at)
        values = -F.cross_entropy(SampledLogits.unattached(plain), classes.squeeze(-1), reduction="none")
        values = recipe.factor * (values.exp() if recipe.exponential else values)
    else:
        return NotImplemented
    return values.to(recipe.dtype).view(classes.shape).movedim(-1, recipe.class_dim)


def _classes(recipe: Recipe, dim: int, index: Any) -> Tensor | None:
    """The classes ``[*lead, k]`` of an index into the class dimension; None: it is no such index.

    Raises:
        IndexError: a class is out of range.
    """
    if not isinstance(index, Tensor) or index.dtype is not torch.int64 or not recipe.is_class_dim(dim):
        return None
    if index.dim() != recipe.rank:
        return None
    classes = index.movedim(recipe.class_dim, -1)
    if classes.shape[:-1] != recipe.lead:
        return None
    low, high = ops.extremes(index)
    if low < 0 or high >= recipe.owner.out_features:
        raise IndexError(f"index holds class {low if low < 0 else high}; wanted 0 to {recipe.owner.out_features - 1}")
    return classes


def _single_logits(recipe: Recipe, classes: Tensor) -> Tensor:
    """The logits ``[B, P]`` of ``classes`` ``[B, P]``."""
    with grad_mode(recipe):
        with recipe.autocast():
            values = recipe.owner.active_logits(recipe.flat_input(), classes.contiguous())
        return recipe.transform(values.to(recipe.dtype), classes)


def picked(logits: SampledLogits, index: tuple[Any, ...]) -> Any:
    """``logits[range(B), classes]`` and its like: one class each of some samples; NotImplemented for another index."""
    places = _places(logits.recipe, index)
    if places is None:
        return NotImplemented
    *samples, classes = places
    if not _is_every(samples, logits.recipe.lead):
        logits = logits.mapped(lambda tensor: tensor[tuple(samples)], class_dim=classes.dim())  # type: ignore[assignment]
    values = _gather(logits, -1, classes.unsqueeze(-1))
    return values if values is NotImplemented else values.squeeze(-1)


def _places(recipe: Recipe, index: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
    """An index of one number per dimension, as tensors of one shape that count from the front; None: another index."""
    if not recipe.classes_last or recipe.rank < 2 or len(index) != recipe.rank:
        return None
    items = [torch.tensor(list(item), device="cpu") if isinstance(item, (list, range)) else item for item in index]
    if not all(isinstance(item, Tensor) and item.dtype is torch.int64 and item.dim() > 0 for item in items):
        return None
    return tuple(
        [torch.where(item < 0, item + size, item) for item, size in zip(torch.broadcast_tensors(*items), recipe.shape)]
    )


def _is_every(samples: list[Tensor], lead: torch.Size) -> bool:
    """Whether these indices are all samples in their order."""
    return len(lead) == 1 and samples[0].shape == lead and torch.equal(samples[0], torch.arange(lead[0], device="cpu"))


# --- changing ---------------------------------------------------------------------------------------------------------


def _addition(recipe: Recipe, classes: Tensor, values: Tensor) -> Shift:
    return Shift(Picked(values, classes=classes, num_classes=recipe.owner.out_features))


def _scatter_add_step(logits: SampledLogits, dim: int, index: Any, src: Any) -> Shift | None:
    recipe = logits.recipe
    if recipe.log_softmax or type(src) is not Tensor or src.dtype is not recipe.dtype:
        return None
    classes = _classes(recipe, dim, index)
    if classes is None or src.shape != index.shape or not 0 < classes.shape[-1] <= MOST_PICKED:
        return None
    return _addition(recipe, classes, src.movedim(recipe.class_dim, -1))


def _scatter_step(logits: SampledLogits, dim: int, index: Any, src: Any = None, **kwargs: Any) -> Shift | None:
    src = kwargs.pop("value", src)
    if kwargs or logits.recipe.log_softmax or not isinstance(index, Tensor) or index.dim() != logits.recipe.rank:
        return None
    if isinstance(src, (int, float)) and not isinstance(src, bool):
        src = torch.full(index.shape, src, dtype=logits.recipe.dtype, device="cpu")
    if index.shape[dim] != 1 or type(src) is not Tensor or src.shape != index.shape:
        return None
    current = _gather(logits, dim, index)
    return None if current is NotImplemented else _scatter_add_step(logits, dim, index, src - current)


@handles(Tensor.scatter_add, torch.scatter_add)
def _scatter_add(logits: SampledLogits, dim: int, index: Any, src: Any) -> Any:
    step = _scatter_add_step(logits, dim, index, src)
    return NotImplemented if step is None else logits.stepped(step)


@handles(Tensor.scatter, torch.scatter)
def _scatter(logits: SampledLogits, dim: int, index: Any, *args: Any, **kwargs: Any) -> Any:
    step = _scatter_step(logits, dim, index, *args, **kwargs) if len(args) < 2 else None
    return NotImplemented if step is None else logits.stepped(step)


@handles(Tensor.scatter_add_)
def _scatter_add_in_place(logits: SampledLogits, dim: int, index: Any, src: Any) -> Any:
    step = None if logits.is_computed else _scatter_add_step(logits, dim, index, src)
    return NotImplemented if step is None else logits.step_in_place(step)


@handles(Tensor.scatter_)
def _scatter_in_place(logits: SampledLogits, dim: int, index: Any, *args: Any, **kwargs: Any) -> Any:
    step = None if logits.is_computed or len(args) > 1 else _scatter_step(logits, dim, index, *args, **kwargs)
    return NotImplemented if step is None else logits.step_in_place(step)


def replaced(logits: SampledLogits, index: tuple[Any, ...], value: Any) -> Any:
    """``logits[range(B), classes] = value`` and its like, at most once per sample; NotImplemented for another index."""
    recipe = logits.recipe
    places = _places(recipe, index) if recipe.rank == 2 and not logits.is_computed and not recipe.log_softmax else None
    if places is None or places[0].dim() != 1 or len(places[0].unique()) < len(places[0]):
        return NotImplemented
    samples, classes = places
    if isinstance(value, Tensor) and (type(value) is not Tensor or value.dim() > 1):
        return NotImplemented
    added = value - picked(logits, places)
    if added.dtype is not recipe.dtype:
        return NotImplemented
    values = added.new_zeros(len(recipe.input)).index_put((samples,), added)
    of_all = torch.zeros(len(recipe.input), dtype=torch.int64, device="cpu").index_put((samples,), classes)
    return logits.step_in_place(_addition(recipe, of_all.unsqueeze(1), values.unsqueeze(1)))
