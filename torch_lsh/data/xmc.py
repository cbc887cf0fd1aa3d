"""The XMC repository's text format as a torch Dataset.

A header line ``rows features labels``, then a row a line: ``label,label feature:value feature:value ...``, ids from 0.
Rows without features and rows without labels are legal. (http://manikvarma.org/downloads/XC/XMLRepository.html)
"""

from __future__ import annotations

import gzip
import lzma
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import ops

_BLOCK_BYTES = 1 << 24

with warnings.catch_warnings():
    # PyTorch says once per process that sparse CSR tensors are in beta; users of this module need not hear it.
    warnings.simplefilter("ignore")
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
        """The rows of the given numbers (``[R]`` int64)."""
        feature_start, feature_at = _runs(self.feature_start, rows)
        label_start, label_at = _runs(self.label_start, rows)
        return XMCRows(
            feature_start,
            self.features[feature_at],
            self.values[feature_at],
            label_start,
            self.labels[label_at],
            self.num_features,
            self.num_labels,
        )


def _runs(start: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets of the chosen runs when they stand one behind the other, and where their elements are now."""
    begin = start[rows]
    counts = start[rows + 1] - begin
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets, torch.repeat_interleave(begin - offsets[:-1], counts) + torch.arange(int(offsets[-1]))


class XMCDataset(Dataset[XMCRows]):
    """Rows of sparse features with several labels each, read from a text file (plain, ``.gz`` or ``.xz``).

    An item is an :class:`XMCRows` of one row; :func:`collate_xmc` makes a batch of them. A feature that stands twice in
    a row counts with the sum of its values.

    Args:
        path: the file.
        normalize: ``"l2"``: divide the values of a row by their Euclidean norm; None: leave them.

    Raises:
        ValueError: the file is not in the format: file, line number and reason.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "train.txt"
    >>> _ = path.write_text("2 4 3\\n0,2 1:0.5 3:2\\n 0:1\\n")
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

    def __init__(self, path: str | os.PathLike[str], *, normalize: str | None = None) -> None:
        self._rows = _normalised(_read(Path(path)), normalize)

    @classmethod
    def from_rows(cls, rows: XMCRows) -> XMCDataset:
        """A dataset of CSR arrays that exist already."""
        dataset = cls.__new__(cls)
        dataset._rows = rows
        return dataset

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
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}; wanted {-len(self)} to {len(self) - 1}")
        return self._rows.take(torch.tensor([index % len(self)]))

    def __getitems__(self, indices: Sequence[int]) -> XMCRows:
        """A batch in one go, for DataLoader."""
        return self._rows.take(torch.as_tensor(indices, dtype=torch.int64))

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
    rows = batch if isinstance(batch, XMCRows) else _joined(batch)
    features = torch.sparse_csr_tensor(
        rows.feature_start,
        rows.features.long(),
        rows.values,
        (len(rows.feature_start) - 1, rows.num_features),
        check_invariants=False,
    )
    if labels == "padded":
        return features, padded_labels(rows)
    if labels != "csr":
        raise ValueError(f"labels is {labels!r}; wanted 'padded' or 'csr'")
    ones = torch.ones(len(rows.labels))
    shape = (len(rows.label_start) - 1, rows.num_labels)
    # CSR wants increasing columns without repetition in a row.
    padded = padded_labels(rows).clone()
    multi_hot = torch.sparse_csr_tensor(rows.label_start, rows.labels.long(), ones, shape, check_invariants=False)
    if bool(_increasing_within_rows(rows)):
        return features, multi_hot
    present = padded >= 0
    sample = torch.arange(len(padded)).unsqueeze(1).expand_as(padded)[present]
    coalesced = torch.sparse_coo_tensor(torch.stack([sample, padded[present]]), ones, shape).coalesce()
    coalesced = torch.sparse_coo_tensor(coalesced.indices(), torch.ones(coalesced._nnz()), shape, is_coalesced=True)
    return features, coalesced.to_sparse_csr()


def _increasing_within_rows(rows: XMCRows) -> Tensor:
    steps = rows.labels.diff() > 0
    boundary = rows.label_start[1:-1] - 1
    boundary = boundary[(boundary >= 0) & (boundary < len(steps))]
    return steps.index_fill(0, boundary, True).all()


def padded_labels(rows: XMCRows) -> Tensor:
    """The labels as ``[rows, P]`` int64, padded with -100."""
    counts = rows.label_start.diff()
    width = int(counts.max()) if len(counts) else 0
    padded = torch.full((len(counts), width), -100)
    padded[torch.arange(width) < counts.unsqueeze(1)] = rows.labels.long()
    return padded


