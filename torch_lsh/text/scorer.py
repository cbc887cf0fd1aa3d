"""LinearScorer: hashed text -> logits of a linear network, without features in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..models.network import Network
from .columns import Columns
from .linear import LinearNetwork

_MOST_NUMBERS = 1 << 25  # of the tables


class LinearScorer:
    r"""Computes logits by tables over all hashed columns, for few texts at a time in a third of the time.

    A logit is :math:`b + \sum_f v_f w_f W_f / \sqrt{\sum_f (v_f w_f)^2}` over the features f of a text with values v,
    weights w of columns and weights W of the network. The tables hold :math:`w_f W_f` and :math:`w_f^2` of every
    column. They are made at the first use. Threads may call at a time.

    Args:
        columns: Which hashed columns are features.
        network: The network; the tables follow when it changes.
    """

    def __init__(self, columns: Columns, network: LinearNetwork) -> None:
        self._columns, self._network = columns, network
        self._made: tuple[Tensor, int, Tensor, Tensor] | None = None  # the weight, its version, the tables

    @classmethod
    def of(cls, columns: Columns, network: Network) -> LinearScorer | None:
        """A scorer, or None where the network is not linear alone or the tables would be large."""
        linear = isinstance(network, LinearNetwork) and network.mixture is None
        small = columns.num_columns * (network.num_labels + 1) <= _MOST_NUMBERS
        return cls(columns, network) if linear and small else None  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    @torch.inference_mode()
    def __call__(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """Computes logits ``[B, C]`` of hashed text ``[B, num_columns]`` in CSR form."""
        weights, squares = self._tables()
        lengths = ops.embedding_bag(squares, crow, col, values.square()).sqrt_().clamp_(min=1e-12)
        return ops.embedding_bag(weights, crow, col, values).div_(lengths).add_(self._network.bias)

    def _tables(self) -> tuple[Tensor, Tensor]:
        weight = self._network.input.weight
        made = self._made
        if made is None or made[0] is not weight or made[1] != weight._version:
            places, own = self._columns.columns.long(), self._columns.weights[:, None]
            weights = torch.zeros(self._columns.num_columns, self._network.num_labels)
            squares = torch.zeros(self._columns.num_columns, 1)
            weights[places], squares[places] = weight.detach() * own, own.square()
            made = self._made = (weight, weight._version, weights, squares)
        return made[2], made[3]
