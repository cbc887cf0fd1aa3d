"""The server under any order of requests, reloads and a stop.

Every accepted request is answered by the model that it came to, also while another one is loaded, and after the stop.
The application runs in an event loop that the rules drive, so that a sequence repeats exactly.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from state_machines.effort import EFFORT

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from torch_lsh.serving.server import Server
from torch_lsh.serving.service import Limits


class Echo:
    """A model that answers with its version and the input."""

    fields = frozenset({"texts"})
    classes = 3

    def __init__(self, version):
        self.version = version

    def inputs(self, content):
        if not isinstance(content.get("texts"), list):
            raise ValueError('"texts" must be a list')
        return content["texts"]

    def predict(self, inputs, k):
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


CONTENTS = {
    "two": ({"texts": ["a", "b"], "k": 2}, 200),
    "one": ({"texts": ["a"]}, 200),
    "too many": ({"texts": ["a"] * 9}, 413),
    "k out of range": ({"texts": ["a"], "k": 4}, 400),
    "unknown key": ({"texts": ["a"], "\ud800": 1}, 400),
    "no texts": ({}, 400),
    "fails": ({"texts": ["fail"]}, 500),
}


class ServerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.version, self.can_load = 1, True
        self.server = Server(self.load, Limits(max_inputs=8, max_batch=4, max_bytes=1000, workers=2))
        self.lifespan = self.server.app.router.lifespan_context(self.server.app)
        self.loop.run_until_complete(self.lifespan.__aenter__())
        self.open: list[tuple[Request, bytes, str, int]] = []  # with the rest of the body, what it is, and the version
        self.answered = self.reloaded = 0

    def load(self):
        if not self.can_load:
            raise ValueError("no model")
        return Echo(self.version)

    @rule(name=st.sampled_from(sorted(CONTENTS)), cut=st.integers(0, 40))
    def begin(self, name, cut):
        body = json.dumps(CONTENTS[name][0]).encode()
        request = Request(self.loop, self.server.app, "POST", "/predict")
        request.body(body[:cut], more=True)
        self.open.append((request, body[cut:], name, self.server.service.version))

    @rule(which=st.integers(0, 10))
    def end(self, which):
        if self.open:
            self.finish(*self.open.pop(which % len(self.open)))

    @rule()
    def end_all_at_once(self):
        for request, rest, _, _ in self.open:
            request.body(rest, more=False)
        for request, _, name, version in self.open:
            self.check(request, name, version)
        self.open.clear()

    @rule(which=st.integers(0, 10))
    def go_away(self, which):
        if self.open:
            request, *_ = self.open.pop(which % len(self.open))
            request.disconnect()
            assert request.answer()[0] == 400
            self.answered += 1

    def finish(self, request, rest, name, version):
        request.body(rest, more=False)
        self.check(request, name, version)

    def check(self, request, name, version):
        content, wanted = CONTENTS[name]
        status, headers, body = request.answer()
        assert status == wanted, body
        answer = json.loads(body)
        if status == 200:
            texts, k = content["texts"], content.get("k", 1)
            assert answer["predictions"] == [{"labels": [version, text][:k]} for text in texts]
        else:
            assert answer["error"]
        if self.server.stopping:
            assert headers[b"connection"] == b"close"
        self.answered += 1

    @rule(works=st.booleans())
    def reload(self, works):
        self.can_load, self.version = works, self.version + 1
        before = self.server.service
        self.loop.run_until_complete(self.server.reload())
        self.reloaded += 1
        assert self.server.service.version == (self.version if works else before.version)

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
        assert float(values["torch_lsh_waiting_inputs"]) == 0
        reloads = [float(value) for name, value in values.items() if name.startswith("torch_lsh_reloads_total{")]
        assert sum(reloads) == self.reloaded

    def teardown(self):
        while self.open:
            self.finish(*self.open.pop())
        self.loop.run_until_complete(asyncio.wait_for(self.lifespan.__aexit__(None, None, None), 10))
        self.loop.close()


ServerMachine.TestCase.settings = EFFORT
TestServer = ServerMachine.TestCase
