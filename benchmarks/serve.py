"""Load on the text server: concurrent clients over loopback, one request at a time each.

    python benchmarks/serve.py --clients 64 --seconds 120 --slow 100 --json out.jsonl

Trains a small classifier (or takes --model), runs `python -m torch_lsh serve` in its own process, and prints throughput
and client-side latencies: of one client, of all of them, and of all of them beside --slow clients, which send half a
request, or send one and never take the answer. Also the status codes, the server's processor time, and its memory after
the first tenth of the load, at most and at its end, with a reload of the model (SIGHUP) every --reload seconds. Clients
and server share the cores. With --processes, memory is that of one of them. The exit status is 1 if there was another
status than 200, if a connection was lost, or if the server does not stop with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torch_lsh.benchmarking import harness
from torch_lsh.models import TextClassifier


def generated(rows: int) -> tuple[list[str], list[str]]:
    generator = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    texts = [" ".join(generator.choices(words, k=generator.randint(20, 60))) for _ in range(rows)]
    return texts, [str(int(text.split()[0][4:]) % 4) for text in texts]


def request(content: dict[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    return b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Load(NamedTuple):
    """What the clients share: when they end, and what they saw."""

    until: float
    most: int
    latencies: array[float]  # 4 bytes each, of a million requests
    statuses: Counter[str]
    refusals: dict[str, bytes]  # the first body of each status that is not 200


class Client(asyncio.Protocol):
    """Sends a request when the last one is answered; speaks HTTP by hand, as libraries take longer than the server."""

    def __init__(self, requests: list[bytes], load: Load) -> None:
        self.requests, self.load = requests, load
        self.next = random.randrange(len(requests))
        self.received, self.size = b"", 0  # of the present answer; its size is known when its head is there
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        load = self.load
        self.began = time.perf_counter()
        if self.began < load.until and len(load.latencies) < load.most:
            self.transport.write(self.requests[self.next])
            self.next = (self.next + 1) % len(self.requests)
        else:
            self.done.set_result(None)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.size == 0:
            head, end, _ = self.received.partition(b"\r\n\r\n")
            if not end:
                return
            self.size = len(head) + 4 + int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(self.received) < self.size:
            return
        self.load.latencies.append(time.perf_counter() - self.began)
        status = self.received[9:12].decode()
        self.load.statuses[status] += 1
        if status != "200":
            self.load.refusals.setdefault(status, self.received)
        self.received, self.size = b"", 0
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))


async def client(port: int, requests: list[bytes], load: Load) -> None:
    _, protocol = await asyncio.get_running_loop().create_connection(lambda: Client(requests, load), "127.0.0.1", port)
    await protocol.done


async def slow_client(port: int, number: int) -> None:
    """Half a request at a time, or requests whose answers are never read; for ever."""
    part = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{"
    whole = request({"text": "word1", "k": 4})  # more texts would fill the queue, which is not slow
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(part[: 20 + number] if number % 2 else whole)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 20)
            writer.close()


async def memory(port: int) -> float:
    """The server's resident megabytes, as it tells itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read(-1)).decode()
    writer.close()
    return float(text.split("\nprocess_resident_memory_bytes ")[1].split("\n")[0]) / 1e6


async def watch(port: int, rss: list[float]) -> None:
    """Notes the server's memory every ten seconds, for ever."""
    while True:
        await asyncio.sleep(10)
        rss.append(await memory(port))


