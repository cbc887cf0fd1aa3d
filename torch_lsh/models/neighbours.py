"""Votes of the training rows that are nearest to a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..data import XMCRows
from ..data.xmc import check_rows
from ..index.families.learned import LearnedPartition
from ..index.sign_codes import CODE_ROWS, SignCodeIndex
from .rows import DenseRows, Features, Rows, SparseFeatures, join

_MAX_POSTINGS = 1 << 14  # read per row; time grows with them, and beyond these they hardly find another neighbour
_MOST_POWER = 1e6
MOST_NEIGHBOURS = 1 << 12  # of a row: a quarter of the postings, as candidates are four times as many
_CANDIDATES = 4  # times the neighbours wanted
_FEW = 33  # rows that a quick search finds: 32 and, for a row that is kept, itself
_QUICK, _QUICKER = (2 * _FEW, 1 << 11), (0, 1 << 10)  # its candidates, none where sums will do, and postings read
# With fewer rows, or with more labels and several a row, the quicker search costs precision.
_MANY_ROWS, _FEW_LABELS = 5_000, 1_024
_MOSTLY_ONE = 1.1  # labels of a row on average, where most rows have one
_ALIKE, _IN_CELL = 1 << 13, 256  # dense rows that a row of a cell is compared with, and rows of a cell
_FITTED, _NEAR_CELLS = 32, 64  # rows of a cell that k-means looks at; cells to compare with, at most
_ROWS = 1024  # at a time
# Numbers of dense rows, and of each, from which on comparing codes pays: fewer rows stay in the cache, where a batch is
# compared with all of them in no more time, and signs of fewer numbers tell little.
_CODED, _WIDE = 1 << 23, 128
_PROMISING, _SPARED = 8, 32  # times the neighbours wanted: rows that codes choose, and the least that there are
_TYPICAL = 1 << 12  # rows that stand for queries


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

    def alone(self) -> Tensor:
        """Which rows have no feature that another row has, ``[rows]`` bool; none of dense ones."""
        return torch.zeros(len(self), dtype=torch.bool)

    def search(self, features: Features) -> tuple[Tensor, Tensor]:
        """Finds the nearest kept rows: cosines and row numbers, both ``[B, k]``, padded with -inf and -1."""
        raise NotImplementedError

    @property
    def mostly_one_label(self) -> bool:
        """Whether most rows have one label."""
        return len(self.labels) <= _MOSTLY_ONE * len(self)

    def configuration(self) -> dict[str, Any]:
        """The arguments that make such a module, except ``num_labels``, and its kind."""
        return {"rows": len(self), "labels": len(self.labels), "k": self.k, "power": self.power}

    def votes(self, cosines: Tensor, rows: Tensor) -> Tensor:
        """Computes the votes ``[B, N]`` for each label, with the sum 1, or all 0 where no row is near."""
        weights = cosines.clamp(min=0).pow(self.power)
        start, of_rows = ops.take_runs(self.label_start, self.labels, rows.clamp(min=0).flatten())
        counts = start.diff()
        first_label = torch.arange(len(rows)).mul_(self.num_labels)
        labels = of_rows + torch.repeat_interleave(first_label, counts.view(rows.shape).sum(1))
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

    def alone(self) -> Tensor:
        own = self.column_rows[self.column_start[:-1][self.column_start.diff() == 1]]
        return torch.bincount(own, minlength=len(self)) == self.row_start.diff()

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
        """A quicker :meth:`search`, for features of unit length, that finds 33 rows; they need not be the nearest."""
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
    """Neighbours among dense rows: of few by comparison with all, of many with those whose sign codes promise most.

    A prediction reads every row that it is compared with: in order, and of rows that no cache holds, that takes as long
    as memory does. Sign codes (:class:`torch_lsh.index.SignCodeIndex`) are a thirtieth as long.

    Args:
        num_labels, rows, labels, k, power: See :class:`Neighbours`.
        num_features: d.
        coded: Whether there are sign codes.
    """

    vectors: Tensor
    codes: Tensor | None
    factors: Tensor | None  # pairs of bfloat16 as int32, for files whose floating point numbers are of one dtype
    means: Tensor | None  # of rows and of queries

    def __init__(
        self, num_labels: int, rows: int, labels: int, k: int, power: float, num_features: int, coded: bool = False
    ) -> None:
        super().__init__(num_labels, rows, labels, k, power)
        self.register_buffer("vectors", torch.zeros(rows, num_features))
        blocks, width = -(-rows // CODE_ROWS), -(-num_features // 8)
        self.register_buffer("codes", torch.zeros(blocks, width, CODE_ROWS, dtype=torch.uint8) if coded else None)
        self.register_buffer("factors", torch.zeros(blocks, 2, CODE_ROWS // 2, dtype=torch.int32) if coded else None)
        self.register_buffer("means", torch.zeros(2, num_features) if coded else None)
        self._index: SignCodeIndex | None = None

    def rows(self) -> DenseRows:
        return DenseRows(self.vectors, self.label_start, self.labels, self.num_labels)

    def index_rows(self) -> None:
        """Makes codes of the rows where comparing all of them takes longer."""
        rows, width = self.vectors.shape
        if self.vectors.numel() < _CODED or width < _WIDE or rows < _SPARED * self.k:
            return
        index = SignCodeIndex(rows, width)
        index.build(self.vectors, None, self.vectors[:: 1 + rows // _TYPICAL])
        state = index.state_dict()
        self.codes, self.factors = state["codes"], state["factors"].view(torch.int32)
        self.means, self._index = torch.stack([state["center"], state["mean_query"]]), index

    def check(self, num_features: int) -> None:
        if self.vectors.shape[1] != num_features:
            raise ValueError(f"neighbours have {self.vectors.shape[1]} features; wanted {num_features}")
        entries = torch.zeros(0, dtype=torch.int32)
        none = torch.zeros_like(self.label_start)
        check_rows(XMCRows(none, entries, torch.zeros(0), self.label_start, self.labels, 0, self.num_labels))

    def search(self, features: Features) -> tuple[Tensor, Tensor]:
        assert not isinstance(features, SparseFeatures)
        unit = nn.functional.normalize(features, dim=1).contiguous()
        if self.codes is not None:
            promising = self._coded().query(unit, _PROMISING * self.k)
            return ops.rows_topk(unit, self.vectors, None, promising, self.k)
        found = min(self.k, len(self))
        cosines, rows = ops.linear_topk(unit, self.vectors, None, found)
        padding = (0, self.k - found)
        return nn.functional.pad(cosines, padding, value=-torch.inf), nn.functional.pad(rows, padding, value=-1)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._index = None

    def _coded(self) -> SignCodeIndex:
        """The index of the codes, made at its first use after loading; threads that meet here make equal ones."""
        if self._index is None:
            assert self.codes is not None
            assert self.factors is not None
            assert self.means is not None
            index = SignCodeIndex(*self.vectors.shape)
            center, mean_query = self.means
            stored = {"center": center, "mean_query": mean_query, "codes": self.codes}
            index.load_state_dict({**index.state_dict(), **stored, "factors": self.factors.view(torch.bfloat16)})
            self._index = index
        return self._index

    def alike(self, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields rows that are wanted, ``[R]``, and up to 33 like each: cosines and row numbers, both ``[R, M]``.

        These need not be the nearest: rows are sorted into cells by k-means, and those of a cell are compared with
        those of the cells nearest to it, as one product.

        Args:
            wanted: ``[rows]`` bool.
        """
        order, cells = self._cells()
        vectors = self.vectors.bfloat16()[order]  # half as much to copy, and to multiply where the CPU can
        for own, others in cells:
            near_rows, compared = (torch.cat([part[some] for some in others]) for part in (order, vectors))
            step = 1 + len(near_rows) // (4 * _ALIKE)  # a cell of equal rows may hold most of them
            near_rows, compared = near_rows[::step], compared[::step].contiguous()
            some = wanted[order[own]]
            for rows, queries in zip(order[own][some].split(_ROWS), vectors[own][some].split(_ROWS)):
                if len(rows) > 0:
                    cosines, near = ops.linear_topk(queries, compared, None, min(_FEW, len(near_rows)))
                    yield rows, cosines, near_rows[near]

    def _cells(self) -> tuple[Tensor, Iterable[tuple[slice, list[slice]]]]:
        """Sorts rows by cell: their numbers, where each cell is among them, and which cells it is compared with."""
        if len(self) <= 4 * _ALIKE:  # of so few, all take little longer, and cost no precision
            everything = slice(len(self))
            return torch.arange(len(self)), [(everything, [everything])]
        bits = round(math.log2(len(self) / _IN_CELL))
        partition = LearnedPartition(self.vectors.shape[1], bits)
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[: _FITTED << bits]
        partition.fit(self.vectors[chosen])
        cell = partition.buckets(self.vectors)
        sizes = cell.bincount(minlength=1 << bits)
        ends = sizes.cumsum(0)
        cells = [slice(end - size, end) for end, size in zip(ends.tolist(), sizes.tolist())]
        directions = nn.functional.normalize(partition.centers, dim=1)
        near = ops.linear_topk(directions, directions, None, min(_NEAR_CELLS, len(directions)))[1]
        enough = 1 + (sizes[near].cumsum(1) < _ALIKE).sum(1)
        others = [[cells[one] for one in some[:count].tolist()] for some, count in zip(near, enough)]
        return cell.argsort(stable=True), zip(cells, others)

    def configuration(self) -> dict[str, Any]:
        own = {"kind": "dense", "num_features": self.vectors.shape[1], "coded": self.codes is not None}
        return {**super().configuration(), **own}


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


