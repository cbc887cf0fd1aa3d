"""Views and casts: operations that leave the class dimension alone, so that logits stay lazy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .picking import picked
from .recipe import Recipe, dim_from_front
from .tensor import Handler, SampledLogits, handles, handles_others


def _sizes(shape: tuple[Any, ...]) -> list[int]:
    if len(shape) == 1 and isinstance(shape[0], (tuple, list, torch.Size)):
        shape = tuple(shape[0])
    return [int(size) for size in shape]


@handles(Tensor.view, Tensor.reshape, torch.reshape)
def _reshape(logits: SampledLogits, *shape: Any, **kwargs: Any) -> Any:
    recipe = logits.recipe
    if kwargs or not recipe.classes_last:
        return NotImplemented
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        return NotImplemented
    sizes = _sizes(shape)
    num_classes = recipe.owner.out_features
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        if sizes.count(-1) > 1 or known == 0 or math.prod(recipe.shape) % known:
            return NotImplemented
        sizes[sizes.index(-1)] = math.prod(recipe.shape) // known
    if len(sizes) > 1 and sizes[-1] == 1 != num_classes:
        remade = _reshape(logits, sizes[:-1])
        return remade if remade is NotImplemented else _unsqueeze(remade, -1)
    if not sizes or sizes[-1] != num_classes or math.prod(sizes[:-1]) != math.prod(recipe.lead):
        return NotImplemented
    return logits.mapped(lambda tensor: tensor.reshape(*sizes[:-1], tensor.shape[-1]), class_dim=len(sizes) - 1)


@handles(Tensor.view_as, Tensor.reshape_as)
def _reshape_as(logits: SampledLogits, other: Tensor) -> Any:
    return _reshape(logits, other.shape)


@handles(Tensor.flatten, torch.flatten)
def _flatten(logits: SampledLogits, start_dim: int = 0, end_dim: int = -1) -> Any:
    shape = logits.recipe.shape
    start, end = dim_from_front(start_dim, len(shape)), dim_from_front(end_dim, len(shape))
    if start > end:
        return NotImplemented
    return _reshape(logits, [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]])


@handles(Tensor.unsqueeze, torch.unsqueeze)
def _unsqueeze(logits: SampledLogits, dim: int) -> Any:
    recipe = logits.recipe
    dim = dim_from_front(dim, recipe.rank + 1)
    if dim > recipe.class_dim:
        return logits.mapped(lambda tensor: tensor.unsqueeze(dim - 1))
    return logits.mapped(lambda tensor: tensor.unsqueeze(dim), class_dim=recipe.class_dim + 1)


@handles(Tensor.squeeze, torch.squeeze)
def _squeeze(logits: SampledLogits, dim: Any = None) -> Any:
    recipe = logits.recipe
    if not isinstance(dim, int):
        return NotImplemented
    dim = dim_from_front(dim, recipe.rank)
    if dim == recipe.class_dim:
        return NotImplemented if recipe.owner.out_features == 1 else logits
    before = dim < recipe.class_dim
    lead_dim = dim if before else dim - 1
    if recipe.lead[lead_dim] != 1:
        return logits
    return logits.mapped(lambda tensor: tensor.squeeze(lead_dim), class_dim=recipe.class_dim - before)


@handles(Tensor.permute, torch.permute)
def _permute(logits: SampledLogits, *dims: Any) -> Any:
    recipe = logits.recipe
    rank = recipe.rank
    order = [dim_from_front(dim, rank) for dim in _sizes(dims)]
    if sorted(order) != list(range(rank)):
        return NotImplemented
    class_dim = order.index(recipe.class_dim)
    lead_order = [dim - (dim > recipe.class_dim) for dim in order if dim != recipe.class_dim]
    return logits.mapped(lambda tensor: tensor.permute(*lead_order, rank - 1), class_dim=class_dim)


@handles(Tensor.transpose, torch.transpose, Tensor.swapaxes, torch.swapaxes)
def _transpose(logits: SampledLogits, dim0: int, dim1: int) -> Any:
    order = list(range(logits.recipe.rank))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(logits, order)


@handles(Tensor.mT.__get__)  # type: ignore[attr-defined]
def _matrix_transpose(logits: SampledLogits, *_: Any) -> Any:
    return _transpose(logits, -2, -1)


@handles(Tensor.movedim, torch.movedim)
def _movedim(logits: SampledLogits, source: Any, destination: Any) -> Any:
    if not isinstance(source, int) or not isinstance(destination, int):
        return NotImplemented
    rank = logits.recipe.rank
    order = [dim for dim in range(rank) if dim != dim_from_front(source, rank)]
    order.insert(dim_from_front(destination, rank), dim_from_front(source, rank))
    return _permute(logits, order)


def _dims_consumed(index: Any) -> int:
    if index is None:
        return 0
    if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
        return index.dim()
    return 1


@handles(Tensor.__getitem__)
def _getitem(logits: SampledLogits, index: Any) -> Any:
    recipe = logits.recipe
    rank = recipe.rank
    if isinstance(index, tuple):
        values = picked(logits, index)
        if values is not NotImplemented:
            return values
    items = [_as_tensor(item) for item in (index if isinstance(index, tuple) else (index,))]
    if not recipe.classes_last or any(isinstance(item, (list, bool)) for item in items):
        return NotImplemented
    free = rank - sum(_dims_consumed(item) for item in items if item is not Ellipsis)
    ellipses = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(ellipses) > 1 or free < 0:
        return NotImplemented
    if ellipses:
        items[ellipses[0] : ellipses[0] + 1] = [slice(None)] * free
    else:
        items += [slice(None)] * free
    if not items or not isinstance(items[-1], slice) or items[-1] != slice(None):
        return NotImplemented
    rank = recipe.input[tuple(items)].dim()
    return logits.mapped(lambda tensor: tensor[tuple(items)], class_dim=rank - 1)


def _as_tensor(item: Any) -> Any:
    """A list of numbers in an index, as the tensor that it stands for."""
    if isinstance(item, list) and item and all(isinstance(number, (int, bool)) for number in item):
        return torch.tensor(item, device="cpu")
    return item


# --- parts of the samples ---


def _lead_dim(logits: SampledLogits, dim: int) -> int | None:
    """The dimension of the recipe's tensors ``[*lead, width]`` that is ``dim`` of the logits; None for the classes."""
    recipe = logits.recipe
    dim = dim_from_front(dim, recipe.rank)
    return None if dim == recipe.class_dim else dim - (dim > recipe.class_dim)


