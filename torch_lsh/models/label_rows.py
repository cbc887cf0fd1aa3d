"""Sparse rows of labels: centroids of their training rows, and linear classifiers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..data import XMCRows
from ..data.xmc import check_rows
from .rows import Features, Rows, SparseFeatures

_LEAST_WEIGHT = 0.03  # of a centroid of unit length; smaller entries take most of the memory and find hardly a label
_MAX_POSTINGS = 1 << 12  # read per row that looks for centroids
COSTS = 0.1, 1.0  # of errors, of the classifiers of a label
PASSES = 10
TOLERANCE = 0.03  # of passes; further ones change classifiers, but not which labels are best
_LEAST_COEFFICIENT = 0.1  # of a classifier


class LabelRows(nn.Module):
    """A sparse row of features for every label.

    Args:
        num_labels: N.
        num_features: F.
        entries: How many values the rows have.
    """

    start: Tensor  # [N + 1] int64
    columns: Tensor  # [entries] int32, increasing within a row
    values: Tensor  # [entries] float32

    def __init__(self, num_labels: int, num_features: int, entries: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.register_buffer("start", torch.zeros(num_labels + 1, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(entries))

    @property
    def num_labels(self) -> int:
        return len(self.start) - 1

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        """Products ``[B, K]`` of sparse CSR features ``[B, F]`` with the rows of labels ``[B, K]``; 0 for label -1."""
        return self.products(features, labels, self.values)

    def products(self, features: Features, labels: Tensor, values: Tensor) -> Tensor:
        """The same with other values ``[entries]`` of the rows."""
        query = features.crow_indices(), features.col_indices(), features.values()
        return ops.sparse_dot(*query, self.start, self.columns, values, self.num_features, labels)

    def make_room(self, num_labels: int) -> None:
        """Makes room for labels whose rows are empty."""
        self.start = torch.cat([self.start, self.start[-1:].expand(num_labels - self.num_labels)])

    def check(self, num_features: int) -> None:
        """Raises a ValueError where the buffers are not sparse rows of so many features."""
        if self.num_features != num_features:
            raise ValueError(f"rows of labels have {self.num_features} features; wanted {num_features}")
        none = torch.zeros_like(self.start), torch.zeros(0, dtype=torch.int32)
        for values in torch.atleast_2d(self.values):
            check_rows(XMCRows(self.start, self.columns, values, *none, self.num_features, 0))

    def configuration(self) -> dict[str, Any]:
        """The arguments that make such a module, except ``num_labels``."""
        return {"num_features": self.num_features, "entries": len(self.columns)}

    def extra_repr(self) -> str:
        return f"{self.num_labels:,} labels, {len(self.columns):,} entries"


class Centroids(LabelRows):
    """The mean row of every label, scaled to unit length, without its small entries.

    Chang et al., *Taming Pretrained Transformers for Extreme Multi-label Text Classification*, KDD 2020 (there:
    "positive instance feature aggregation").

    >>> rows = XMCRows(torch.tensor([0, 1, 2]), torch.tensor([3, 5], dtype=torch.int32), torch.ones(2),
    ...                torch.tensor([0, 1, 2]), torch.tensor([7, 8], dtype=torch.int32), 6, 9)
    >>> Centroids.of(rows).search(torch.tensor([[0.0, 0, 0, 0, 0, 1]]).to_sparse_csr(), 2)
    tensor([[ 8, -1]])
    """

    def __init__(self, num_labels: int, num_features: int, entries: int) -> None:
        super().__init__(num_labels, num_features, entries)
        self.register_buffer("column_start", torch.zeros(num_features + 1, dtype=torch.int64))
        self.register_buffer("column_labels", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("column_values", torch.zeros(entries))

    @classmethod
    def of(cls, rows: XMCRows) -> Centroids:
        """The centroids of rows of unit length."""
        by_row = rows.feature_start, rows.features, rows.values
        made = cls(rows.num_labels, rows.num_features, 0)
        made.start, made.columns, made.values = ops.sum_rows(
            *by_row, rows.num_features, *rows_of_labels(rows), _LEAST_WEIGHT
        )
        made.index()
        return made

    def check(self, num_features: int) -> None:
        super().check(num_features)
        none = torch.zeros_like(self.column_start), torch.zeros(0, dtype=torch.int32)
        check_rows(XMCRows(self.column_start, self.column_labels, self.column_values, *none, self.num_labels, 0))

    def index(self) -> None:
        """Builds the inverted index. Call it after the buffers have changed."""
        self.column_start, self.column_labels, self.column_values = ops.transpose_rows(
            self.start, self.columns, self.values, self.num_features
        )

    def features_of(self, labels: Tensor) -> SparseFeatures:
        """The centroids of labels ``[B]`` as features."""
        labels = labels.contiguous()
        start, columns = ops.take_runs(self.start, self.columns, labels)
        _, values = ops.take_runs(self.start, self.values, labels)
        return SparseFeatures(start, columns.long(), values, unit=True)

    def search(self, features: Features, k: int, max_postings: int = _MAX_POSTINGS) -> Tensor:
        """Finds the labels with the nearest centroids: ``[B, k]`` int64, padded with -1."""
        query = features.crow_indices(), features.col_indices(), features.values()
        by_label = self.start, self.columns, self.values
        by_column = self.column_start, self.column_labels, self.column_values
        return ops.nearest_rows(*query, *by_label, *by_column, k, 2 * k, max_postings)[1]


class LinearClassifiers(LabelRows):
    """Linear classifiers for every label, trained on its rows and on rows that are hard to tell from them.

    Their scores are of use beside others: a classifier knows no rows but those that it was trained on. Of the two of a
    label, one makes much of errors, and one of small weights.

    Args:
        num_labels, num_features, entries: See :class:`LabelRows`.
    """

    kinds = len(COSTS)
    bias: Tensor  # [2, N] float32; values are [2, entries]

    def __init__(self, num_labels: int, num_features: int, entries: int) -> None:
        super().__init__(num_labels, num_features, entries)
        self.register_buffer("values", torch.zeros(len(COSTS), entries))
        self.register_buffer("bias", torch.zeros(len(COSTS), num_labels))

    @classmethod
    def of(cls, rows: XMCRows, negatives: Tensor, seed: int = 0) -> LinearClassifiers:
        """Trains classifiers.

        Args:
            rows: Rows of unit length with their labels.
            negatives: Labels ``[rows, M]``, int64 or int32, that each row may be mistaken for; negative numbers and
                labels of the row itself do not count.
            seed: Seed of the order of the rows.
        """
        members = training_rows(rows, negatives)
        by_row = rows.feature_start, rows.features, rows.values
        made = cls(rows.num_labels, rows.num_features, 0)
        made.start, made.columns, made.values, made.bias = ops.fit_linear_rows(
            *by_row, rows.num_features, *members, torch.tensor(COSTS), PASSES, _LEAST_COEFFICIENT, seed, TOLERANCE
        )
        return made

    def lacks(self, labels: Tensor) -> bool:
        """Whether some of the labels ``[L]`` have no classifier."""
        known = labels < self.num_labels
        return not bool(known.all()) or bool((self.start.diff()[labels.long()] == 0).any())

    def grown(self, num_labels: int, num_features: int) -> LinearClassifiers:
        """The same classifiers of more features, with more labels.

        Labels without a classifier, as those that held-out rows alone have, get the mean bias: what classifiers make of
        rows that have nothing in common with their own. A score of 0 would put such a label before all others.
        """
        made = LinearClassifiers(self.num_labels, num_features, 0)
        made.start, made.columns, made.values, made.bias = self.start, self.columns, self.values, self.bias
        made.make_room(num_labels)
        made.bias = with_mean_bias(made.bias)
        return made

    def make_room(self, num_labels: int) -> None:
        super().make_room(num_labels)
        self.bias = torch.nn.functional.pad(self.bias, (0, num_labels - self.bias.shape[1]))

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        """Scores ``[2, B, K]`` of sparse CSR features ``[B, F]`` by the classifiers of labels ``[B, K]``."""
        scores = [self.products(features, labels, values) for values in self.values]
        return torch.stack(scores) + self.bias[:, labels.clamp(min=0)]

    def check(self, num_features: int) -> None:
        super().check(num_features)
        if self.values.shape != (len(COSTS), len(self.columns)):
            raise ValueError(f"values has shape {tuple(self.values.shape)}; wanted [{len(COSTS)}, {len(self.columns)}]")


def with_mean_bias(bias: Tensor) -> Tensor:
    """Biases ``[..., N]`` with the mean of the others in place of those that are 0, of labels without a classifier."""
    known = torch.atleast_2d(bias).any(0)
    return bias.where(known, bias[..., known].mean(-1, keepdim=True)) if bool(known.any()) else bias


def rows_of_labels(rows: Rows) -> tuple[Tensor, Tensor]:
    """The rows of each label: offsets ``[N + 1]`` int64, and row numbers int32, increasing for each label."""
    start, row, _ = ops.transpose_rows(rows.label_start, rows.labels, torch.empty(len(rows.labels)), rows.num_labels)
    return start, row


def training_rows(rows: Rows, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The training rows of each classifier: offsets ``[N + 1]``, row numbers int32, and whether they have the label."""
    known = negatives >= 0
    counts = rows.label_start.diff()
    start = torch.cat([counts.new_zeros(1), (counts + known.sum(1)).cumsum(0)])
    # Of each row first its own labels, then those that it may be mistaken for.
    own = torch.arange(len(rows.labels)) + torch.repeat_interleave((start - rows.label_start)[:-1], counts)
    positive = torch.zeros(int(start[-1])).index_fill_(0, own, 1)
    labels = torch.empty(len(positive), dtype=torch.int32)
    labels[own] = rows.labels
    labels[positive == 0] = negatives[known].int()
    start, row, positive = ops.transpose_rows(start, labels, positive, rows.num_labels)
    # Where the row has the label itself, or has it twice, the first one counts.
    new = torch.ones_like(row, dtype=torch.bool)
    new[1:] = row[1:] != row[:-1]
    new[start[start < len(row)]] = True
    start = torch.cat([start.new_zeros(1), new.cumsum(0)])[start]
    return start, row[new], positive[new] > 0
