"""Locks in a forked process, which has none of the threads that may have held them."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class HoldsLock(Protocol):
    """Has a lock, and state that a thread changes while it holds it."""

    def renew_lock(self) -> None:
        """Takes a new lock, and drops what a thread may have been changing."""


_holders: weakref.WeakSet[HoldsLock] = weakref.WeakSet()


def renew_after_fork(holder: HoldsLock) -> None:
    """Calls ``holder.renew_lock()`` in every process that is forked off this one, for as long as the holder lives."""
    _holders.add(holder)


def _renew() -> None:
    for holder in list(_holders):
        holder.renew_lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_renew)
