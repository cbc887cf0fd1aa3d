"""Labels that rows may be mistaken for, which classifiers learn to tell from the labels of the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..data import XMCRows, collate_xmc
from .label_rows import Centroids
from .neighbours import SparseNeighbours

_ONE = 1.5  # labels of a labelled row in the mean; below, rows have hardly more than one
_POSTINGS = 1 << 11  # read per row that looks for centroids
_ROWS = 1024  # at a time


class Thoroughness(NamedTuple):
    """How thoroughly classifiers learn what is hard to tell apart.

    Attributes:
        voted: Hard labels of a row by the votes of its neighbours.
        nearest: Hard labels of a row by centroids.
        neighbours: That vote: how many, of how many candidates, by how many postings.
        passes: Of the training.
    """

    voted: int
    nearest: int
    neighbours: tuple[int, int, int]
    passes: int

    @classmethod
    def for_rows(cls, rows: XMCRows) -> Thoroughness:
        """Rows of one label each need half of the hard labels that others do."""
        labelled = int((rows.label_start.diff() > 0).sum())
        if len(rows.labels) < _ONE * labelled:
            return cls(16, 8, (17, 34, 1 << 10), 6)
        return cls(32, 16, (33, 66, 1 << 11), 10)

    @property
    def width(self) -> int:
        """The most hard labels of a row."""
        return self.voted + self.nearest


def hard_labels(
    rows: XMCRows, neighbours: SparseNeighbours, centroids: Centroids, thoroughness: Thoroughness, begin: int = 0
) -> Tensor:
    """Labels that the rows from ``begin`` on may be mistaken for, were they not among the training rows.

    Returns:
        ``[rows - begin, M]`` int32, padded with -1.
    """
    by_row = neighbours.row_start, neighbours.columns, neighbours.values
    by_column = neighbours.column_start, neighbours.column_rows, neighbours.column_values
    found = []
    for some in torch.arange(begin, len(rows.label_start) - 1).split(_ROWS):
        features, _ = collate_xmc(rows.take(some))
        query = features.crow_indices(), features.col_indices(), features.values()
        cosines, near = ops.nearest_rows(*query, *by_row, *by_column, *thoroughness.neighbours)
        itself = near == some.unsqueeze(1)
        weights = cosines.clamp(min=0).square().masked_fill(itself, 0).unsqueeze(2).contiguous()
        near = near.masked_fill(itself, -1)
        also = centroids.search(features, thoroughness.nearest, _POSTINGS)
        labels = neighbours.label_start, neighbours.labels, rows.num_labels
        found.append(ops.label_votes(near, weights, *labels, thoroughness.voted, also)[0].int())
    return torch.cat(found)
