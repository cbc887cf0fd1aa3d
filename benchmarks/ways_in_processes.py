"""The ways of training of everywhere.py that take several processes, each with its part of the batch."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from ways_of_training import Model, Setting, eager_step, loop, silence

from torch_lsh.benchmarking import harness

Step = Callable[[], None]


def ddp(setting: Setting) -> tuple[nn.Module, Step]:
    from torch_lsh.distributed import exchange_rows_

    model = setting.model()
    if setting.lsh:
        exchange_rows_(model)
    return _train(setting, nn.parallel.DistributedDataParallel(model))


def fsdp(setting: Setting) -> tuple[nn.Module, Step]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from torch_lsh.distributed import exchange_rows_, row_parameters

    model, mesh = setting.model(), init_device_mesh("cpu", (setting.processes,))
    if setting.lsh:
        fully_shard(model, mesh=mesh, ignored_params=row_parameters(model))
        exchange_rows_(model)
    else:
        fully_shard(model, mesh=mesh)
        setting.watch(model)  # of the Parameters that replaced those of before
    return _train(setting, model)


def sharded(setting: Setting) -> tuple[nn.Module, Step]:
    """Rows of the head spread over the processes; nn.Linear in DistributedDataParallel."""
    from torch_lsh.distributed import ShardedLSHLinear, exchange_rows_

    if not setting.lsh:
        return ddp(setting)
    torch.manual_seed(0)
    model = Model(setting.width, ShardedLSHLinear(setting.width, setting.rows, config=setting.config))
    setting.watch(model)
    exchange_rows_(model)
    return _train(setting, nn.parallel.DistributedDataParallel(model))


def _train(setting: Setting, model: nn.Module) -> tuple[nn.Module, Step]:
    """Trains; returns the model and what takes one more step."""
    optimizer, batches = setting.optimizer(model), itertools.cycle(zip(setting.batches.x, setting.batches.y))

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    loop(loss_of, optimizer, setting.batches)
    return model, lambda: loop(loss_of, optimizer, [next(batches)])


WAYS = {"ddp": ddp, "fsdp": fsdp, "sharded": sharded}


def in_processes(way: str, options: dict[str, Any]) -> dict[str, Any]:
    """What process 0 found."""
    with tempfile.TemporaryDirectory() as folder:
        count = options["processes"]
        torch.multiprocessing.start_processes(_work, (way, options, folder), count, start_method="spawn")
        return torch.load(Path(folder, "result.pt"), weights_only=False)


def _work(rank: int, way: str, options: dict[str, Any], folder: str) -> None:
    count = options["processes"]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    found: dict[str, Any] = {}
    if options["lsh"]:
        found["at_once"] = _at_once(Setting(**options, rank=rank))
    setting = Setting(**options, rank=rank)
    with silence():
        model, step = WAYS[way](setting)
    spent = setting.batches.spent()
    cpu = {"cpu": spent.cpu}
    if options["lsh"]:
        found["exchange"], cpu["exchange_cpu"] = _exchange(model, step)
    of_all: list[Any] = [None] * count
    dist.all_gather_object(of_all, cpu)
    found.update({name: [sum(ranks) for ranks in zip(*(one[name] for one in of_all))] for name in cpu})
    if rank == 0:
        found.update(seconds=spent.seconds, sent=[bytes / count for bytes in spent.sent])
        torch.save({**found, "layout": setting.layout, "path": setting.path}, Path(folder, "result.pt"))
    dist.barrier()
    dist.destroy_process_group()


def _at_once(setting: Setting) -> list[float]:
    """Seconds of eager steps that all processes take at once, each on its part of the batch, without any exchange.

    They share the cores' caches and the memory's bandwidth, as the steps of a way do.
    """
    with silence():
        step = eager_step(setting)
        dist.barrier()
        return harness.in_turn({"": step}, setting.steps)[""]


# What this library, DistributedDataParallel's hook below and FSDP call.
_COLLECTIVES = ("all_gather_into_tensor", "all_gather_single", "all_reduce", "all_to_all_single", "broadcast")
_COLLECTIVES += ("irecv", "isend", "reduce_scatter_single", "reduce_scatter_tensor")


def _exchange(model: nn.Module, step: Step, times: int = 20) -> tuple[list[float], list[float]]:
    """Seconds, and CPU seconds of this process, of the messages of one step, which are sent again and nothing else."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model.register_comm_hook(None, _sum_bucket)
    calls: list[tuple[str, Callable[[], Any]]] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append((function.__name__, functools.partial(function, *args, **kwargs)))
            return function(*args, **kwargs)

        return call

    functions = {name: getattr(dist, name) for name in _COLLECTIVES if hasattr(dist, name)}
    for name, function in functions.items():
        setattr(dist, name, noting(function))
    try:
        step()
    finally:
        for name, function in functions.items():
            setattr(dist, name, function)
    cpu: list[float] = []

    def exchange() -> None:
        start = time.process_time()
        _again(calls)
        cpu.append(time.process_time() - start)

    seconds = harness.in_turn({"": exchange}, times)[""]
    return seconds, cpu[-times:]


def _sum_bucket(state, bucket):  # DistributedDataParallel takes no annotations that are strings
    """Lets :func:`_exchange` see what DistributedDataParallel sends."""
    buffer = bucket.buffer()
    dist.all_reduce(buffer)
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(buffer)
    return future


def _again(calls: list[tuple[str, Callable[[], Any]]]) -> None:
    """Makes the calls of collectives; messages between two processes go together, and come before what follows."""
    works: list[Any] = []
    for name, call in calls:
        if name not in ("irecv", "isend"):
            _wait(works)
        works.append(call())
    _wait(works)


def _wait(works: list[Any]) -> None:
    for work in works:
        if work is not None:
            work.wait()
    works.clear()
