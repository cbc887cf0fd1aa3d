"""RecomputedDraws: a forward pass that is computed again for its backward pass draws the same rows."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from .active_set import ActiveSet

_KEPT = 64  # draws; more checkpoints than that in one step are rare


class _Draw(NamedTuple):
    labels: Tensor
    sum_of_inputs: float
    active: ActiveSet


class RecomputedDraws:
    """The latest draws that activation checkpointing may repeat.

    ``torch.utils.checkpoint`` throws intermediate results away and computes them again in the backward pass. Loss and
    gradient must then be those of one draw, and the random stream must move once. A checkpoint shows in the forward
    pass by hooks on saved tensors, or by disabled gradients; draws outside of one cost nothing here.

    Attributes:
        kept: draws that may be repeated; :meth:`find` returns None where there are none.
    """

    def __init__(self) -> None:
        self.kept: deque[_Draw] = deque(maxlen=_KEPT)
        self._version = -1  # of the weight at the latest draw

    def keep(self, x: Tensor, labels: Tensor, active: ActiveSet, version: int) -> None:
        """Takes a draw for inputs ``[B, in]`` and labels ``[B, P]``, if it may be repeated.

        ``version`` is that of the weight: what was drawn for an earlier one has been repeated, or never will be.
        """
        if version != self._version:
            self.kept.clear()
            self._version = version
        if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
            self.kept.append(_Draw(labels, _sum(x), active))

    def find(self, x: Tensor, labels: Tensor) -> ActiveSet | None:
        """The draw of the first pass, if a backward pass is running; None: this is no repetition."""
        if not self.kept or torch._C._current_graph_task_id() == -1:
            return None
        # Sums of a recomputed input may differ in the last bits; those of another input differ more.
        total = _sum(x)
        of_labels = [draw for draw in self.kept if torch.equal(draw.labels, labels)]
        return min(of_labels, key=lambda draw: abs(draw.sum_of_inputs - total)).active if of_labels else None

    def __reduce__(self) -> tuple[type[RecomputedDraws], tuple[()]]:
        return RecomputedDraws, ()  # copies and checkpoints of a run hold no half-done step


def _sum(x: Tensor) -> float:
    return float(x.detach().sum(dtype=torch.float64))
