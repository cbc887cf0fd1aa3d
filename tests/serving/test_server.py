"""The HTTP server, as a process of its own: requests of every kind, limits, stopping under load."""

from __future__ import annotations

import concurrent.futures
import functools
import http.client
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from torch_lsh.models import TextClassifier

if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
    pytest.skip("starlette and uvicorn are not here", allow_module_level=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    texts = ["a fine film", "good fun", "dull and long", "a bad film"] * 10
    model = TextClassifier().fit(texts, ["pos", "pos", "neg", "neg"] * 10)
    model.path = tmp_path_factory.mktemp("model") / "model"
    model.save(model.path)
    return model


class Process:
    """`python -m torch_lsh serve` on a free port, which takes seconds to start."""

    def __init__(self, path, *options):
        command = [sys.executable, "-m", "torch_lsh", "--threads", "1", "serve", str(path), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.ended = None

    @functools.cached_property
    def port(self):
        line = self.process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:"), self.process.stderr.read()
        return int(line.rsplit(":", 1)[1])

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def predict(self, **content):
        status, body = self.request("POST", "/predict", json.dumps(content))
        return status, json.loads(body)

    def stop(self, sig):
        self.process.send_signal(sig)
        _, errors = self.process.communicate(timeout=30)
        self.ended = self.process.returncode, errors
        return self.ended


@pytest.fixture(scope="module")
def processes(model, tmp_path_factory):
    """Two servers, which start at the same time; the second one has a model file of its own."""
    path = tmp_path_factory.mktemp("another") / "model"
    path.write_bytes(model.path.read_bytes())
    server = Process(model.path, "--max-bytes", "200000", "--max-inputs", "50")
    another = Process(path, "--log-requests", "--stop-timeout", "60", "--request-timeout", "60")
    another.path = path
    yield server, another
    for one in (server, another):
        one.process.kill()
        one.process.communicate()


@pytest.fixture(scope="module")
def server(processes):
    """The server of most tests; the last of them stops it."""
    server, _ = processes
    assert server.port > 0
    yield server
    code, errors = server.ended or server.stop(signal.SIGTERM)
    assert code == 0
    events = [json.loads(line) for line in errors.splitlines()]
    assert [events[0]["event"], *(event["event"] for event in events[-2:])] == ["serving", "stopping", "stopped"]
    assert {event["event"] for event in events[1:-2]} <= {"Invalid HTTP request received."}


def test_predicts_as_the_model_does(server, model):
    texts = ["good film", "long, bad", "", "北京 🙂"]
    status, answer = server.predict(texts=texts, k=2)
    assert status == 200
    labels, probabilities = model.top_k(texts, 2)
    assert [p["labels"] for p in answer["predictions"]] == labels.tolist()
    np.testing.assert_allclose([p["probabilities"] for p in answer["predictions"]], probabilities, rtol=1e-5)
    status, answer = server.predict(text="good film")
    assert (status, answer["predictions"][0]["labels"]) == (200, ["pos"])


def test_predicts_within_the_labels_that_a_request_permits(server, model):
    (_, sure), (_, unlikely) = (model.predict_proba([text])[0] for text in ("good film", "long, bad"))
    status, answer = server.predict(texts=["good film", "long, bad"], k=2, allowed=["pos", "neg"], excluded=["neg"])
    assert status == 200
    assert [p["labels"] for p in answer["predictions"]] == [["pos"]] * 2
    np.testing.assert_allclose([p["probabilities"] for p in answer["predictions"]], [[sure], [unlikely]], rtol=1e-5)


def test_health(server):
    assert server.request("GET", "/health/live") == (200, b'{"status":"live"}')
    assert server.request("GET", "/health/ready") == (200, b'{"status":"ready"}')


def test_metrics(server):
    """As Prometheus' own parser reads them."""
    parser = pytest.importorskip("prometheus_client.parser")

    def metrics():
        status, body = server.request("GET", "/metrics")
        assert status == 200
        families = parser.text_string_to_metric_families(body.decode())
        return {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }

    server.predict(texts=["a"])
    before = metrics()
    assert server.predict(texts=["a", "b", "c"])[0] == 200
    assert server.predict(texts=[])[0] == 400
    after = metrics()
    changed = {name: value - before.get(name, 0) for name, value in after.items()}
    assert changed["torch_lsh_inputs_total",] == 3
    assert changed["torch_lsh_responses_total", "200"] == changed["torch_lsh_responses_total", "400"] == 1
    assert changed["torch_lsh_request_seconds_count",] == changed["torch_lsh_request_seconds_bucket", "+Inf"] == 2
    assert changed["torch_lsh_batch_inputs_sum",] == 3
    assert changed["torch_lsh_predict_seconds_count",] == changed["torch_lsh_queue_seconds_count",] == 1
    assert after["torch_lsh_waiting_inputs",] == 0
    assert after["torch_lsh_connections",] >= 1
    assert after["process_resident_memory_bytes",] > 1e7


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 50_000, 400, "not JSON"),
        (b"[]", 400, "a JSON list; wanted an object"),
        (b"{}", 400, "neither or both"),
        (b'{"text": "a", "texts": ["a"]}', 400, "neither or both"),
        (b'{"text": 3}', 400, "must be a string"),
        (b'{"text": null}', 400, "must be a string"),
        (b'{"texts": "a"}', 400, "must be a string"),
        (b'{"texts": []}', 400, "at least one string"),
        (b'{"texts": ["a", 1]}', 400, "must be a string"),
        (b'{"text": "a", "k": 0}', 400, "is 0; wanted a whole number from 1 to 2"),
        (b'{"text": "a", "k": 3}', 400, "is 3"),
        (b'{"text": "a", "k": true}', 400, "is True"),
        (b'{"text": "a", "allowed": "pos"}', 400, '"allowed" must be a list of labels'),
        (b'{"text": "a", "excluded": [true]}', 400, '"excluded" must be a list of labels'),
        (b'{"text": "a", "excluded": ["no"]}', 400, "excluded: the label 'no' did not occur"),
        (b'{"text": "a", "allowed": []}', 400, "leave no label"),
        (b'{"text": "a", "allowed": ["pos"], "excluded": ["pos"]}', 400, "leave no label"),
        (b'{"text": "a", "top": 1}', 400, "the body has top; wanted k and some of allowed, excluded, text, texts"),
        (b'{"text": "a", "\\ud800": 1}', 400, r"has \ud800"),
        (b'{"text": "a", "k": "\\ud800"}', 400, '"k" is'),
        (b'{"text": "a", "k": ' + b"1" * 5000 + b"}", 400, "not JSON"),
        (json.dumps({"texts": ["a"] * 51}).encode(), 413, "there are 51 inputs; wanted at most 50"),
        (json.dumps({"text": "a" * 200_000}).encode(), 413, "larger than 200000 bytes"),
    ],
)
def test_malformed_and_oversized_requests(server, body, status, words):
    found, answer = server.request("POST", "/predict", body)
    assert found == status
    assert words in json.loads(answer)["error"]
    assert server.predict(text="good")[0] == 200


