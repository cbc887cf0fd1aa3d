"""How much each feature of a row counts: FeatureWeighting of sparse rows, UnitLength of dense ones."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..data import XMCRows, collate_xmc
from .neighbours import SparseNeighbours, in_order, neighbours_of
from .rows import DenseRows, Features, Rows, SparseFeatures

_MOST_ROWS = 1 << 14  # to look for neighbours among
_MOST_QUERIES = 500
_MAX_POSTINGS = 1 << 12  # read per query
_NEIGHBOURS = 50
_ROWS = 1024  # at a time
_KS = (1, 3, 5)
_COMPARED_ROWS = 2_000  # to see whether values grow with the rarity of their features
_GROWS = 0.1  # power of the rarity with which they do, at least; TF-IDF has 0.1 to 1.3, counts have -0.9 to 0
_FEW_COLUMNS = 8  # that hold most of the length of dense rows; embeddings have dozens


class FeatureWeighting(nn.Module):
    """Scales rows to unit length, after the values were damped and multiplied by the rarity of their features.

    Word counts want ``log(1 + count)`` and inverse document frequencies, ready TF-IDF values do not. Which of them a
    data set wants is seen from how well the labels of a training row follow from those of its nearest neighbours,
    unless its values grow with the rarity of their features already: with rarity twice, neighbours may still be
    better, but classifiers are worse.

    Salton & Buckley, *Term-weighting Approaches in Automatic Text Retrieval*, IPM 1988.

    Args:
        num_features: F.
        log: Whether a value v becomes ``sign(v) log(1 + |v|)``.

    >>> weighting = FeatureWeighting(3, log=True)
    >>> rows = weighting(torch.tensor([[0.0, 1, 3]]).to_sparse_csr())
    >>> rows.values()
    tensor([0.4472, 0.8944])
    """

    weight: Tensor  # [F] float32

    def __init__(self, num_features: int, log: bool = False) -> None:
        super().__init__()
        self.log = log
        self.register_buffer("weight", torch.ones(num_features))

    @property
    def num_features(self) -> int:
        return len(self.weight)

    @classmethod
    def of(cls, rows: XMCRows, log: bool, idf: bool) -> FeatureWeighting:
        """The weighting of a kind, with the frequencies of the features in the rows."""
        made = cls(rows.num_features, log)
        if idf:
            _, features, _ = in_order(rows.feature_start, rows.features, rows.values)  # each once in a row
            made.weight = _rarity(features, rows)
        return made

    @classmethod
    def choose(cls, rows: XMCRows, seed: int = 0) -> FeatureWeighting:
        """The weighting with which neighbours tell most of the labels of a row."""
        generator = torch.Generator().manual_seed(seed)
        labelled = (rows.label_start.diff() > 0).nonzero()[:, 0]
        some = rows.take(labelled[torch.randperm(len(labelled), generator=generator)[:_MOST_ROWS]])

        @functools.cache
        def precision(log: bool, idf: bool) -> float:
            return _precision_of_neighbours(cls.of(rows, log, idf).rows(some))

        # Logarithms matter less. Of equal ones, max takes the first, which is simpler.
        idf = not _grow_with_rarity(some) and precision(False, True) > precision(False, False)
        log = max((False, True), key=lambda log: precision(log, idf))
        return cls.of(rows, log, idf)

    def grown(self, num_features: int) -> FeatureWeighting:
        """The same weighting of at least so many features; new ones have the weight of the rarest."""
        more = max(0, num_features - len(self.weight))
        made = FeatureWeighting(len(self.weight) + more, self.log)
        made.weight = torch.cat([self.weight, self.weight.max().expand(more)]) if more else self.weight
        return made

    def forward(self, features: Features, column_start: Tensor | None = None) -> SparseFeatures:
        """Weighs features ``[B, F]``, sparse CSR; columns increase within each row of the result.

        Args:
            features: The features.
            column_start: ``[F + 1]``, offsets of the rows that have each feature in an inverted index. Features that no
                row has do not count: they would only make the others small, most in held-out rows, whose own features
                are known to ``weight``. None means that all count.
        """
        start, columns, values = features.crow_indices().long(), features.col_indices().long(), features.values()
        return SparseFeatures(*self._weighed(start, columns, values.float(), column_start), unit=True)

    def rows(self, rows: XMCRows) -> XMCRows:
        """Weighs rows."""
        start, features, values = self._weighed(rows.feature_start, rows.features, rows.values)
        return rows._replace(feature_start=start, features=features, values=values)

    def _weighed(
        self, start: Tensor, columns: Tensor, values: Tensor, column_start: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        start, columns, values = in_order(start, columns, values)
        if self.log:
            values = values.sign() * values.abs().log1p()
        known = torch.arange(self.num_features, dtype=torch.int32)
        if column_start is not None:
            known = known.where(column_start.diff() > 0, -1)
        return ops.weigh_columns(start, columns, values, known, self.weight)

    def check(self, num_features: int) -> None:
        """Raises a ValueError where it weighs another number of features."""
        if len(self.weight) != num_features:
            raise ValueError(f"weight has {len(self.weight)} numbers; wanted {num_features}")

    def configuration(self) -> dict[str, Any]:
        """The arguments that make such a module."""
        return {"num_features": len(self.weight), "log": self.log}

    def extra_repr(self) -> str:
        return f"{len(self.weight):,} features, log={self.log}, idf={bool((self.weight != 1).any())}"


class UnitLength(nn.Module):
    """Scales rows to unit length, as dense ones: what :class:`FeatureWeighting` is for sparse rows with few entries.

    Where a few features are so much larger than all others that these would not count, each is scaled by itself first,
    to a mean square of 1.

    Args:
        num_features: F, where rows are sparse or features are scaled; features from F on are left out.

    >>> UnitLength()(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    scale: Tensor | None  # [F] float32

    def __init__(self, num_features: int | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", None if num_features is None else torch.ones(num_features))

    @classmethod
    def of(cls, rows: Rows) -> UnitLength:
        """The scaling that rows ask for."""
        if isinstance(rows, DenseRows):
            squares = rows.features.square().mean(0)
        else:
            squares = torch.zeros(rows.num_features).index_add_(0, rows.features.long(), rows.values.square())
            squares /= max(1, len(rows.feature_start) - 1)
        total = squares.sum()
        count = float(total.square() / squares.square().sum().clamp(min=1e-30))  # if all of them were equal
        unequal = bool(total.isfinite()) and 0 < count < min(_FEW_COLUMNS, len(squares) / 4)
        made = cls(rows.num_features if unequal or isinstance(rows, XMCRows) else None)
        if unequal:
            made.scale = squares.rsqrt().where(squares > 0, 0)
        return made

    @property
    def num_features(self) -> int | None:
        return None if self.scale is None else len(self.scale)

    def grown(self, num_features: int) -> UnitLength:
        return self

    def forward(self, features: Features) -> Tensor:
        """Scales features ``[B, d]``."""
        if self.scale is None:
            assert isinstance(features, Tensor)
        elif isinstance(features, Tensor) and features.layout is torch.strided:
            features = features * self.scale
        else:
            features = _dense(features, len(self.scale)) * self.scale
        return F.normalize(features, dim=1).contiguous()

    def rows(self, rows: Rows) -> DenseRows:
        """Scales rows."""
        if isinstance(rows, DenseRows):
            return rows._replace(features=self(rows.features))
        features = SparseFeatures(rows.feature_start, rows.features.long(), rows.values)
        return DenseRows(self(features), rows.label_start, rows.labels, rows.num_labels)

    def check(self, num_features: int) -> None:
        """Raises a ValueError where it scales more features, or the scale is negative or not finite."""
        if self.scale is None:
            return
        if len(self.scale) > num_features:
            raise ValueError(f"scale has {len(self.scale)} numbers; wanted at most {num_features}")
        if not bool((self.scale.isfinite() & (self.scale >= 0)).all()):
            raise ValueError("scale holds a number that is negative or not finite")

    def configuration(self) -> dict[str, Any]:
        """The arguments that make such a module."""
        return {} if self.scale is None else {"num_features": len(self.scale)}


def are_mostly_there(rows: XMCRows) -> bool:
    """Whether sparse rows have half of all entries: dense rows take less memory then, and are compared faster."""
    return 2 * len(rows.values) >= (len(rows.feature_start) - 1) * rows.num_features


def _rarity(features: Tensor, rows: XMCRows) -> Tensor:
    """The inverse document frequency of each feature, ``[F]``, for the features of rows, each once in a row."""
    documents = torch.bincount(features, minlength=rows.num_features)
    return (len(rows.feature_start) / (1 + documents)).float().log() + 1


def _grow_with_rarity(rows: XMCRows) -> bool:
    """Whether values grow with the rarity of their features within rows, as TF-IDF does: the slope of logarithms."""
    rows = rows.take(torch.arange(min(_COMPARED_ROWS, len(rows.feature_start) - 1)))
    start, features, values = in_order(rows.feature_start, rows.features, rows.values)
    row, there = torch.repeat_interleave(start.diff()), values != 0
    row, features, values = row[there], features[there], values[there]
    counts = torch.bincount(row, minlength=len(start) - 1).clamp(min=1)

    def within_rows(some: Tensor) -> Tensor:
        return some - (torch.bincount(row, some, len(counts)) / counts)[row]

    rarity = within_rows(_rarity(features, rows).log()[features])
    return float(rarity @ within_rows(values.abs().log())) > _GROWS * float(rarity @ rarity)


def _dense(features: Features, width: int) -> Tensor:
    """Sparse features as ``[B, width]``; values of equal columns are added up, columns from ``width`` on left out."""
    crow, columns, values = features.crow_indices(), features.col_indices(), features.values()
    row = torch.repeat_interleave(crow.diff())
    known = columns < width
    made = torch.zeros((len(crow) - 1) * width)
    return made.index_add_(0, (row * width + columns)[known], values[known].float()).view(-1, width)


def _precision_of_neighbours(rows: XMCRows) -> float:
    """The mean of precision@1, 3 and 5 of the votes of other rows, for some rows of unit length."""
    neighbours = neighbours_of(rows, _NEIGHBOURS + 1, unit=True)
    assert isinstance(neighbours, SparseNeighbours)
    queries = torch.arange(min(_MOST_QUERIES, len(rows.label_start) - 1))
    right = torch.zeros(max(_KS))
    for some in queries.split(_ROWS):
        batch = rows.take(some)
        features, wanted = collate_xmc(batch)
        cosines, near = neighbours.search(features, _MAX_POSTINGS)
        weights = cosines.clamp(min=0).square().masked_fill(near == some.unsqueeze(1), 0).unsqueeze(2)
        near = near.masked_fill(near == some.unsqueeze(1), -1)
        none = torch.empty(len(some), 0, dtype=torch.int64)
        labels = neighbours.label_start, neighbours.labels, rows.num_labels
        best, _ = ops.label_votes(near, weights.contiguous(), *labels, max(_KS), none)
        known = (best.unsqueeze(2) == wanted.unsqueeze(1)).any(2) & (best >= 0)
        right += known.sum(0)
    return sum(float(right[:k].sum()) / k for k in _KS) / max(1, len(queries))
