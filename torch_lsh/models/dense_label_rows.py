"""Dense rows of labels: centroids of their training rows, and linear classifiers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .label_rows import PASSES, rows_of_labels, training_rows, with_mean_bias
from .rows import DenseRows, Features

_COST = 1.0  # of errors; classifiers of a second cost add nothing for dense rows


class DenseLabelRows(nn.Module):
    """A dense row for every label.

    Args:
        num_labels: N.
        num_features: d.
    """

    vectors: Tensor  # [N, d] float32

    def __init__(self, num_labels: int, num_features: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_labels, num_features))

    @property
    def num_labels(self) -> int:
        return len(self.vectors)

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        """Products ``[B, K]`` of features ``[B, d]`` with the rows of labels ``[B, K]``; 0 for label -1."""
        assert isinstance(features, Tensor)
        return ops.sampled_dot(features, self.vectors, labels)

    def make_room(self, num_labels: int) -> None:
        """Makes room for labels whose rows are 0."""
        self.vectors = F.pad(self.vectors, (0, 0, 0, num_labels - self.num_labels))

    def check(self, num_features: int) -> None:
        """Raises a ValueError where the rows have another number of features."""
        if self.vectors.shape[1] != num_features:
            raise ValueError(f"rows of labels have {self.vectors.shape[1]} features; wanted {num_features}")

    def configuration(self) -> dict[str, Any]:
        """The arguments that make such a module, except ``num_labels``."""
        return {"num_features": self.vectors.shape[1]}

    def extra_repr(self) -> str:
        return f"{self.num_labels:,} labels, {self.vectors.shape[1]:,} features"


class DenseCentroids(DenseLabelRows):
    """The mean row of every label, scaled to unit length; see :class:`torch_lsh.models.label_rows.Centroids`.

    >>> rows = DenseRows(torch.eye(3), torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1, 0], dtype=torch.int32), 2)
    >>> DenseCentroids.of(rows).search(torch.tensor([[0.0, 1, 0]]), 3)
    tensor([[ 1,  0, -1]])
    """

    @classmethod
    def of(cls, rows: DenseRows) -> DenseCentroids:
        """The centroids of rows of unit length."""
        made = cls(0, rows.num_features)
        start, row = rows_of_labels(rows)
        made.vectors = F.normalize(ops.embedding_bag(rows.features, start, row.long()), dim=1)
        return made

    def search(self, features: Features, k: int) -> Tensor:
        """Finds the labels with the nearest centroids: ``[B, k]`` int64, padded with -1."""
        assert isinstance(features, Tensor)
        found = min(k, self.num_labels)
        return F.pad(ops.linear_topk(features, self.vectors, None, found)[1], (0, k - found), value=-1)


class DenseClassifiers(DenseLabelRows):
    """Linear classifiers for every label; see :class:`torch_lsh.models.label_rows.LinearClassifiers`."""

    kinds = 1
    bias: Tensor  # [N] float32

    def __init__(self, num_labels: int, num_features: int) -> None:
        super().__init__(num_labels, num_features)
        self.register_buffer("bias", torch.zeros(num_labels))

    @classmethod
    def of(cls, rows: DenseRows, negatives: Tensor, seed: int = 0) -> DenseClassifiers:
        """Trains classifiers of rows of unit length; see :meth:`torch_lsh.models.label_rows.LinearClassifiers.of`."""
        made = cls(0, rows.num_features)
        made.vectors, made.bias = ops.fit_dense_rows(
            rows.features, *training_rows(rows, negatives), _COST, PASSES, seed
        )
        return made

    def lacks(self, labels: Tensor) -> bool:
        """Whether some of the labels ``[L]`` have no classifier."""
        some = labels.long()
        if bool((some >= self.num_labels).any()):
            return True
        return not bool(self.vectors[some].any(1).all())

    def grown(self, num_labels: int, num_features: int) -> DenseClassifiers:
        """The same classifiers of as many features; see :meth:`torch_lsh.models.label_rows.LinearClassifiers.grown`."""
        made = DenseClassifiers(0, num_features)
        made.vectors, made.bias = self.vectors, self.bias
        made.make_room(num_labels)
        made.bias = with_mean_bias(made.bias)
        return made

    def make_room(self, num_labels: int) -> None:
        super().make_room(num_labels)
        self.bias = F.pad(self.bias, (0, num_labels - len(self.bias)))

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        """Scores ``[1, B, K]`` of features ``[B, d]`` by the classifiers of labels ``[B, K]``."""
        return (super().forward(features, labels) + self.bias[labels.clamp(min=0)]).unsqueeze(0)
