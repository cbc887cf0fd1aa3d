"""Load on the text server: concurrent clients over loopback, one request at a time each.

    python benchmarks/serve.py --clients 64 --seconds 60 --json out.jsonl

Trains a small classifier (or takes --model), runs `python -m torch_lsh serve` in its own process, and prints throughput
and client-side latencies, beside the latency of a single client. Clients and server share the cores. Any status other
than 200 is an error; the exit status is 1 if there were errors.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from torch_lsh.benchmarking import harness
from torch_lsh.models import TextClassifier


def generated(rows: int) -> tuple[list[str], list[str]]:
    generator = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    texts = [" ".join(generator.choices(words, k=generator.randint(20, 60))) for _ in range(rows)]
    return texts, [str(int(text.split()[0][4:]) % 4) for text in texts]


async def client(port: int, bodies: list[bytes], until: float, latencies: list[float], errors: list[str]) -> None:
    """Speaks HTTP by hand: a client library would take longer than the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    i = random.randrange(len(bodies))
    while time.perf_counter() < until:
        body = bodies[i % len(bodies)]
        i += 1
        start = time.perf_counter()
        writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - start)
        if not head.startswith(b"HTTP/1.1 200"):
            errors.append(head.split(b"\r\n")[0].decode())
    writer.close()


async def load(port: int, bodies: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    latencies: list[float] = []
    errors: list[str] = []
    gc.collect()
    gc.freeze()  # a full collection in this process would look like a slow server
    start = time.perf_counter()
    tasks = [client(port, bodies, start + seconds, latencies, errors) for _ in range(clients)]
    failures = [r for r in await asyncio.gather(*tasks, return_exceptions=True) if r is not None]
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return {
        "clients": clients,
        "requests": len(latencies),
        "requests_per_second": len(latencies) / (time.perf_counter() - start),
        "p50_ms": p50,
        "p99_ms": p99,
        "errors": len(errors) + len(failures),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64, help="concurrent clients")
    parser.add_argument("--seconds", type=float, default=60, help="duration of the load")
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
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rsplit(":", 1)[1])
            results = [
                asyncio.run(load(port, bodies, 1, min(5.0, arguments.seconds))),
                asyncio.run(load(port, bodies, arguments.clients, arguments.seconds)),
            ]
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        finally:
            server.kill()
    print(machine)
    print(harness.table([list(result.values()) for result in results], list(results[0])))
    harness.write_json([{**result, **machine} for result in results], arguments.json)
    return 1 if any(result["errors"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
