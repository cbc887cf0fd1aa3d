"""LookUps: the approximate top-k of a weight: its index, the inputs that this learns from, and a lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..index.lookup import LEAST_QUERIES, Effort, LookupIndex
from .inference_mode import outside_inference_mode
from .input_ring import InputRing, thinned
from .synchronised_index import SynchronisedIndex

_ROOM = 1280  # inputs that are kept
_EVERY, _PER_STEP = 4, 64  # of training steps


class LookUps:
    """Candidates for the best rows of inputs, from an index that is made at its first use and follows the weight.

    The index learns from inputs of training steps, and measures its recall on them. Where fewer than 256 are known, it
    keeps those of the first calls, and is built anew once they are enough.

    *Threads.* Any number of threads may look up. The first one that finds the index missing or stale builds or updates
    it under a lock; the others wait. Nobody may change the weights meanwhile.

    Args:
        make: returns an empty index.
        read: returns a weight as floating point numbers.
    """

    def __init__(self, make: Callable[[], LookupIndex], read: Callable[[Tensor], Tensor] = Tensor.detach) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._trained, self._seen = InputRing(_ROOM), InputRing(_ROOM)
        self.remake(make)

    def remake(self, make: Callable[[], LookupIndex]) -> None:
        """Drops the index; the next use builds one that ``make`` returns."""
        self._make = make
        # Sign codes are made around the mean of recent inputs, which moves as much as the rows do: once most rows
        # changed, they are made anew.
        self._index = SynchronisedIndex(make, rebuild_share=0.5, read=self._read)
        self._is_published = False  # the index is complete, and nobody changes it
        self._has_learned = False  # it was built from enough inputs

    def forget(self) -> None:
        """Drops the index; the next use builds it from the weights."""
        self._is_published = self._has_learned = False
        self._index.forget()

    def forget_inputs(self) -> None:
        """Drops the inputs that were kept."""
        self._trained.clear()
        self._seen.clear()

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
            if len(self._seen) > 0:  # inputs look different since
                self._seen.clear()
                self._has_learned = False

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
    ) -> Tensor:
        """As few rows ``[B, M]`` as hold the share ``recall`` of the ``k`` best of each input; else as :meth:`find`."""
        index = self._exact(weight, bias, x, recent)
        effort = index.known_effort(k, recall) or self._measure(index, weight, bias, k, recall)
        return index.search(x, effort)

    def _exact(self, weight: Tensor, bias: Tensor | None, x: Tensor, recent: Tensor | None) -> LookupIndex:
        """The index, in step with the weights."""
        index = self.index
        # In this order: a thread that changes the index says so before it takes the changes of the weights.
        is_exact = self._index.is_exact(weight, bias) and self._is_published and self._has_learned
        return index if index is not None and is_exact else self._synchronise(weight, bias, x, recent)

    @outside_inference_mode
    def _synchronise(self, weight: Tensor, bias: Tensor | None, x: Tensor, recent: Tensor | None) -> LookupIndex:
        with self._lock:
            if not self._has_learned:
                if max(len(self._trained), len(self._seen)) < LEAST_QUERIES:
                    self._seen.keep(x[x.isfinite().all(1)])
                if max(len(self._trained), len(self._seen)) >= LEAST_QUERIES:
                    self.forget()  # what was built from fewer
                    self._has_learned = True
            if not self._index.is_exact(weight, bias):
                self._is_published = False
                self._index.synchronise(weight, bias, self._known(x, recent))
            self._is_published = True
            index = self.index
            assert index is not None
            return index

    def _known(self, x: Tensor, recent: Tensor | None) -> Tensor:
        """The inputs to build an index from, the latest last."""
        for ring in (self._trained, self._seen):
            if len(ring) >= LEAST_QUERIES:
                return ring.tensor()
        return x if recent is None else recent

    @outside_inference_mode
    def _measure(self, index: LookupIndex, weight: Tensor, bias: Tensor | None, k: int, recall: float) -> Effort:
        with self._lock, torch.no_grad():
            known = index.known_effort(k, recall)
            return known or index.effort(self._read(weight), None if bias is None else bias.detach(), k, recall)

    def __getstate__(self) -> dict[str, Any]:
        """Without the index: a copy builds its own."""
        return {name: self.__dict__[name] for name in ("_make", "_read", "_trained", "_seen")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self.remake(self._make)
