"""Votes of the training rows that are nearest to a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..data import XMCRows
from ..data.xmc import check_rows, runs
from .rows import DenseRows, Features, Rows, SparseFeatures, join

_MAX_POSTINGS = 1 << 14  # read per row; time grows with them, and beyond these they hardly find another neighbour
_MOST_POWER = 1e6
MOST_NEIGHBOURS = 1 << 12  # of a row: a quarter of the postings, as candidates are four times as many
_CANDIDATES = 4  # times the neighbours wanted
_FEW = 33  # rows that a quick search finds
_QUICK, _QUICKER = (2 * _FEW, 1 << 11), (_FEW, 1 << 10)  # its candidates, and postings read
# With fewer rows, or with more labels and several a row, the quicker search costs precision.
_MANY_ROWS, _FEW_LABELS = 5_000, 1_024
_MOSTLY_ONE = 1.1  # labels of a row on average, where most rows have one
_COMPARED = 1 << 15  # dense rows that a quick search looks at


class Neighbours(nn.Module):
    """Training rows of unit length with their labels; the nearest by cosine vote for their labels.

    Each of the ``k`` nearest rows votes with its cosine to the power of ``power``. Votes are scaled to the sum 1.
    Neighbours tell rare features apart, which a network of low rank cannot.

    Khandelwal et al., *Generalization through Memorization: Nearest Neighbor Language Models*, ICLR 2020.

    Args:
        num_labels: N.
        rows, labels: How many rows, and labels of rows, there are.
        k: Neighbours that vote.
        power: Of the cosines.
    """

    label_start: Tensor
    labels: Tensor

    def __init__(self, num_labels: int, rows: int, labels: int, k: int, power: float) -> None:
        if not isinstance(k, int) or not 1 <= k <= MOST_NEIGHBOURS:
            raise ValueError(f"k is {k}; wanted an int from 1 to {MOST_NEIGHBOURS}")
        if not 0 < power <= _MOST_POWER:
            raise ValueError(f"power is {power}; wanted more than 0, at most {_MOST_POWER}")
        super().__init__()
        self.num_labels, self.k, self.power = num_labels, k, power
        self.register_buffer("label_start", torch.zeros(rows + 1, dtype=torch.int64))
        self.register_buffer("labels", torch.zeros(labels, dtype=torch.int32))

    def __len__(self) -> int:
        return len(self.label_start) - 1

    def rows(self) -> Rows:
        """The rows that are kept."""
        raise NotImplementedError

    def check(self, num_features: int) -> None:
        """Raises a ValueError where the buffers are not rows of so many features, with labels."""
        raise NotImplementedError

    def search(self, features: Features) -> tuple[Tensor, Tensor]:
        """Finds the nearest kept rows: cosines and row numbers, both ``[B, k]``, padded with -inf and -1."""
        raise NotImplementedError

    @property
    def mostly_one_label(self) -> bool:
        """Whether most rows have one label."""
        return len(self.labels) <= _MOSTLY_ONE * len(self)

    def search_of_many(self) -> Callable[[Features], tuple[Tensor, Tensor]]:
        """A quicker :meth:`search`, for features of unit length, that finds 33 rows; they need not be the nearest."""
        raise NotImplementedError

    def configuration(self) -> dict[str, Any]:
        """The arguments that make such a module, except ``num_labels``, and its kind."""
        return {"rows": len(self), "labels": len(self.labels), "k": self.k, "power": self.power}

    def votes(self, cosines: Tensor, rows: Tensor) -> Tensor:
        """Computes the votes ``[B, N]`` for each label, with the sum 1, or all 0 where no row is near."""
        weights = cosines.clamp(min=0).pow(self.power)
        start, at = runs(self.label_start, rows.clamp(min=0).flatten())
        counts = start.diff()
        first_label = torch.arange(len(rows)).mul_(self.num_labels)
        labels = self.labels[at] + torch.repeat_interleave(first_label, counts.view(rows.shape).sum(1))
        votes = torch.zeros(len(rows) * self.num_labels)
        votes.index_add_(0, labels, torch.repeat_interleave(weights.flatten(), counts))
        votes = votes.view(len(rows), self.num_labels)
        return votes / votes.sum(1, keepdim=True).clamp(min=1e-30)

    def forward(self, features: Features) -> Tensor:
        """The votes ``[B, N]`` for the labels of features ``[B, F]``."""
        return self.votes(*self.search(features))

    def make_room(self, num_labels: int) -> None:
        """Makes room for labels that no row has."""
        self.num_labels = num_labels

    def extra_repr(self) -> str:
        return f"{len(self):,} rows, k={self.k}, power={self.power}"


class SparseNeighbours(Neighbours):
    """Neighbours among sparse rows, found by an inverted index.

    Args:
        num_labels, rows, labels, k, power: See :class:`Neighbours`.
        num_features: F.
        entries: How many values the rows have.

    >>> rows = XMCRows(torch.tensor([0, 1, 2]), torch.tensor([3, 5], dtype=torch.int32), torch.ones(2),
    ...                torch.tensor([0, 1, 2]), torch.tensor([7, 8], dtype=torch.int32), 6, 9)
    >>> neighbours = neighbours_of(rows, k=1)
    >>> neighbours(torch.tensor([[0.0, 0, 0, 0, 0, 1]]).to_sparse_csr()).argmax(1)
    tensor([8])
    """

    row_start: Tensor
    columns: Tensor
    values: Tensor
    column_start: Tensor
    column_rows: Tensor
    column_values: Tensor

    def __init__(
        self, num_labels: int, rows: int, labels: int, k: int, power: float, num_features: int, entries: int
    ) -> None:
        super().__init__(num_labels, rows, labels, k, power)
        self.num_features = num_features
        self.register_buffer("row_start", torch.zeros(rows + 1, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(entries))
        self.register_buffer("column_start", torch.zeros(num_features + 1, dtype=torch.int64))
        self.register_buffer("column_rows", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("column_values", torch.zeros(entries))

    def rows(self) -> XMCRows:
        return XMCRows(
            self.row_start,
            self.columns,
            self.values,
            self.label_start,
            self.labels,
            self.num_features,
            self.num_labels,
        )

    def index_rows(self) -> None:
        """Builds the inverted index from the rows."""
        self.column_start, self.column_rows, self.column_values = ops.transpose_rows(
            self.row_start, self.columns, self.values, self.num_features
        )

    def check(self, num_features: int) -> None:
        if self.num_features != num_features:
            raise ValueError(f"neighbours have {self.num_features} features; wanted {num_features}")
        check_rows(self.rows())
        by_column = XMCRows(
            self.column_start,
            self.column_rows,
            self.column_values,
            torch.zeros_like(self.column_start),
            self.labels[:0],
            len(self),
            self.num_labels,
        )
        check_rows(by_column)

    def search(self, features: Features, max_postings: int = _MAX_POSTINGS) -> tuple[Tensor, Tensor]:
        crow, col, values = features.crow_indices(), features.col_indices(), features.values()
        if not (isinstance(features, SparseFeatures) and features.unit):
            crow, col, values = in_order(crow, col, values)
            values = unit_length(crow, values)
        by_row = self.row_start, self.columns, self.values
        by_column = self.column_start, self.column_rows, self.column_values
        return ops.nearest_rows(crow, col, values, *by_row, *by_column, self.k, _CANDIDATES * self.k, max_postings)

    def search_of_many(self) -> Callable[[Features], tuple[Tensor, Tensor]]:
        by_row = self.row_start, self.columns, self.values
        by_column = self.column_start, self.column_rows, self.column_values
        few = self.num_labels <= _FEW_LABELS or self.mostly_one_label
        effort = _QUICKER if few and len(self) >= _MANY_ROWS else _QUICK

        def search(features: Features) -> tuple[Tensor, Tensor]:
            query = features.crow_indices(), features.col_indices(), features.values()
            return ops.nearest_rows(*query, *by_row, *by_column, _FEW, *effort)

        return search

    def configuration(self) -> dict[str, Any]:
        own = {"kind": "sparse", "num_features": self.num_features, "entries": len(self.columns)}
        return {**super().configuration(), **own}


class DenseNeighbours(Neighbours):
    """Neighbours among dense rows, found by comparison with all of them.

    Args:
        num_labels, rows, labels, k, power: See :class:`Neighbours`.
        num_features: d.
    """

    vectors: Tensor

    def __init__(self, num_labels: int, rows: int, labels: int, k: int, power: float, num_features: int) -> None:
        super().__init__(num_labels, rows, labels, k, power)
        self.register_buffer("vectors", torch.zeros(rows, num_features))

    def rows(self) -> DenseRows:
        return DenseRows(self.vectors, self.label_start, self.labels, self.num_labels)

    def check(self, num_features: int) -> None:
        if self.vectors.shape[1] != num_features:
            raise ValueError(f"neighbours have {self.vectors.shape[1]} features; wanted {num_features}")
        entries = torch.zeros(0, dtype=torch.int32)
        none = torch.zeros_like(self.label_start)
        check_rows(XMCRows(none, entries, torch.zeros(0), self.label_start, self.labels, 0, self.num_labels))

    def search(self, features: Features) -> tuple[Tensor, Tensor]:
        assert not isinstance(features, SparseFeatures)
        found = min(self.k, len(self))
        unit = nn.functional.normalize(features, dim=1)
        cosines, rows = ops.linear_topk(unit.contiguous(), self.vectors, None, found)
        padding = (0, self.k - found)
        return nn.functional.pad(cosines, padding, value=-torch.inf), nn.functional.pad(rows, padding, value=-1)

    def search_of_many(self) -> Callable[[Features], tuple[Tensor, Tensor]]:
        some = torch.arange(len(self))
        if len(self) > _COMPARED:
            some = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:_COMPARED].sort().values
        vectors = self.vectors if len(some) == len(self) else self.vectors[some]
        found = min(_FEW, len(some))

        def search(features: Features) -> tuple[Tensor, Tensor]:
            assert isinstance(features, Tensor)
            cosines, rows = ops.linear_topk(features, vectors, None, found)
            return cosines, some[rows]

        return search

    def configuration(self) -> dict[str, Any]:
        return {**super().configuration(), "kind": "dense", "num_features": self.vectors.shape[1]}


_KINDS = {"sparse": SparseNeighbours, "dense": DenseNeighbours}


def in_order(start: Tensor, columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sparse rows whose columns increase; values of equal columns are added up."""
    increases = columns[1:] > columns[:-1]
    firsts = start[1:-1]  # of rows; nothing needs to increase there
    increases[firsts[(firsts > 0) & (firsts < len(columns))] - 1] = True
    if bool(increases.all()):
        return start, columns, values
    row = torch.repeat_interleave(start.diff())
    width = int(columns.max()) + 1
    entries, place = (row * width + columns).unique(return_inverse=True)
    sums = torch.zeros(len(entries)).index_add_(0, place, values)
    counts = torch.bincount(entries // width, minlength=len(start) - 1)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), (entries % width).to(columns.dtype), sums


def unit_length(crow: Tensor, values: Tensor) -> Tensor:
    """Values ``[nnz]`` of sparse rows, scaled to Euclidean length 1; empty rows stay empty."""
    if len(crow) == 2:
        return values / values.norm().clamp(min=1e-12)
    lengths = torch.segment_reduce(values.square(), "sum", offsets=crow, initial=0).sqrt_().clamp_(min=1e-12)
    return values / torch.repeat_interleave(lengths, crow.diff())


def neighbours_of(rows: Rows, k: int, power: float = 3.0) -> Neighbours:
    """Keeps rows, scaled to unit length, with an index to find the nearest.

    Raises:
        ValueError: The rows are not rows with labels.
    """
    num_labels, sizes = rows.num_labels, (len(rows.label_start) - 1, len(rows.labels))
    made: SparseNeighbours | DenseNeighbours
    if isinstance(rows, DenseRows):
        with torch.device("meta"):
            made = DenseNeighbours(num_labels, *sizes, k, power, rows.num_features)
        made.vectors = nn.functional.normalize(rows.features, dim=1)
    else:
        check_rows(rows)
        start, columns, values = in_order(rows.feature_start, rows.features, rows.values)
        with torch.device("meta"):
            made = SparseNeighbours(num_labels, *sizes, k, power, rows.num_features, len(columns))
        made.row_start, made.columns, made.values = start, columns, unit_length(start, values)
        made.index_rows()
    made.label_start, made.labels = rows.label_start, rows.labels
    return made


def neighbours_from(configuration: dict[str, Any], num_labels: int) -> Neighbours:
    """Makes empty neighbours of what :meth:`Neighbours.configuration` returned."""
    configuration = dict(configuration)
    return _KINDS[configuration.pop("kind")](num_labels, **configuration)


def with_more_rows(neighbours: Neighbours, rows: Rows) -> Neighbours:
    """Neighbours with more rows, and as many features and labels as these have."""
    kept = neighbours.rows()
    joined = join([kept, rows])
    joined = joined._replace(num_labels=rows.num_labels)
    if isinstance(joined, XMCRows):
        joined = joined._replace(num_features=rows.num_features)
    return neighbours_of(joined, neighbours.k, neighbours.power)