def test_lone_surrogates_are_text(server):
    status, _ = server.request("POST", "/predict", b'{"text": "good \\ud800"}')
    assert status == 200


def test_an_oversized_body_without_a_length(server):
    status, _ = server.request("POST", "/predict", iter([b"x" * 10_000] * 40))  # in chunks
    assert status == 413


def test_an_announced_length_is_refused_before_the_body_comes(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("GET", "/", 404), ("POST", "/health/live", 405), ("GET", "/health", 404)],
)
def test_other_paths_and_methods(server, method, path, status):
    assert server.request(method, path)[0] == status


@pytest.mark.parametrize(
    "noise",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000,
    ],
)
def test_what_is_not_http(server, noise):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        try:
            connection.sendall(noise)
            assert connection.recv(100)[:10] in (b"HTTP/1.1 4", b"")
        except ConnectionError:
            pass
    assert server.predict(text="good")[0] == 200


def test_clients_that_go_away(server):
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        body = json.dumps({"texts": ["good film"] * 50}).encode()
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-5])
        connection.close()
    assert server.predict(text="good")[0] == 200


def test_concurrent_requests_get_their_own_answers(server):
    texts = ["good fun", "bad film", "dull", "a fine film"]
    wanted = {text: server.predict(text=text)[1] for text in texts}

    def ask(i):
        return server.predict(text=texts[i % 4]) == (200, wanted[texts[i % 4]])

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(400)))


