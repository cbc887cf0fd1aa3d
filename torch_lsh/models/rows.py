"""Rows that a wide model trains on: sparse or dense features with labels, in memory or in blocks, in batches."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import ops
from ..data import XMCDataset, XMCRows, collate_xmc
from ..data.xmc import join_rows, padded_labels
from ..interrupts import interrupts_wait, quiet_worker

_LARGEST = 1e12  # of dense features; squares of larger ones do not add up in float32
_LARGEST_SPARSE = 1e30  # weights multiply them in float32


class DenseRows(NamedTuple):
    """Rows of dense features with their labels: an :class:`XMCRows` whose features are a matrix.

    Attributes:
        features: ``[rows, d]`` float32.
        label_start: ``[rows + 1]`` int64.
        labels: int32; those of row i are ``labels[label_start[i]:label_start[i + 1]]``.
        num_labels: Number of labels there are.
    """

    features: Tensor
    label_start: Tensor
    labels: Tensor
    num_labels: int

    @property
    def num_features(self) -> int:
        return self.features.shape[1]

    def take(self, rows: Tensor) -> DenseRows:
        """The rows of the given numbers ``[R]``."""
        label_start, labels = ops.take_runs(self.label_start, self.labels, rows.contiguous())
        return DenseRows(self.features[rows], label_start, labels, self.num_labels)


Rows = XMCRows | DenseRows


class SparseFeatures:
    """A sparse CSR matrix of features, without the checks and the time that a sparse CSR tensor takes.

    Args:
        crow, col: int64; valid.
        values: float32.
        unit: Whether rows are known to have length 1, and columns that increase.
    """

    __slots__ = ("_col", "_crow", "_values", "unit")

    def __init__(self, crow: Tensor, col: Tensor, values: Tensor, unit: bool = False) -> None:
        self._crow, self._col, self._values, self.unit = crow, col, values, unit

    def crow_indices(self) -> Tensor:
        return self._crow

    def col_indices(self) -> Tensor:
        return self._col

    def values(self) -> Tensor:
        return self._values


Features = Tensor | SparseFeatures


class Batch(NamedTuple):
    """A batch as networks take it.

    Attributes:
        features: ``[B, F]``, sparse CSR or strided, float32.
        labels: ``[B, P]`` int64 padded with -100.
        weights: ``[B]`` float32; None means all 1.
    """

    features: Tensor
    labels: Tensor
    weights: Tensor | None = None


def num_rows(rows: Rows) -> int:
    """How many rows there are."""
    return len(rows.label_start) - 1


def batch_of(rows: Rows, weights: Tensor | None = None) -> Batch:
    """Makes one batch of all the rows."""
    if isinstance(rows, DenseRows):
        return Batch(rows.features, padded_labels(rows.label_start, rows.labels), weights)
    return Batch(*collate_xmc(rows), weights)


def join(parts: Sequence[Rows]) -> Rows:
    """Concatenates rows of one kind."""
    if isinstance(parts[0], XMCRows):
        return join_rows(parts)  # type: ignore[arg-type]  # all are of one kind
    counts = torch.cat([rows.label_start.diff() for rows in parts])
    return DenseRows(
        torch.cat([rows.features for rows in parts]),
        torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        torch.cat([rows.labels for rows in parts]),
        parts[0].num_labels,
    )


def widened(rows: Rows, num_features: int, num_labels: int) -> Rows:
    """The same rows in a space of at least so many features, if they are sparse, and labels."""
    num_labels = max(rows.num_labels, num_labels)
    if isinstance(rows, DenseRows):
        return rows._replace(num_labels=num_labels)
    return rows._replace(num_features=max(rows.num_features, num_features), num_labels=num_labels)


def label_counts(rows: Rows, num_labels: int) -> Tensor:
    """How many of the rows have each label, ``[num_labels]`` int64."""
    return torch.bincount(rows.labels.long(), minlength=num_labels)


def checksum(*parts: Any, before: int = 0) -> int:
    """CRC-32 of the tensors among the parts, such as those of rows, behind others with the checksum ``before``."""
    for part in parts:
        if isinstance(part, Tensor):
            before = zlib.crc32(part.contiguous().numpy().data, before)
    return before


# --- what users give --------------------------------------------------------------------------------------------------


def rows_of(data: Any, num_labels: int | None = None) -> Rows:
    """Reads a data set, or a pair of features and labels.

    Args:
        data: An :class:`XMCDataset`; or features and labels. Features are dense ``[rows, d]``, or a sparse matrix of
            ``torch`` (CSR) or ``scipy``. Labels are a number for each row, several numbers for each row (a list, or
            ``[rows, P]`` padded with negative numbers), or a matrix ``[rows, num_labels]``: of booleans, sparse of
            zeros and ones, or of these in more than two columns.
        num_labels: Number of labels; None means one more than the largest.

    Raises:
        TypeError, ValueError: The data are of another form.
    """
    if isinstance(data, XMCDataset):
        check_values(data.rows.values)
        return data.rows
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(f"data is a {type(data).__name__}; wanted an XMCDataset, or features and labels")
    start, labels = _label_runs(data[1])
    if num_labels is None:
        num_labels = int(labels.max()) + 1 if len(labels) else 0
    if len(labels) > 0 and int(labels.max()) >= num_labels:
        raise ValueError(f"labels run to {int(labels.max())}; wanted at most {num_labels - 1}")
    rows = unlabelled(data[0])
    if len(start) != len(rows.label_start):
        raise ValueError(f"there are {num_rows(rows)} rows of features and {len(start) - 1} of labels; wanted as many")
    rows = rows._replace(label_start=start, labels=labels.int(), num_labels=num_labels)
    return rows if isinstance(rows, DenseRows) else XMCDataset.from_rows(rows).rows


def as_tensor(data: Any) -> Tensor:
    """A tensor of what is one, of an array of any strides, of a data frame or of a list.

    Raises:
        TypeError, ValueError, RuntimeError: It holds something else than numbers.
    """
    if not isinstance(data, Tensor) and hasattr(data, "__array__"):
        data = np.require(data, requirements=["C", "W"])
    return torch.as_tensor(data)


def is_sparse(matrix: Any) -> bool:
    """Whether it is a sparse matrix of a kind that :func:`rows_of` reads."""
    return hasattr(matrix, "tocsr") or (isinstance(matrix, Tensor) and matrix.layout is torch.sparse_csr)


def unlabelled(features: Any) -> Rows:
    """Rows without labels of a matrix ``[rows, F]``, sparse or dense.

    Raises:
        ValueError: It is no such matrix, or holds a number that is not finite.
    """
    sparse = is_sparse(features)
    matrix = features if sparse else dense_features(features)
    start, none = torch.zeros(matrix.shape[0] + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)
    if not sparse:
        return DenseRows(matrix, start, none, 0)
    crow, col, values = _csr(features)
    if crow[0] != 0 or crow[-1] != len(col) or bool((crow.diff() < 0).any()):
        raise ValueError(f"offsets of features must rise from 0 to {len(col)}, the number of entries")
    if len(col) > 0 and not 0 <= int(col.min()) <= int(col.max()) < features.shape[1]:
        raise ValueError(f"features run from {int(col.min())} to {int(col.max())}; wanted 0 to {features.shape[1] - 1}")
    if values.is_complex():
        raise ValueError(f"features have dtype {values.dtype}; wanted real numbers")
    values = values.float()  # which makes large numbers infinite
    check_values(values)
    return XMCRows(crow, col.int(), values, start, none, features.shape[1], 0)


def check_values(values: Tensor) -> None:
    """Raises a ValueError where a number of sparse features is a NaN or too large."""
    if len(values) > 0:
        least, largest = values.aminmax()  # a NaN is both
        if not -_LARGEST_SPARSE <= float(least) <= float(largest) <= _LARGEST_SPARSE:
            raise ValueError(f"features hold a NaN or a number beyond {_LARGEST_SPARSE:g}; wanted smaller ones")


def _csr(matrix: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Starts and columns, int64, and values of a sparse matrix."""
    if isinstance(matrix, Tensor):
        return matrix.crow_indices().long(), matrix.col_indices().long(), matrix.values()
    matrix = matrix.tocsr()
    return torch.as_tensor(matrix.indptr).long(), torch.as_tensor(matrix.indices).long(), torch.as_tensor(matrix.data)


