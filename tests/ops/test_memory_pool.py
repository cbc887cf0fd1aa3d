"""Results whose memory is used again once they are gone."""

from __future__ import annotations

import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import torch

from torch_lsh import ops
from torch_lsh.benchmarking import harness


def large(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(700, 128, generator=generator)  # its gather is pooled, being more than 256 KiB


ROWS = torch.arange(700).flip(0)


def test_memory_is_used_again_only_when_its_tensor_is_gone():
    kept, addresses = [], set()
    for seed in range(5):
        kept.append(ops.gather_rows(large(seed), ROWS))
        addresses.add(kept[-1].data_ptr())
    assert len(addresses) == 5
    for seed, result in enumerate(kept):
        assert torch.equal(result, large(seed)[ROWS])
    del kept, result
    gc.collect()
    again = [ops.gather_rows(large(seed), ROWS) for seed in range(5)]
    assert {tensor.data_ptr() for tensor in again} & addresses
    assert all(torch.equal(tensor, large(seed)[ROWS]) for seed, tensor in enumerate(again))


def test_a_large_step_finds_its_memory_again_and_gives_it_back_later():
    rows, table = torch.zeros(40_000, dtype=torch.int64), torch.ones(1, 1024)

    def step() -> set[int]:
        results = [ops.gather_rows(table, rows) for _ in range(2)]  # 156 MiB each
        return {result.data_ptr() for result in results}

    assert step() == step()
    before = harness.resident_kib()
    for _ in range(1200):
        ops.gather_rows(table, rows[:1024])  # 4 MiB
    assert harness.resident_kib() < before - 150 * 1024


def test_views_keep_their_memory():
    view = ops.gather_rows(large(0), ROWS)[3:5]
    for seed in range(1, 20):
        ops.gather_rows(large(seed), ROWS)
    assert torch.equal(view, large(0)[ROWS][3:5])


def test_tensors_of_the_pool_are_ordinary_tensors():
    tensor = ops.gather_rows(large(0), ROWS)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)), tensor)
    assert torch.equal(tensor.clone().share_memory_(), tensor)
    tensor.add_(1).resize_(10, 10)
    assert tensor.shape == (10, 10)


def test_several_threads_share_the_pool():
    def work(seed: int) -> bool:
        table = large(seed)
        return all(torch.equal(ops.gather_rows(table, ROWS), table[ROWS]) for _ in range(50))

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(work, range(8)))