def half_a_body(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
    return connection


@pytest.fixture(scope="module")
def another(processes):
    """The server that the last of its tests ends."""
    _, another = processes
    assert another.port > 0
    return another


def test_a_reload_under_load_loses_no_request(model, another):
    """SIGHUP: first a damaged file, which changes nothing, then a model with other labels."""
    server, path = another, another.path
    results, done = [], threading.Event()

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        while not done.is_set():
            connection.request("POST", "/predict", json.dumps({"text": "good film", "k": 2}))
            response = connection.getresponse()
            answer = json.loads(response.read())
            results.append((response.status, *answer["predictions"][0]["labels"]))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()

    def logged(event):
        return next(entry for line in server.process.stderr if (entry := json.loads(line))["event"] == event)

    path.write_bytes(model.path.read_bytes()[:-1])
    server.process.send_signal(signal.SIGHUP)
    assert "cut off" in logged("reload failed, the present model stays")["reason"]
    texts, labels = ["a fine film", "good fun", "dull and long", "a bad film"] * 10, ["yes", "yes", "no", "no"] * 10
    TextClassifier(epochs=2).fit(texts, labels).save(path)
    server.process.send_signal(signal.SIGHUP)
    assert logged("reloaded")["classes"] == 2
    while results[-1] != (200, "yes", "no"):
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join(30)
    assert set(results) == {(200, "pos", "neg"), (200, "yes", "no")}
    assert logged("request").keys() >= {"time", "level", "status", "seconds", "inputs", "client"}


def test_a_second_signal_ends_it_at_once(another):
    with half_a_body(another.port):
        assert another.predict(text="good")[0] == 200
        another.process.send_signal(signal.SIGINT)
        while json.loads(another.process.stderr.readline())["event"] != "stopping":
            pass
        start = time.monotonic()
        code, _ = another.stop(signal.SIGTERM)
        assert time.monotonic() - start < 3
    assert code == 128 + signal.SIGTERM


def test_stopping_under_load_loses_no_accepted_request(server):
    text = "a fine and long film " * 2000
    stopping = threading.Event()
    results = []

    def client():
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            try:
                connection.connect()
            except OSError:  # no more connections are taken
                results.append("refused" if stopping.is_set() else "lost")
                return
            try:
                connection.request("POST", "/predict", json.dumps({"texts": [text, "good"]}))
                status = connection.getresponse().status
                results.append(status)
            except (http.client.HTTPException, OSError):
                # In the listener's queue when it was closed: the kernel connected, the server never accepted.
                results.append("reset" if stopping.is_set() else "lost")
                return
            finally:
                connection.close()

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    while len(results) < 3:
        time.sleep(0.05)
    accepted_before = len(results)
    # What these have sent entirely, half a second before the signal, the server has accepted.
    in_flight = []
    body = json.dumps({"texts": [text] * 4}).encode()
    for _ in range(8):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        in_flight.append(connection)
    time.sleep(0.05)
    stopping.set()
    code, errors = server.stop(signal.SIGTERM)
    for connection in in_flight:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        connection.close()
    for thread in threads:
        thread.join(30)
    assert accepted_before > 0
    assert "lost" not in results
    assert {result for result in results if isinstance(result, int)} == {200}
    assert "traceback" not in errors
    assert code == 0
