"""Memory of large tables is written by the threads that work on its rows."""

from __future__ import annotations

import mmap

import pytest
import torch

from torch_lsh import LSHLinear, ops

resource = pytest.importorskip("resource")


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_THREAD"), reason="wants Linux")
def test_threads_share_the_first_touch():
    torch.set_num_threads(2)
    ops.zero_rows_(torch.empty(4, 4))  # starts the threads

    def faults(who):
        return resource.getrusage(who).ru_minflt

    pages = mmap.mmap(-1, 64 << 20)  # memory that nobody has touched
    table = torch.frombuffer(pages, dtype=torch.float32).view(-1, 256)
    own, all_threads = faults(resource.RUSAGE_THREAD), faults(resource.RUSAGE_SELF)
    ops.zero_rows_(table)
    own, all_threads = faults(resource.RUSAGE_THREAD) - own, faults(resource.RUSAGE_SELF) - all_threads
    assert all_threads >= 32  # a fault for every page, of at most 2 MiB
    assert 0.25 < own / all_threads < 0.75


def test_a_layer_is_initialised_as_before():
    torch.manual_seed(3)
    layer = LSHLinear(256, 9000)
    torch.manual_seed(3)
    linear = torch.nn.Linear(256, 9000)
    assert torch.equal(layer.weight, linear.weight)


def test_small_and_strided_tables_keep_their_values():
    small, strided = torch.ones(3, 3), torch.ones(4096, 2048).T
    ops.prepare_memory(small)
    ops.prepare_memory(strided)
    assert small.all()
    assert strided.all()
