"""Columns: hashed columns of text -> the features of a network, weighted."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..data import XMCRows
from ..models.rows import SparseFeatures


class Columns:
    """The hashed columns that occur in the training data; only these are features.

    Args:
        columns: ``[F]`` int32; feature f is column ``columns[f]``.
        weights: ``[F]`` float32, the weight of each feature: by its rarity, or by how far it tells few classes apart.
        num_columns: Of the hashed text.

    Raises:
        ValueError: ``columns`` are not different numbers within 0 to ``num_columns - 1``, or of another dtype.

    >>> columns = Columns(torch.tensor([2, 5], dtype=torch.int32), torch.tensor([1.0, 2.0]), 8)
    >>> columns.features(torch.tensor([0, 3]), torch.tensor([0, 2, 5]), torch.tensor([1.0, 2.0, 1.0]))
    (tensor([0, 2]), tensor([0, 1]), tensor([0.7071, 0.7071]))
    """

    def __init__(self, columns: Tensor, weights: Tensor, num_columns: int) -> None:
        if columns.shape != weights.shape or columns.dim() != 1:
            raise ValueError(
                f"columns and weights have shapes {tuple(columns.shape)} and {tuple(weights.shape)}; wanted both [F]"
            )
        if columns.dtype is not torch.int32 or weights.dtype is not torch.float32:
            raise ValueError(
                f"columns and weights have dtypes {columns.dtype} and {weights.dtype}; wanted int32 and float32"
            )
        places = columns.long()
        if len(places) > 0 and (int(places.min()) < 0 or int(places.max()) >= num_columns):
            raise ValueError(f"columns runs from {places.min()} to {places.max()}; wanted 0 to {num_columns - 1}")
        self.columns, self.weights, self.num_columns = columns, weights, num_columns
        self._feature_of = torch.full((num_columns,), -1, dtype=torch.int32)
        features = torch.arange(len(places), dtype=torch.int32)
        self._feature_of[places] = features
        if not torch.equal(self._feature_of[places], features):
            raise ValueError("columns holds a number twice")
        self._increase = bool((places.diff() > 0).all())

    def __len__(self) -> int:
        return len(self.columns)

    def features(self, crow: Tensor, col: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turns hashed text into rows of features, in CSR form.

        Columns that are no features are dropped; values are multiplied by ``weights``, and rows are scaled to unit
        length (empty rows stay empty).

        Args:
            crow, col, values: Hashed text ``[B, num_columns]`` in CSR form; ``col`` int64 or int32, as the features
                are then.
        """
        return ops.weigh_columns(crow, col, values, self._feature_of, self.weights)

    def csr(self, crow: Tensor, col: Tensor, values: Tensor) -> SparseFeatures:
        """The features ``[B, F]`` of hashed text, as networks take them."""
        return SparseFeatures(*self.features(crow, col, values), unit=self._increase)

    def rows(self, hashed: XMCRows) -> XMCRows:
        """The rows of hashed text with features in place of columns."""
        crow, feature, values = self.features(hashed.feature_start, hashed.features, hashed.values)
        return hashed._replace(feature_start=crow, features=feature, values=values, num_features=len(self))

    def count_(self, counts: Tensor, hashed: XMCRows) -> None:
        """Adds to ``counts`` ``[C, F]`` int32 how many rows of hashed text, each with one label, have a feature."""
        ops.count_columns_(counts, hashed.feature_start, hashed.features, hashed.labels, self._feature_of)

    def only_those_of(self, hashed: XMCRows) -> Columns:
        """These columns, with weight 0 where they do not occur in hashed text."""
        occurs = torch.zeros(self.num_columns, dtype=torch.bool)
        occurs[hashed.features.long()] = True
        return Columns(self.columns, self.weights * occurs[self.columns.long()], self.num_columns)

    def with_those_of(self, hashed: XMCRows) -> Columns:
        """These columns, and behind them those that are new in hashed text, with the weight that most columns have."""
        new = hashed.features[self._feature_of[hashed.features] < 0].unique()
        usual = float(self.weights.median()) if len(self) > 0 else 1.0
        weights = torch.cat([self.weights, torch.full((len(new),), usual)])
        return Columns(torch.cat([self.columns, new]), weights, self.num_columns)