def _of_unit_length(rows: XMCRows) -> XMCRows:
    """The rows, checked, with columns that increase, in unit length."""
    check_rows(rows)
    start, columns, values = in_order(rows.feature_start, rows.features, rows.values)
    return rows._replace(feature_start=start, features=columns, values=unit_length(start, values))


def neighbours_of(rows: Rows, k: int, power: float = 3.0, unit: bool = False) -> Neighbours:
    """Keeps rows, scaled to unit length, with an index to find the nearest.

    Args:
        rows: The rows.
        k, power: See :class:`Neighbours`.
        unit: Whether the rows are known to be valid, of unit length and, where they are sparse, with columns that
            increase; they are then kept as they are.

    Raises:
        ValueError: The rows are not rows with labels.
    """
    num_labels, sizes = rows.num_labels, (len(rows.label_start) - 1, len(rows.labels))
    made: SparseNeighbours | DenseNeighbours
    if isinstance(rows, DenseRows):
        with torch.device("meta"):
            made = DenseNeighbours(num_labels, *sizes, k, power, rows.num_features)
        made.vectors = rows.features if unit else nn.functional.normalize(rows.features, dim=1)
        made.index_rows()
    else:
        if not unit:
            rows = _of_unit_length(rows)
        with torch.device("meta"):
            made = SparseNeighbours(num_labels, *sizes, k, power, rows.num_features, len(rows.features))
        made.row_start, made.columns, made.values = rows.feature_start, rows.features, rows.values
        made.index_rows()
    made.label_start, made.labels = rows.label_start, rows.labels
    return made


def neighbours_from(configuration: dict[str, Any], num_labels: int) -> Neighbours:
    """Makes empty neighbours of what :meth:`Neighbours.configuration` returned."""
    configuration = dict(configuration)
    return _KINDS[configuration.pop("kind")](num_labels, **configuration)


def with_more_rows(neighbours: Neighbours, rows: Rows) -> Neighbours:
    """Neighbours with more rows, and as many features and labels as these have."""
    if isinstance(rows, DenseRows):
        rows = rows._replace(features=nn.functional.normalize(rows.features, dim=1))
    else:
        rows = _of_unit_length(rows)
    joined = join([neighbours.rows(), rows])
    joined = joined._replace(num_labels=rows.num_labels)
    if isinstance(joined, XMCRows):
        joined = joined._replace(num_features=rows.num_features)
    return neighbours_of(joined, neighbours.k, neighbours.power, unit=True)
