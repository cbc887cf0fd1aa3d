"""Load on the text server: concurrent clients over loopback, one request at a time each.

    python benchmarks/serve.py --clients 64 --seconds 120 --slow 100 --json out.jsonl

Trains a small classifier (or takes --model), runs `python -m torch_lsh serve` in its own process, and prints throughput
and client-side latencies: of one client, of all of them, and of all of them beside --slow clients, which send half a
request, or send one and never take the answer. Also the status codes, and the server's memory after the first tenth of
the load, at most and at its end, with a reload of the model (SIGHUP) every --reload seconds. Clients and server share the
cores. The exit status is 1 if there was another status than 200, if a connection was lost, or if the server does not stop
with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
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


class Load(NamedTuple):
    """What the clients share: when they end, and what they saw."""

    until: float
    most: int
    latencies: array[float]  # 4 bytes each, of a million requests
    statuses: Counter[str]
    refusals: dict[str, bytes]  # the first body of each status that is not 200


async def client(port: int, bodies: list[bytes], load: Load) -> None:
    """Speaks HTTP by hand: a client library would take longer than the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    i = random.randrange(len(bodies))
    while time.perf_counter() < load.until and len(load.latencies) < load.most:
        body = bodies[i % len(bodies)]
        i += 1
        start = time.perf_counter()
        writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        content = await reader.readexactly(length)
        load.latencies.append(time.perf_counter() - start)
        status = head[9:12].decode()
        load.statuses[status] += 1
        if status != "200":
            load.refusals.setdefault(status, content)
    writer.close()


async def slow_client(port: int, number: int) -> None:
    """Half a request at a time, or requests whose answers are never read; for ever."""
    part = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{"
    whole = json.dumps({"text": "word1", "k": 4}).encode()  # more texts would fill the queue, which is not slow
    whole = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole
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


async def run(port: int, bodies: list[bytes], clients: int, slow: int, seconds: float, most: int) -> dict[str, Any]:
    gc.collect()
    gc.freeze()  # a full collection in this process would look like a slow server
    start = time.perf_counter()
    load = Load(start + seconds, most, array("f"), Counter(), {})
    others = [asyncio.create_task(slow_client(port, i)) for i in range(slow)]
    tasks = [asyncio.create_task(client(port, bodies, load)) for _ in range(clients)]
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


def reload_often(server: subprocess.Popen[str], seconds: float) -> None:
    while server.poll() is None:
        time.sleep(seconds)
        if server.poll() is None:
            server.send_signal(signal.SIGHUP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64, help="concurrent clients")
    parser.add_argument("--slow", type=int, default=100, help="slow clients in the last part")
    parser.add_argument("--seconds", type=float, default=60, help="duration of each part with all clients")
    parser.add_argument("--requests", type=int, default=10**9, help="requests of each part at most")
    parser.add_argument("--reload", type=float, help="seconds between reloads of the model")
    parser.add_argument("--workers", type=int, default=1, help="threads that predict")
    parser.add_argument("--model", help="file of a trained classifier; default: train one")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    machine = harness.machine(1)
    texts, labels = generated(5000)
    bodies = [json.dumps({"text": text}).encode() for text in texts[:1000]]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or str(Path(folder) / "model")
        if arguments.model is None:
            TextClassifier(epochs=2).fit(texts, labels).save(path)
        command = [sys.executable, "-m", "torch_lsh", "--threads", "1", "serve", path, "--port", "0"]
        command += ["--workers", str(arguments.workers), "--request-timeout", "10"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rsplit(":", 1)[1])
            if arguments.reload is not None:
                threading.Thread(target=reload_often, args=(server, arguments.reload), daemon=True).start()
            clients, seconds, most = arguments.clients, arguments.seconds, arguments.requests
            results = [
                asyncio.run(run(port, bodies, 1, 0, min(5.0, seconds), most)),
                asyncio.run(run(port, bodies, clients, 0, seconds, most)),
                *([asyncio.run(run(port, bodies, clients, arguments.slow, seconds, most))] if arguments.slow else []),
            ]
            server.send_signal(signal.SIGTERM)
            status = server.wait(40)
        finally:
            server.kill()
    print(machine)
    print(harness.table([list(result.values()) for result in results], list(results[0])))
    harness.write_json([{**result, "workers": arguments.workers, **machine} for result in results], arguments.json)
    wrong = any(result["lost_connections"] or result["statuses"] != f"200:{result['requests']}" for result in results)
    return 1 if status != 0 or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
