"""The ways of training of everywhere.py that take several processes, each with its part of the batch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from ways_of_training import Model, Setting, loop, silence


def ddp(setting: Setting) -> None:
    from torch_lsh.distributed import exchange_rows_

    model = setting.model()
    if setting.lsh:
        exchange_rows_(model)
    _train(setting, nn.parallel.DistributedDataParallel(model))


def fsdp(setting: Setting) -> None:
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
    _train(setting, model)


def sharded(setting: Setting) -> None:
    """Rows of the head spread over the processes; nn.Linear in DistributedDataParallel."""
    from torch_lsh.distributed import ShardedLSHLinear, exchange_rows_

    if not setting.lsh:
        return ddp(setting)
    torch.manual_seed(0)
    model = Model(setting.width, ShardedLSHLinear(setting.width, setting.rows, config=setting.config))
    setting.watch(model)
    exchange_rows_(model)
    return _train(setting, nn.parallel.DistributedDataParallel(model))


def _train(setting: Setting, model: nn.Module) -> None:
    loop(lambda x, y: F.cross_entropy(model(x), y), setting.optimizer(model), setting.batches)


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
    setting = Setting(**options, rank=rank)
    with silence():
        WAYS[way](setting)
    if rank == 0:
        seconds, _, sent = setting.batches.spent()
        found = {"seconds": seconds, "sent": [bytes / count for bytes in sent]}
        torch.save({**found, "layout": setting.layout, "path": setting.path}, Path(folder, "result.pt"))
    dist.barrier()
    dist.destroy_process_group()
