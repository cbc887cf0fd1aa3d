"""Which way the results of a layer were computed, and why not by samples: counted, and said once."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..row_sparse.changed_rows import version_of
from ..row_sparse.parameters import report_to
from ..sampling.active_set import ActiveSet
from .warnings import REASONS, warn

SAMPLED, EXACT, RANKED, RANKED_ACTIVE, DENSE = "sampled", "exact", "ranked", "ranked active rows", "dense"


class Paths:
    """Counts the paths that a layer's results took, and warns once of every reason why one was not sampled.

    Args:
        out_features: rows of the layer.
        of_weight: whether it stands for a weight without a layer. Who has nothing but its best rows found may train it
            densely on purpose, and is told nothing.

    Attributes:
        counts: results by path: "sampled" losses, "exact" ones (block by block), "ranked" (all rows), "ranked active
            rows", and "dense", the results of ``nn.Linear``; and how often each reason of
            :data:`~torch_lsh.nn.warnings.REASONS` was met, as "why: <reason>".
        last: the path that the last result took; None: none yet.
        why: the last text of each reason.

    >>> paths = Paths(1_000)
    >>> paths.took(EXACT)
    >>> paths.last, dict(paths.counts)
    ('exact', {'exact': 1})
    """

    def __init__(self, out_features: int, of_weight: bool = False) -> None:
        self.out_features, self._of_weight = out_features, of_weight
        self.counts: Counter[str] = Counter()
        self.last: str | None = None
        self.why: dict[str, str] = {}
        self._active: tuple[weakref.ref[Tensor], ActiveSet, int] | None = None  # and the version of the weight
        self._weight: Callable[[], Tensor | None] = _none

    def watch(self, weight: Tensor) -> None:
        """Has optimizers report why they update all rows of ``weight``, the present weight of the layer."""
        if self._weight() is not weight:
            self._weight = weakref.ref(weight)
            report_to(weight, self)

    def took(self, path: str) -> None:
        """Counts a result."""
        self.counts[path] += 1
        self.last = path

    def sampled(self, input: Tensor, active: ActiveSet) -> None:
        """Counts a sampled loss of ``input``, and keeps its active rows for as long as the input lives."""
        self.counts[SAMPLED] += 1
        self.last = SAMPLED
        weight = self._weight()
        self._active = weakref.ref(input), active, -1 if weight is None else version_of(weight)
        if not torch.is_grad_enabled() and not _is_checkpointed():
            self.say("evaluation")

    def active_rows_of(self, input: Tensor, stale: bool = True) -> ActiveSet | None:
        """The active rows of the last sampled loss, if it was one of ``input``.

        ``stale``: also if the weight was changed since.
        """
        if self._active is None or self._active[0]() is not input:
            return None
        weight = self._weight()
        version = -1 if weight is None else version_of(weight)
        return self._active[1] if stale or self._active[2] == version else None

    def dense(self, what: str, reason: str = "function") -> None:
        """Counts a dense result, and warns that ``what`` leads to it."""
        self.took(DENSE)
        self.say(reason, what=what)

    def say(self, reason: str, **facts: Any) -> None:
        """Counts a reason of :data:`~torch_lsh.nn.warnings.REASONS`; warns if it is the first time."""
        self.counts[f"why: {reason}"] += 1
        if reason not in self.why:
            self.why[reason] = REASONS[reason].format(out_features=self.out_features, **facts)
            warn(self.why[reason])

    def updated_densely(self, reason: str, **facts: str) -> None:
        """Called by optimizers that update all rows; see :data:`~torch_lsh.nn.warnings.REASONS`.

        "weight" stands for a gradient of all rows that no result of the layer led to.
        """
        if self._of_weight and self.counts[SAMPLED] == 0:
            return
        if reason == "weight" and self.counts[DENSE] + self.counts[EXACT] > 0:
            return  # dense results have dense gradients, and were announced
        self.say("tied" if reason == "weight" and self.counts[SAMPLED] > 0 else reason, **facts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_active": None, "_weight": _none}


def _is_checkpointed() -> bool:
    """Whether torch.utils.checkpoint computes the forward pass, to repeat it with gradients."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "torch.utils.checkpoint":
        frame = frame.f_back
    return frame is not None


def _none() -> None:
    """Stands for a weak reference to nothing; can be pickled."""
