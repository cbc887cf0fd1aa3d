"""Connections with limits: how many there are, and how long each may wait for its client.

Uvicorn closes connections that are idle after a response, and no others: a client that stops in the middle of a
request, or never takes the answer, would keep its connection for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .metrics import Counter
from .service import TOLD_WHY, Limits

_MOST_HEAD_BYTES = 1 << 16
_MOST_REST_BYTES = 1 << 24  # of a body that was refused, read so that the client sees why
_LINGER = 1.0  # seconds in which a client can read why its connection is closed
_LEAST_WAIT = 1.0  # seconds before a waiting connection makes room for another one


def _response(status: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "content-length: 0", "connection: close", "", ""]
    return "\r\n".join(lines).encode()


_BUSY = _response("503 Service Unavailable", "retry-after: 1")
_LATE = _response("408 Request Timeout")
_TOO_LONG = _response("431 Request Header Fields Too Large")


class Connections:
    """The open connections of a server, and what became of those that are not.

    Not thread-safe: of one event loop.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.open: set[Connection] = set()
        self.refused = Counter("torch_lsh_connections_refused_total", "Connections beyond the limit.")
        self.expired = Counter("torch_lsh_connections_expired_total", "Connections closed after a timeout.", "while")
        self._allowed = {
            "idle": limits.idle_timeout,
            "head": limits.request_timeout,
            "body": limits.request_timeout,
            "rest": limits.request_timeout,
            "computing": float("inf"),  # ends by itself
            "sending": limits.request_timeout,
            "closing": _LINGER,
        }

    def connect(self, **options: Any) -> Connection:
        """Makes the protocol of a new connection, for uvicorn."""
        return Connection(self, **options)

    async def sweep(self) -> None:
        """Closes connections that have waited too long, for ever."""
        every = min(0.5, min(self._allowed.values()) / 4)
        while True:
            await asyncio.sleep(every)
            now = asyncio.get_running_loop().time()
            for connection in list(self.open):
                if connection.waits(now) > self._allowed[connection.state]:
                    if connection.state != "closing":
                        self.expired.add(of=connection.state)
                    connection.expire()

    def admit(self, new: Connection) -> None:
        """Takes a new connection, or refuses it."""
        self.open.add(new)
        now = asyncio.get_running_loop().time()
        closing = [(connection.waits(now), connection) for connection in self.open if connection.state == "closing"]
        if len(closing) > TOLD_WHY:
            max(closing, key=lambda pair: pair[0])[1].transport.abort()
        present = [connection for connection in self.open if connection.state != "closing"]
        if len(present) > self.limits.max_connections and not self._make_room(present):
            self.refused.add()
            new.dismiss(_BUSY)

    def _make_room(self, present: list[Connection]) -> bool:
        """Closes the connection that has waited longest for a request."""
        now = asyncio.get_running_loop().time()
        waits = [(connection.waits(now), connection) for connection in present]
        waiting = [(wait, one) for wait, one in waits if one.state in ("idle", "head") and wait >= _LEAST_WAIT]
        if not waiting:
            return False
        _, longest = max(waiting, key=lambda pair: pair[0])
        self.expired.add(of=longest.state)
        longest.expire()
        return True


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen when uvicorn is imported
    """A connection that knows what it waits for, and since when.

    Attributes:
        state: What it waits for: ``"idle"`` (a request), ``"head"`` or ``"body"`` (of one that has begun), ``"rest"``
            (of the body of a refused one), ``"computing"``, ``"sending"`` (the client), ``"closing"``.
    """

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._all = connections
        self.state = "idle"
        self._cycle: Any = None  # the request at the last look
        self._head_bytes = 0
        self._dismissed = False
        self._since = self.loop.time()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._all.admit(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._all.open.discard(self)
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self._dismissed:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._head_bytes += len(data)
            refused = self.cycle is not None and self.cycle.more_body
            if self._head_bytes > (_MOST_REST_BYTES if refused else _MOST_HEAD_BYTES + len(data)):
                self.dismiss(_TOO_LONG)
                return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_bytes = 0

    def waits(self, now: float) -> float:
        """Brings ``state`` up to date; returns the seconds for which it has lasted."""
        state = self._state()
        if state != self.state or self.cycle is not self._cycle:
            self.state, self._cycle, self._since = state, self.cycle, now
        return now - self._since

    def _state(self) -> str:
        cycle = self.cycle
        if self._dismissed or self.transport.is_closing():
            return "closing"
        if self.transport.get_write_buffer_size() > 0:
            return "sending"
        if cycle is not None and cycle.response_complete and cycle.more_body:
            return "rest"
        if cycle is None or cycle.response_complete:
            return "head" if self._head_bytes > 0 else "idle"
        if cycle.more_body:
            return "body"
        return "computing"

    def expire(self) -> None:
        """Ends a connection that has waited too long."""
        if self.state in ("head", "body"):
            self.dismiss(_LATE)
        elif self.state in ("idle", "rest"):
            self.transport.close()
        else:  # the client takes nothing, so it would not take a reason either
            self.transport.abort()

    def dismiss(self, response: bytes) -> None:
        """Tells the client why, and reads no more. Closed at once, the connection would be reset before it is told."""
        self._dismissed = True
        self.state, self._since = "closing", self.loop.time()
        self.transport.write(response)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()
