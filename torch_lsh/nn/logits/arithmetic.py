"""Arithmetic that treats each logit on its own: temperatures, priors, masks of classes, soft-caps. Logits stay lazy.

Operands are numbers, tensors per sample or tensors per class; with any other the dense tensor is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .picking import replaced
from .steps import Fill, Operand, Picked, Scale, Shift, Step, Tanh
from .tensor import Handler, SampledLogits, handles, handles_others

MakeStep = Callable[..., Step | None]


def _is_plain(logits: SampledLogits) -> bool:
    """Whether the logits are such, and no softmax of them."""
    return not logits.recipe.log_softmax


def _with(make: MakeStep) -> Handler:
    """Makes the handler of a function; ``make`` returns its step, or None if it has none."""

    def handler(logits: SampledLogits, *args: Any, **kwargs: Any) -> Any:
        step = make(logits, *args, **kwargs) if _is_plain(logits) else None
        return NotImplemented if step is None else logits.stepped(step)

    return handler


def _in_place(make: MakeStep) -> Handler:
    """The same for a function that changes the logits themselves."""

    def handler(logits: SampledLogits, *args: Any, **kwargs: Any) -> Any:
        if logits.is_computed or not _is_plain(logits):
            return NotImplemented
        step = make(logits, *args, **kwargs)
        if step is None or (step.tensor is not None and step.tensor.requires_grad):
            return NotImplemented
        return logits.step_in_place(step)

    return handler


# --- multiplication and division ---


def _number(logits: SampledLogits, other: Any) -> Operand | None:
    """The operand ``other`` in floating point; None if it has no form that keeps logits lazy."""
    operand = logits.recipe.operand(other)
    if operand is not None and isinstance(operand.value, Tensor) and not operand.value.is_floating_point():
        return Operand(operand.value.to(logits.recipe.dtype), operand.per)
    return operand


def _scale(logits: SampledLogits, other: Any) -> Step | None:
    operand = _number(logits, other)
    return None if operand is None else Scale(operand)


def _divide(logits: SampledLogits, other: Any) -> Step | None:
    operand = _number(logits, other)
    if operand is None or (not isinstance(operand.value, Tensor) and operand.value == 0):
        return None
    return Scale(Operand(1.0 / operand.value, operand.per))


@handles(Tensor.mul, torch.mul, torch.multiply, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
def _mul(logits: SampledLogits, other: Any, **kwargs: Any) -> Any:
    if kwargs:
        return NotImplemented
    if not _is_plain(logits) and isinstance(other, (int, float)) and not isinstance(other, bool):
        return logits.remade(factor=logits.recipe.factor * other)
    return _with(_scale)(logits, other)


@handles(Tensor.div, torch.div, torch.true_divide, Tensor.true_divide, torch.divide, Tensor.divide, Tensor.__truediv__)
def _div(logits: SampledLogits, other: Any, **kwargs: Any) -> Any:
    if kwargs:
        return NotImplemented
    if not _is_plain(logits) and isinstance(other, (int, float)) and not isinstance(other, bool) and other != 0:
        return logits.remade(factor=logits.recipe.factor / other)
    return _with(_divide)(logits, other)


@handles(Tensor.neg, torch.neg, Tensor.negative, torch.negative, Tensor.__neg__)
def _neg(logits: SampledLogits) -> Any:
    return _mul(logits, -1.0)


handles(Tensor.mul_, Tensor.multiply_, Tensor.__imul__)(_in_place(_scale))
handles(Tensor.div_, Tensor.divide_, Tensor.true_divide_, Tensor.__itruediv__)(_in_place(_divide))


# --- addition and subtraction ---


def _addend(logits: SampledLogits, other: Any) -> Operand | None:
    """The operand ``other`` of a sum, which may also be a dense tensor that is 0 for all but a few classes."""
    recipe = logits.recipe
    return _number(logits, other) or Picked.of_dense(other, recipe.shape, recipe.class_dim, recipe.dtype)


def _add(logits: SampledLogits, other: Any, alpha: Any = 1) -> Step | None:
    operand = _addend(logits, other)
    if operand is None or not isinstance(alpha, (int, float)):
        return None
    return Shift(operand if alpha == 1 else replace(operand, value=operand.value * alpha))


def _subtract(logits: SampledLogits, other: Any, alpha: Any = 1) -> Step | None:
    return _add(logits, other, -alpha) if isinstance(alpha, (int, float)) else None


@handles(Tensor.add, torch.add, Tensor.__add__, Tensor.__radd__)
def _plus(logits: SampledLogits, other: Any, **kwargs: Any) -> Any:
    result = _with(_add)(logits, other, **kwargs)
    if result is NotImplemented and type(other) is Tensor and other.shape == logits.shape:
        return torch.add(logits.announced_dense("the sum", "adapter"), other, **kwargs)
    return result


handles(Tensor.sub, torch.sub, Tensor.subtract, torch.subtract, Tensor.__sub__)(_with(_subtract))
handles(Tensor.add_, Tensor.__iadd__)(_in_place(_add))
handles(Tensor.sub_, Tensor.subtract_, Tensor.__isub__)(_in_place(_subtract))


# --- the operand first ---


def _with_operand_first(handler: Handler) -> Handler:
    def handle(first: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(logits, SampledLogits) or not logits.is_lazy():
            return NotImplemented
        return handler(logits, first, *args, **kwargs)

    return handle


handles_others(Tensor.mul, torch.mul, torch.multiply, Tensor.multiply, Tensor.__mul__)(_with_operand_first(_mul))


@handles_others(Tensor.add, torch.add, Tensor.__add__)
def _added_to(first: Any, logits: Any, **kwargs: Any) -> Any:
    return NotImplemented if kwargs else _with_operand_first(_with(_add))(first, logits)


# --- masks and soft-caps ---


def _fill(logits: SampledLogits, mask: Any, value: Any) -> Step | None:
    operand = logits.recipe.operand(mask) if isinstance(mask, Tensor) and mask.dtype is torch.bool else None
    if isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad:
        value = value.item()
    if operand is None or isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return Fill(operand, float(value))


handles(Tensor.masked_fill, torch.masked_fill)(_with(_fill))
handles(Tensor.masked_fill_)(_in_place(_fill))


@handles_others(torch.where)
def _where(condition: Any, input: Any = None, other: Any = None) -> Any:
    if isinstance(input, SampledLogits) and input.is_lazy():
        logits, mask, value = input, ~condition, other
    elif isinstance(other, SampledLogits) and other.is_lazy():
        logits, mask, value = other, condition, input
    else:
        return NotImplemented
    return _with(_fill)(logits, mask, value)


@handles(Tensor.__setitem__)
def _set_classes(logits: SampledLogits, index: Any, value: Any) -> Any:
    """``logits[..., classes] = value``, and ``logits[range(B), classes] = value``."""
    recipe = logits.recipe
    items = index if isinstance(index, tuple) else (index,)
    done = replaced(logits, items, value)
    if done is not NotImplemented:
        return None
    *before, classes = items
    whole = sum(1 for item in before if isinstance(item, slice) and item == slice(None))
    ellipses = sum(1 for item in before if item is Ellipsis)
    if not recipe.classes_last or ellipses > 1 or whole + ellipses != len(before) or isinstance(classes, bool):
        return NotImplemented
    if (
        (whole != recipe.rank - 1 if not ellipses else whole > recipe.rank - 1)
        or classes is Ellipsis
        or classes is None
    ):
        return NotImplemented
    if isinstance(classes, Tensor) and classes.dim() > 1:
        return NotImplemented
    mask = torch.zeros(recipe.owner.out_features, dtype=torch.bool, device="cpu")
    mask[classes] = True
    return _in_place(_fill)(logits, mask, value)


handles(Tensor.tanh, torch.tanh)(_with(lambda logits: Tanh()))
