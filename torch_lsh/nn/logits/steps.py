"""Steps: what was done to every logit since the layer, kept until the logits are computed.

Temperatures, priors, masks of classes and soft-caps are steps. A step treats each logit on its own, so it can be
applied to the logits of some rows: to active ones in a loss, to blocks in an exact one, to the best ones in a ranking.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

Rows = slice | Tensor | None  # of flat logits [B, A]: a block, [A] of the batch, [B, A] of each sample, or all
MOST_PICKED = 16  # classes of a sample


@dataclass(frozen=True)
class Operand:
    """What a step combines with the logits.

    Attributes:
        value: a number or ``[]`` for all logits, ``[N]`` per class, ``[*lead, 1]`` per sample.
        per: what it differs by.
    """

    value: float | Tensor
    per: Literal["all", "class", "sample", "picked"] = "all"

    @classmethod
    def of(cls, value: Any, shape: torch.Size, class_dim: int) -> Operand | None:
        """The operand ``value`` of logits of ``shape``; None if it differs by both class and sample."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls(value)
        if type(value) not in (Tensor, torch.nn.Parameter) or value.device.type != "cpu" or value.dim() > len(shape):
            return None
        if value.layout is not torch.strided:
            return None
        sizes = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
        if any(size not in (1, whole) for size, whole in zip(sizes, shape)):
            return None
        if value.numel() == 1:
            return cls(value.reshape(()))
        if sizes[class_dim] == value.numel():
            return cls(value.reshape(-1), "class")
        if sizes[class_dim] != 1:
            return None
        lead = [*shape[:class_dim], 1, *shape[class_dim + 1 :]]
        return cls(value.reshape(sizes).expand(lead).movedim(class_dim, -1), "sample")

    def at(self, rows: Rows) -> float | Tensor:
        """What broadcasts with flat logits ``[B, A]`` of ``rows``."""
        if not isinstance(self.value, Tensor) or self.per == "all":
            return self.value
        if self.per == "sample":
            return self.value.reshape(-1, 1)
        if rows is None or isinstance(rows, slice):
            return self.value if rows is None else self.value[rows]
        return self.value[rows.clamp(min=0)]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Operand:
        """The operand after a view: ``function`` maps tensors ``[*lead, width]``."""
        if self.per != "sample" or not isinstance(self.value, Tensor):
            return self
        return replace(self, value=function(self.value))


@dataclass(frozen=True)
class Picked(Operand):
    """Numbers for a few classes of each sample, and 0 for the others: the margin of a label, for example.

    Attributes:
        value: ``[*lead, k]``.
        classes: ``[*lead, k]`` int64; the numbers of a class that comes twice are added up.
        num_classes: N.
    """

    per: Literal["all", "class", "sample", "picked"] = "picked"
    classes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64, device="cpu"))
    num_classes: int = 0

    @classmethod
    def of_dense(cls, value: Any, shape: torch.Size, class_dim: int, dtype: torch.dtype) -> Picked | None:
        """What a dense tensor adds to logits of ``shape`` and ``dtype``; None if not 0 for all but a few classes.

        ``margin * F.one_hot(labels, N)`` is. A tensor that learns is taken for one that is not.
        """
        if type(value) is not Tensor or value.shape != shape or value.requires_grad or value.device.type != "cpu":
            return None
        if value.layout is not torch.strided or torch.promote_types(dtype, value.dtype) is not dtype:
            return None
        if value.numel() == 0:
            return None
        flat = value.movedim(class_dim, -1)
        counts = flat.count_nonzero(-1).reshape(-1, 1)
        width = int(counts.max())
        if not 0 < width <= MOST_PICKED:
            return None
        found = flat.reshape(-1, flat.shape[-1]).nonzero(as_tuple=True)[1]
        present = torch.arange(width, device="cpu") < counts
        classes = (
            torch.zeros_like(present, dtype=torch.int64).masked_scatter_(present, found).view(*flat.shape[:-1], width)
        )
        values = flat.gather(-1, classes).masked_fill(~present.view(classes.shape), 0)
        return cls(values, classes=classes, num_classes=flat.shape[-1])

    def at(self, rows: Rows) -> Tensor:
        """``[B, A]``, or ``[B, N]`` for all rows."""
        assert isinstance(self.value, Tensor)
        width = self.classes.shape[-1]
        values, classes = self.value.reshape(-1, width), self.classes.reshape(-1, width)
        if not isinstance(rows, Tensor):
            rows = torch.arange(self.num_classes, device="cpu")[slice(None) if rows is None else rows]
        columns = zip(values.unbind(1), classes.unbind(1))
        return sum(  # type: ignore[return-value]  # not empty
            torch.where(rows == of.unsqueeze(1), value.unsqueeze(1), 0) for value, of in columns
        )

    def gradient(self, flat: Tensor) -> Tensor:
        """The gradient of the numbers, where they are added to flat logits ``[B, N]`` with the gradient ``flat``."""
        return flat.gather(1, self.classes.reshape(len(flat), -1)).view_as(self.classes)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Picked:
        assert isinstance(self.value, Tensor)
        return replace(self, value=function(self.value), classes=function(self.classes))


