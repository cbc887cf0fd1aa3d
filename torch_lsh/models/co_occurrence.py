"""How often labels come with features."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..data import XMCRows
from .label_rows import LabelRows, rows_of_labels
from .rows import Features

_PRIOR = 2  # rows without the label that every feature is taken to have besides its own
_LEAST_SHARE = 0.05  # smaller ones take most of the memory, and sums of many of them hide the others
_MOST_PAIRS = 1 << 28  # of a feature and a label of the same row; of more, single ones would fill the memory
_LEAST_OF_MANY = 0.34  # more than the share of a label that comes with a feature once, which is 1/3 at most
_MOST_SHARE = 0.999


class CoOccurrences(LabelRows):
    """Of the rows that have a feature, the share that has a label, for features that often come with it.

    Values are ``-log(1 - share)``. Their sum over the features of a row is that of "noisy or": were each feature a
    cause of the label on its own, the label would come with the probability ``1 - exp(-sum)``. Neighbours must have
    much in common with a row to vote; here a single feature counts.

    Pearl, *Probabilistic Reasoning in Intelligent Systems*, 1988, section 4.3.

    >>> rows = XMCRows(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1], dtype=torch.int32), torch.ones(3),
    ...                torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1], dtype=torch.int32), 2, 2)
    >>> made = CoOccurrences.of(rows)
    >>> 1 - made(torch.tensor([[9.0, 0]]).to_sparse_csr(), torch.tensor([[0, 1]])).neg().exp()
    tensor([[0.5000, 0.0000]])
    """

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        """Sums ``[B, K]`` over the features that rows ``[B, F]`` have, for labels ``[B, K]``; 0 for label -1."""
        present = (features.values() != 0).float()
        query = features.crow_indices(), features.col_indices(), present
        return ops.sparse_dot(*query, self.start, self.columns, self.values, self.num_features, labels)

    @classmethod
    def of(cls, rows: XMCRows) -> CoOccurrences:
        """The shares in rows whose features increase."""
        present = rows.values != 0
        everything = bool(present.all())
        counts = torch.bincount(rows.features if everything else rows.features[present], minlength=rows.num_features)
        shares = (1 / (counts + _PRIOR)).index_select(0, rows.features)
        if not everything:
            shares *= present
        pairs = int((rows.feature_start.diff() * rows.label_start.diff()).sum())
        least = _LEAST_SHARE if pairs <= _MOST_PAIRS else _LEAST_OF_MANY
        by_row = rows.feature_start, rows.features, shares
        made = cls(rows.num_labels, rows.num_features, 0)
        made.start, made.columns, shares = ops.sum_rows(
            *by_row, rows.num_features, *rows_of_labels(rows), least, unit=False
        )
        made.values = shares.clamp_(max=_MOST_SHARE).neg_().log1p_().neg_()
        return made
