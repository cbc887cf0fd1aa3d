"""The ways of training of everywhere.py that take several processes, each with its part of the batch."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from ways_of_training import Model, Setting, eager_step, loop, silence

from torch_lsh.benchmarking import harness
from torch_lsh.distributed.channel import Channel

Step = Callable[[], None]


def ddp(setting: Setting) -> Step:
    from torch_lsh.distributed import exchange_rows_

    model = setting.model()
    if setting.lsh:
        exchange_rows_(model)
    return _train(setting, nn.parallel.DistributedDataParallel(model))


def fsdp(setting: Setting) -> Step:
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


def sharded(setting: Setting) -> Step:
    """Rows of the head spread over the processes; nn.Linear in DistributedDataParallel."""
    from torch_lsh.distributed import ShardedLSHLinear, exchange_rows_

    if not setting.lsh:
        return ddp(setting)
    torch.manual_seed(0)
    model = Model(setting.width, ShardedLSHLinear(setting.width, setting.rows, config=setting.config))
    setting.watch(model)
    exchange_rows_(model)
    return _train(setting, nn.parallel.DistributedDataParallel(model))


def _train(setting: Setting, model: nn.Module) -> Step:
    """Trains, and returns what takes one more step."""
    optimizer, batches = setting.optimizer(model), itertools.cycle(zip(setting.batches.x, setting.batches.y))

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    loop(loss_of, optimizer, setting.batches)
    return lambda: loop(loss_of, optimizer, [next(batches)])


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
        step = WAYS[way](setting)
    found["exchange"] = _exchange(step) if options["lsh"] else []
    spent = setting.batches.spent()
    cpu: list[Any] = [None] * count
    dist.all_gather_object(cpu, spent.cpu)
    if rank == 0:
        found.update(seconds=spent.seconds, sent=[bytes / count for bytes in spent.sent], cpu=list(map(sum, zip(*cpu))))
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


def _exchange(step: Step) -> list[float]:
    """Seconds of the messages that this library sends in a step: those of one step, again and again, and nothing else.

    The few small ones of PyTorch's wrappers, for the layers before, are not among them.
    """
    calls: list[Callable[[], Any]] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(functools.partial(function, *args, **kwargs))
            return function(*args, **kwargs)

        return call

    functions = {name: getattr(Channel, name) for name in ("gather", "gather_into", "exchange", "sum_")}
    for name, function in functions.items():
        setattr(Channel, name, noting(function))
    try:
        step()
    finally:
        for name, function in functions.items():
            setattr(Channel, name, function)
    return harness.in_turn({"": lambda: [call() for call in calls]}, 20)[""]
