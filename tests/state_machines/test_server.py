"""The server under any order of requests, reloads and a stop.

Every accepted request is answered by the model that it came to, also while another one is loaded, and after the stop.
Predictions and loads can be held, so that anything else happens during them. The application runs in an event loop that
the rules drive, so that a sequence repeats exactly.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from state_machines.effort import EFFORT

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from torch_lsh.serving.server import Server
from torch_lsh.serving.service import Limits


class Echo:
    """A model that answers with its version and the input, while it may."""

    fields = frozenset({"texts"})
    classes = 3

    def __init__(self, version, may_predict):
        self.version, self.may_predict = version, may_predict

    def inputs(self, content):
        if not isinstance(content.get("texts"), list):
            raise ValueError('"texts" must be a list')
        return content["texts"]

    def predict(self, inputs, k):
        assert self.may_predict.wait(10)
        if "fail" in inputs:
            raise RuntimeError("on purpose")
        return [{"labels": [self.version, text][:k]} for text in inputs]


class Request:
    """A request whose body is sent piece by piece."""

    def __init__(self, loop, app, method, path):
        self.incoming: asyncio.Queue = asyncio.Queue()
        self.sent: list[dict] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "scheme": "http",
        }

        async def send(message):
            self.sent.append(message)

        self.loop = loop
        self.task = loop.create_task(app(scope, self.incoming.get, send))
        self.step()

    def step(self):
        """Lets the server do what it can do now."""
        for _ in range(10):
            self.loop.run_until_complete(asyncio.sleep(0))

    def body(self, part, more):
        self.incoming.put_nowait({"type": "http.request", "body": part, "more_body": more})
        self.step()

    def disconnect(self):
        self.incoming.put_nowait({"type": "http.disconnect"})

    def answer(self):
        self.loop.run_until_complete(asyncio.wait_for(self.task, 10))
        start, *rest = self.sent
        content = b"".join(message.get("body", b"") for message in rest)
        headers = dict(start["headers"])
        return start["status"], headers, content


LIMITS = Limits(max_inputs=8, max_batch=4, max_bytes=1000, max_waiting=5, workers=2)
CONTENTS = {
    "two": ({"texts": ["a", "b"], "k": 2}, 200),
    "one": ({"texts": ["a"]}, 200),
    "too many": ({"texts": ["a"] * 9}, 413),
    "k out of range": ({"texts": ["a"], "k": 4}, 400),
    "unknown key": ({"texts": ["a"], "\ud800": 1}, 400),
    "no texts": ({}, 400),
    "fails": ({"texts": ["fail"]}, 500),
}


class Sent(NamedTuple):
    """A request that is sent in part or in whole, and what its answer has to be."""

    request: Request
    rest: bytes
    content: dict
    status: int
    version: int


class ServerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.version, self.can_load = 1, True
        self.may_predict, self.may_load = threading.Event(), threading.Event()
        self.may_predict.set()
        self.may_load.set()
        self.server = Server(self.load, LIMITS)
        self.lifespan = self.server.app.router.lifespan_context(self.server.app)
        self.loop.run_until_complete(self.lifespan.__aenter__())
        self.open: list[Sent] = []  # in part
        self.held: list[Sent] = []  # in whole, without an answer
        self.loading = None
        self.answered = self.reloaded = 0

    def load(self):
        assert self.may_load.wait(10)
        if not self.can_load:
            raise ValueError("no model")
        return Echo(self.version, self.may_predict)

    # --- requests ---

    @rule(name=st.sampled_from(sorted(CONTENTS)), cut=st.integers(0, 40))
    def begin(self, name, cut):
        content, status = CONTENTS[name]
        body = json.dumps(content).encode()
        request = Request(self.loop, self.server.app, "POST", "/predict")
        request.body(body[:cut], more=True)
        self.open.append(Sent(request, body[cut:], content, status, self.server.service.version))

    @rule(which=st.integers(0, 10))
    def end(self, which):
        if self.open:
            self.finish(self.open.pop(which % len(self.open)))

    @rule(which=st.integers(0, 10))
    def go_away(self, which):
        if self.open:
            request = self.open.pop(which % len(self.open)).request
            request.disconnect()
            assert request.answer()[0] == 400
            self.answered += 1

    @rule()
    def hold_predictions(self):
        self.may_predict.clear()

    @rule()
    def release_predictions(self):
        self.may_predict.set()
        for sent in self.held:
            self.check(sent)
        self.held.clear()

    @property
    def waiting(self):
        return sum(len(sent.content["texts"]) for sent in self.held)

    def finish(self, sent):
        sent.request.body(sent.rest, more=False)
        if sent.status not in (200, 500) or self.may_predict.is_set():
            self.check(sent)
        elif self.waiting and self.waiting + len(sent.content["texts"]) > LIMITS.max_waiting:
            assert self.check(sent._replace(status=503))[b"retry-after"] == b"1"
        else:
            assert not sent.request.task.done()
            self.held.append(sent)

    def check(self, sent):
        status, headers, body = sent.request.answer()
        assert status == sent.status, body
        answer = json.loads(body)
        if status == 200:
            texts, k = sent.content["texts"], sent.content.get("k", 1)
            assert answer["predictions"] == [{"labels": [sent.version, text][:k]} for text in texts]
        else:
            assert answer["error"]
        if self.server.stopping:
            assert headers[b"connection"] == b"close"
        self.answered += 1
        return headers

    # --- models ---

    @rule(works=st.booleans(), held=st.booleans())
    def begin_reload(self, works, held):
        if self.loading is None:
            self.can_load, self.version = works, self.version + 1
            self.before = self.server.service.version
            if held:
                self.may_load.clear()
            self.loading = self.loop.create_task(self.server.reload())
            self.loop.run_until_complete(asyncio.sleep(0))
            if not held:
                self.end_reload()

    @rule()
    def end_reload(self):
        if self.loading is not None:
            self.may_load.set()
            self.loop.run_until_complete(asyncio.wait_for(self.loading, 10))
            self.loading = None
            self.reloaded += 1
            assert self.server.service.version == (self.version if self.can_load else self.before)

    @rule()
    def stop(self):
        self.server.stop()

    def get(self, path):
        request = Request(self.loop, self.server.app, "GET", path)
        return request.answer()

    @rule()
    def health(self):
        assert self.get("/health/live")[0] == 200
        assert self.get("/health/ready")[0] == (503 if self.server.stopping else 200)

    @invariant()
    def metrics_agree(self):
        text = self.get("/metrics")[2].decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        answers = [float(value) for name, value in values.items() if name.startswith("torch_lsh_responses_total{")]
        assert sum(answers) == self.answered == float(values["torch_lsh_request_seconds_count"])
        assert float(values["torch_lsh_waiting_inputs"]) == self.waiting
        reloads = [float(value) for name, value in values.items() if name.startswith("torch_lsh_reloads_total{")]
        assert sum(reloads) == self.reloaded

    def teardown(self):
        """The end comes while predictions and a load are held."""
        while self.open:
            self.finish(self.open.pop())
        end = self.loop.create_task(self.lifespan.__aexit__(None, None, None))
        self.loop.run_until_complete(asyncio.sleep(0))
        self.release_predictions()
        self.end_reload()
        self.loop.run_until_complete(asyncio.wait_for(end, 10))
        self.loop.close()


ServerMachine.TestCase.settings = EFFORT
TestServer = ServerMachine.TestCase
