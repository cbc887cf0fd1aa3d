"""Concurrent requests are answered in batches."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import itertools
import time
from typing import Any, NamedTuple

from .metrics import Histogram
from .service import Limits, Service

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class QueueFull(Exception):
    """So much waits already that a request is refused."""


class _Request(NamedTuple):
    service: Service
    inputs: list[Any]
    k: int
    answer: asyncio.Future[list[dict[str, Any]]]
    came: float


class Batcher:
    """Gathers the inputs of concurrent requests and predicts them together.

    A request is answered by the service that it came with, so a new service loses none. The requests of a batch that
    fails are predicted one by one. Not thread-safe: use it from one event loop. ``limits.workers`` threads call the
    services.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting = 0
        self.batch_inputs = Histogram("torch_lsh_batch_inputs", "Inputs that were predicted together.", _SIZES)
        self.queue_seconds = Histogram("torch_lsh_queue_seconds", "Time from request to prediction.", _SECONDS)
        self.predict_seconds = Histogram("torch_lsh_predict_seconds", "Time of a prediction.", _SECONDS)
        self._requests: collections.deque[_Request] = collections.deque()
        self._changed = asyncio.Event()  # a request came, or the end
        self._stopped = False
        self._threads = concurrent.futures.ThreadPoolExecutor(limits.workers, thread_name_prefix="predict")

    async def predict(self, service: Service, inputs: list[Any], k: int) -> list[dict[str, Any]]:
        """Predicts the ``k`` best labels of each input.

        Raises:
            QueueFull: ``limits.max_waiting`` inputs wait.
            RuntimeError: The prediction failed.
        """
        if self.waiting + len(inputs) > self.limits.max_waiting and self.waiting > 0:
            raise QueueFull(f"{self.waiting} inputs are waiting already; try again later")
        answer: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self.waiting += len(inputs)
        self._requests.append(_Request(service, inputs, k, answer, time.perf_counter()))
        self._changed.set()
        return await answer

    async def run(self) -> None:
        """Answers requests until :meth:`stop`, including all that came before it."""
        await asyncio.gather(*(self._work() for _ in range(self.limits.workers)))
        self._threads.shutdown()

    def stop(self) -> None:
        self._stopped = True
        self._changed.set()

    async def _work(self) -> None:
        while True:
            while not self._requests:
                if self._stopped:
                    return
                self._changed.clear()
                await self._changed.wait()
            batch = self._next_batch()
            start = time.perf_counter()
            for request in batch:
                self.queue_seconds.add(start - request.came)
            await self._answer(batch)

    def _next_batch(self) -> list[_Request]:
        """Takes the requests of one service that have waited longest."""
        batch = [self._requests.popleft()]
        size = len(batch[0].inputs)
        while size < self.limits.max_batch and self._requests and self._requests[0].service is batch[0].service:
            batch.append(self._requests.popleft())
            size += len(batch[-1].inputs)
        return batch

    async def _answer(self, batch: list[_Request]) -> None:
        k = max(request.k for request in batch)
        try:
            answers = iter(await self._predict(batch, k))
        except Exception as error:
            if len(batch) > 1:  # one request must not fail the others
                for request in batch:
                    await self._answer([request])
            else:
                failure = RuntimeError(f"the prediction failed: {error}")
                failure.__cause__ = error
                self._finish(batch[0], failure)
            return
        for request in batch:
            own = list(itertools.islice(answers, len(request.inputs)))
            if request.k < k:
                own = [{name: values[: request.k] for name, values in answer.items()} for answer in own]
            self._finish(request, own)

    async def _predict(self, batch: list[_Request], k: int) -> list[dict[str, Any]]:
        inputs = [one for request in batch for one in request.inputs]
        start = time.perf_counter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, batch[0].service.predict, inputs, k)
        finally:
            self.batch_inputs.add(len(inputs))
            self.predict_seconds.add(time.perf_counter() - start)

    def _finish(self, request: _Request, result: list[dict[str, Any]] | Exception) -> None:
        self.waiting -= len(request.inputs)
        if request.answer.done():  # its client went away
            return
        if isinstance(result, Exception):
            request.answer.set_exception(result)
        else:
            request.answer.set_result(result)
