"""LookUps: the approximate top-k of a weight: its index, the inputs that this learns from, and a lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..index.base import Index
from ..index.lookup import LEAST_QUERIES, Effort, LookupIndex
from .after_fork import renew_after_fork
from .inference_mode import outside_inference_mode
from .input_ring import InputRing, thinned
from .synchronised_index import SynchronisedIndex

_ROOM = 1280  # inputs that are kept
_EVERY, _PER_STEP = 4, 64  # of training steps
# Look-ups between two measurements of recall, each of which takes as long as thousands of them, while a model trains.
_ASKED = 8192


class LookUps:
    """Candidates for the best rows of inputs, from an index that is made at its first use and follows the weight.

    The index learns from inputs of training steps. Where fewer than 256 are known, it keeps those of the first calls,
    and is built anew once they are enough. Recall is measured on inputs that it did not learn from: the latest of
    training, and the first 256 of calls since then, which may look different, once they are known. A model that is
    trained and asked in turn is measured again after 8,192 inputs of calls, or twice as many steps.

    *Threads.* Any number of threads may look up. The first one that finds the index missing or stale builds or updates
    it under a lock; the others wait. Nobody may change the weights meanwhile.

    Args:
        make: returns an empty index.
        read: returns a weight as floating point numbers.
        others: returns the other tensors ``[N, ...]`` that ``read`` reads.
    """

    def __init__(
        self,
        make: Callable[[], LookupIndex],
        read: Callable[[Tensor], Tensor] = Tensor.detach,
        others: Callable[[], tuple[Tensor, ...]] = tuple,
    ) -> None:
        self._read = read
        self._others = others
        self._lock = threading.Lock()
        self._trained, self._seen = InputRing(_ROOM), InputRing(_ROOM)
        self.remake(make)
        renew_after_fork(self)

    def renew_lock(self) -> None:
        """Takes a new lock, and drops what a thread was changing under the old one."""
        if self._lock.locked():
            self._lock = threading.Lock()
            self.forget_inputs()

    def remake(self, make: Callable[[], LookupIndex]) -> None:
        """Drops the index; the next use builds one that ``make`` returns."""
        self._make = make
        # Sign codes are made around the mean of recent inputs, which moves as much as the rows do: once most rows
        # changed, they are made anew.
        self._index = SynchronisedIndex(make, rebuild_share=0.5, read=self._read, others=self._others)
        self._is_published = False  # the index is complete, and nobody changes it
        self._has_learned = False  # it was built from enough inputs
        self._is_judged = False  # on inputs of calls that it did not learn from
        self._taught = 0  # inputs of calls that builds may learn from
        self._kind: Index | None = None  # of the last build
        self._trained_before = 0  # inputs of training then, or when recall was last measured on these
        self._judged_at = self._asked = 0  # inputs of training when recall was last measured, and of calls since then

    def forget(self) -> None:
        """Drops the index; the next use builds it from the weights."""
        self._is_published = self._has_learned = self._is_judged = False
        self._index.forget()

    def forget_inputs(self) -> None:
        """Drops the inputs that were kept, and the index, which learned from them."""
        self._trained.clear()
        self._seen.clear()
        self._taught = 0
        self.forget()

    @property
    def index(self) -> LookupIndex | None:
        """The index, which may be stale; None: not made yet."""
        index = self._index.index
        assert index is None or isinstance(index, LookupIndex)
        return index

    def keep(self, x: Tensor, step: int) -> None:
        """Keeps some of the inputs ``[B, in]`` of a training step."""
        if step % _EVERY == 0 and len(x) > 0:
            self._trained.keep(thinned(x, _PER_STEP))
            if self._is_judged and not self._is_due():
                return
            self._is_judged = False
            if len(self._seen) > 0:  # inputs look different since
                self._has_learned &= self._taught == 0
                self._taught = 0
                self._seen.clear()

    def find(self, weight: Tensor, bias: Tensor | None, x: Tensor, recent: Tensor | None, count: int) -> Tensor:
        """Rows ``[B, count]`` int64 that probably score highest for inputs ``[B, in]``, in no order, padded with -1.

        Args:
            weight, bias: the parameters.
            x: ``[B, in]`` float32.
            recent: inputs known from elsewhere, for codes around their mean where too few were kept; None: none are.
            count: at most N are returned.
        """
        index = self._exact(weight, bias, x, recent)
        return index.query(x, min(count, index.num_rows))

    def find_for_recall(
        self, weight: Tensor, bias: Tensor | None, x: Tensor, recent: Tensor | None, k: int, recall: float
    ) -> Tensor | None:
        """As few rows ``[B, M]`` as hold the share ``recall`` of the ``k`` best of each input; None: all N.

        Else as :meth:`find`.
        """
        index = self._exact(weight, bias, x, recent)
        effort = index.known_effort(k, recall) or self._measure(index, weight, bias, k, recall)
        return None if effort.candidates == index.num_rows else index.search(x, effort)

    def _exact(self, weight: Tensor, bias: Tensor | None, x: Tensor, recent: Tensor | None) -> LookupIndex:
        """The index, in step with the weights."""
        index = self.index
        self._asked += len(x)
        # In this order: a thread that changes the index says so before it takes the changes of the weights.
        is_exact = self._index.is_exact(weight, bias) and self._is_published and self._has_learned and self._is_judged
        return index if index is not None and is_exact else self._synchronise(weight, bias, x, recent)

    @outside_inference_mode
    def _synchronise(self, weight: Tensor, bias: Tensor | None, x: Tensor, recent: Tensor | None) -> LookupIndex:
        with self._lock:
            if not self._is_judged:
                room = _ROOM - len(self._seen) if self._taught else len(x)
                self._seen.keep(x[x.isfinite().all(1)][:room])
            if not self._has_learned and max(len(self._trained), len(self._seen)) >= LEAST_QUERIES:
                self.forget()  # what was built from fewer
                self._has_learned = True
                if len(self._trained) < LEAST_QUERIES:
                    self._taught = self._taught or len(self._seen)
            if not self._index.is_exact(weight, bias):
                self._is_published = False
                self._index.synchronise(weight, bias, self._known(x, recent))
            index = self.index
            assert index is not None
            self._judge(index)
            self._is_published = True
            return index

    def _known(self, x: Tensor, recent: Tensor | None) -> Tensor:
        """The inputs to build an index from, the latest last."""
        if self._taught:
            return self._seen.tensor()[: self._taught]
        if len(self._trained) >= LEAST_QUERIES:
            return self._trained.tensor()
        return x if recent is None else recent

    def _judge(self, index: LookupIndex) -> None:
        """Measures recall on inputs of calls once there are enough that nothing was learned from; else of training."""
        if self._kind is not index.kind:
            self._kind, self._trained_before = index.kind, self._trained.kept
        fresh = len(self._seen) - self._taught
        was_judged = self._is_judged
        self._is_judged = fresh >= LEAST_QUERIES or self._taught > _ROOM - LEAST_QUERIES
        if fresh >= LEAST_QUERIES:
            index.judge(self._seen.tensor()[-fresh:])
        elif self._trained.kept - self._trained_before >= LEAST_QUERIES and self._is_due():
            self._trained_before = self._trained.kept
            index.judge(self._trained.tensor())
        elif not self._is_judged:
            return
        if not was_judged:
            self._judged_at, self._asked = self._trained.kept, 0

    def _is_due(self) -> bool:
        """Whether so much was trained or asked since recall was measured that another measurement costs little."""
        return self._asked >= _ASKED or self._trained.kept >= 2 * self._judged_at

    @outside_inference_mode
    def _measure(self, index: LookupIndex, weight: Tensor, bias: Tensor | None, k: int, recall: float) -> Effort:
        with self._lock, torch.no_grad():
            known = index.known_effort(k, recall)
            return known or index.effort(self._read(weight), None if bias is None else bias.detach(), k, recall)

    def __getstate__(self) -> dict[str, Any]:
        """Without the index: a copy builds its own."""
        return {name: self.__dict__[name] for name in ("_make", "_read", "_others", "_trained", "_seen", "_taught")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self._read, self._others = state["_read"], state["_others"]
        self.remake(state["_make"])
        self.__dict__.update(state)
        renew_after_fork(self)
