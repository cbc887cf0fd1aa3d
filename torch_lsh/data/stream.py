"""XMCStream: rows that need not fit in memory, in blocks, again at every pass."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .reading import read_blocks, read_sizes
from .xmc import XMCRows, check_nothing_beside_header, check_rows, normalised, with_each_label_once

_ENTRIES = 1 << 22  # features of a block, which take 32 MB


class XMCStream:
    r"""Rows of sparse features with labels, made anew at every pass: for data larger than memory.

    A pass is an iteration; it yields :class:`XMCRows`, and only one block of them is in memory.

    Args:
        blocks: Begins a pass: returns the blocks of rows, the same ones at every call.
        num_features: Number of features.
        num_labels: Number of labels.

    Raises:
        TypeError: ``blocks`` is no function, or, while iterating, gives something else than rows.
        ValueError: While iterating: a block is malformed, or has other sizes.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "train.txt"
    >>> _ = path.write_text("2 4 3\n0,2 1:0.5 3:2\n 0:1\n")
    >>> stream = XMCStream.from_file(path)
    >>> stream.num_features, stream.num_labels
    (4, 3)
    >>> [len(rows.features) for rows in stream]
    [3]
    """

    def __init__(self, blocks: Callable[[], Iterable[XMCRows]], num_features: int, num_labels: int) -> None:
        if not callable(blocks):
            raise TypeError(f"blocks is a {type(blocks).__name__}; wanted a function that begins a pass over blocks")
        self.num_features, self.num_labels = num_features, num_labels
        self._blocks = blocks

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        header: bool = True,
        one_based: bool = False,
        num_features: int | None = None,
        num_labels: int | None = None,
        normalize: str | None = None,
        entries: int = _ENTRIES,
    ) -> XMCStream:
        """Makes a stream of a text file, which is read in blocks.

        Args:
            path, header, one_based, normalize: See :class:`XMCDataset`; labels stand in the lines.
            num_features, num_labels: Of a file without a header, which does not say them before its end.
            entries: Features of a block, at least. Rows are shuffled within a block only.

        Raises:
            ValueError: The header is malformed, or the sizes are not known.
        """
        if header:
            check_nothing_beside_header(one_based, num_features, num_labels)
            num_features, num_labels = read_sizes(Path(path))
        if num_features is None or num_labels is None:
            raise ValueError(
                f"num_features is {num_features} and num_labels is {num_labels}; wanted both, as there is no header"
            )
        read = functools.partial(_rows_of, Path(path), header, one_based, num_features, num_labels, entries, normalize)
        return cls(read, num_features, num_labels)

    def __repr__(self) -> str:
        return f"XMCStream({self.num_features:,} features, {self.num_labels:,} labels)"

    def __iter__(self) -> Iterator[XMCRows]:
        for rows in self._blocks():
            if not isinstance(rows, XMCRows):
                raise TypeError(f"a block is a {type(rows).__name__}; wanted XMCRows, as dataset.rows is")
            if (rows.num_features, rows.num_labels) != (self.num_features, self.num_labels):
                raise ValueError(
                    f"a block has {rows.num_features} features and {rows.num_labels} labels; wanted "
                    f"{self.num_features} and {self.num_labels}"
                )
            check_rows(rows)
            yield with_each_label_once(rows)


def _rows_of(
    path: Path,
    header: bool,
    one_based: bool,
    num_features: int,
    num_labels: int,
    entries: int,
    normalize: str | None,
) -> Iterator[XMCRows]:
    for arrays in read_blocks(path, header, one_based, num_features, num_labels, entries):
        yield normalised(XMCRows(*arrays), normalize)
