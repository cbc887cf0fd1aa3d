"""What lazy logits ask of the layer that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ...config import LSHConfig
from ...sampling.active_set import ActiveSet
from ...stopwatch import Stopwatch


class LogitsSampler(Protocol):
    """Chooses the rows that a training step computes."""

    @property
    def config(self) -> LSHConfig: ...

    @property
    def stopwatch(self) -> Stopwatch | None: ...

    def draw(self, x: Tensor, labels: Tensor) -> ActiveSet:
        """Draws the active rows for inputs ``[B, in_features]`` and labels ``[B, P]`` (negative: padding)."""

    def keeper_of_hardest_rows(self, active: ActiveSet, corrected: bool) -> Callable[[Tensor], None] | None:
        """Returns a function of each active row's sum of positive gradients ``[A]``, which keeps the hardest rows for
        the next step; None if the sampler carries no rows over.
        """


class LogitsOwner(Protocol):
    """A layer with lazy logits: :class:`LSHLinear`, :class:`QuantizedLinear`."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...

    @property
    def training(self) -> bool: ...

    @property
    def sampler(self) -> LogitsSampler | None:
        """None: losses compute all rows, also in training mode."""

    def largest_logits(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns the ``k`` largest logits of ``x`` ``[B, in_features]`` and their classes; exact, without gradients.

        Both are ``[B, k]``, largest first.
        """

    def active_logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Returns the logits ``[B, A]`` of rows ``[A]``, or of rows ``[B, A]`` padded with -1."""

    def warn_dense(self, what: str) -> None:
        """Warns, once per layer, that ``what`` computes all logits."""

    def warn_stale(self) -> None:
        """Warns, once per layer, that logits are ranked by parameters that changed after the layer was called."""
