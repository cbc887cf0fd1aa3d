"""Every wait of the server has an end: a server in this process, and a service that does as it is told."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import logging
import socket
import threading
import time

import pytest

from torch_lsh.serving.service import Limits

if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
    pytest.skip("starlette and uvicorn are not here", allow_module_level=True)

from torch_lsh.serving import logs
from torch_lsh.serving.batcher import Batcher, QueueFull
from torch_lsh.serving.server import Server, listen


class Service:
    """Answers with a text of the wanted size, after ``go`` is set."""

    classes = 3
    fields = frozenset({"size"})

    def __init__(self):
        self.go = threading.Event()
        self.go.set()

    def inputs(self, content):
        return [int(content["size"])]

    def predict(self, inputs, k):
        self.go.wait(20)
        if -1 in inputs:
            raise ValueError("broken")
        return [{"labels": ["x" * size] * k} for size in inputs]


class Running:
    def __init__(self, limits):
        self.service = Service()
        self.server = Server(lambda: self.service, limits)
        listener = listen(port=0)
        self.port = listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=[listener])
        self.thread.start()

    def stop(self):
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def connect(self, data=b""):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sendall(data)
        return connection

    def ask(self, size=1, connection=None):
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("POST", "/predict", json.dumps({"size": size}))
        response = connection.getresponse()
        return response, response.read()


@pytest.fixture(scope="module")
def running():
    running = Running(Limits(request_timeout=0.4, idle_timeout=0.6, max_connections=6, max_waiting=2, stop_timeout=5))
    yield running
    running.stop()


def until_closed(connection):
    """What comes before the end of a connection, and after how many seconds that is."""
    start, received = time.monotonic(), b""
    with connection:
        while data := connection.recv(1 << 20):
            received += data
    return received, time.monotonic() - start


HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize("part", [HEAD[:10], HEAD, HEAD + b'{"size'], ids=["head", "no body", "body"])
def test_a_half_sent_request_ends_with_408(running, part):
    received, seconds = until_closed(running.connect(part))
    assert received.startswith(b"HTTP/1.1 408 Request Timeout")
    assert b"connection: close" in received
    assert 0.3 < seconds < 3


def test_a_trickle_is_no_progress(running):
    connection = running.connect(HEAD)
    received = b""
    for _ in range(100):
        try:
            connection.sendall(b" ")
            connection.settimeout(0.05)
            received += connection.recv(1000)
            break
        except TimeoutError:
            continue
    assert received.startswith(b"HTTP/1.1 408")
    connection.close()


@pytest.mark.parametrize("requests", [0, 1])
def test_an_idle_connection_is_closed(running, requests):
    connection = running.connect((HEAD.replace(b"100", b"11") + b'{"size": 1}') * requests)
    received, seconds = until_closed(connection)
    assert received.count(b"HTTP/1.1 200") == requests
    assert 0.5 < seconds < 4


def test_a_client_that_takes_no_answer_is_left(running):
    connection = running.connect(HEAD.replace(b"100", b"18") + b'{"size": 30000000}')
    while not any(one.state == "sending" for one in running.server.connections.open):
        time.sleep(0.01)
    start = time.monotonic()
    while running.server.connections.open:
        time.sleep(0.01)
        assert time.monotonic() - start < 8
    assert len(until_closed(connection)[0]) < 30_000_000
    assert running.ask()[0].status == 200


def test_too_long_a_head(running):
    connection = running.connect()
    try:
        for _ in range(40):
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000)
        received, _ = until_closed(connection)
        assert received.startswith(b"HTTP/1.1 4")
    except ConnectionError:  # reset before the reason was read
        pass
    assert running.ask()[0].status == 200


def test_beyond_the_limit_of_connections(running):
    """The longest waiting one makes room; where all have just come, the new one is told to come back."""
    while running.server.connections.open:
        time.sleep(0.02)
    old = [running.connect() for _ in range(6)]
    received, _ = until_closed(running.connect())
    assert received.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in received
    assert running.ask()[0].status in (200, 503)
    for connection in old:
        connection.close()
    many = [running.connect(b"POST") for _ in range(60)]  # half-sent
    time.sleep(1.2)
    assert running.ask()[0].status == 200
    for connection in many:
        connection.close()
    assert running.server.connections.refused.values[""] >= 20


def test_beyond_what_may_wait(running):
    running.service.go.clear()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(running.ask()[0].status)) for _ in range(2)]
    for thread in threads:
        thread.start()
    while running.server.batcher.waiting < 2:
        time.sleep(0.01)
    response, body = running.ask()
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert b"2 inputs are waiting already" in body
    running.service.go.set()
    for thread in threads:
        thread.join(10)
    assert answers == [200, 200]


def test_a_fault_of_the_model_is_logged_and_the_server_goes_on(running, caplog):
    caplog.set_level(logging.ERROR, logger="torch_lsh.serving")
    response, body = running.ask(-1)
    assert (response.status, json.loads(body)) == (500, {"error": "the prediction failed: broken"})
    (record,) = caplog.records
    entry = json.loads(logs.JSONLines().format(record))
    assert (entry["event"], entry["level"]) == ("request failed", "error")
    assert "ValueError: broken" in entry["traceback"]
    assert running.ask()[0].status == 200


def test_while_it_drains_clients_are_told_to_close():
    running = Running(Limits(stop_timeout=10))
    busy, idle = (http.client.HTTPConnection("127.0.0.1", running.port, timeout=20) for _ in range(2))
    for connection in (busy, idle):
        assert running.ask(connection=connection)[0].headers["connection"] is None
    running.service.go.clear()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(running.ask(connection=busy)[0]))
    thread.start()
    while running.server.batcher.waiting == 0:
        time.sleep(0.01)
    running.server.stop()
    idle.request("GET", "/health/ready")
    try:
        response = idle.getresponse()
        assert (response.status, response.headers["connection"]) == (503, "close")
    except http.client.RemoteDisconnected:  # idle for longer than a tick
        pass
    running.thread.join(1)
    assert running.thread.is_alive()
    running.service.go.set()
    thread.join(10)
    running.stop()
    assert (answers[0].status, answers[0].headers["connection"]) == (200, "close")


def test_a_half_sent_request_delays_the_stop_no_longer_than_its_limit():
    running = Running(Limits(request_timeout=60, stop_timeout=1))
    with running.connect(HEAD + b"{"):
        assert running.ask()[0].status == 200
        start = time.monotonic()
        running.stop()
        assert 0.9 < time.monotonic() - start < 4


def test_two_servers_on_one_port():
    with listen(port=0, reuse_port=True) as one, listen(port=one.getsockname()[1], reuse_port=True) as other:
        assert one.getsockname() == other.getsockname()
    with listen(port=0) as one, pytest.raises(OSError, match="in use"):
        listen(port=one.getsockname()[1])


@pytest.mark.parametrize("name", ["max_bytes", "max_waiting", "request_timeout", "workers"])
def test_limits_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} is -1; wanted a positive number"):
        Limits(**{name: -1})


# --- batches ----------------------------------------------------------------------------------------------------------


class Counting:
    def __init__(self):
        self.batches = []

    def predict(self, inputs, k):
        self.batches.append((list(inputs), k))
        return [{"labels": [one] * k} for one in inputs]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_hold_requests_of_one_service(workers):
    first, second = Counting(), Counting()

    async def run():
        batcher = Batcher(Limits(max_batch=4, max_waiting=8, workers=workers))
        requests = [(first, [1, 2], 1), (first, [3], 3), (second, [4], 1), (second, [5, 6], 2), (first, [7, 8], 1)]
        answers = [asyncio.ensure_future(batcher.predict(*request)) for request in requests]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="8 inputs are waiting already"):
            await batcher.predict(first, [9], 1)
        task = asyncio.create_task(batcher.run())
        batcher.stop()
        for (_, inputs, k), answer in zip(requests, await asyncio.gather(*answers)):  # stopped, yet answered
            assert answer == [{"labels": [one] * k} for one in inputs]
        await task
        assert batcher.waiting == 0

    asyncio.run(run())
    assert sorted(first.batches) == [([1, 2, 3], 3), ([7, 8], 1)]
    assert second.batches == [([4, 5, 6], 2)]


def test_a_request_that_fails_fails_alone():
    class Particular:
        def predict(self, inputs, k):
            if "bad" in inputs:
                raise ValueError("on purpose")
            return [{"labels": [one]} for one in inputs]

    async def run():
        batcher, service = Batcher(Limits()), Particular()
        answers = [asyncio.ensure_future(batcher.predict(service, [one], 1)) for one in ("a", "bad", "b")]
        await asyncio.sleep(0)
        batcher.stop()
        await batcher.run()
        return await asyncio.gather(*answers, return_exceptions=True)

    first, failure, second = asyncio.run(run())
    assert first == [{"labels": ["a"]}]
    assert str(failure) == "the prediction failed: on purpose"
    assert second == [{"labels": ["b"]}]
