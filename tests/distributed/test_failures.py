"""What a process does when another one fails, and in a group of one."""

from __future__ import annotations

import datetime
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.distributed import ShardedLSHLinear, average_gradients, exchange_rows_, row_parameters

from .processes import in_processes

D, N, B = 8, 501, 6
PATIENCE = datetime.timedelta(seconds=0.5)


def make_model(sharded: bool = False, mesh: DeviceMesh | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    head = LSHLinear(D, N, config=LSHConfig(active=1.0))
    return nn.Sequential(nn.Linear(D, D), ShardedLSHLinear.shard_(head, mesh) if sharded else head)


def sharded(group: dist.ProcessGroup):
    """A step of a sharded layer."""
    model = make_model(True, DeviceMesh.from_group(group, "cpu"))
    return lambda y: F.cross_entropy(model(torch.ones(B, D)), y).backward()


def exchanged(group: dist.ProcessGroup):
    """A step beside FSDP, which shards nothing here, so that only the exchange waits."""
    model = make_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params=set(model.parameters()))
    exchange_rows_(model, group)
    return lambda y: F.cross_entropy(model(torch.ones(B, D)), y).backward()


def waiting(rank: int):
    """Process 1 fails before it answers; how long process 0 waits, and what either raises."""
    found = []
    for make in (sharded, exchanged):
        step = make(dist.new_group([0, 1], PATIENCE))
        start = time.monotonic()
        with pytest.raises((RuntimeError, IndexError)) as raised:
            step(torch.full((B,), N if rank == 1 else 0))
        found.append((time.monotonic() - start, type(raised.value), str(raised.value)))
        dist.barrier()
    return found


def test_processes_do_not_wait_for_ever(tmp_path):
    first, second = in_processes(waiting, 2, tmp_path)
    for seconds, kind, _ in first:
        assert PATIENCE.total_seconds() <= seconds < 15
        assert kind is RuntimeError
    for _, kind, message in second:
        assert kind is IndexError
        assert "target holds class 501" in message


def alone(rank: int):
    """A step in every way, in a group of one."""
    x, y = torch.ones(B, D), torch.arange(B)

    def weight_after(model: nn.Module, wrapper: nn.Module, after=lambda model: None) -> torch.Tensor:
        optimizer = torch_lsh.optim.SGD(model.parameters(), lr=0.3)
        F.cross_entropy(wrapper(x), y).backward()
        after(model)
        optimizer.step()
        weight = model[1].state_dict()["weight"]
        return weight.full_tensor() if hasattr(weight, "full_tensor") else weight.clone()

    found = {"no group": weight_after(model := make_model(), model)}
    for name, model in (("exchanged", make_model()), ("sharded", make_model(True))):
        exchange_rows_(model)
        found[name] = weight_after(model, DistributedDataParallel(model))
        model = make_model(name == "sharded")
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)), ignored_params=row_parameters(model))
        exchange_rows_(model)
        found[f"{name} beside FSDP"] = weight_after(model, model)
    found["by hand"] = weight_after(model := make_model(), model, lambda model: average_gradients(model.parameters()))
    return found


def test_a_group_of_one(tmp_path):
    (found,) = in_processes(alone, 1, tmp_path)
    for weight in found.values():
        torch.testing.assert_close(weight, found["no group"])
    assert len(found) == 6