@dataclass(frozen=True)
class Step:
    """One elementwise function of the logits.

    Attributes:
        by: its operand; None: it has none.
    """

    by: Operand | None = None

    def apply(self, logits: Tensor, by: Any) -> Tensor:
        """The function of ``logits``; ``by`` is the operand in a shape that broadcasts."""
        raise NotImplementedError

    def slope(self, by: Any, gradient: Tensor) -> Tensor:
        """The gradient before the step from that after it; steps in place have one."""
        raise NotImplementedError

    @property
    def tensor(self) -> Tensor | None:
        """The operand, if it is a tensor."""
        return self.by.value if self.by is not None and isinstance(self.by.value, Tensor) else None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal keys: equal steps. Tensors are told by identity."""
        by = None if self.by is None else (self.by.per, self.by.value if self.tensor is None else id(self.tensor))
        return type(self), by

    def with_tensor(self, tensor: Tensor) -> Step:
        """The step with another tensor in the place of its operand."""
        assert self.by is not None
        return replace(self, by=replace(self.by, value=tensor))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Step:
        """The step after a view: ``function`` maps tensors ``[*lead, width]``."""
        return self if self.by is None else replace(self, by=self.by.mapped(function))


class Scale(Step):
    """Multiplies."""

    def apply(self, logits: Tensor, by: Any) -> Tensor:
        return logits * by

    def slope(self, by: Any, gradient: Tensor) -> Tensor:
        return gradient * by


class Shift(Step):
    """Adds."""

    def apply(self, logits: Tensor, by: Any) -> Tensor:
        return logits + by

    def slope(self, by: Any, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class Fill(Step):
    """Replaces where a mask is set.

    Attributes:
        fill: the new value.
    """

    fill: float = -math.inf

    @property
    def key(self) -> tuple[Any, ...]:
        return (*super().key, self.fill)

    def apply(self, logits: Tensor, by: Any) -> Tensor:
        return logits.masked_fill(by, self.fill)

    def slope(self, by: Any, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(by, 0)


class Tanh(Step):
    """The hyperbolic tangent: soft-caps are ``cap * tanh(logits / cap)``."""

    def apply(self, logits: Tensor, by: Any) -> Tensor:
        return logits.tanh()


def followed_by(steps: tuple[Step, ...], step: Step) -> tuple[Step, ...]:
    """``steps`` and ``step``; two factors of all logits become one."""
    if steps and isinstance(step, Scale) and isinstance(steps[-1], Scale):
        last, by = steps[-1].by, step.by
        if last is not None and by is not None and last.per == by.per == "all":
            return (*steps[:-1], Scale(Operand(last.value * by.value)))
    return (*steps, step)


class Unranked(Exception):
    """Larger logits of the layer need not be larger after the steps."""


def ranking_offset(steps: tuple[Step, ...]) -> Tensor | None:
    """What to add to the logits of the layer, ``[N]``, so that they rank as after ``steps``; None: nothing.

    Raises:
        Unranked: no such offset exists.
    """
    offset: Tensor | None = None
    slope: float | None = 1.0  # of the steps so far, which are affine and the same for all samples; None: they are not
    for step in steps:
        by = step.by
        if by is None:
            slope = None
        elif by.per == "picked":
            raise Unranked
        elif isinstance(step, Scale):
            if by.per == "class" or not bool(torch.as_tensor(by.value, device="cpu").gt(0).all()):
                raise Unranked
            slope = slope * float(by.value) if slope is not None and by.per == "all" else None
        elif by.per == "class":
            assert isinstance(by.value, Tensor)
            if isinstance(step, Fill):
                offset = torch.zeros(len(by.value), device="cpu") if offset is None else offset
                offset = offset.masked_fill(by.value, -math.inf)
            elif slope is None:
                raise Unranked
            else:
                added = by.value.detach() / slope
                offset = added if offset is None else offset + added
    return offset


def transformed_best(steps: tuple[Step, ...], logits: Tensor, classes: Tensor) -> Tensor:
    """The steps applied to the best logits ``[B, k]`` of ``classes`` ``[B, k]``.

    Raises:
        Unranked: a logit is below the value that others were filled with, so that these may be better.
    """
    for step in steps:
        by = None if step.by is None else step.by.at(classes)
        hides = isinstance(step, Fill) and step.by is not None and step.by.per == "class"
        if hides and step.fill > -math.inf and not bool(((logits >= step.fill) | by).all()):  # type: ignore[attr-defined]
            raise Unranked
        logits = step.apply(logits, by)
    return logits
