"""Wide layers in and beside FSDP, in two processes."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear, SampledLogits
from torch_lsh.distributed import ShardedLogits, ShardedLSHLinear, exchange_rows_, row_parameters

from .processes import in_processes

D, N, B = 8, 500, 12


def make_model(active: float, head=lambda layer: layer) -> nn.Sequential:
    torch.manual_seed(0)
    layer = LSHLinear(D, N, config=LSHConfig(active=active, rehash=torch_lsh.FixedInterval(2)))
    return nn.Sequential(nn.Linear(D, D), nn.ReLU(), head(layer))


def train(model: nn.Module, part: slice, steps: int = 5, synchronise=lambda step: None):
    """The loop of a user; returns the whole head, and what was seen on the way."""
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            synchronise(step)
            x, y = torch.randn(B, D, generator=generator), torch.randint(0, N, (B,), generator=generator)
            logits = model(x[part])
            F.cross_entropy(logits, y[part]).backward()
            layout = model[2].weight.grad.layout if model[2].weight.grad is not None else None
            optimizer.step()
            optimizer.zero_grad()
    weight = model[2].state_dict()["weight"]
    return {
        "weight": weight.full_tensor() if hasattr(weight, "full_tensor") else weight.clone(),
        "layout": layout,
        "is lazy": isinstance(logits, ShardedLogits) or (isinstance(logits, SampledLogits) and not logits.is_computed),
        "warnings": [str(warning.message) for warning in caught if "torch_lsh" in str(warning.message)],
        "rehashes": model[2].sampler.rehashes,
    }


def root(mesh, active):
    return fully_shard(make_model(active), mesh=mesh)


def inside(mesh, active):
    model = make_model(active)
    fully_shard(model[2], mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)


def left_out(mesh, active):
    model = make_model(active)
    fully_shard(model, mesh=mesh, ignored_params=row_parameters(model))
    exchange_rows_(model)
    return model


def row_sharded(mesh, active):
    model = make_model(active, ShardedLSHLinear.shard_)
    return fully_shard(model, mesh=mesh, ignored_params=row_parameters(model))


WAYS = {"root": root, "inside": inside, "left out": left_out, "row-sharded": row_sharded}


def refused(mesh):
    """The loss comes after the weights were freed, or rows would not be exchanged."""
    model = make_model(60)
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    with pytest.raises(RuntimeError, match=r"fully_shard\(layer, reshard_after_forward=False\)"):
        model(torch.zeros(1, D))
    model = fully_shard(make_model(60), mesh=mesh)
    with pytest.raises(ValueError, match=r"ignored_params=torch_lsh.distributed.row_parameters"):
        exchange_rows_(model)
    model = make_model(60)
    fully_shard(model[0], mesh=mesh)
    with pytest.raises(ValueError, match="with parts of module; wanted module itself"):
        exchange_rows_(model)
    for of_part in (False, True):
        model = make_model(60)
        exchange_rows_(model)
        fully_shard(model[0] if of_part else model, mesh=mesh, ignored_params=row_parameters(model))
        with pytest.raises(RuntimeError, match="fully_shard was called after exchange_rows_"):
            model(torch.zeros(1, D))


def work(rank: int):
    mesh = init_device_mesh("cpu", (2,))
    part = slice(rank * B // 2, (rank + 1) * B // 2)
    found = {(name, active): train(way(mesh, active), part) for name, way in WAYS.items() for active in (1.0, 60)}
    refused(mesh)
    model = left_out(mesh, 60)
    found["accumulated"] = train(model, part, 4, lambda step: model.set_requires_gradient_sync(step % 2 == 1))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_processes(work, 2, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("way", WAYS)
def test_training_with_all_rows_equals_one_process(results, way):
    wanted = train(make_model(1.0), slice(0, B))["weight"]
    for result in results:
        torch.testing.assert_close(result[way, 1.0]["weight"], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_the_sampled_path_is_taken(results, way):
    for result in results:
        assert result[way, 60]["is lazy"]
        assert result[way, 60]["rehashes"] > 0  # tables follow the weights
        assert not torch.equal(result[way, 60]["weight"], result[way, 1.0]["weight"])
    assert torch.equal(results[0][way, 60]["weight"], results[1][way, 60]["weight"])


@pytest.mark.parametrize("way", WAYS)
def test_a_gathered_layer_warns_once(results, way):
    for result in results:
        found = result[way, 60]
        if way in ("root", "inside"):
            assert found["layout"] is torch.strided
            assert len(found["warnings"]) == 1
            assert "FSDP gathers all 500 rows" in found["warnings"][0]
        else:
            assert found["layout"] is torch.sparse_coo
            assert found["warnings"] == []
