"""What the server asks of a model, and the limits that it keeps."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import Any, Protocol

if sys.platform != "win32":
    import resource

_OTHER_FILES = 64  # that the process has open beside connections
TOLD_WHY = 32  # connections beyond the limit that are being told why they are closed


class Service(Protocol):
    """A model behind the server. ``predict`` is called by ``workers`` threads at a time.

    Attributes:
        classes: Number of labels, the most that can be asked for.
        fields: Keys of a request's JSON object that :meth:`inputs` reads.
    """

    classes: int
    fields: frozenset[str]

    def inputs(self, content: dict[str, Any]) -> list[Any]:
        """Reads the inputs of a request.

        Raises:
            ValueError: The request is malformed; the client is told why.
        """
        ...

    def predict(self, inputs: list[Any], k: int) -> list[dict[str, Any]]:
        """Predicts the ``k`` best labels of each input, as JSON objects with a list per key, best first."""
        ...


@dataclass(frozen=True)
class Limits:
    """Limits of a server. Every wait has one.

    Attributes:
        max_bytes: Bytes of a request's body; more are refused with status 413.
        max_inputs: Inputs of a request; more are refused with status 413.
        max_batch: Inputs that are predicted together (those of one request stay together).
        max_waiting: Inputs that wait; requests beyond that are refused with status 503.
        max_connections: Open connections. Beyond that, the one that has waited longest for a request is closed, and
            where none waits, the new one is refused with status 503. 0 means 1024, or what ``ulimit -n`` allows.
        request_timeout: Seconds that a client has to send the head of a request, as many for its body, and as many to
            take the answer.
        idle_timeout: Seconds that a connection without a request is kept.
        stop_timeout: Seconds that a stopping server gives the requests it has accepted.
        workers: Threads that predict. A batch belongs to one of them.

    Raises:
        ValueError: A limit is not positive.
    """

    max_bytes: int = 1 << 20
    max_inputs: int = 256
    max_batch: int = 64
    max_waiting: int = 4096
    max_connections: int = 0
    request_timeout: float = 30.0
    idle_timeout: float = 75.0
    stop_timeout: float = 30.0
    workers: int = 1

    def __post_init__(self) -> None:
        if self.max_connections == 0:
            object.__setattr__(self, "max_connections", _default_connections())
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; wanted a positive number")


def _default_connections() -> int:
    most = 1024
    if sys.platform == "win32":
        return most
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if files == resource.RLIM_INFINITY else max(1, min(most, files - _OTHER_FILES - TOLD_WHY))
