"""An HTTP server for a text classifier: concurrent requests are answered in batches.

    POST /predict   {"text": "..."} or {"texts": ["...", ...]}, optionally "k": the labels wanted of each text
                    -> {"predictions": [{"labels": [...], "probabilities": [...]}, ...]}, best first
    GET  /health    200 while it serves, 503 while it stops
    GET  /metrics   counters and latencies in Prometheus' text format

One thread computes. Requests that arrive while it is busy form the next batch: a single request never waits, and
batches grow under load. The server needs starlette and uvicorn: ``pip install torch_lsh[serve]``. That also installs
uvloop and httptools, which double the requests per second.
"""

from __future__ import annotations

import asyncio
import bisect
import concurrent.futures
import contextlib
import gc
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from .classifier import TextClassifier

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError("serving needs starlette and uvicorn: pip install 'torch_lsh[serve]'") from error

_LATENCIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)  # bounds of the histogram, seconds


class RequestError(Exception):
    """A request that is refused, with the status of the response."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Batcher:
    """Gathers texts of concurrent requests and predicts them together.

    Not thread-safe: use it from one event loop. One separate thread calls the model.

    Args:
        model: fitted.
        max_batch: texts that are predicted together at most (a request's own texts stay together).
        max_waiting: texts that may wait; beyond that requests are refused with status 503.
    """

    def __init__(self, model: TextClassifier, max_batch: int, max_waiting: int) -> None:
        self.model, self.max_batch, self.max_waiting = model, max_batch, max_waiting
        self.waiting = 0
        self.batches = 0
        self._requests: asyncio.Queue[tuple[list[str], int, asyncio.Future[list[Any]]] | None] = asyncio.Queue()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="predict")

    async def predict(self, texts: list[str], k: int) -> list[Any]:
        if self.waiting + len(texts) > self.max_waiting and self.waiting > 0:
            raise RequestError(503, f"{self.waiting} texts are waiting already; try again later")
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.waiting += len(texts)
        self._requests.put_nowait((texts, k, answer))
        return await answer

    async def run(self) -> None:
        """Answers requests until :meth:`stop`, including all that came before it."""
        loop = asyncio.get_running_loop()
        stopped = False
        while not stopped:
            first = await self._requests.get()
            if first is None:
                break
            batch = [first]
            while sum(len(texts) for texts, _, _ in batch) < self.max_batch and not self._requests.empty():
                request = self._requests.get_nowait()
                if request is None:
                    stopped = True
                    break
                batch.append(request)
            texts = [text for some, _, _ in batch for text in some]
            most = max(k for _, k, _ in batch)
            try:
                labels, probabilities = await loop.run_in_executor(self._thread, self.model.top_k, texts, most)
            except Exception as error:
                for _, _, answer in batch:
                    if not answer.done():
                        answer.set_exception(RuntimeError(f"the prediction failed: {error}"))
                continue
            finally:
                self.waiting -= len(texts)
                self.batches += 1
            rows = zip(labels.tolist(), probabilities.tolist())
            for some, k, answer in batch:
                answers = [{"labels": names[:k], "probabilities": p[:k]} for names, p in (next(rows) for _ in some)]
                if not answer.done():  # unless its client went away
                    answer.set_result(answers)
        self._thread.shutdown()

    def stop(self) -> None:
        self._requests.put_nowait(None)


class Server:
    """The application and its state.

    Args:
        model: fitted.
        max_bytes: of a request's body; larger ones are refused with status 413.
        max_texts: of a request; more are refused with status 413.
        max_batch, max_waiting: as in :class:`Batcher`.
    """

    def __init__(
        self,
        model: TextClassifier,
        max_bytes: int = 1 << 20,
        max_texts: int = 256,
        max_batch: int = 64,
        max_waiting: int = 4096,
    ) -> None:
        self.model, self.max_bytes, self.max_texts = model, max_bytes, max_texts
        self.batcher = Batcher(model, max_batch, max_waiting)
        self.stopping = False
        self.responses: Counter[int] = Counter()
        self.texts = 0
        self.latencies = [0] * (len(_LATENCIES) + 1)
        self.seconds = 0.0
        routes = [
            Route("/predict", self._predict, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        self.app = Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self.batcher.run())
        yield
        # Uvicorn has answered every request by now.
        self.batcher.stop()
        await task

    async def _predict(self, request: Request) -> Response:
        start = time.perf_counter()
        response: Response
        try:
            texts, k = self._parse(await self._body(request))
            response = JSONResponse({"predictions": await self.batcher.predict(texts, k)})
            self.texts += len(texts)
        except RequestError as error:
            response = JSONResponse({"error": str(error)}, error.status)
        except ClientDisconnect:
            response = JSONResponse({"error": "the client went away"}, 400)
        except Exception as error:
            response = JSONResponse({"error": str(error)}, 500)
        seconds = time.perf_counter() - start
        self.responses[response.status_code] += 1
        self.latencies[bisect.bisect_left(_LATENCIES, seconds)] += 1
        self.seconds += seconds
        return response

    async def _body(self, request: Request) -> bytes:
        refusal = RequestError(413, f"the body is larger than {self.max_bytes} bytes")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_bytes:
            raise refusal
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.max_bytes:
                raise refusal
        return bytes(body)

    def _parse(self, body: bytes) -> tuple[list[str], int]:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
            raise RequestError(400, f"the body is not JSON: {error}") from None
        if not isinstance(content, dict) or ("text" in content) == ("texts" in content):
            raise RequestError(400, 'the body has neither or both of "text" and "texts"; wanted an object with one')
        if unknown := content.keys() - {"text", "texts", "k"}:
            raise RequestError(400, f"the body has {', '.join(sorted(unknown))}; wanted text or texts, and k")
        texts = [content["text"]] if "text" in content else content["texts"]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise RequestError(400, '"text" must be a string, "texts" a list of at least one string')
        if len(texts) > self.max_texts:
            raise RequestError(413, f"there are {len(texts)} texts; wanted at most {self.max_texts}")
        k, classes = content.get("k", 1), len(self.model.classes_)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= classes:
            raise RequestError(400, f'"k" is {k!r:.50}; wanted a whole number from 1 to {classes}')
        return texts, k

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "stopping" if self.stopping else "ok"}, 503 if self.stopping else 200)

    async def _metrics(self, request: Request) -> Response:
        lines = ["# TYPE torch_lsh_responses_total counter"]
        lines += [f'torch_lsh_responses_total{{status="{s}"}} {n}' for s, n in sorted(self.responses.items())]
        for name, kind, value in (
            ("texts_total", "counter", self.texts),
            ("batches_total", "counter", self.batcher.batches),
            ("waiting_texts", "gauge", self.batcher.waiting),
        ):
            lines += [f"# TYPE torch_lsh_{name} {kind}", f"torch_lsh_{name} {value}"]
        lines.append("# TYPE torch_lsh_request_seconds histogram")
        total = 0
        for bound, count in zip((*map(str, _LATENCIES), "+Inf"), self.latencies):
            total += count
            lines.append(f'torch_lsh_request_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"torch_lsh_request_seconds_sum {self.seconds}", f"torch_lsh_request_seconds_count {total}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    def run(self, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Serves until SIGINT or SIGTERM. Then it closes the listener and answers the requests it has accepted."""
        listener = socket.create_server((host, port), backlog=1024)
        # Inherited by connections: head and body of an answer are two writes, of which the second would wait 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shown = f"[{host}]" if ":" in host else host
        print(f"serving on http://{shown}:{listener.getsockname()[1]}", flush=True)
        # Objects of the imports live on; scanning them for garbage would stop the server for 0.1 s now and then.
        gc.collect()
        gc.freeze()
        config = uvicorn.Config(self.app, log_level="warning", access_log=False, lifespan="on", loop="auto")
        _Uvicorn(config, self).run(sockets=[listener])


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._server.stopping = True
        super().handle_exit(sig, frame)
