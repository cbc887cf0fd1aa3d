"""A process that is forked while threads of its parent hold locks, as a DataLoader forks its workers."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
import warnings

import pytest
import torch
import torch.nn.functional as F

from torch_lsh import HashTableConfig, LSHConfig, LSHLinear
from torch_lsh.index.hash_tables import HashTableIndex
from torch_lsh.index.lookup import LookupIndex

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no process can fork here")

N, D = 400, 16
SECONDS = 20  # for a child, which needs milliseconds


def in_child(work):
    """Whether ``work()`` is true in a forked process; a child that hangs is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forks beside threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)  # as workers do: those of OpenMP are gone as well
            status = 0 if work() else 2
        finally:
            os._exit(status)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


class Held:
    """Runs ``work`` in a thread, and stops it within ``method`` of a class, which changed half of what it changes."""

    def __init__(self, monkeypatch, kind, method, work):
        self.inside, self.leave = threading.Event(), threading.Event()
        original = getattr(kind, method)

        def held(index, *args):
            result = original(index, *args)
            if threading.current_thread() is self.thread:
                for tensor in index.state_dict().values():
                    if torch.is_tensor(tensor) and tensor.dtype is torch.int32:
                        tensor.fill_(-1)  # found by nobody
                self.inside.set()
                self.leave.wait(SECONDS)
            return result

        monkeypatch.setattr(kind, method, held)
        self.thread = threading.Thread(target=work)

    def __enter__(self):
        self.thread.start()
        assert self.inside.wait(SECONDS)

    def __exit__(self, *args):
        self.leave.set()
        self.thread.join()


def finds_best(layer, x):
    with torch.no_grad():
        best = F.linear(x, layer.weight, layer.bias).argmax(1, keepdim=True)
        return torch.equal(layer.topk(x, 1, exact=False).indices, best)


def test_look_ups_while_a_thread_builds_their_index(monkeypatch):
    layer, x = LSHLinear(D, N).eval(), torch.randn(4, D)
    with Held(monkeypatch, LookupIndex, "_build", lambda: layer.topk(x, 1, exact=False)):
        assert in_child(lambda: finds_best(layer, x))
    assert finds_best(layer, x)


def test_look_ups_of_a_copy(monkeypatch):
    layer, x = copy.deepcopy(LSHLinear(D, N).eval()), torch.randn(4, D)
    with Held(monkeypatch, LookupIndex, "_build", lambda: layer.topk(x, 1, exact=False)):
        assert in_child(lambda: finds_best(layer, x))


CONFIG = LSHConfig(active=60, index=HashTableConfig(hashes_per_table=2, bucket_size=N), random_fraction=0.0)


@pytest.mark.parametrize("by", ["look_up", "draw"])
def test_training_while_a_thread_builds_tables(monkeypatch, by):
    """The child trains as a copy of the layer does that no thread uses."""
    layer, x, labels = LSHLinear(D, N, config=CONFIG), torch.randn(4, D), torch.tensor([[1], [2], [3], [4]])
    wanted = layer.sampler.draw(layer.weight, layer.bias, x, labels).rows
    layer.rehash(full=True)
    layer.sampler.forget()
    arguments = (layer.weight, layer.bias, x) if by == "look_up" else (layer.weight, layer.bias, x, labels)

    def trains():
        layer.sampler.look_up(layer.weight, layer.bias, x)
        return torch.equal(layer.sampler.draw(layer.weight, layer.bias, x, labels).rows, wanted)

    with Held(monkeypatch, HashTableIndex, "_build", lambda: getattr(layer.sampler, by)(*arguments)):
        assert in_child(trains)
