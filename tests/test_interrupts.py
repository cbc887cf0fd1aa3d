from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import torch_lsh
from torch_lsh import HashTableConfig, LSHConfig, LSHLinear, PartitionConfig, SignCodeConfig
from torch_lsh.interrupts import quiet_worker

N, D = 60, 8
SOURCES = (str(Path(torch_lsh.__file__).parent), torch._ops.__file__)

INDEXES = {
    "tables": HashTableConfig(hashes_per_table=2, num_tables=3, bucket_size=N),
    "partition": PartitionConfig(hashes_per_table=3),
    "sign codes": SignCodeConfig(),
}
OPTIMIZERS = {
    "Adam": torch_lsh.optim.Adam,
    "Adam, catching up": functools.partial(torch_lsh.optim.Adam, catch_up=True),
    "Adam, in the backward pass": functools.partial(torch_lsh.optim.Adam, in_backward=True),
    "SGD": functools.partial(torch_lsh.optim.SGD, momentum=0.5),
}


def interrupted(function, place=None):
    """Calls ``function``, interrupted at its ``place``; returns how many places it has.

    Python raises KeyboardInterrupt where a function begins, and where a function in C returns.
    """
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(SOURCES):
            count += 1
            if count == place:
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(before)
    return count


def train(layer, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(4, D, generator=generator), torch.randint(N, (4,), generator=generator)
    F.cross_entropy(layer(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def look_up(layer):
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(9))
    layer.topk(x, 3, exact=False, candidates=N // 2)
    layer.sampler.look_up(layer.weight, layer.bias, x)


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("index", INDEXES)
def test_a_step_that_was_interrupted_anywhere(index, optimizer_name):
    """Then the layer is trained further, and both indexes follow the weights."""

    def start():
        torch.manual_seed(0)
        layer = LSHLinear(D, N, config=LSHConfig(active=20, index=INDEXES[index]))
        optimizer = OPTIMIZERS[optimizer_name](layer.parameters(), lr=0.1)
        for seed in range(2):
            train(layer, optimizer, seed)
        with torch.no_grad():
            look_up(layer)
        return layer, optimizer

    layer, optimizer = start()
    places = interrupted(lambda: train(layer, optimizer, 2))
    assert places > 100
    for place in range(1, places + 1):
        layer, optimizer = start()
        interrupted(lambda layer=layer, optimizer=optimizer: train(layer, optimizer, 2), place)
        with torch.no_grad():
            look_up(layer)
            for found in (layer.sampler.tables, layer.sampler.look_up_index):
                assert found.drift(layer.weight, layer.bias, torch.arange(N)) == 0, place
        optimizer.zero_grad()
        optimizer.step()  # in_backward=True wants one between two backward passes
        train(layer, optimizer, 3)


@pytest.mark.filterwarnings("ignore:torch_lsh")
@pytest.mark.parametrize(
    "optimizer_type", [torch_lsh.optim.Adam, functools.partial(torch.optim.Adam, fused=True)], ids=["ours", "PyTorch's"]
)
def test_a_fused_step_that_was_interrupted(monkeypatch, optimizer_type):
    torch.manual_seed(0)
    layer = LSHLinear(D, N, config=LSHConfig(active=20, index=INDEXES["tables"])).eval()
    optimizer = optimizer_type(layer.parameters(), lr=0.1)
    with torch.no_grad():
        look_up(layer)
    F.linear(torch.randn(4, D), layer.weight, layer.bias).square().sum().backward()
    fused = torch._fused_adam_

    def interrupted(*arguments, **named):
        fused(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "_fused_adam_", interrupted)
    before = layer.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert not torch.equal(layer.weight, before)
    with torch.no_grad():
        look_up(layer)
        for found in (layer.sampler.tables, layer.sampler.look_up_index):
            assert found.drift(layer.weight, layer.bias, torch.arange(N)) == 0


@pytest.mark.parametrize(
    ("error", "shown"),
    [(EOFError, False), (ConnectionResetError, False), (BrokenPipeError, False), (ValueError, True)],
)
def test_a_worker_whose_reader_ends_prints_nothing(monkeypatch, error, shown):
    """The thread of multiprocessing that hands tensors over passes its errors to the hook."""
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *some: seen.append(some))
    quiet_worker()
    sys.excepthook(error, error("gone"), None)
    assert (len(seen) == 1) == shown