def _part(logits: SampledLogits, dim: int, function: Callable[[Tensor, int], Tensor], gone: bool = False) -> Any:
    """A view by ``function`` of a tensor and one of its dimensions, which may be ``gone`` afterwards."""
    lead_dim = _lead_dim(logits, dim)
    if lead_dim is None:
        return NotImplemented
    class_dim = logits.recipe.class_dim
    class_dim -= gone and lead_dim < class_dim
    return logits.mapped(lambda tensor: function(tensor, lead_dim), class_dim=class_dim)


@handles(Tensor.narrow, torch.narrow)
def _narrow(logits: SampledLogits, dim: int, start: Any, length: int) -> Any:
    return _part(logits, dim, lambda tensor, at: tensor.narrow(at, start, length))


@handles(Tensor.select, torch.select)
def _select(logits: SampledLogits, dim: int, index: int) -> Any:
    return _part(logits, dim, lambda tensor, at: tensor.select(at, index), gone=True)


@handles(Tensor.index_select, torch.index_select)
def _index_select(logits: SampledLogits, dim: int, index: Tensor) -> Any:
    return _part(logits, dim, lambda tensor, at: tensor.index_select(at, index))


@handles(Tensor.unbind, torch.unbind)
def _unbind(logits: SampledLogits, dim: int = 0) -> Any:
    if _lead_dim(logits, dim) is None:
        return NotImplemented
    return tuple(_select(logits, dim, index) for index in range(logits.recipe.shape[dim]))


@handles(Tensor.__iter__)
def _iter(logits: SampledLogits) -> Any:
    parts = NotImplemented if logits.recipe.rank == 1 else _unbind(logits)
    return parts if parts is NotImplemented else iter(parts)


def _pieces(function: Callable[..., Any]) -> Handler:
    """Makes the handler of a function that cuts a tensor along ``dim``."""

    def handler(logits: SampledLogits, sizes: Any, dim: int = 0) -> Any:
        if _lead_dim(logits, dim) is None:
            return NotImplemented
        like = torch.empty((), device="cpu").expand(logits.recipe.shape[dim])
        stops = list(itertools.accumulate(len(piece) for piece in function(like, sizes)))
        return tuple(_narrow(logits, dim, start, stop - start) for start, stop in zip([0, *stops], stops))

    return handler


handles(Tensor.split, torch.split)(_pieces(torch.split))
handles(Tensor.chunk, torch.chunk)(_pieces(torch.chunk))
handles(Tensor.tensor_split, torch.tensor_split)(_pieces(torch.tensor_split))


