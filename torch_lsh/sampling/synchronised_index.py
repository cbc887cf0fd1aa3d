"""SynchronisedIndex: an index, and the rows that changed since it was made."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..index.base import Index
from ..row_sparse.changed_rows import ChangedRows
from ..row_sparse.parameters import wants_row_sparse
from ..stopwatch import Stopwatch, part
from .after_fork import renew_after_fork


class _Changes:
    """The indexes that are being changed, and one lock for all: those with one of their own could not be copied."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.indexes: set[SynchronisedIndex] = set()

    def renew_lock(self) -> None:
        """Takes a new lock, and drops the indexes that threads of another process were changing."""
        self.lock = threading.RLock()
        for index in self.indexes:
            index.forget()
        self.indexes.clear()


_CHANGES = _Changes()
renew_after_fork(_CHANGES)


class SynchronisedIndex:
    """An index of the rows of a weight that follows the weight.

    The index is made at its first use. From then on the rows that row-sparse optimizers touch are collected, and
    :meth:`synchronise` hashes those again. A change of unknown extent (``load_state_dict``, an in-place edit, a dense
    optimizer) leads to a pass over all rows, another Parameter to a new build.

    Threads may call :meth:`exact` at the same time, as inference does; anything else is for one thread at a time.

    Args:
        make: returns an empty index.
        rebuild_share: build anew when more than this share of the rows changed.
        read: returns a weight as floating point numbers.
        others: returns the other tensors ``[N, ...]`` that ``read`` reads.
    """

    def __init__(
        self,
        make: Callable[[], Index],
        rebuild_share: float = 1.0,
        read: Callable[[Tensor], Tensor] = Tensor.detach,
        others: Callable[[], tuple[Tensor, ...]] = tuple,
    ) -> None:
        self._make = make
        self._read = read
        self._others = others
        self._rebuild_share = rebuild_share
        self.index: Index | None = None  # None: not made yet
        self._changed: ChangedRows | None = None
        self._trained = False  # a subclass used it for a training step since the last synchronisation
        self.stopwatch: Stopwatch | None = None

    def watch(self, stopwatch: Stopwatch | None) -> None:
        """Times the look-ups of the index from now on; None ends that."""
        self.stopwatch = stopwatch
        if self.index is not None:
            self.index.stopwatch = stopwatch

    def remake(self, make: Callable[[], Index]) -> None:
        """Drops the index; the next use builds one that ``make`` returns."""
        self._make = make
        self.forget()

    def forget(self) -> None:
        """Drops the index; the next use builds it from the weights."""
        self.index = self._changed = None
        self._trained = False

    def _changes(self, weight: Tensor, bias: Tensor | None) -> ChangedRows | None:
        """The changes collected since the index was made, if these are its parameters."""
        changed = self._changed
        return changed if changed is not None and changed.are_of(weight, bias, *self._others()) else None

    def synchronise(
        self,
        weight: Tensor,
        bias: Tensor | None,
        queries: Tensor | None,
        *,
        full: bool = False,
        touches: int = 1,
    ) -> int:
        """Brings the index in step with the weights.

        Args:
            weight, bias: the parameters.
            queries: ``[Q, in_features]``, recent inputs that a build may learn from.
            full: build anew, whatever changed.
            touches: leave out rows that fewer updates touched; they stay collected.

        Returns:
            The number of rows that were hashed.
        """
        changed = self._changes(weight, bias)
        if self.index is None or full or changed is None:
            return self.build(weight, bias, queries)
        with self._whole_or_forgotten():
            rows = changed.take(touches)
            self._trained = False
            if rows is None:
                self.index.rehash(self._read(weight), _detached(bias), queries)
                self._collect(weight, bias)
                return len(weight)
            if len(rows) > self._rebuild_share * len(weight):
                return self.build(weight, bias, queries)
            if len(rows) > 0:
                self.index.update(self._read(weight), _detached(bias), rows)
            return len(rows)

    def build(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> int:
        """Builds the index anew; returns the number of rows."""
        with self._whole_or_forgotten():
            if self.index is None:
                self.index = self._make()
            self.index.stopwatch = self.stopwatch
            self.index.build(self._read(weight), _detached(bias), queries)
            self._collect(weight, bias)
            return len(weight)

    @contextlib.contextmanager
    def _whole_or_forgotten(self) -> Iterator[None]:
        """Drops the index where a change of it ends early, for want of memory or by Ctrl-C."""
        _CHANGES.indexes.add(self)
        try:
            yield
        except BaseException:
            self.forget()
            raise
        finally:
            _CHANGES.indexes.discard(self)

    def _collect(self, weight: Tensor, bias: Tensor | None) -> None:
        self._changed = ChangedRows(*([weight] if bias is None else [weight, bias]), *self._others())
        self._trained = False

    def is_exact(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether the index holds the rows as they are now."""
        changed = self._changes(weight, bias)
        return self.index is not None and changed is not None and not changed.any()

    def exact(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> Index:
        """The index, in step with the weights; arguments as for :meth:`synchronise`."""
        with _CHANGES.lock:
            if not self.is_exact(weight, bias):
                self._catch_up(weight, bias, queries)
            assert self.index is not None
            return self.index

    def _catch_up(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None:
        with part(self.stopwatch, "re-hash"):
            self.synchronise(weight, bias, queries)

    def is_usable_for_training(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether all that is stale in the index are rows that an optimizer touched.

        A row-sparse optimizer records its updates, so anything unrecorded is an edit. A dense optimizer, which weight
        and bias may have each or in common, records nothing; its step follows a training step.
        """
        changed = self._changed
        if self.index is None or changed is None:
            return False
        if changed.holds_all_of(weight, bias):
            return True
        if not self._trained or not changed.are_of(weight, bias):
            return False
        return not any(wants_row_sparse(parameter) for parameter in changed.with_unrecorded_changes())

    def stale_rows(self, weight: Tensor, bias: Tensor | None) -> int | None:
        """The number of rows that changed since they were last hashed; None: there is no index."""
        if self.index is None:
            return None
        changed = self._changes(weight, bias)
        touched = None if changed is None else changed.touched()
        return len(weight) if touched is None else int(touched.sum())

    def drift(self, weight: Tensor, bias: Tensor | None, sample: int, touches: int, seed: int) -> float:
        """The share of the hash codes of changed rows that differ from those in the index, on a sample of these rows.

        Where it is not known which rows changed, the sample is one of all rows. 0.0 without an index.
        """
        if self.index is None:
            return 0.0
        changed = self._changes(weight, bias)
        rows = None if changed is None else changed.sample(sample, touches, seed)
        if rows is None:
            rows = torch.randint(len(weight), (sample,), generator=torch.Generator().manual_seed(seed), device="cpu")
        return self.index.drift(self._read(weight), _detached(bias), rows.unique())


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
