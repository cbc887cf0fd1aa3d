"""Damaged requests to a server in the same process.

Every request gets an answer that is no server error, or the end of the connection; the server stays ready.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import socket
import threading

import torch
from mutations import changed_value, damaged

from torch_lsh.models import TextClassifier
from torch_lsh.serving.server import Server, listen
from torch_lsh.serving.service import Limits
from torch_lsh.text.service import TextService

_PATIENCE, _SECONDS = 0.05, 5  # for an answer, and for one to what was cut off
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"  # comes before the answer
_STATUSES = {200, 400, 404, 405, 408, 413, 503}
_CONTENTS = {"text": "a fine film"}, {"texts": ["good fun", "", "北京 🙂"], "k": 2}, {"texts": ["x"] * 60, "k": 1}


def request(body: bytes, method: str = "POST", path: str = "/predict", headers: str = "") -> bytes:
    """The bytes of a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode(errors="surrogatepass") + body


_REQUESTS = (
    *(request(json.dumps(content).encode()) for content in _CONTENTS),
    request(b"", "GET", "/health/ready"),
    request(b"", "GET", "/metrics", "Connection: close\r\n"),
    b'POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"tex\r\n7\r\nt":"a"}\r\n0\r\n\r\n',
    request(b"{}", headers="Expect: 100-continue\r\n"),
)


@functools.cache
def _server(process: int) -> tuple[str, int]:
    """Starts the server of a process; its address."""
    torch.set_num_threads(1)
    model = TextClassifier().fit(["a fine film", "good fun", "dull and long", "bad"] * 3, [*"ppnn"] * 3)
    limits = Limits(max_bytes=100_000, max_inputs=50, request_timeout=0.1, idle_timeout=0.1, max_connections=20)
    server = Server(lambda: TextService(model), limits)
    listener = listen(port=0)
    address: tuple[str, int] = listener.getsockname()[:2]
    threading.Thread(target=server.run, args=[listener], daemon=True).start()
    return address


def make(seed: int) -> tuple[bytes, bool]:
    """The bytes of a seed, and whether the server is asked afterwards if it is ready."""
    rng = random.Random(seed)
    asks = seed % 20 == 0
    if rng.random() < 0.5:
        content = json.dumps(changed_value(rng, rng.choice(_CONTENTS)), ensure_ascii=rng.random() < 0.5)
        body = content.encode(errors="surrogatepass")
        return request(damaged(rng, body) if rng.random() < 0.5 else body), asks
    return damaged(rng, b"".join(rng.choices(_REQUESTS, k=rng.choice((1, 1, 2)))), _REQUESTS), asks


def run(data: bytes, asks: bool = True) -> str:
    """Sends bytes on a connection of their own."""
    status = send(data)
    assert not asks or send(request(b"", "GET", "/health/ready")) == "200", "the server is not ready any more"
    return "answered" if status == "200" else "refused"


def send(data: bytes) -> str:
    """Sends bytes to the server.

    Returns:
        The status of the answer, or "closed".

    Raises:
        AssertionError: The answer is one of a broken server, or there is none.
    """
    with socket.create_connection(_server(os.getpid()), timeout=_PATIENCE) as connection:
        answer = b""
        try:
            connection.sendall(data)
            answer = _receive(connection, answer)
            if not _is_whole(answer):  # the server waits for more
                connection.settimeout(_SECONDS)
                connection.shutdown(socket.SHUT_WR)
                answer = _receive(connection, answer)
                assert _is_whole(answer) or not answer.removeprefix(_GO_ON), (
                    f"no end in {_SECONDS} seconds of {answer[:500]!r} to {data[:500]!r}"
                )
        except (ConnectionResetError, BrokenPipeError):
            pass
    if not answer:
        return "closed"
    version, status, *_ = answer.split(None, 2)
    assert version == b"HTTP/1.1", answer[:200]
    assert int(status) in _STATUSES or int(status) == 100, f"{answer[:300]!r} answers {data[:500]!r}"
    return status.decode()


def _receive(connection: socket.socket, answer: bytes) -> bytes:
    with contextlib.suppress(TimeoutError):
        while not _is_whole(answer) and (chunk := connection.recv(1 << 16)):
            answer += chunk
    return answer


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.removeprefix(_GO_ON).partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and length is not None and len(body) >= int(length[1])