def dense_features(features: Any) -> Tensor:
    """A matrix of finite float32 numbers from a tensor or an array.

    Raises:
        ValueError: It is no such matrix.
    """
    tensor = as_tensor(features)
    if tensor.layout is not torch.strided:
        raise ValueError(f"features have layout {tensor.layout}; wanted torch.sparse_csr or torch.strided")
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise ValueError(
            f"features have shape {tuple(tensor.shape)} and dtype {tensor.dtype}; wanted floating point [rows, d]"
        )
    tensor = tensor.detach().float().contiguous()
    if not bool((tensor.abs() <= _LARGEST).all()):
        raise ValueError(f"features hold a NaN or a number beyond {_LARGEST:g}; wanted smaller ones")
    return tensor


def indicated(matrix: Any) -> tuple[Tensor, Tensor]:
    """Offsets ``[rows + 1]`` and columns, both int64, of the ones of a sparse matrix of zeros and ones.

    Raises:
        ValueError: It holds another number.
    """
    crow, col, values = _csr(matrix)
    present = values != 0
    others = (present & (values != 1)).nonzero()
    if len(others) > 0:
        at = int(others[0])
        row = int(torch.searchsorted(crow, at, right=True)) - 1
        raise ValueError(f"labels hold {values[at].item()} in row {row}, column {int(col[at])}; wanted zeros and ones")
    return torch.cat([crow.new_zeros(1), present.cumsum(0)])[crow], col[present]


