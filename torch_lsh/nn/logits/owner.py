"""What lazy logits ask of the layer that they belong to."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ...sampling.sampler import Sampler
from ..paths import Paths


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

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Returns both."""

    @property
    def training(self) -> bool: ...

    @property
    def sampler(self) -> Sampler | None:
        """What draws the active rows of a training step; None: losses are exact, also in training mode."""

    @property
    def paths(self) -> Paths:
        """Which way results were computed, and why."""

    def largest_logits(self, x: Tensor, k: int, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the ``k`` largest logits of ``x`` ``[B, in_features]`` and their classes; exact, without gradients.

        Both are ``[B, k]``, largest first. ``offset`` ``[N]`` is added to the logits.
        """

    def active_logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Returns the logits ``[B, A]`` of rows ``[A]``, or of rows ``[B, A]`` padded with -1."""
