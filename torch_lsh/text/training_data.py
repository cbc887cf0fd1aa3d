"""The rows that a text classifier trains on: one pass for statistics, then one per epoch.

Hashed features stay in memory if they fit. Otherwise every epoch reads and hashes the texts again, in blocks, and
shuffles within each block.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..data import XMCRows
from ..data.xmc import join_rows
from ..models.held_out import TO_STOP, Purpose, split
from ..models.rows import InMemory, checksum, num_rows
from .columns import Columns
from .files import TextFile, TextRow
from .hashed_text import HashedText
from .sources import Texts

_WHOLE_NUMBER = re.compile("0|-?[1-9][0-9]{0,18}")
_FIRST_CHUNK = 256  # texts hashed at first: where their labels ask for other features, they are hashed again
_CHUNK = 4096  # texts hashed at a time
_BLOCK_CHUNKS = 16  # chunks that are shuffled together where features do not fit in memory


class Labels:
    """Numbers the labels: in order of appearance, then in sorted order once all are known.

    A label ``1`` is the class ``"1"`` where the classes are text, and the other way round.

    Args:
        classes: The labels there are; None means that those that come are the classes.
        others: What is done with a label that is not among the classes: ``"refuse"``, ``"add"`` to the classes, or
            ``"count"``: give it a number behind them.
    """

    def __init__(self, classes: Sequence[Any] | None = None, others: str = "refuse") -> None:
        self.numbers: dict[Any, int] = {} if classes is None else {label: i for i, label in enumerate(classes)}
        self._others = "add" if classes is None else others
        kinds = {type(label) for label in classes or ()}
        self._kind = kinds.pop() if len(kinds) == 1 else None

    def number(self, label: Any, place: str) -> int:
        number = self.numbers.get(label)
        if number is None and self._kind not in (None, type(label)):
            label = self._in_kind(label, place)
            number = self.numbers.get(label)
        if number is None:
            if self._others == "refuse":
                raise ValueError(f"{place}: the label {label!r} did not occur in the training data")
            number = self.numbers[label] = len(self.numbers)
        return number

    def _in_kind(self, label: Any, place: str) -> Any:
        """The label in the kind of the classes; where there is none, the label itself if it need not be a class."""
        if self._kind is str and type(label) is int:
            return str(label)
        if self._kind is int and isinstance(label, str) and _WHOLE_NUMBER.fullmatch(label):
            return int(label)
        if self._others != "count" and isinstance(label, (str, int)):
            raise ValueError(
                f"{place}: the label {label!r} is {_kind_name(label)}, and the classes of the training data are "
                f"{'text' if self._kind is str else 'whole numbers'}"
            )
        return label

    def sort(self) -> tuple[list[Any], Tensor]:
        """Sorts the labels; returns them, and the new number of each old number."""
        try:
            classes = sorted(self.numbers)
        except TypeError:
            shown = {_kind_name(label): label for label in reversed(self.numbers)}
            found = " and ".join(f"{kind} ({shown[kind]!r})" for kind in sorted(shown))
            raise ValueError(f"labels are {found}; wanted one kind") from None
        old = torch.tensor([self.numbers[label] for label in classes], dtype=torch.int64)
        new = torch.empty_like(old)
        new[old] = torch.arange(len(old))
        self.numbers = {label: i for i, label in enumerate(classes)}
        self._others = "refuse"
        return classes, new


def _kind_name(label: Any) -> str:
    return {str: "text", int: "a whole number"}.get(type(label), f"of type {type(label).__name__}")


def hashed(source: Iterable[TextRow], features: HashedText, labels: Labels, first: int = _CHUNK) -> Iterator[XMCRows]:
    """Yields the rows of a source in chunks, the first one of so many, texts hashed and labels numbered."""
    rows, size = iter(source), first
    while True:
        texts: list[str] = []  # of rows that are gone by then: thousands of them would keep Python's collector busy
        numbers: list[int] = []
        starts, known = [0], labels.numbers.get
        for text, own, place in itertools.islice(rows, size):
            texts.append(text)
            for label in dict.fromkeys(own) if own and len(own) > 1 else own or ():
                number = known(label)
                numbers.append(labels.number(label, place) if number is None else number)
            starts.append(len(numbers))
        if not texts:
            return
        size = _CHUNK
        crow, col, values = features.csr(texts)
        of_rows = torch.from_numpy(np.array(starts)), torch.from_numpy(np.array(numbers, np.int32))
        yield XMCRows(crow, col.int(), values, *of_rows, features.num_features, 2**31 - 1)


class Weighted(NamedTuple):
    """Rows with their weights ``[rows]``; None means 1."""

    rows: XMCRows
    weights: Tensor | None

    def take(self, rows: Tensor) -> Weighted:
        return Weighted(self.rows.take(rows), None if self.weights is None else self.weights[rows])

    @classmethod
    def join(cls, parts: Sequence[Weighted]) -> Weighted:
        weights = [part.weights for part in parts if part.weights is not None]
        return cls(join_rows([part.rows for part in parts]), torch.cat(weights) if weights else None)


class Statistics(NamedTuple):
    """What the first pass over the training data finds."""

    rows: int  # to train on: with a label, and not held out
    several: bool  # whether a row has more than one label
    classes: list[Any]
    columns: Tensor  # [F] int32: those that occur, increasing
    idf: Tensor  # [F] float32
    bytes: int  # of the hashed features of all rows
    label_counts: Tensor  # [C] int64, of the training rows
    checksum: int  # of texts, labels and weights
    held_out: XMCRows | None
    cached: Weighted | None  # the training rows, where they fit in memory


class TrainingData:
    """Training rows from a source.

    Args:
        source: texts or a file; read once per pass.
        features: how texts are hashed; or what says so, given how many labels there are and how many rows to train on
            (infinitely many where they do not fit in memory).
        hold_out: share of the rows to hold out.
        most_held_out: most rows to hold out. Fewer than 20,000 rows that fit in memory are all trained on, unless a
            ranker needs some of them.
        memory: bytes of hashed features to keep.
        seed: seed of the choice of the held-out rows.
        classes: the labels, sorted, if they are known in advance.
        weights: of the texts of the source, ``[texts]``; None means 1.
        purpose: what rows are held out for, given how many labels and rows there are; of at least 20,000, they also say
            when to stop.
    """

    def __init__(
        self,
        source: Texts | TextFile,
        features: HashedText | Callable[[int, float], HashedText],
        hold_out: float,
        most_held_out: int,
        memory: int,
        seed: int,
        classes: Sequence[Any] | None = None,
        weights: Tensor | None = None,
        purpose: Callable[[int, int], Purpose] = lambda labels, rows: TO_STOP,
    ) -> None:
        self.source, self._weights, self._purpose = source, weights, purpose
        self.is_weighted = weights is not None
        self._features_for: Callable[[int, float], HashedText] = (
            (lambda labels, rows: features) if isinstance(features, HashedText) else features
        )
        self._met = 0, 0.0  # labels and rows
        self.features = self._features_for(*self._met)
        self.labels, self._classes = Labels(classes), classes
        self._hold_out, self._most_held_out, self._seed = hold_out, most_held_out, seed
        self.statistics = self._with_rows_to_rank(self._first_pass(memory))

    def _split(self, first: int = _CHUNK) -> Iterator[tuple[Weighted, Weighted]]:
        """Yields rows to train on and held-out rows, the same in every pass; rows without a label are in neither.

        Args:
            first: Texts of the first chunk.

        Raises:
            ValueError: There are not as many weights as texts.
        """
        generator = torch.Generator().manual_seed(self._seed)
        left, begin = self._most_held_out, 0
        for chunk in hashed(self.source, self.features, self.labels, first):
            labelled = chunk.label_start.diff() > 0
            out = labelled & (torch.rand(len(labelled), generator=generator, dtype=torch.float64) < self._hold_out)
            out &= out.cumsum(0) <= left
            left -= int(out.sum())
            end = begin + len(labelled)
            some = Weighted(chunk, None if self._weights is None else self._weights[begin:end])
            if some.weights is not None and len(some.weights) < len(labelled):
                break
            yield some.take((labelled & ~out).nonzero()[:, 0]), some.take(out.nonzero()[:, 0])
            begin = end
        if self._weights is not None and len(self._weights) != begin:
            raise ValueError(f"sample_weight has {len(self._weights)} numbers; wanted one for each text")

    def _first_pass(self, memory: int) -> Statistics:
        documents = torch.zeros(1, self.features.num_features, dtype=torch.int32)
        counts = torch.zeros(0, dtype=torch.int64)
        rows = total = seen = labelled = 0
        several = False
        train: list[Weighted] | None = []
        held_out: list[Weighted] = []
        for some, out in self._split(_FIRST_CHUNK):
            chunk = some.rows
            labelled += num_rows(chunk) + num_rows(out.rows)
            if self._asks_for_other_features(math.inf if train is None else labelled):
                self.labels = Labels(self._classes)
                return self._first_pass(memory)
            _count(documents, chunk)
            counts = torch.nn.functional.pad(counts, (0, len(self.labels.numbers) - len(counts)))
            counts += torch.bincount(chunk.labels, minlength=len(counts))
            rows += num_rows(chunk)
            several = several or any(bool((part.rows.label_start.diff() > 1).any()) for part in (some, out))
            seen = checksum(*some.rows, some.weights, *out.rows, before=seen)
            if num_rows(out.rows) > 0:
                held_out.append(out)
            total += 8 * len(chunk.features) + 4 * len(chunk.labels) + 16 * len(chunk.feature_start)
            if total > memory:
                train = None
            elif train is not None:
                train.append(some)
        if train is not None and rows < TO_STOP.least:
            for out in held_out:
                rows += num_rows(out.rows)
                _count(documents, out.rows)
                counts += torch.bincount(out.rows.labels, minlength=len(counts))
            train += held_out
            held_out = []
        classes, numbers = self.labels.sort()
        seen = checksum(numbers, before=seen)

        def joined(parts: list[Weighted] | None) -> Weighted | None:
            if not parts:
                return None
            some = Weighted.join(parts)
            parts.clear()
            labels = numbers[some.rows.labels.long()].int()
            return some._replace(rows=some.rows._replace(labels=labels, num_labels=len(classes)))

        columns = documents[0].nonzero()[:, 0]
        idf = torch.log((1 + rows) / (1 + documents[0, columns]).float()) + 1
        sorted_counts = torch.zeros(len(classes), dtype=torch.int64)
        sorted_counts[numbers[: len(counts)]] = counts
        kept, cached = joined(held_out), joined(train)
        held_out_rows = None if kept is None else kept.rows
        return Statistics(rows, several, classes, columns.int(), idf, total, sorted_counts, seen, held_out_rows, cached)

    def _asks_for_other_features(self, rows: float) -> bool:
        """Whether the labels and so many rows that have come want other features, which it takes."""
        labels, most = self._met
        self._met = max(labels, len(self.labels.numbers)), max(most, rows)
        before, self.features = self.features, self._features_for(*self._met)
        return self.features is not before

    def _with_rows_to_rank(self, found: Statistics) -> Statistics:
        """Holds rows out of few, too, where they train a ranker."""
        if found.held_out is not None or found.cached is None:
            return found
        source = InMemory(found.cached.rows, len(found.classes), found.cached.weights)
        source, held_out = split(source, self._hold_out, self._seed, self._purpose(len(found.classes), source.size))
        if held_out is None:
            return found
        assert isinstance(source.rows, XMCRows)
        assert isinstance(held_out, XMCRows)
        cached = Weighted(source.rows, source.weights)
        return found._replace(rows=source.size, label_counts=source.label_counts, held_out=held_out, cached=cached)

    def blocks(self) -> Iterator[Weighted]:
        """Yields the training rows of an epoch: all at once, or in blocks."""
        if self.statistics.cached is not None:
            yield self.statistics.cached
            return
        chunks = (train for train, _ in self._split())
        while parts := list(itertools.islice(chunks, _BLOCK_CHUNKS)):
            some = Weighted.join(parts)
            yield some._replace(rows=some.rows._replace(num_labels=len(self.statistics.classes)))

    def sample(self, memory: int) -> XMCRows | None:
        """Returns the training rows, or a random choice of them that takes about ``memory`` bytes."""
        if self.statistics.cached is not None:
            return self.statistics.cached.rows
        share = min(1.0, memory / self.statistics.bytes)
        generator = torch.Generator().manual_seed(self._seed)
        parts = []
        for block, _ in self.blocks():
            chosen = torch.rand(num_rows(block), generator=generator, dtype=torch.float64) < share
            parts.append(block.take(chosen.nonzero()[:, 0]))
        some = join_rows(parts)
        return some if num_rows(some) > 0 else None


def _count(documents: Tensor, rows: XMCRows) -> None:
    """Adds the number of rows that have each column to ``documents`` ``[1, num_columns]`` int32."""
    together = torch.zeros(num_rows(rows), dtype=torch.int32)
    ops.count_columns_(documents, rows.feature_start, rows.features, together)


class FeatureSource:
    """Training rows with features in place of hashed columns: a :class:`torch_lsh.models.rows.Source`.

    Args:
        data: The rows.
        columns: Which columns are features.
        memory: Bytes of rows to keep as neighbours.
    """

    def __init__(self, data: TrainingData, columns: Columns, memory: int) -> None:
        self._data, self._columns, self._memory = data, columns, memory
        self._cached: tuple[XMCRows, Tensor | None] | None = None  # where the hashed texts are in memory, too
        self.size, self.label_counts = data.statistics.rows, data.statistics.label_counts
        self.is_weighted = data.is_weighted

    def blocks(self) -> Iterator[tuple[XMCRows, Tensor | None]]:
        if self._cached is not None:
            yield self._cached
            return
        for rows, weights in self._data.blocks():
            block = self._columns.rows(rows), weights
            if self._data.statistics.cached is not None:
                self._cached = block
            yield block

    def sample(self) -> XMCRows | None:
        rows = self._data.sample(self._memory)
        return None if rows is None else self._columns.rows(rows)

    def identity(self) -> dict[str, Any]:
        found = self._data.statistics
        sizes = {"rows": self.size, "features": found.bytes, "labels": int(self.label_counts.sum())}
        return {**sizes, "checksum of rows": found.checksum}
