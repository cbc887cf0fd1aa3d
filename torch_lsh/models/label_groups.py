"""Groups of similar labels, and linear classifiers that tell the groups apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..data import XMCRows
from ..data.xmc import check_rows
from .label_rows import PASSES, TOLERANCE, Centroids, training_rows
from .rows import Features, num_rows

SIZES = 16, 128  # groups, of each of several ways to group the labels
_NEGATIVES = 4  # random groups of each way that a row is told from
_COST = 1.0  # of errors
_LEAST_COEFFICIENT = 0.2  # of a classifier
_CLUSTERED = 1 << 11  # labels that decide what the groups are
_STEPS = 4  # of k-means
_LEAST_WEIGHT = 0.01  # of the centre of a group
_LABELS = 1024  # at a time
_ALL = 1 << 40  # postings


class LabelGroups(nn.Module):
    """Groups of labels with similar centroids, and a linear classifier of every group.

    A classifier of a label learns from its rows; one of a group does from those of all labels in it, which may be a
    hundred times as many, and of features that none of the label's own rows has.

    Args:
        num_labels: N.
        num_features: F.
        entries: How many coefficients the classifiers have.
        sizes: How many groups there are, of each way to group the labels; none means the default ones.
    """

    groups: Tensor  # [W, N] int32; those of one way come behind those of the ways before
    column_start: Tensor  # [F + 1] int64; coefficients by feature
    column_groups: Tensor  # [entries] int32
    column_values: Tensor  # [entries] float32
    bias: Tensor  # [G] float32

    def __init__(self, num_labels: int, num_features: int, entries: int, sizes: Sequence[int] = ()) -> None:
        super().__init__()
        self.sizes = tuple(sizes) or SIZES
        self.register_buffer("groups", torch.zeros(len(self.sizes), num_labels, dtype=torch.int32))
        self.register_buffer("column_start", torch.zeros(num_features + 1, dtype=torch.int64))
        self.register_buffer("column_groups", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("column_values", torch.zeros(entries))
        self.register_buffer("bias", torch.zeros(sum(self.sizes)))

    @classmethod
    def of(cls, rows: XMCRows, centroids: Centroids, seed: int = 0) -> LabelGroups:
        """Groups labels by their centroids, and trains the classifiers.

        Args:
            rows: Rows of unit length with their labels.
            centroids: Of the same rows.
            seed: Of all random choices.
        """
        made = cls(0, 0, 0)
        generator = torch.Generator().manual_seed(seed)
        made.groups = torch.stack([_similar(centroids, size, generator) for size in made.sizes]).int() + made._first
        return made.trained(rows, seed)

    @property
    def _first(self) -> Tensor:
        """The number of the first group of each way, ``[W, 1]`` int32."""
        sizes = torch.tensor(self.sizes)
        return (sizes.cumsum(0) - sizes).int().unsqueeze(1)

    def trained(self, rows: XMCRows, seed: int) -> LabelGroups:
        """The same groups, and classifiers trained on rows of unit length."""
        ways, generator = len(self.sizes), torch.Generator().manual_seed(seed)
        grouped = rows._replace(
            label_start=ways * rows.label_start,
            labels=self.groups[:, rows.labels.long()].T.flatten(),
            num_labels=len(self.bias),
        )
        shape = num_rows(rows), _NEGATIVES
        others = [torch.randint(size, shape, generator=generator, dtype=torch.int32) for size in self.sizes]
        members = training_rows(grouped, torch.cat([some + first for some, first in zip(others, self._first)], 1))
        by_row = rows.feature_start, rows.features, rows.values
        start, columns, values, bias = ops.fit_linear_rows(
            *by_row, rows.num_features, *members, torch.tensor([_COST]), PASSES, _LEAST_COEFFICIENT, seed, TOLERANCE
        )
        made = LabelGroups(0, 0, 0, self.sizes)
        made.groups, made.bias = self.groups, bias[0]
        by_column = ops.transpose_rows(start, columns, values[0], rows.num_features)
        made.column_start, made.column_groups, made.column_values = by_column
        return made

    def grown(self, centroids: Centroids, new: Tensor) -> LabelGroups:
        """The same classifiers of more labels and features; new labels ``[N]`` bool join groups by their centroids."""
        made = LabelGroups(0, 0, 0, self.sizes)
        made.groups, made.bias = self.groups.clone(), self.bias
        made.column_groups, made.column_values = self.column_groups, self.column_values
        more = self.column_start[-1:].expand(centroids.num_features + 1 - len(self.column_start))
        made.column_start = torch.cat([self.column_start, more])
        made.make_room(centroids.num_labels)
        for some in new.nonzero()[:, 0].split(_LABELS):
            scores = made._scores(centroids.features_of(some)).split(self.sizes, 1)
            made.groups[:, some] = torch.stack([of_way.argmax(1) for of_way in scores]).int() + made._first
        return made

    def _scores(self, features: Features) -> Tensor:
        """Scores ``[B, G]`` of sparse CSR features ``[B, F]``."""
        query = features.crow_indices(), features.col_indices(), features.values()
        by_column, count = (self.column_groups, self.column_values), len(self.bias)
        # As so many candidates are all groups, the columns of the query are read, which gives all products, and no row.
        by_row = torch.zeros(count + 1, dtype=torch.int64), *by_column
        scores, groups = ops.nearest_rows(*query, *by_row, self.column_start, *by_column, count, count, count)
        # The last column takes the padding.
        return scores.new_zeros(len(groups), count + 1).scatter_(1, groups % (count + 1), scores)[:, :-1] + self.bias

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        """The mean scores ``[B, K]`` of the groups of labels ``[B, K]``, for sparse CSR features ``[B, F]``."""
        scores, groups = self._scores(features), self.groups[:, labels.clamp(min=0)].long()
        return torch.stack([scores.gather(1, of_way) for of_way in groups]).mean(0)

    def make_room(self, num_labels: int) -> None:
        """Makes room for labels that no row has."""
        self.groups = F.pad(self.groups, (0, num_labels - self.groups.shape[1]))

    def check(self, num_features: int) -> None:
        """Raises a ValueError where the buffers are no groups, or no classifiers of so many features."""
        if len(self.column_start) != num_features + 1:
            raise ValueError(f"classifiers of groups have {len(self.column_start) - 1} features; wanted {num_features}")
        none = torch.zeros_like(self.column_start), torch.zeros(0, dtype=torch.int32)
        count = len(self.bias)
        check_rows(XMCRows(self.column_start, self.column_groups, self.column_values, *none, count, 0))
        if min(self.sizes) < 1 or bool((self.groups < 0).any()) or bool((self.groups >= count).any()):
            raise ValueError(f"groups of sizes {self.sizes} hold numbers out of range; wanted 0 to {count - 1}")

    def configuration(self) -> dict[str, Any]:
        """The arguments that make such a module, except ``num_labels``."""
        sizes = {"num_features": len(self.column_start) - 1, "entries": len(self.column_groups)}
        return {**sizes, "sizes": list(self.sizes)}


def _similar(centroids: Centroids, size: int, generator: torch.Generator) -> Tensor:
    """The group of each label, ``[N]`` int64, of so many: spherical k-means of the centroids."""
    known = (centroids.start.diff() > 0).nonzero()[:, 0]
    some = known[torch.randperm(len(known), generator=generator)[:_CLUSTERED]]
    centers = _centers(centroids, some[:size], torch.arange(len(some[:size])), size)
    for _ in range(_STEPS):
        centers = _centers(centroids, some, _nearest(centroids, some, centers), size)
    return _nearest(centroids, torch.arange(centroids.num_labels), centers)


def _centers(centroids: Centroids, labels: Tensor, group: Tensor, size: int) -> Centroids:
    """The mean centroids of groups of labels, scaled to unit length."""
    by_label = centroids.start, centroids.columns, centroids.values
    start = torch.cat([group.new_zeros(1), torch.bincount(group, minlength=size).cumsum(0)])
    made = Centroids(size, centroids.num_features, 0)
    made.start, made.columns, made.values = ops.sum_rows(
        *by_label, centroids.num_features, start, labels[group.argsort()].int(), _LEAST_WEIGHT
    )
    made.index()
    return made


def _nearest(centroids: Centroids, labels: Tensor, centers: Centroids) -> Tensor:
    """The centre that is nearest to the centroid of each label, ``[L]`` int64."""
    found = [centers.search(centroids.features_of(some), 1, _ALL)[:, 0] for some in labels.split(_LABELS)]
    return torch.cat(found).clamp(min=0)
