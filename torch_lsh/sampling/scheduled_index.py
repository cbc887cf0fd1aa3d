"""ScheduledIndex: the index of training, as fresh as a re-hash policy wants it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from torch import Tensor

from ..index.base import Index
from ..rehash import RehashPolicy
from ..stopwatch import timed
from .schedule import reason_to_rehash, rehash_and_log
from .synchronised_index import SynchronisedIndex

_log = logging.getLogger("torch_lsh")


class ScheduledIndex(SynchronisedIndex):
    """A synchronised index that trails the weights while they are trained, and its position in the schedule.

    Args:
        make: returns an empty index.

    Attributes:
        since_rehash: training steps since the last re-hash.
        rehashes: re-hashes so far.
    """

    def __init__(self, make: Callable[[], Index]) -> None:
        super().__init__(make)
        self.since_rehash = 0
        self.rehashes = 0

    def for_training(
        self, weight: Tensor, bias: Tensor | None, queries: Tensor | None, policy: RehashPolicy | None
    ) -> Index:
        """The index for a training step; re-hashes first where ``policy`` says so (None: it never does)."""
        if not self.is_usable_for_training(weight, bias):
            self._catch_up(weight, bias, queries)
        elif policy is not None:
            drift = functools.partial(self.drift, weight, bias)
            reason = reason_to_rehash(policy, self.since_rehash, self.rehashes, drift)
            if reason is not None:
                rehash = functools.partial(self.rehash, weight, bias, queries)
                rehash_and_log(rehash, policy, self.since_rehash, reason, name=_name(weight))
        self.since_rehash += 1
        self._trained = True
        assert self.index is not None
        return self.index

    @timed("re-hash")
    def rehash(
        self, weight: Tensor, bias: Tensor | None, queries: Tensor | None, full: bool = False, touches: int = 1
    ) -> int:
        """Synchronises (arguments and result as for :meth:`synchronise`) and learns an outdated index anew.

        Raises:
            ValueError: ``touches`` is not 1 to 255; nothing changes then.
        """
        if not 1 <= touches <= 255:
            raise ValueError(f"touches is {touches}; wanted 1 to 255")
        hashed = self.synchronise(weight, bias, queries, full=full, touches=touches)
        self.since_rehash = 0
        self.rehashes += 1
        if not full and self._is_judged():
            hashed = self._rebuild_if_outdated(weight, bias, queries) or hashed
        return hashed

    def _is_judged(self) -> bool:
        """Whether this re-hash is one of those that ask if the index is outdated: the 2nd, 4th, 8th and every 16th.

        For learned buckets the answer costs an exact product of some queries with all rows.
        """
        return self.rehashes % 16 == 0 or self.rehashes in (2, 4, 8)

    def _rebuild_if_outdated(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> int:
        """Builds the index anew where it says that this would find more; returns the number of rows, else 0."""
        assert self.index is not None
        reason = self.index.outdated(weight.detach(), None if bias is None else bias.detach(), queries)
        if reason is None:
            return 0
        hashed = self.build(weight, bias, queries)
        _log.info("re-hash %d: learned the buckets of %s anew: %s", self.rehashes, _name(weight), reason)
        return hashed


def _name(weight: Tensor) -> str:
    """Names the rows in log lines."""
    rows, width = weight.shape
    return f"{rows} rows of {width} numbers"
