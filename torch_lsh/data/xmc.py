"""The XMC repository's text format as a torch Dataset.

A header line ``rows features labels``, then a row a line: ``label,label feature:value feature:value ...``, ids from 0.
Rows without features and rows without labels are legal. (http://manikvarma.org/downloads/XC/XMLRepository.html)
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import ops
from ..io import opener_of, replacing
from .reading import read_headerless, read_pair, read_xmc

_ROWS_WRITTEN = 10_000  # at a time

with warnings.catch_warnings():
    # PyTorch says once per process that sparse CSR tensors are in beta, and that making one of parts checks nothing;
    # users of this module need not hear it.
    warnings.simplefilter("ignore")
    with torch.device("cpu"):
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1))


class XMCRows(NamedTuple):
    """Some rows of an :class:`XMCDataset` in CSR form.

    Row i has the features ``features[feature_start[i]:feature_start[i + 1]]``, the values likewise, and the labels
    ``labels[label_start[i]:label_start[i + 1]]``.
    """

    feature_start: Tensor  # [rows + 1] int64
    features: Tensor  # [nnz] int32
    values: Tensor  # [nnz] float32
    label_start: Tensor  # [rows + 1] int64
    labels: Tensor  # int32
    num_features: int
    num_labels: int

    def take(self, rows: Tensor) -> XMCRows:
        """The rows of the given numbers (``[R]`` int64, each in ``0 .. rows - 1``)."""
        first, last = ops.extremes(rows)
        if len(rows) > 0 and (first < 0 or last >= len(self.feature_start) - 1):
            raise IndexError(f"rows runs from {first} to {last}; wanted 0 to {len(self.feature_start) - 2}")
        rows = rows.contiguous()
        feature_start, features = ops.take_runs(self.feature_start, self.features, rows)
        _, values = ops.take_runs(self.feature_start, self.values, rows)
        label_start, labels = ops.take_runs(self.label_start, self.labels, rows)
        return XMCRows(feature_start, features, values, label_start, labels, self.num_features, self.num_labels)


class XMCDataset(Dataset[XMCRows]):
    r"""Rows of sparse features with several labels each, read from text files (plain, ``.gz``, ``.xz`` or ``.bz2``).

    An item is an :class:`XMCRows` of one row; ``DataLoader(dataset, 256, collate_fn=collate_xmc)`` makes batches. A
    feature that occurs twice in a row is kept twice; products and dense tensors see the sum of its values. The labels
    of a row are a set: one that occurs twice counts once. Reading takes 1.5 times the memory of the CSR arrays.
    DataLoader workers share the arrays.

    Args:
        path: the file; with ``labels``, that of the features: a header ``rows features``, then lines of
            ``feature:value``.
        labels: the file of the labels: a header ``rows labels``, then lines of ``label:1``.
        header: whether the first line holds the sizes; False: LIBSVM's format.
        one_based: whether features are counted from 1 in a file without a header, as LIBSVM does; labels never are.
        num_features, num_labels: sizes of a file without a header; None: one more than the largest number.
        normalize: ``"l2"``: divide the values of a row by their Euclidean norm, which word counts want; None: leave
            them, as suits files of normalised TF-IDF. Rows of zeros stay as they are.

    Raises:
        ValueError: the file is not in the format (a malformed line, an id out of range, a value that is not finite,
            other than the number of rows in the header), or its compressed form is damaged: file, line number
            (from 1) and reason.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "train.txt"
    >>> _ = path.write_text("2 4 3\n0,2 1:0.5 3:2\n 0:1\n")
    >>> dataset = XMCDataset(path)
    >>> len(dataset), dataset.num_features, dataset.num_labels
    (2, 4, 3)
    >>> features, labels = collate_xmc([dataset[0], dataset[1]])
    >>> features.to_dense()
    tensor([[0.0000, 0.5000, 0.0000, 2.0000],
            [1.0000, 0.0000, 0.0000, 0.0000]])
    >>> labels
    tensor([[   0,    2],
            [-100, -100]])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        labels: str | os.PathLike[str] | None = None,
        header: bool = True,
        one_based: bool = False,
        num_features: int | None = None,
        num_labels: int | None = None,
        normalize: str | None = None,
    ) -> None:
        if header:
            check_nothing_beside_header(one_based, num_features, num_labels)
        if not header and labels is not None:
            raise ValueError("labels is given and header is False; a file of labels needs headers")
        if labels is not None:
            rows = XMCRows(*read_pair(Path(path), Path(labels)))
        elif header:
            rows = XMCRows(*read_xmc(Path(path)))
        else:
            rows = XMCRows(*read_headerless(Path(path), one_based, num_features, num_labels))
        self._rows = normalised(with_each_label_once(rows), normalize)

    @classmethod
    def from_rows(cls, rows: XMCRows) -> XMCDataset:
        """A dataset of CSR arrays that exist already, not copied but for gaps and labels that a row has twice.

        Raises:
            ValueError: the arrays do not make CSR arrays of one another.
        """
        check_rows(rows)
        rows = rows._replace(**{name: getattr(rows, name).contiguous() for name in XMCRows._fields[:5]})
        dataset = cls.__new__(cls)
        dataset._rows = with_each_label_once(rows)
        return dataset

    @classmethod
    def from_scipy(cls, features: Any, labels: Any) -> XMCDataset:
        """A dataset of two ``scipy.sparse`` matrices: features ``[rows, F]`` and multi-hot labels ``[rows, N]``.

        >>> import scipy.sparse
        >>> XMCDataset.from_scipy(scipy.sparse.eye(3, 10), scipy.sparse.eye(3, 5))
        XMCDataset(3 rows, 10 features, 5 labels)
        """
        features, labels = features.tocsr(), labels.tocsr(copy=True)
        labels.eliminate_zeros()
        return cls.from_rows(
            XMCRows(
                torch.tensor(features.indptr, dtype=torch.int64, device="cpu"),
                torch.tensor(features.indices, dtype=torch.int32, device="cpu"),
                torch.tensor(features.data, dtype=torch.float32, device="cpu"),
                torch.tensor(labels.indptr, dtype=torch.int64, device="cpu"),
                torch.tensor(labels.indices, dtype=torch.int32, device="cpu"),
                features.shape[1],
                labels.shape[1],
            )
        )

    @property
    def rows(self) -> XMCRows:
        """All rows; the tensors are those of the dataset."""
        return self._rows

    @property
    def num_features(self) -> int:
        return self._rows.num_features

    @property
    def num_labels(self) -> int:
        return self._rows.num_labels

    def __len__(self) -> int:
        return len(self._rows.feature_start) - 1

    def __getitem__(self, index: int) -> XMCRows:
        """One row; negative numbers count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}; wanted {-len(self)} to {len(self) - 1}")
        return self._rows.take(torch.tensor([index % len(self)], device="cpu"))

    def __getitems__(self, indices: Sequence[int]) -> XMCRows:
        """A batch in one go, for DataLoader; ``[R]`` numbers from 0."""
        return self._rows.take(torch.as_tensor(indices, dtype=torch.int64, device="cpu"))

    def __repr__(self) -> str:
        return f"XMCDataset({len(self):,} rows, {self.num_features:,} features, {self.num_labels:,} labels)"


def collate_xmc(batch: XMCRows | Sequence[XMCRows], labels: str = "padded") -> tuple[Tensor, Tensor]:
    """Makes a batch; a ``collate_fn`` for DataLoader.

    Args:
        batch: what ``XMCDataset.__getitems__`` gives, or a list of its items.
        labels: ``"padded"``: ``[B, P]`` int64 padded with -100; ``"csr"``: a multi-hot sparse CSR tensor
            ``[B, num_labels]`` (``functools.partial(collate_xmc, labels="csr")``).

    Returns:
        ``(features, labels)``; features are a sparse CSR tensor ``[B, num_features]`` float32.
    """
    rows = batch if isinstance(batch, XMCRows) else join_rows(batch)
    features = torch.sparse_csr_tensor(
        rows.feature_start,
        rows.features.long(),
        rows.values,
        (len(rows.feature_start) - 1, rows.num_features),
        check_invariants=False,
        device="cpu",
    )
    if labels == "padded":
        return features, padded_labels(rows.label_start, rows.labels)
    if labels != "csr":
        raise ValueError(f"labels is {labels!r}; wanted 'padded' or 'csr'")
    # A sparse CSR tensor wants increasing columns without repetition in a row.
    sample = torch.repeat_interleave(rows.label_start.diff())
    shape = (len(rows.label_start) - 1, rows.num_labels)
    present = (sample * rows.num_labels + rows.labels).unique()
    counts = torch.bincount(present // max(1, rows.num_labels), minlength=shape[0])
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    multi_hot = torch.sparse_csr_tensor(
        start,
        present % max(1, rows.num_labels),
        torch.ones(len(present), dtype=torch.float32, device="cpu"),
        shape,
        check_invariants=False,
        device="cpu",
    )
    return features, multi_hot


def padded_labels(label_start: Tensor, labels: Tensor) -> Tensor:
    """The labels of rows as ``[rows, P]`` int64, padded with -100; P is at least 1."""
    counts = label_start.diff()
    width = max(1, int(counts.max())) if len(counts) else 1
    padded = torch.full((len(counts), width), -100, device="cpu")
    padded[torch.arange(width, device="cpu") < counts.unsqueeze(1)] = labels.long()
    return padded


def join_rows(batch: Sequence[XMCRows]) -> XMCRows:
    """Concatenates rows of one data set."""
    if len(batch) == 0:
        raise ValueError("batch is empty; wanted at least one row")

    def offsets(starts: list[Tensor]) -> Tensor:
        counts = torch.cat([start.diff() for start in starts])
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    return XMCRows(
        offsets([rows.feature_start for rows in batch]),
        torch.cat([rows.features for rows in batch]),
        torch.cat([rows.values for rows in batch]),
        offsets([rows.label_start for rows in batch]),
        torch.cat([rows.labels for rows in batch]),
        batch[0].num_features,
        batch[0].num_labels,
    )


def check_nothing_beside_header(one_based: bool, num_features: int | None, num_labels: int | None) -> None:
    """Raises a ValueError where a file with a header is described by arguments, too."""
    if one_based or num_features is not None or num_labels is not None:
        raise ValueError("one_based, num_features and num_labels are given; wanted header=False beside them")


def check_rows(rows: XMCRows) -> None:
    """Raises a ValueError where starts, ids and values do not fit each other."""
    num_rows = len(rows.feature_start) - 1
    for name, start, ids, bound in (
        ("feature", rows.feature_start, rows.features, rows.num_features),
        ("label", rows.label_start, rows.labels, rows.num_labels),
    ):
        if start.dim() != 1 or start.dtype is not torch.int64 or len(start) != num_rows + 1 or num_rows < 0:
            raise ValueError(
                f"{name}_start has shape {tuple(start.shape)} and dtype {start.dtype}; wanted [rows + 1] int64"
            )
        if ids.dim() != 1 or ids.dtype is not torch.int32:
            raise ValueError(f"{name}s has shape {tuple(ids.shape)} and dtype {ids.dtype}; wanted [nnz] int32")
        if start[0] != 0 or start[-1] != len(ids) or bool((start.diff() < 0).any()):
            raise ValueError(f"{name}_start must rise from 0 to {len(ids)}, the length of {name}s")
        if len(ids) > 0 and (ids.min() < 0 or ids.max() >= bound):
            raise ValueError(f"{name}s runs from {ids.min()} to {ids.max()}; wanted 0 to {bound - 1}")
    if rows.values.dtype is not torch.float32 or rows.values.shape != rows.features.shape:
        raise ValueError(
            f"values has shape {tuple(rows.values.shape)} and dtype {rows.values.dtype}; "
            f"wanted {tuple(rows.features.shape)} float32"
        )
    if not bool(rows.values.isfinite().all()):
        raise ValueError("values holds a NaN or an infinity")


def with_each_label_once(rows: XMCRows) -> XMCRows:
    """Drops labels that occurred in their row already, so that padded and CSR form are the same target."""
    ids, start = rows.labels, rows.label_start
    row_of = torch.repeat_interleave(start.diff())
    if not bool((ids[1:] <= ids[:-1]).logical_and_(row_of[1:] == row_of[:-1]).any()):
        return rows  # increasing in every row
    key = row_of * max(1, rows.num_labels) + ids
    ordered, order = key.sort(stable=True)
    first = torch.ones(len(key), dtype=torch.bool, device="cpu")
    first[order[1:]] = ordered[1:] != ordered[:-1]
    if bool(first.all()):
        return rows
    kept = torch.zeros(len(key) + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(first, 0, out=kept[1:])
    return rows._replace(label_start=kept[start], labels=ids[first])


def normalised(rows: XMCRows, normalize: str | None) -> XMCRows:
    """The rows with their values divided by the Euclidean norm (``"l2"``), or as they are (None)."""
    if normalize is None:
        return rows
    if normalize != "l2":
        raise ValueError(f"normalize is {normalize!r}; wanted 'l2' or None")
    row_of = torch.repeat_interleave(rows.feature_start.diff())
    squares = torch.zeros(len(rows.feature_start) - 1, dtype=torch.float64, device="cpu")
    squares.index_add_(0, row_of, rows.values.double() ** 2)
    norms = squares.sqrt().clamp(min=1e-30).float()
    return rows._replace(values=rows.values / norms[row_of])


# --- writing ----------------------------------------------------------------------------------------------------------


def write_xmc(dataset: XMCDataset, path: str | os.PathLike[str]) -> None:
    """Writes a dataset in the text format (compressed if ``path`` ends in ``.gz``, ``.xz`` or ``.bz2``).

    Reading the file gives the same arrays, bit for bit. The file is written whole or not at all.

    >>> import tempfile
    >>> from torch_lsh.data import synthetic_xmc
    >>> dataset, _ = synthetic_xmc(10, 0, num_features=100, num_labels=50)
    >>> path = Path(tempfile.mkdtemp()) / "rows.txt.gz"
    >>> write_xmc(dataset, path)
    >>> torch.equal(XMCDataset(path).rows.values, dataset.rows.values)
    True
    """
    with replacing(path) as temporary, opener_of(temporary)(temporary, "wb") as file:
        file.write(f"{len(dataset)} {dataset.num_features} {dataset.num_labels}\n".encode())
        for some in torch.arange(len(dataset), device="cpu").split(_ROWS_WRITTEN):
            file.write("".join(_lines(dataset.rows.take(some))).encode())


def _lines(rows: XMCRows) -> Iterator[str]:
    words = [
        f" {feature}:{value!s}" for feature, value in zip(rows.features.tolist(), rows.values.numpy(), strict=True)
    ]
    labels = list(map(str, rows.labels.tolist()))
    feature_runs, label_runs = (itertools.pairwise(s.tolist()) for s in (rows.feature_start, rows.label_start))
    for (begin, end), (first, last) in zip(feature_runs, label_runs):
        yield f"{','.join(labels[first:last])}{''.join(words[begin:end])}\n"
