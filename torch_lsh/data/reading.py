"""Text files of sparse rows -> CSR arrays: labels in the lines or in another file, a header or none.

Every function returns the fields of :class:`torch_lsh.data.XMCRows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..io import DECOMPRESSION_ERRORS, byte_order_mark, is_damage, opener_of

_BLOCK_BYTES = 1 << 22  # read at a time; every thread gets a piece
_LONGEST_LINE = 1 << 28
_MOST = 2**31 - 1  # features or labels of a file that does not say how many
_MARK = b"\xef\xbb\xbf"  # of UTF-8

Arrays = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int]
_Joined = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def read_xmc(path: Path) -> Arrays:
    """Reads a file with the header ``rows features labels`` and lines ``label,label feature:value ...``."""
    lines = _Lines(path, ("rows", "features", "labels"))
    arrays = lines.arrays()
    num_features, num_labels = lines.sizes
    return *arrays, num_features, num_labels


def read_pair(features: Path, labels: Path) -> Arrays:
    """Reads a file ``rows features`` of lines ``feature:value ...`` and one ``rows labels`` of lines ``label:1 ...``.

    Labels with a value of 0 are none.
    """
    lines = _Lines(features, ("rows", "features"))
    feature_start, ids, values, *_ = lines.arrays()
    label_lines = _Lines(labels, ("rows", "labels"))
    start, label_ids, present, *_ = label_lines.arrays()
    if len(start) != len(feature_start):
        raise ValueError(
            f"{labels} has {len(start) - 1} rows and {features} has {len(feature_start) - 1}; wanted as many"
        )
    kept = torch.cat([start.new_zeros(1), (present != 0).cumsum(0)])
    return feature_start, ids, values, kept[start], label_ids[present != 0], lines.sizes[0], label_lines.sizes[0]


def read_headerless(path: Path, one_based: bool, num_features: int | None, num_labels: int | None) -> Arrays:
    """Reads a file of lines ``label,label feature:value ...`` alone.

    Args:
        path: The file.
        one_based: Whether features are counted from 1.
        num_features, num_labels: How many there are; None means one more than the largest number.
    """
    for name, size in (("num_features", num_features), ("num_labels", num_labels)):
        if size is not None and not 0 <= size <= _MOST:
            raise ValueError(f"{name} is {size}; wanted 0 to {_MOST}")
    most = _MOST if num_features is None else num_features + one_based
    lines = _Lines(path, (), most, _MOST if num_labels is None else num_labels)
    feature_start, ids, values, label_start, labels = lines.arrays()
    if one_based:
        _count_from_zero(path, feature_start, ids)
    if num_features is None:
        num_features = int(ids.max()) + 1 if len(ids) else 0
    if num_labels is None:
        num_labels = int(labels.max()) + 1 if len(labels) else 0
    return feature_start, ids, values, label_start, labels, num_features, num_labels


def read_blocks(
    path: Path, header: bool, one_based: bool, num_features: int, num_labels: int, entries: int
) -> Iterator[Arrays]:
    """Reads a file with labels in its lines as :func:`read_xmc` or :func:`read_headerless` do, in blocks.

    Args:
        path: The file.
        header: Whether the first line holds the sizes.
        one_based, num_features, num_labels: See :func:`read_headerless`; of a file without a header.
        entries: Features of the rows of a block, at least.
    """
    if header:
        lines = _Lines(path, ("rows", "features", "labels"))
    else:
        lines = _Lines(path, (), num_features + one_based, num_labels)
    row = 0
    for feature_start, ids, values, label_start, labels in lines.blocks(entries):
        if header:
            num_features, num_labels = lines.sizes
        elif one_based:
            _count_from_zero(path, feature_start, ids, row)
        row += len(feature_start) - 1
        yield feature_start, ids, values, label_start, labels, num_features, num_labels


def read_sizes(path: Path) -> tuple[int, int]:
    """Reads the numbers of features and of labels in the header ``rows features labels``."""
    lines = _Lines(path, ("rows", "features", "labels"))
    next(lines.blocks(0))
    num_features, num_labels = lines.sizes
    return num_features, num_labels


def _count_from_zero(path: Path, feature_start: Tensor, ids: Tensor, rows_before: int = 0) -> None:
    """Changes features that are counted from 1, in place."""
    ids -= 1
    if bool((ids < 0).any()):
        row = rows_before + int(torch.searchsorted(feature_start, (ids < 0).nonzero()[0], right=True)) - 1
        raise ValueError(f"{path}, line {row + 1}: feature is '0'; wanted 1 or more, since one_based is True")


class _LineError(Exception):
    """What is wrong with the next line."""


class _Parsed(NamedTuple):
    """Arrays of some lines, as :func:`torch_lsh.ops.parse_xmc` returns them."""

    feature_counts: Tensor
    features: Tensor
    values: Tensor
    label_counts: Tensor
    labels: Tensor


class _Lines:
    """The lines of a file.

    Args:
        path: The file.
        header: What the numbers of the first line are; empty means that there is no such line.
        num_features, num_labels: Bounds of the numbers in the lines, where no header says them.
    """

    def __init__(self, path: Path, header: tuple[str, ...], num_features: int = 0, num_labels: int = 0) -> None:
        self.path, self.header = path, header
        self.sizes: list[int] = []  # of the header, after the rows
        self._bounds, self._rows = (num_features, num_labels), -1
        self._line = 0  # lines read so far

    def arrays(self) -> _Joined:
        """Reads everything; see :meth:`blocks`."""
        (arrays,) = self.blocks(None)
        return arrays

    def blocks(self, entries: int | None) -> Iterator[_Joined]:
        """Reads blocks of lines: starts and numbers of features, values, starts and numbers of labels.

        Args:
            entries: Features of a block, at least; None makes one block of everything. There is at least one block.

        Raises:
            ValueError: A line is malformed, or the compressed file is damaged: file, line and reason.
        """
        columns: list[list[Tensor]] = [[] for _ in _Parsed._fields]
        some, found = False, 0
        try:
            for parsed in self._parsed():
                for column, part in zip(columns, parsed):
                    column.append(part)
                found += len(parsed.features)
                if entries is not None and found >= entries:
                    yield _joined(columns)
                    some, found = True, 0
        except _LineError as error:
            raise ValueError(f"{self.path}, line {self._line + 1}: {error}") from None
        except DECOMPRESSION_ERRORS as error:
            if not is_damage(error):
                raise
            raise ValueError(
                f"{self.path}, line {self._line + 1} or later: the compressed file is damaged or cut off ({error})"
            ) from error
        if columns[0] or not some:
            yield _joined(columns)

    def _parsed(self) -> Iterator[_Parsed]:
        first = True
        for block in _line_blocks(self.path):
            begin = self._beginning(block) if first else 0
            first = False
            if begin == len(block):
                continue
            text = torch.frombuffer(block, dtype=torch.uint8, offset=begin)
            *parts, error = ops.parse_xmc(text, *self._bounds)
            parsed = _Parsed(*parts)
            self._line += len(parsed.feature_counts)
            if self.header and self._line - 1 > self._rows:
                self._line = self._rows + 1
                raise _LineError(f"the header says {self._rows} rows, but there are more")
            if error:
                raise _LineError(error.replace("feature", "label") if self.header[1:] == ("labels",) else error)
            yield parsed
        if self.header and self._line == 0:
            raise _LineError(f"the file is empty; wanted a header '{' '.join(self.header)}'")
        if self.header and self._line - 1 < self._rows:
            raise _LineError(f"the file ends after {self._line - 1} rows, but the header says {self._rows}")

    def _beginning(self, block: memoryview) -> int:
        """Reads what comes before the rows in the first block; returns its length."""
        start = bytes(block[:4])
        encoding = byte_order_mark(start)
        if encoding not in (None, "UTF-8"):
            raise _LineError(
                f"the file begins with the byte order mark of {encoding}; wanted ASCII, which iconv -f {encoding} -t "
                "ASCII makes"
            )
        begin = len(_MARK) if start.startswith(_MARK) else 0
        if not self.header:
            return begin
        end = bytes(block).find(b"\n") + 1 or len(block)
        self._parse_header(bytes(block[begin:end]))
        self._line = 1
        return end

    def _parse_header(self, header: bytes) -> None:
        words = header.split()
        if len(words) != len(self.header) or not all(word.isdigit() and len(word) < 19 for word in words):
            shown = header[:40].rstrip().decode("ascii", "replace")
            raise _LineError(f"the header is {shown!r}; wanted '{' '.join(self.header)}'")
        self._rows, *self.sizes = (int(word) for word in words)
        for name, size in zip(self.header[1:], self.sizes):
            if size >= 2**31:
                raise _LineError(f"the header says {size} {name}; wanted fewer than 2**31")
        self._bounds = (self.sizes[0], self.sizes[1] if len(self.sizes) > 1 else 0)


def _joined(columns: list[list[Tensor]]) -> _Joined:
    """Joins parsed lines, and empties the lists."""
    joined = []
    for column, dtype in zip(columns, (torch.int64, torch.int32, torch.float32, torch.int64, torch.int32)):
        joined.append(torch.cat(column) if column else torch.empty(0, dtype=dtype, device="cpu"))
        column.clear()  # joined one by one, so that the peak is one array above the result
    feature_counts, features, values, label_counts, labels = joined
    starts = [torch.cat([counts.new_zeros(1), counts.cumsum(0)]) for counts in (feature_counts, label_counts)]
    return starts[0], features, values, starts[1], labels


def _line_blocks(path: Path) -> Iterator[memoryview]:
    """The file in blocks of whole lines; the last one may lack its line end. A block is valid until the next one."""
    buffer = bytearray(_BLOCK_BYTES)
    filled = 0
    with opener_of(path)(path, "rb") as file:
        while True:
            count = file.readinto(memoryview(buffer)[filled:])
            filled += count
            end = buffer.rfind(b"\n", 0, filled) + 1 if count else filled
            if end:
                yield memoryview(buffer)[:end]
            if not count:
                return
            buffer[: filled - end] = buffer[end:filled]
            filled -= end
            if filled == len(buffer):
                if filled >= _LONGEST_LINE:
                    raise _LineError(f"the line is longer than {_LONGEST_LINE >> 20} MB")
                buffer = buffer + bytearray(len(buffer))
