"""What lazy logits ask of the layer that they belong to."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ...sampling.sampler import Sampler


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
    def sampler(self) -> Sampler | None:
        """What draws the active rows of a training step; None: losses are exact, also in training mode."""

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
