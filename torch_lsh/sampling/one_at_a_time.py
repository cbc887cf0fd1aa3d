"""OneAtATime: a guard of what two threads must not do at once."""

from __future__ import annotations

import threading
from typing import Any


class OneAtATime:
    """A context that one thread may be in; another one gets an error, not a wait. Copies are free.

    Args:
        what: the beginning of the error.

    >>> guard = OneAtATime("this layer is trained")
    >>> with guard, guard:
    ...     pass
    Traceback (most recent call last):
    RuntimeError: this layer is trained by two threads at once; wanted one at a time: take turns under a lock
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"{self._what} by two threads at once; wanted one at a time: take turns under a lock")

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return OneAtATime, (self._what,)