def _joined(batch: Sequence[XMCRows]) -> XMCRows:
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


def _normalised(rows: XMCRows, normalize: str | None) -> XMCRows:
    if normalize is None:
        return rows
    if normalize != "l2":
        raise ValueError(f"normalize is {normalize!r}; wanted 'l2' or None")
    row_of = torch.repeat_interleave(rows.feature_start.diff())
    squares = torch.zeros(len(rows.feature_start) - 1, dtype=torch.float64)
    squares.index_add_(0, row_of, rows.values.double() ** 2)
    norms = squares.sqrt().clamp(min=1e-30).float()
    return rows._replace(values=rows.values / norms[row_of])


# --- reading and writing ----------------------------------------------------------------------------------------------


def _open(path: Path, mode: str) -> IO[bytes]:
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, mode)  # type: ignore[operator]  # three openers of one signature


def _line_blocks(path: Path) -> Iterator[bytes]:
    """The file in blocks of whole lines; the last one may lack its line end."""
    rest = b""
    with _open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            end = block.rfind(b"\n") + 1
            if end == 0:
                rest += block
                continue
            yield rest + block[:end]
            rest = block[end:]
    if rest:
        yield rest


def _read(path: Path) -> XMCRows:
    columns: list[list[Tensor]] = [[] for _ in range(5)]
    num_rows = num_features = num_labels = 0
    line = 0  # lines read so far
    try:
        for block in _line_blocks(path):
            if line == 0:
                header, _, block = block.partition(b"\n")
                num_rows, num_features, num_labels = _parse_header(header, path)
                line = 1
                if not block:
                    continue
            *parts, error = ops.parse_xmc(
                torch.frombuffer(bytearray(block), dtype=torch.uint8), num_features, num_labels
            )
            for column, part in zip(columns, parts):
                column.append(part)
            line += len(parts[0])
            if error:
                raise ValueError(f"{path}, line {line + 1}: {error}")
            if line - 1 > num_rows:
                raise ValueError(f"{path}, line {num_rows + 2}: the header says {num_rows} rows, but there are more")
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}, after line {line}: the compressed file is damaged or cut off ({error})") from error
    if line == 0:
        raise ValueError(f"{path}, line 1: the file is empty; wanted a header 'rows features labels'")
    if line - 1 != num_rows:
        raise ValueError(f"{path}, line {line}: the file ends after {line - 1} rows, but the header says {num_rows}")
    joined = []
    dtypes = (torch.int64, torch.int32, torch.float32, torch.int64, torch.int32)
    for column, dtype in zip(columns, dtypes):
        joined.append(torch.cat(column) if column else torch.empty(0, dtype=dtype))
        column.clear()  # joined one by one, so that the peak is one array above the result
    feature_counts, features, values, label_counts, labels = joined
    start = [torch.cat([counts.new_zeros(1), counts.cumsum(0)]) for counts in (feature_counts, label_counts)]
    return XMCRows(start[0], features, values, start[1], labels, num_features, num_labels)


def _parse_header(header: bytes, path: Path) -> tuple[int, int, int]:
    words = header.split()
    if len(words) != 3 or not all(word.isdigit() for word in words):
        shown = header[:40].decode("ascii", "replace")
        raise ValueError(f"{path}, line 1: the header is {shown!r}; wanted 'rows features labels'")
    num_rows, num_features, num_labels = (int(word) for word in words)
    for name, size in (("features", num_features), ("labels", num_labels)):
        if size >= 2**31:
            raise ValueError(f"{path}, line 1: the header says {size} {name}; wanted fewer than 2**31")
    return num_rows, num_features, num_labels


def write_xmc(dataset: XMCDataset, path: str | os.PathLike[str]) -> None:
    """Writes a dataset in the text format (compressed by suffix); reading it gives the same arrays again."""
    rows = dataset.rows
    feature_start, label_start = rows.feature_start.tolist(), rows.label_start.tolist()
    labels, features, values = rows.labels.tolist(), rows.features.tolist(), rows.values.numpy()
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp{target.suffix}")
    with _open(temporary, "wb") as file:
        file.write(f"{len(dataset)} {rows.num_features} {rows.num_labels}\n".encode())
        for i in range(len(dataset)):
            words = ",".join(map(str, labels[label_start[i] : label_start[i + 1]]))
            span = range(feature_start[i], feature_start[i + 1])
            file.write((words + "".join(f" {features[j]}:{values[j]!s}" for j in span) + "\n").encode())
    os.replace(temporary, target)
