"""What losses and rankings ask of the layer whose shard they use."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ...nn.paths import Paths
from ...sampling.sampler import Sampler
from ..channel import Channel
from .shards import Shards


class ShardOwner(Protocol):
    """The part of a wide layer that one process has."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int:
        """Rows of the whole layer."""

    @property
    def own_rows(self) -> int:
        """Rows of this process."""

    @property
    def shards(self) -> Shards: ...

    @property
    def channel(self) -> Channel: ...

    @property
    def sampler(self) -> Sampler: ...

    @property
    def paths(self) -> Paths:
        """Which way results were computed, and why."""

    @property
    def same_inputs(self) -> bool:
        """Whether all processes bring the same samples."""

    @property
    def training(self) -> bool: ...

    def active_logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Logits of own rows ``[A]`` or ``[B, A]`` for ``x`` ``[B, in]``; differentiable."""
