"""LinearScorer: texts -> logits of a linear network, without features in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..models.network import Network
from .columns import Columns
from .hashed_text import HashedText, pack_texts
from .linear import LinearNetwork

_MOST_NUMBERS = 1 << 25  # of the table


class LinearScorer:
    r"""Computes logits of texts in one operator, by a table over all hashed columns.

    A logit is :math:`b + \sum_f v_f w_f W_f / \sqrt{\sum_f (v_f w_f)^2}` over the features f of a text with values v,
    weights w of columns and weights W of the network. The table holds :math:`w_f W_f` and :math:`w_f^2` of every
    column. It is made at the first use. Threads may call at a time.

    Args:
        features: How texts are hashed.
        columns: Which hashed columns are features.
        network: The network; the table follows when it changes.
    """

    def __init__(self, features: HashedText, columns: Columns, network: LinearNetwork) -> None:
        self._columns, self._network = columns, network
        least, largest = features.char_ngrams or (0, 0)
        self._hashing: tuple[Any, ...] = (
            features.bits,
            features.word_ngrams,
            least,
            largest,
            features.signed,
            features.tf,
            features.seed,
            features.split_characters,
            features.symbols,
        )
        self._made: tuple[Tensor, int, Tensor, Tensor] | None = None  # the weight, its version, the table, the bias

    @classmethod
    def of(cls, features: HashedText, columns: Columns, network: Network) -> LinearScorer | None:
        """A scorer, or None where the network is not linear alone or the table would be large."""
        linear = isinstance(network, LinearNetwork) and network.mixture is None
        small = columns.num_columns * (network.num_labels + 1) <= _MOST_NUMBERS
        return cls(features, columns, network) if linear and small else None  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def __call__(self, texts: Sequence[str | bytes]) -> Tensor:
        """Computes logits ``[B, C]`` of texts."""
        arguments: tuple[Any, ...] = (*pack_texts(texts), *self._hashing, *self._table())
        return ops.score_text(*arguments)

    @torch.no_grad()
    def _make(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        places, own = self._columns.columns.long(), self._columns.weights[:, None]
        table = torch.zeros(self._columns.num_columns, weight.shape[1] + 1)
        ops.prefer_huge_pages(table)
        table[places] = torch.cat([weight * own, own.square()], 1)
        return table, self._network.bias.detach()

    def _table(self) -> tuple[Tensor, Tensor]:
        weight, made = self._network.input.weight, self._made
        if made is None or made[0] is not weight or made[1] != weight._version:
            made = self._made = (weight, weight._version, *self._make(weight))
        return made[2:]
