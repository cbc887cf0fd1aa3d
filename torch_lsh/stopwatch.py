"""A stopwatch for the parts of a step."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar


class Stopwatch:
    """Measures how long named parts take. Parts may be nested; the time of a part excludes the parts inside it.

    >>> stopwatch = Stopwatch()
    >>> with stopwatch.part("choosing"), stopwatch.part("look-up"):
    ...     pass
    >>> sorted(stopwatch.milliseconds())
    ['choosing', 'look-up']
    """

    def __init__(self) -> None:
        self._total: dict[str, tuple[float, int]] = {}  # seconds, calls
        self._within = 0.0  # seconds of the parts inside the present one

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time of a ``with`` block as that of ``name``."""
        outer, self._within = self._within, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            seconds, calls = self._total.get(name, (0.0, 0))
            self._total[name] = (seconds + elapsed - self._within, calls + 1)
            self._within = outer + elapsed

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds per call of each part since the last :meth:`reset`."""
        return {name: 1e3 * seconds / calls for name, (seconds, calls) in self._total.items()}

    def calls(self) -> dict[str, int]:
        """Calls of each part since the last :meth:`reset`."""
        return {name: calls for name, (_, calls) in self._total.items()}

    def reset(self) -> None:
        """Forgets all measurements."""
        self._total.clear()


_NOTHING: AbstractContextManager[None] = nullcontext()


def part(stopwatch: Stopwatch | None, name: str) -> AbstractContextManager[None]:
    """``stopwatch.part(name)``, or a context that does nothing if there is no stopwatch."""
    return _NOTHING if stopwatch is None else stopwatch.part(name)


Method = TypeVar("Method", bound=Callable[..., Any])


def timed(name: str) -> Callable[[Method], Method]:
    """Decorator of methods: counts their time as part ``name`` of ``self.stopwatch``, unless that is None."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.stopwatch is None:
                return method(self, *args, **kwargs)
            with self.stopwatch.part(name):
                return method(self, *args, **kwargs)

        return wrapper  # type: ignore[return-value]  # wraps() copies the signature

    return decorate
