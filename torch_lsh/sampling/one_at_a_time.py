"""OneAtATime: a guard of what two threads must not do at once."""

from __future__ import annotations

import threading
from typing import Any

from .after_fork import renew_after_fork


class OneAtATime:
    """A lock that one thread may hold; another one gets an error, not a wait. Copies are free.

    Args:
        what: the beginning of the error.

    >>> guard = OneAtATime("this layer is trained")
    >>> with guard.turn, guard.turn:
    ...     pass
    Traceback (most recent call last):
    RuntimeError: this layer is trained by two threads at once; wanted one at a time: take turns under a lock
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.renew_lock()
        renew_after_fork(self)

    def renew_lock(self) -> None:
        """Takes a new lock, which nobody holds."""
        self._lock = threading.Lock()

    @property
    def turn(self) -> threading.Lock:
        """The lock, for a ``with`` statement: unlike a context written in Python, Ctrl-C cannot leave it locked.

        Of two threads that ask at the same instant, one waits.

        Raises:
            RuntimeError: it is held.
        """
        if self._lock.locked():
            raise RuntimeError(f"{self._what} by two threads at once; wanted one at a time: take turns under a lock")
        return self._lock

    def __reduce__(self) -> tuple[Any, ...]:
        return OneAtATime, (self._what,)