def _are_alike(parts: Any) -> bool:
    """Whether these are lazy logits of one layer that differ by their inputs alone."""
    if not isinstance(parts, (list, tuple)) or not parts:
        return False
    if not all(isinstance(part, SampledLogits) and part.is_lazy() for part in parts):
        return False

    def facts(recipe: Recipe) -> list[Any]:
        form = [recipe.dtype, recipe.product_dtype, recipe.class_dim, recipe.rank, recipe.detached]
        softmax = [recipe.log_softmax, recipe.exponential, recipe.factor]
        steps = [step.key for step in recipe.steps]
        return [form, softmax, steps, id(recipe.owner), id(recipe.weight), id(recipe.bias)]

    per_sample = any(step.by is not None and step.by.per == "sample" for step in parts[0].recipe.steps)
    return not per_sample and all(facts(part.recipe) == facts(parts[0].recipe) for part in parts)


@handles_others(torch.cat, torch.concat, torch.concatenate)
def _cat(tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    lead_dim = _lead_dim(tensors[0], dim) if not kwargs and _are_alike(tensors) else None
    if lead_dim is None:
        return NotImplemented
    input = torch.cat([part.recipe.input for part in tensors], lead_dim)
    stale = any(part.is_stale() for part in tensors)
    return SampledLogits.from_recipe(replace(tensors[0].recipe, input=input), stale)


@handles_others(torch.stack)
def _stack(tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    if kwargs or not _are_alike(tensors) or any(part.shape != tensors[0].shape for part in tensors):
        return NotImplemented
    dim = dim_from_front(dim, tensors[0].dim() + 1)
    return _cat([_unsqueeze(part, dim) for part in tensors], dim)


# --- the same values ---


@handles(Tensor.contiguous, Tensor.cpu)
def _same(logits: SampledLogits, *_: Any, **__: Any) -> Any:
    return logits


@handles(Tensor.clone, torch.clone)
def _clone(logits: SampledLogits, **_: Any) -> Any:
    return NotImplemented if logits.is_computed else logits.remade()


@handles(Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
def _detach(logits: SampledLogits, *_: Any) -> Any:
    recipe = logits.recipe
    if recipe.steps:
        recipe = recipe.with_step_tensors([tensor.detach() for tensor in recipe.step_tensors])
    detached = logits.remade(input=recipe.input.detach(), steps=recipe.steps, detached=True)
    logits.share_memory_with(detached)
    return detached


def _like(function: Any) -> Handler:
    """Makes the handler of a function that reads shape and dtype only."""

    def handler(logits: SampledLogits, *args: Any, **kwargs: Any) -> Any:
        recipe = logits.recipe
        return function(torch.empty((), dtype=recipe.dtype, device="cpu").expand(recipe.shape), *args, **kwargs)

    return handler


for _function in (
    *(getattr(torch, f"{name}_like") for name in ("zeros", "ones", "empty", "full", "rand", "randn")),
    *(getattr(Tensor, f"new_{name}") for name in ("zeros", "ones", "empty", "full", "tensor")),
):
    handles(_function)(_like(_function))


def _cast(logits: SampledLogits, dtype: torch.dtype) -> Any:
    if logits.recipe.log_softmax or not dtype.is_floating_point:
        return NotImplemented
    return logits if dtype is logits.recipe.dtype else logits.remade(dtype=dtype)


def _cast_to(dtype: torch.dtype) -> Handler:
    return lambda logits, **_: _cast(logits, dtype)


handles(Tensor.float)(_cast_to(torch.float32))
handles(Tensor.double)(_cast_to(torch.float64))
handles(Tensor.bfloat16)(_cast_to(torch.bfloat16))
handles(Tensor.half)(_cast_to(torch.float16))


@handles(Tensor.to, Tensor.type, Tensor.type_as)
def _to(logits: SampledLogits, *args: Any, **kwargs: Any) -> Any:
    dtype: torch.dtype | None = None
    if not (args or kwargs):
        return NotImplemented
    copy = kwargs.get("copy") or [argument for argument in args if isinstance(argument, bool)][1:] == [True]
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, Tensor):
            dtype = argument.dtype
            if argument.device.type != "cpu":
                return NotImplemented
        elif isinstance(argument, (str, torch.device)):
            if not str(argument).startswith("cpu"):
                return NotImplemented
        elif not isinstance(argument, bool) and argument is not None and not isinstance(argument, torch.memory_format):
            return NotImplemented
    result = logits if dtype is None else _cast(logits, dtype)
    return _clone(logits) if copy and result is logits else result
