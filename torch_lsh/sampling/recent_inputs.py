"""RecentInputs: inputs of recent steps, which a build of an index may look at."""

from __future__ import annotations

import torch
from torch import Tensor

from ..index.config import QueryHistory
from .input_ring import thinned


class RecentInputs:
    """Inputs of recent steps, as many as the kind of index wants.

    Attributes:
        tensor: ``[n, in]``, the latest last; None: none were kept yet.
    """

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def keep(self, x: Tensor, history: QueryHistory, step: int, training: bool) -> None:
        """Takes inputs ``[B, in]`` of a step, where ``history`` wants some of them."""
        if self.tensor is None:
            self.tensor = x[-history.total :].clone()
        elif history.every == 1:
            self.tensor = x[-history.per_step :].clone()
        elif training and step % history.every == 0 and len(x) > 0:
            some = thinned(x, history.per_step)
            if history.total > history.per_step:
                some = torch.cat([self.tensor, some])[-history.total :]
            self.tensor = some.clone()

    def trim(self, history: QueryHistory) -> None:
        """Drops the oldest of more inputs than ``history`` has room for."""
        if self.tensor is not None:
            self.tensor = self.tensor[-history.total :]
