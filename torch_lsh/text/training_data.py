"""The rows that a text classifier trains on: one pass for statistics, then one per epoch.

Hashed features stay in memory if they fit. Otherwise every epoch reads and hashes the texts again, in blocks, and
shuffles within each block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import XMCRows
from ..data.xmc import join_rows
from .files import TextFile, TextRow
from .hashed_text import HashedText
from .sources import Texts

_CHUNK = 4096  # texts hashed at a time
_LEAST_TO_HOLD_OUT = 20_000  # with fewer texts, training on all of them is worth more than stopping early
WIDE = 4096  # with more labels, wide_features are used
_BLOCK_CHUNKS = 16  # chunks that are shuffled together where features do not fit in memory


class Labels:
    """Numbers the labels: in order of appearance, then in sorted order once all are known."""

    def __init__(self, classes: Sequence[Any] | None = None) -> None:
        self.numbers: dict[Any, int] = {} if classes is None else {label: i for i, label in enumerate(classes)}
        self._known = classes is not None

    def number(self, label: Any, place: str) -> int:
        number = self.numbers.get(label)
        if number is None:
            if self._known:
                raise ValueError(f"{place}: the label {label!r} did not occur in the training data")
            number = self.numbers[label] = len(self.numbers)
        return number

    def sort(self) -> tuple[list[Any], Tensor]:
        """Sorts the labels; returns them, and the new number of each old number."""
        try:
            classes = sorted(self.numbers)
        except TypeError:
            kinds = sorted({type(label).__name__ for label in self.numbers})
            raise ValueError(f"labels are of the kinds {' and '.join(kinds)}; wanted one kind") from None
        old = torch.tensor([self.numbers[label] for label in classes], dtype=torch.int64)
        new = torch.empty_like(old)
        new[old] = torch.arange(len(old))
        self.numbers = {label: i for i, label in enumerate(classes)}
        self._known = True
        return classes, new


def hashed(source: Iterable[TextRow], features: HashedText, labels: Labels) -> Iterator[XMCRows]:
    """Yields the rows of a source in chunks, texts hashed and labels numbered."""
    rows = iter(source)
    while chunk := list(itertools.islice(rows, _CHUNK)):
        crow, col, values = features.csr([row.text for row in chunk])
        numbers = [[labels.number(label, row.place) for label in dict.fromkeys(row.labels or ())] for row in chunk]
        starts = np.zeros(len(chunk) + 1, np.int64)
        np.cumsum([len(some) for some in numbers], out=starts[1:])
        flat = torch.tensor(list(itertools.chain.from_iterable(numbers)), dtype=torch.int32)
        yield XMCRows(crow, col.int(), values, torch.from_numpy(starts), flat, features.num_features, 2**31 - 1)


class Statistics(NamedTuple):
    """What the first pass over the training data finds."""

    rows: int  # to train on: with a label, and not held out
    several: bool  # whether a row has more than one label
    classes: list[Any]
    columns: Tensor  # [F] int32: those that occur, increasing
    idf: Tensor  # [F] float32
    bytes: int  # of the hashed features of all rows
    held_out: XMCRows | None
    cached: XMCRows | None  # the training rows, where they fit in memory


class TrainingData:
    """Training rows from a source.

    Args:
        source: texts or a file; read once per pass.
        features: how texts are hashed.
        wide_features: how they are hashed with more than 4096 labels; None: the same.
        hold_out: share of the rows to hold out.
        most_held_out: most rows to hold out. Fewer than 20,000 rows that fit in memory are all trained on.
        memory: bytes of hashed features to keep.
        seed: seed of the choice of the held-out rows.
        classes: the labels, sorted, if they are known in advance.
    """

    def __init__(
        self,
        source: Texts | TextFile,
        features: HashedText,
        wide_features: HashedText | None,
        hold_out: float,
        most_held_out: int,
        memory: int,
        seed: int,
        classes: Sequence[Any] | None = None,
    ) -> None:
        self.source = source
        self.features, self._wide_features = features, wide_features
        self.labels, self._classes = Labels(classes), classes
        self._hold_out, self._most_held_out, self._seed = hold_out, most_held_out, seed
        self.statistics = self._first_pass(memory)

    def _split(self, chunks: Iterable[XMCRows]) -> Iterator[tuple[XMCRows, XMCRows]]:
        """Yields rows to train on and held-out rows, the same in every pass; rows without a label are in neither."""
        generator = torch.Generator().manual_seed(self._seed)
        left = self._most_held_out
        for chunk in chunks:
            labelled = chunk.label_start.diff() > 0
            out = labelled & (torch.rand(len(labelled), generator=generator, dtype=torch.float64) < self._hold_out)
            out &= out.cumsum(0) <= left
            left -= int(out.sum())
            yield chunk.take((labelled & ~out).nonzero()[:, 0]), chunk.take(out.nonzero()[:, 0])

    def _first_pass(self, memory: int) -> Statistics:
        documents = torch.zeros(self.features.num_features, dtype=torch.int64)
        rows = total = 0
        several = False
        train: list[XMCRows] | None = []
        held_out: list[XMCRows] = []
        for chunk, out in self._split(hashed(self.source, self.features, self.labels)):
            if self._wide_features is not None and len(self.labels.numbers) > WIDE:
                self.features, self._wide_features, self.labels = self._wide_features, None, Labels(self._classes)
                return self._first_pass(memory)
            documents.index_add_(0, chunk.features.long(), torch.ones(len(chunk.features), dtype=torch.int64))
            rows += len(chunk.feature_start) - 1
            several = several or any(bool((part.label_start.diff() > 1).any()) for part in (chunk, out))
            if len(out.feature_start) > 1:
                held_out.append(out)
            total += 8 * len(chunk.features) + 4 * len(chunk.labels) + 16 * len(chunk.feature_start)
            if total > memory:
                train = None
            elif train is not None:
                train.append(chunk)
        if train is not None and rows < _LEAST_TO_HOLD_OUT:
            rows += sum(len(out.feature_start) - 1 for out in held_out)
            train += held_out
            held_out = []
        classes, numbers = self.labels.sort()

        def joined(parts: list[XMCRows] | None) -> XMCRows | None:
            if not parts:
                return None
            some = join_rows(parts)
            parts.clear()
            return some._replace(labels=numbers[some.labels.long()].int(), num_labels=len(classes))

        columns = documents.nonzero()[:, 0]
        idf = torch.log((1 + rows) / (1 + documents[columns]).float()) + 1
        return Statistics(rows, several, classes, columns.int(), idf, total, joined(held_out), joined(train))

    def blocks(self) -> Iterator[XMCRows]:
        """Yields the training rows of an epoch: all at once, or in blocks."""
        if self.statistics.cached is not None:
            yield self.statistics.cached
            return
        chunks = (train for train, _ in self._split(hashed(self.source, self.features, self.labels)))
        while some := list(itertools.islice(chunks, _BLOCK_CHUNKS)):
            yield join_rows(some)._replace(num_labels=len(self.statistics.classes))

    def sample(self, memory: int) -> XMCRows | None:
        """Returns the training rows, or a random choice of them that takes about ``memory`` bytes."""
        if self.statistics.cached is not None:
            return self.statistics.cached
        share = min(1.0, memory / self.statistics.bytes)
        generator = torch.Generator().manual_seed(self._seed)
        parts = []
        for block in self.blocks():
            chosen = torch.rand(len(block.feature_start) - 1, generator=generator, dtype=torch.float64) < share
            parts.append(block.take(chosen.nonzero()[:, 0]))
        some = join_rows(parts)
        return some if len(some.feature_start) > 1 else None