async def run(port: int, requests: list[bytes], clients: int, slow: int, seconds: float, most: int) -> dict[str, Any]:
    gc.collect()
    gc.freeze()  # a full collection in this process would look like a slow server
    start = time.perf_counter()
    load = Load(start + seconds, most, array("f"), Counter(), {})
    others = [asyncio.create_task(slow_client(port, i)) for i in range(slow)]
    tasks = [asyncio.create_task(client(port, requests, load)) for _ in range(clients)]
    while time.perf_counter() < start + seconds / 10 and len(load.latencies) < most / 10:
        await asyncio.sleep(0.2)
    rss = [await memory(port)]
    watching = asyncio.create_task(watch(port, rss))
    failures = [r for r in await asyncio.gather(*tasks, return_exceptions=True) if r is not None]
    took = time.perf_counter() - start
    for task in (*others, watching):
        task.cancel()
    rss.append(await memory(port))
    for status, content in load.refusals.items():
        print(f"status {status}: {content[:200]!r}", file=sys.stderr)
    for failure in failures[:3]:
        print(f"a client ended with {failure!r}", file=sys.stderr)
    p50, p99 = np.percentile(load.latencies, [50, 99]) * 1e3
    return {
        "clients": clients,
        "slow": slow,
        "requests": len(load.latencies),
        "requests_per_second": len(load.latencies) / took,
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": max(load.latencies) * 1e3,
        "statuses": " ".join(f"{status}:{count}" for status, count in sorted(load.statuses.items())),
        "lost_connections": len(failures),
        "MB_at_a_tenth": rss[0],
        "MB_at_most": max(rss),
        "MB_at_the_end": rss[-1],
    }


def reload_often(servers: list[subprocess.Popen[str]], seconds: float) -> None:
    while all(server.poll() is None for server in servers):
        time.sleep(seconds)
        for server in servers:
            if server.poll() is None:
                server.send_signal(signal.SIGHUP)


def start(command: list[str], processes: int) -> tuple[list[subprocess.Popen[str]], int]:
    """Starts servers on one port, and returns them with the port."""
    servers, port = [], "0"
    for _ in range(processes):
        shared = ["--reuse-port"] if processes > 1 else []
        servers.append(subprocess.Popen([*command, "--port", port, *shared], stdout=subprocess.PIPE, text=True))
        port = servers[-1].stdout.readline().rsplit(":", 1)[1].strip()  # type: ignore[union-attr]  # it is a pipe
    return servers, int(port)


def processor_seconds(servers: list[subprocess.Popen[str]]) -> float:
    """What the servers have used so far."""
    ticks = 0
    for server in servers:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64, help="concurrent clients")
    parser.add_argument("--slow", type=int, default=100, help="slow clients in the last part")
    parser.add_argument("--seconds", type=float, default=60, help="duration of each part with all clients")
    parser.add_argument("--requests", type=int, default=10**9, help="requests of each part at most")
    parser.add_argument("--reload", type=float, help="seconds between reloads of the model")
    parser.add_argument("--workers", type=int, default=1, help="threads that predict")
    parser.add_argument("--processes", type=int, default=1, help="servers on one port")
    parser.add_argument("--model", help="file of a trained classifier; default: train one")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    with contextlib.suppress(ImportError):
        importlib.import_module("uvloop").install()  # takes less of the cores
    machine = harness.machine(1)
    texts, labels = generated(5000)
    requests = [request({"text": text}) for text in texts[:1000]]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or str(Path(folder) / "model")
        if arguments.model is None:
            TextClassifier(epochs=2).fit(texts, labels).save(path)
        command = [sys.executable, "-m", "torch_lsh", "--threads", "1", "serve", path]
        command += ["--workers", str(arguments.workers), "--request-timeout", "10"]
        servers, port = start(command, arguments.processes)
        results = []
        try:
            if arguments.reload is not None:
                threading.Thread(target=reload_often, args=(servers, arguments.reload), daemon=True).start()
            many, seconds = arguments.clients, arguments.seconds
            parts = [(1, 0, min(5.0, seconds)), (many, 0, seconds), (many, arguments.slow, seconds)]
            for clients, slow, duration in parts if arguments.slow else parts[:2]:
                before = processor_seconds(servers)
                result = asyncio.run(run(port, requests, clients, slow, duration, arguments.requests))
                used = processor_seconds(servers) - before
                results.append({**result, "cpu_ms_per_request": 1e3 * used / result["requests"]})
            for server in servers:
                server.send_signal(signal.SIGTERM)
            stopped = [server.wait(40) for server in servers]
        finally:
            for server in servers:
                server.kill()
    print(machine)
    print(harness.table([list(result.values()) for result in results], list(results[0])))
    settings = {"workers": arguments.workers, "processes": arguments.processes, **machine}
    harness.write_json([{**result, **settings} for result in results], arguments.json)
    wrong = any(result["lost_connections"] or result["statuses"] != f"200:{result['requests']}" for result in results)
    return 1 if any(stopped) or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
