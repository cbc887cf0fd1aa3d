"""Concurrent requests are answered in batches."""

from __future__ import annotations

import asyncio
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

    A request is answered by the service that it came with, so a new service loses none. Not thread-safe: use it from
    one event loop. ``limits.workers`` threads call the services.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting = 0
        self.batch_inputs = Histogram("torch_lsh_batch_inputs", "Inputs that were predicted together.", _SIZES)
        self.queue_seconds = Histogram("torch_lsh_queue_seconds", "Time from request to prediction.", _SECONDS)
        self.predict_seconds = Histogram("torch_lsh_predict_seconds", "Time of a prediction.", _SECONDS)
        self._requests: asyncio.Queue[_Request | None] = asyncio.Queue()
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
        self._requests.put_nowait(_Request(service, inputs, k, answer, time.perf_counter()))
        return await answer

    async def run(self) -> None:
        """Answers requests until :meth:`stop`, including all that came before it."""
        await asyncio.gather(*(self._work() for _ in range(self.limits.workers)))
        self._threads.shutdown()

    def stop(self) -> None:
        for _ in range(self.limits.workers):
            self._requests.put_nowait(None)

    async def _work(self) -> None:
        following: _Request | None = await self._requests.get()
        while following is not None:
            batch, following = [following], None
            stopped = False
            while sum(len(request.inputs) for request in batch) < self.limits.max_batch and not self._requests.empty():
                following = self._requests.get_nowait()
                if following is None or following.service is not batch[0].service:
                    stopped = following is None
                    break
                batch.append(following)
                following = None
            await self._answer(batch)
            if following is None and not stopped:
                following = await self._requests.get()

    async def _answer(self, batch: list[_Request]) -> None:
        inputs = [one for request in batch for one in request.inputs]
        start = time.perf_counter()
        for request in batch:
            self.queue_seconds.add(start - request.came)
        predict = batch[0].service.predict
        loop = asyncio.get_running_loop()
        try:
            k = max(request.k for request in batch)
            answers = iter(await loop.run_in_executor(self._threads, predict, inputs, k))
        except Exception as error:
            for request in batch:
                if not request.answer.done():
                    failure = RuntimeError(f"the prediction failed: {error}")
                    failure.__cause__ = error
                    request.answer.set_exception(failure)
            return
        finally:
            self.waiting -= len(inputs)
            self.batch_inputs.add(len(inputs))
            self.predict_seconds.add(time.perf_counter() - start)
        for request in batch:
            own = list(itertools.islice(answers, len(request.inputs)))
            if request.k < k:
                own = [{name: values[: request.k] for name, values in answer.items()} for answer in own]
            if not request.answer.done():  # unless its client went away
                request.answer.set_result(own)