def _label_runs(labels: Any) -> tuple[Tensor, Tensor]:
    """Offsets ``[rows + 1]`` and concatenated labels, both int64."""
    if is_sparse(labels):
        return indicated(labels)
    if isinstance(labels, (list, tuple)) and any(_is_list(some) for some in labels):
        of_rows = [torch.as_tensor(some) for some in labels if len(some) > 0]
        if any(some.dim() != 1 or some.is_floating_point() for some in of_rows):
            raise ValueError(f"labels are {labels!r:.50}; wanted a list of whole numbers for each row")
        flat = torch.cat(of_rows).long() if of_rows else torch.zeros(0, dtype=torch.int64)
        counts = torch.tensor([len(some) for some in labels])
    elif isinstance(labels, (list, tuple)) and len(labels) == 0:
        flat = counts = torch.zeros(0, dtype=torch.int64)
    else:
        try:
            padded = as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"labels are {labels!r:.50}; wanted whole numbers") from None
        if _is_indicator(padded):
            return torch.cat([torch.zeros(1, dtype=torch.int64), (padded != 0).sum(1).cumsum(0)]), padded.nonzero()[
                :, 1
            ]
        if padded.is_floating_point() or padded.dim() not in (1, 2):
            raise ValueError(f"labels have shape {tuple(padded.shape)} and dtype {padded.dtype}; wanted whole numbers")
        padded = padded.long() if padded.dim() == 2 else padded.long().unsqueeze(1)
        flat, counts = padded[padded >= 0], (padded >= 0).sum(1)
    if len(flat) > 0 and int(flat.min()) < 0:
        raise ValueError(f"labels begin at {int(flat.min())}; wanted at least 0")
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), flat


def _is_list(labels: Any) -> bool:
    """Whether these are the labels of a row, several or none, rather than its one label."""
    return isinstance(labels, (list, tuple)) or (hasattr(labels, "ndim") and labels.ndim > 0)


def _is_indicator(matrix: Tensor) -> bool:
    """Whether it says for each label if the row has it. As padded labels, zeros and ones would repeat in a row."""
    if matrix.dim() != 2:
        return False
    return matrix.dtype is torch.bool or (matrix.shape[1] > 2 and bool(((matrix == 0) | (matrix == 1)).all()))


# --- passes -----------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Rows to train on, one pass per epoch.

    Attributes:
        size: Number of rows.
        label_counts: ``[num_labels]``, how many rows have each label.
        is_weighted: Whether rows have weights.
    """

    size: int
    label_counts: Tensor
    is_weighted: bool

    def blocks(self) -> Iterator[tuple[Rows, Tensor | None]]:
        """Yields the rows with their weights, in the same blocks at every call."""
        ...

    def sample(self) -> Rows | None:
        """The rows to keep as neighbours: all, or as many as memory allows."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others, in a checkpoint."""
        ...


class InMemory:
    """A :class:`Source` of rows in memory.

    Args:
        rows: The rows.
        num_labels: Number of labels of the model.
        weights: Weight of each row ``[rows]``; None means 1.
    """

    def __init__(self, rows: Rows, num_labels: int, weights: Tensor | None = None) -> None:
        self.rows, self.weights, self.size = rows, weights, num_rows(rows)
        self.is_weighted = weights is not None
        self.label_counts = label_counts(rows, num_labels)

    def blocks(self) -> Iterator[tuple[Rows, Tensor | None]]:
        yield self.rows, self.weights

    def sample(self) -> Rows | None:
        return self.rows if self.size > 0 else None

    def identity(self) -> dict[str, Any]:
        sizes = {"rows": self.size, "features": self.rows.features.numel(), "labels": len(self.rows.labels)}
        return {**sizes, "checksum of rows": checksum(*self.rows, self.weights)}


class _Batches(Dataset[Batch]):
    """Batches of a block for worker processes; an item is a whole batch."""

    def __init__(self, rows: Rows, weights: Tensor | None, order: Sequence[Tensor]) -> None:
        self.rows, self.weights, self.order = rows, weights, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Batch:
        some = self.order[index]
        return batch_of(self.rows.take(some), None if self.weights is None else self.weights[some])


def epoch_batches(
    source: Source, batch_size: int, seed: int, epoch: int, skip: int = 0, num_workers: int = 0
) -> Iterator[Batch]:
    """Yields the batches of an epoch; seed and epoch alone decide their order.

    Args:
        source: The rows; they are shuffled within each block.
        batch_size: Rows per batch.
        seed: Seed of the order.
        epoch: Number of the pass.
        skip: Batches to leave out at the beginning.
        num_workers: Worker processes that make batches.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    for rows, weights in source.blocks():
        order = torch.randperm(num_rows(rows), generator=generator).split(batch_size)
        skipped = min(skip, len(order))
        skip -= skipped
        batches = _Batches(rows, weights, order[skipped:])
        if num_workers > 0:
            with interrupts_wait():  # workers inherit it: Ctrl-C is for this process, which ends them
                made = iter(DataLoader(batches, batch_size=None, num_workers=num_workers, worker_init_fn=quiet_worker))
            yield from made
        else:
            yield from (batches[i] for i in range(len(batches)))
