"""The HTTP server.

    POST /predict       a JSON object with the inputs and optionally "k": the labels wanted of each input
                        -> {"predictions": [{"labels": [...], ...}, ...]}, best first
    GET  /health/live   200 while the process answers at all
    GET  /health/ready  200 while it takes requests, 503 while it stops
    GET  /metrics       counters, gauges and histograms in Prometheus' text format

SIGTERM or SIGINT: no more connections are taken, accepted requests are answered, the process ends with status 0; a
second one ends it at once. SIGHUP: the model is loaded anew, and takes over when it has answered a trial request.

``limits.workers`` threads compute, one as a rule. Requests that arrive while it is busy form the next batch: a single
request never waits, and batches grow under load. The server needs starlette and uvicorn: ``pip install
torch_lsh[serve]``. That also installs uvloop and httptools, which double the requests per second.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from .batcher import Batcher, QueueFull
from .logs import log
from .metrics import CONTENT_TYPE, Counter, Gauge, Histogram, exposition
from .service import Limits, Service

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from .connections import Connections
except ImportError as error:
    raise ImportError("serving needs starlette and uvicorn: pip install 'torch_lsh[serve]'") from error

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LOOK = 0.1  # seconds between looks whether a reload is wanted


class RequestError(Exception):
    """A request that is refused, with the status of the response."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Server:
    """The application and its state.

    Args:
        load: Loads the model and tries it; called at the start, and again for every reload.
        limits: Of requests, connections and times.
        log_requests: Whether every request is logged.
    """

    def __init__(self, load: Callable[[], Service], limits: Limits | None = None, log_requests: bool = False) -> None:
        self.limits, self._load, self._log_requests = limits or Limits(), load, log_requests
        self.service = load()
        self.batcher = Batcher(self.limits)
        self.connections = Connections(self.limits)
        self.stopping = False
        self._uvicorn: _Uvicorn | None = None
        self._reload_wanted = False
        self.responses = Counter("torch_lsh_responses_total", "Responses of /predict.", "status")
        self.inputs = Counter("torch_lsh_inputs_total", "Inputs that were answered.")
        self.reloads = Counter("torch_lsh_reloads_total", "Reloads of the model.", "result")
        self.seconds = Histogram(
            "torch_lsh_request_seconds", "Time from the head of a request to its answer.", _SECONDS
        )
        routes = [
            Route("/predict", self._predict, methods=["POST"]),
            Route("/health/live", self._live),
            Route("/health/ready", self._ready),
            Route("/metrics", self._metrics),
        ]
        self.app = Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        answering = asyncio.create_task(self.batcher.run())
        others = [asyncio.create_task(self.connections.sweep()), asyncio.create_task(self._reload_when_wanted())]
        yield
        # Uvicorn has answered every request by now, or given up after stop_timeout.
        for task in others:
            task.cancel()
        self.batcher.stop()
        await answering

    # --- the model ---

    async def _reload_when_wanted(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)  # a handler of signals cannot wake the event loop
            if self._reload_wanted:
                self._reload_wanted = False
                await self.reload()

    async def reload(self) -> None:
        """Loads the model anew, without losing a request. A model that cannot be loaded changes nothing."""
        start = time.perf_counter()
        try:
            service = await asyncio.get_running_loop().run_in_executor(None, self._load)
        except Exception as error:
            self.reloads.add(of="failed")
            log("reload failed, the present model stays", logging.ERROR, reason=str(error))
            return
        self.service = service  # requests that wait keep the one they came with
        self.reloads.add(of="done")
        log("reloaded", seconds=round(time.perf_counter() - start, 3), classes=service.classes)

    # --- requests ---

    async def _predict(self, request: Request) -> Response:
        start = time.perf_counter()
        count = 0
        try:
            service = self.service
            inputs, k = self._parse(service, await self._body(request))
            count = len(inputs)
            response = self._response({"predictions": await self.batcher.predict(service, inputs, k)})
            self.inputs.add(count)
        except RequestError as error:
            response = self._refusal(error.status, error)
        except QueueFull as error:
            response = self._refusal(503, error)
            response.headers["retry-after"] = "1"
        except ClientDisconnect:
            response = self._refusal(400, "the client went away")
        except Exception as error:
            log("request failed", logging.ERROR, exc_info=True)
            response = self._refusal(500, error)
        seconds = time.perf_counter() - start
        self.responses.add(of=str(response.status_code))
        self.seconds.add(seconds)
        if self._log_requests:
            client = request.client.host if request.client else ""
            log("request", status=response.status_code, seconds=round(seconds, 6), inputs=count, client=client)
        return response

    def _response(self, content: dict[str, Any], status: int = 200) -> Response:
        response = JSONResponse(content, status)
        if self.stopping:
            response.headers["connection"] = "close"
        return response

    def _refusal(self, status: int, reason: object) -> Response:
        # What was sent may be in the reason, lone surrogates included.
        return self._response({"error": str(reason).encode(errors="backslashreplace").decode()}, status)

    async def _body(self, request: Request) -> bytes:
        refusal = RequestError(413, f"the body is larger than {self.limits.max_bytes} bytes")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > self.limits.max_bytes):
            raise refusal
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.limits.max_bytes:
                raise refusal
        return bytes(body)

    def _parse(self, service: Service, body: bytes) -> tuple[list[Any], int]:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
            raise RequestError(400, f"the body is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise RequestError(400, f"the body is a JSON {type(content).__name__}; wanted an object")
        if unknown := content.keys() - service.fields - {"k"}:
            wanted = ", ".join(sorted(service.fields))
            raise RequestError(400, f"the body has {', '.join(sorted(unknown)):.100}; wanted k and some of {wanted}")
        try:
            inputs = service.inputs(content)
        except ValueError as error:
            raise RequestError(400, str(error)) from None
        if len(inputs) > self.limits.max_inputs:
            raise RequestError(413, f"there are {len(inputs)} inputs; wanted at most {self.limits.max_inputs}")
        k = content.get("k", 1)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= service.classes:
            raise RequestError(400, f'"k" is {k!r:.50}; wanted a whole number from 1 to {service.classes}')
        return inputs, k

    async def _live(self, request: Request) -> Response:
        return self._response({"status": "live"})

    async def _ready(self, request: Request) -> Response:
        status = "stopping" if self.stopping else "ready"
        return self._response({"status": status}, 503 if self.stopping else 200)

    async def _metrics(self, request: Request) -> Response:
        batcher, connections = self.batcher, self.connections
        text = exposition(
            [
                self.responses,
                self.inputs,
                self.seconds,
                batcher.queue_seconds,
                batcher.predict_seconds,
                batcher.batch_inputs,
                Gauge("torch_lsh_waiting_inputs", "Inputs that wait or are computed.", lambda: batcher.waiting),
                Gauge("torch_lsh_connections", "Open connections.", lambda: len(connections.open)),
                connections.refused,
                connections.expired,
                self.reloads,
                Gauge("process_resident_memory_bytes", "Memory of the process.", _resident_bytes),
            ]
        )
        return Response(text, media_type=CONTENT_TYPE)

    # --- the process ---

    def run(self, listener: socket.socket) -> None:
        """Serves until SIGINT or SIGTERM, or until :meth:`stop` where this is not the main thread.

        Args:
            listener: As :func:`listen` makes it; it is closed.
        """
        config = uvicorn.Config(
            self.app,
            http=self.connections.connect,  # type: ignore[arg-type]  # called as the class would be
            ws="none",
            loop="auto",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(self.limits.idle_timeout),
            timeout_graceful_shutdown=math.ceil(self.limits.stop_timeout),
        )
        self._uvicorn = _Uvicorn(config)
        host, port = listener.getsockname()[:2]
        with self._signals():
            print(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
            log("serving", host=host, port=port, pid=os.getpid(), classes=self.service.classes)
            # Objects of the imports live on; scanning them for garbage would stop the server for 0.1 s now and then.
            gc.collect()
            gc.freeze()
            self._uvicorn.run(sockets=[listener])
        log("stopped")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handles the signals of the process from before anybody is told that it serves."""
        handlers: dict[int, Any] = {signal.SIGINT: self._told_to_stop, signal.SIGTERM: self._told_to_stop}
        if sys.platform != "win32":
            handlers[signal.SIGHUP] = self._told_to_reload
        if threading.current_thread() is not threading.main_thread():
            handlers = {}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told_to_stop(self, number: int, frame: Any) -> None:
        if self.stopping:
            os.write(2, b'{"level": "error", "event": "stopped at once by a second signal"}\n')
            os._exit(128 + number)
        self.stop()
        log("stopping", signal=signal.Signals(number).name)

    def _told_to_reload(self, number: int, frame: Any) -> None:
        self._reload_wanted = True

    def stop(self) -> None:
        """Takes no more connections, answers the accepted requests, and lets :meth:`run` return. From any thread."""
        self.stopping = True
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True


def listen(host: str = "127.0.0.1", port: int = 8000, reuse_port: bool = False) -> socket.socket:
    """Opens the socket of a server.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 means any free one.
        reuse_port: Whether other processes may listen on the port, too. The system shares the connections out.

    Raises:
        OSError: The address is not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024, reuse_port=reuse_port)
    # Inherited by connections: head and body of an answer are two writes, of which the second would wait 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _resident_bytes() -> float:
    try:
        with open("/proc/self/statm") as file:
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return float("nan")


class _Uvicorn(uvicorn.Server):
    """Uvicorn that leaves the signals to :class:`Server`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
