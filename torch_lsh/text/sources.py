"""Where a text classifier's texts and labels come from: lists, arrays or a file."""

from __future__ import annotations

import itertools
import math
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models.rows import indicated, is_sparse
from .files import TextFile, TextRow

_BLOCK = 4096  # texts whose types are looked at together


class FileColumns(NamedTuple):
    """How a file of texts is read: arguments of :class:`TextFile`."""

    text: str | int | Sequence[str | int] = "text"
    label: str | int = "label"
    label_separator: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    format: str | None = None


def source_of(X: Any, y: Any, columns: FileColumns) -> Texts | TextFile:
    """Makes a source that can be read again and again.

    Args:
        X: Texts, or the path of a file.
        y: Labels; None where ``X`` is a path.
        columns: How a file is read.

    Raises:
        ValueError: The arguments do not fit.
    """
    if isinstance(X, (str, os.PathLike)):
        if y is not None:
            raise ValueError(f"X is the path {os.fspath(X)!r}, and y is given; wanted labels in the file alone")
        return TextFile(X, **columns._asdict())
    if y is None:
        raise ValueError("y is None; wanted a label for each text, or X as the path of a file")
    y = plain_labels(y)
    if is_multi_hot(y):
        return Texts(X, _from_multi_hot(y))
    return Texts(X, y.reshape(-1) if isinstance(y, np.ndarray) else y)


def plain_labels(y: Any) -> Any:
    """Labels of other libraries as NumPy has them: tensors and data frames. Sparse indicator matrices stay sparse."""
    if isinstance(y, Tensor) and y.layout is torch.sparse_coo:
        y = y.to_sparse_csr()
    if is_sparse(y) and y.shape[1] != 1:
        return y
    if isinstance(y, Tensor):
        return y.detach().to_dense().numpy()
    if is_sparse(y):
        return y.toarray()
    return y.to_numpy() if hasattr(y, "columns") and hasattr(y, "to_numpy") else y


def is_multi_hot(y: Any) -> bool:
    """Whether ``y`` has a column of zeros and ones per class; a single column holds labels."""
    return is_sparse(y) or (isinstance(y, np.ndarray) and y.ndim != 1 and y.shape[1:] != (1,))


def _from_multi_hot(y: Any) -> list[list[int]]:
    if is_sparse(y):
        start, columns = (part.tolist() for part in indicated(y))
        return [columns[begin:end] for begin, end in itertools.pairwise(start)]
    if y.ndim != 2:
        raise ValueError(f"y has shape {y.shape}; wanted labels [rows], or zeros and ones [rows, C]")
    others = np.argwhere(~np.isin(y, (0, 1)))
    if len(others) > 0:
        row, column = others[0].tolist()
        raise ValueError(
            f"y has shape {y.shape} and holds {y[row, column]} in row {row}, column {column}; "
            "wanted labels [rows], or zeros and ones [rows, C]"
        )
    return [np.flatnonzero(row).tolist() for row in y]


class Texts:
    """Texts with labels in memory, as rows like those of a :class:`TextFile`.

    Args:
        texts: the texts.
        labels: a label for each, or a collection of labels; None: no labels.
        several: whether labels are collections.
    """

    def __init__(self, texts: Iterable[Any], labels: Iterable[Any] | None, several: bool | None = None) -> None:
        self.texts = _as_list(texts, "X")
        self.labels = None if labels is None else _as_list(labels, "y")
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(f"X has {len(self.texts)} texts and y {len(self.labels)} labels; wanted as many")
        if several is None:
            several = bool(self.labels) and _is_collection(self.labels[0])  # type: ignore[index]
        self.several = several

    def __iter__(self) -> Iterator[TextRow]:
        for begin in range(0, len(self.texts), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            texts, labels = self.texts[block], None if self.labels is None else self.labels[block]
            if labels is not None and _are_plain(texts, labels, self.several):
                lists = labels if self.several else [[label] for label in labels]
                yield from map(TextRow, texts, lists, map("row {}".format, itertools.count(begin)))
            else:
                yield from self._checked(begin, texts, labels)

    def _checked(self, begin: int, texts: list[Any], labels: list[Any] | None) -> Iterator[TextRow]:
        """Checks texts and labels one by one, the first of which are those of row ``begin``."""
        for i, text in enumerate(texts, begin):
            if not isinstance(text, (str, bytes)):
                raise TypeError(f"text {i} is {text!r} of type {type(text).__name__}; wanted str")
            some: list[Any] | None = None
            if labels is not None:
                label = labels[i - begin]
                if _is_collection(label) != self.several:
                    wanted = "a list of labels" if self.several else "one label"
                    raise ValueError(f"label {i} is {label!r}; wanted {wanted}, as the others are")
                some = _plain_labels(label, i) if self.several else [_plain(label, i)]
            yield TextRow(text, some, f"row {i}")  # type: ignore[arg-type]  # bytes are hashed as they are

    def bytes(self) -> int:
        """How much text there is, in UTF-8."""
        texts = (text for text in self.texts if isinstance(text, (str, bytes)))
        return sum(len(text if text.isascii() else _utf8(text)) for text in texts)


def _are_plain(texts: list[Any], labels: list[Any], several: bool) -> bool:
    """Whether all texts and labels are of Python's own types: to ask of all at once takes a fraction of the time."""
    if not set(map(type, texts)) <= {str, bytes} or (several and not set(map(type, labels)) <= {list}):
        return False
    flat = list(itertools.chain.from_iterable(labels)) if several else labels
    kinds = set(map(type, flat))
    return kinds <= {str} or (kinds == {int} and min(flat) >= -(2**63) and max(flat) < 2**63)


def _utf8(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _as_list(items: Any, name: str) -> list[Any]:
    if hasattr(items, "columns") and hasattr(items, "to_numpy"):  # a data frame, whose iterator gives names of columns
        if items.shape[1] != 1:
            raise ValueError(f"{name} is a data frame of {items.shape[1]} columns; wanted one")
        return items.to_numpy()[:, 0].tolist()
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise ValueError(f"{name} is {items!r:.50}; wanted several, such as a list")
    return items.tolist() if isinstance(items, np.ndarray) else list(items)


def _is_collection(label: Any) -> bool:
    return isinstance(label, (list, tuple, set, frozenset, np.ndarray))


def _plain_labels(labels: Any, row: int) -> list[Any]:
    """Labels of Python's own types: the same list where they are; many new ones would keep its collector busy."""
    plain = [_plain(label, row) for label in labels]
    return labels if type(labels) is list and all(map(operator.is_, plain, labels)) else plain


def _plain(label: Any, row: int) -> Any:
    if type(label) is str or (type(label) is int and -(2**63) <= label < 2**63):
        return label
    label = label.item() if isinstance(label, np.generic) else label
    if not isinstance(label, (str, int, float)) or (isinstance(label, float) and not math.isfinite(label)):
        raise ValueError(f"label {row} is {label!r}; wanted text or a number")
    if isinstance(label, float) and not label.is_integer():
        raise ValueError(f"label {row} is {label!r}; wanted text or a whole number, not a continuous target")
    if isinstance(label, int) and not -(2**63) <= label < 2**63:
        raise ValueError(f"label {row} is {label!r:.40}; wanted a whole number of 64 bits")
    return label
