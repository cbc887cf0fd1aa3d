"""What every kind of index promises."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from torch_lsh import HashTableConfig, PartitionConfig, SignCodeConfig
from torch_lsh.stopwatch import Stopwatch

N, D = 700, 12
CONFIGS = (HashTableConfig(hashes_per_table=4, bucket_size=N), PartitionConfig(), SignCodeConfig())
KINDS = pytest.mark.parametrize("config", CONFIGS, ids=repr)


def built(config, seed=0, **kwargs):
    index = config.make(N, D, seed=seed)
    weight, bias, queries = torch.randn(N, D), torch.randn(N), torch.randn(200, D) + 0.5
    index.build(weight, bias, queries)
    return index, weight, bias, queries


@KINDS
def test_finds_far_more_than_chance(config):
    index, weight, bias, x = built(config)
    best = torch.nn.functional.linear(x, weight, bias).topk(5).indices
    found = index.query(x, 70)
    assert (best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean() > 0.3


@KINDS
def test_query_returns_distinct_rows_and_pads(config):
    index, _, _, x = built(config)
    for count in (1, 50, N + 3):
        found = index.query(x[:9], count)
        assert found.shape == (9, count)
        assert found.dtype is torch.int64
        assert found.max() < N
        assert all((row[row >= 0].unique().numel() == (row >= 0).sum()) for row in found)
    assert (found[:, N:] == -1).all()
    assert index.query(x[:0], 5).shape == (0, 5)


@KINDS
def test_update_equals_a_rehash_of_all_rows(config):
    index, weight, bias, x = built(config)
    twin = copy.deepcopy(index)
    rows = torch.randperm(N)[:300]
    weight[rows] = weight[rows].neg()
    assert index.drift(weight, bias, rows) > 0.3
    assert index.drift(weight, bias, rows[:0]) == 0.0
    assert index.update(weight, bias, rows) > 0
    assert index.drift(weight, bias, rows) == 0.0
    assert index.update(weight, bias, rows) == index.update(weight, bias, rows[:0]) == 0
    twin.update(weight, bias, torch.arange(N))
    assert torch.equal(index.query(x, N).sort(1).values, twin.query(x, N).sort(1).values)
    twin.rehash(weight, bias)
    assert twin.drift(weight, bias, torch.arange(N)) == 0.0
    fresh = config.make(N, D, seed=0)
    fresh.rehash(weight, bias)
    assert fresh.is_built


@KINDS
def test_state_goes_over_to_another_index(config):
    index, weight, bias, x = built(config)
    other = config.make(N, D, seed=0)
    small = other.nbytes
    assert not other.is_built
    other.load_state_dict(index.state_dict())
    assert other.is_built
    assert other.nbytes == index.nbytes > small
    for same in (other, copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert torch.equal(same.query(x, 50), index.query(x, 50))
        assert same.update(-weight, bias, torch.arange(N)) > 0
    assert index.update(-weight, bias, torch.arange(N)) > 0  # the copies share nothing with it
    other.load_state_dict(config.make(N, D, seed=0).state_dict())
    assert not other.is_built
    assert other.bucket_loads() is None
    assert repr(other).endswith("seed=0, is_built=False)")


@KINDS
def test_states_that_do_not_fit(config):
    index, *_ = built(config)
    state = index.state_dict()
    with pytest.raises(ValueError, match="the state is of an index with"):
        config.make(N, D, seed=1).load_state_dict(state)
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    for name, value in tensors.items():
        other = config.make(N, D, seed=0)
        with pytest.raises(ValueError, match=f"{name} has shape .*; wanted "):
            other.load_state_dict({**state, name: value.flatten()[:1]})
        with pytest.raises(ValueError, match=f"{name} has shape .* and dtype torch.float64; wanted"):
            other.load_state_dict({**state, name: value.double()})
        with pytest.raises(ValueError, match=f"wanted {name}, too"):
            other.load_state_dict({key: part for key, part in state.items() if key != name})
        assert not other.is_built
        if name in ("ids", "row_buckets", "counts", "places", "next", "heads"):
            with pytest.raises(ValueError, match=f"{name} runs from .*; wanted"):
                other.load_state_dict({**state, name: value + 10**6})


@KINDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_those_of_their_values(config, dtype):
    weight, bias, x = torch.randn(N, D).to(dtype), torch.randn(N).to(dtype), torch.randn(30, D).to(dtype)
    index, same = config.make(N, D, seed=0), config.make(N, D, seed=0)
    index.build(weight, bias)
    same.build(weight.float(), bias.float())
    assert torch.equal(index.query(x, 9), same.query(x.float(), 9))
    assert index.update(weight, bias, torch.arange(N)) == 0


@KINDS
def test_bucket_loads_count_every_row(config):
    index, *_ = built(config)
    loads = index.bucket_loads()
    assert (loads is None) == isinstance(config, SignCodeConfig)
    assert loads is None or (loads.sum(1) == N).all()
    assert (index.hashes_per_table is None) == (loads is None)


@KINDS
def test_look_ups_are_timed_where_there_is_a_stopwatch(config):
    index, _, _, x = built(config)
    index.stopwatch = Stopwatch()
    index.query(x, 3)
    assert index.stopwatch.calls() == {"look-up": 1}


@KINDS
def test_nothing_is_outdated_without_new_queries(config):
    index, weight, bias, queries = built(config)
    assert index.outdated(weight, bias, None) is None
    assert index.outdated(weight, bias, queries) is None


@KINDS
def test_bad_arguments_are_named(config):
    index, weight, bias, x = built(config)
    fresh = config.make(N, D, seed=0)
    rows, some = torch.arange(3), torch.tensor([N])
    for call in (fresh.query, fresh.update, fresh.drift, fresh.outdated):
        with pytest.raises(RuntimeError, match="the index was not built"):
            call(x, 1) if call == fresh.query else call(weight, bias, rows)
    for call, message in (
        (lambda: config.make(0, D, seed=0), "num_rows is 0; wanted at least 1"),
        (lambda: config.make(5, 0, seed=0), "in_features is 0; wanted at least 1"),
        (lambda: config.make(2**31, D, seed=0), r"num_rows is 2147483648; wanted fewer than 2\*\*31"),
        (lambda: index.build(weight[:, 1:]), r"weight has shape \[700, 11\]; wanted \[700, 12\]"),
        (lambda: index.rehash(weight[1:]), r"weight has shape \[699, 12\]; wanted \[700, 12\]"),
        (lambda: index.build(weight.half()), "weight has dtype torch.float16; wanted float32"),
        (lambda: index.build(weight.to("meta")), "weight is on meta"),
        (lambda: index.build(weight, bias[1:]), r"bias has shape \[699\]; wanted \[700\]"),
        (lambda: index.build(weight, bias.int()), "bias has dtype torch.int32"),
        (lambda: index.build(weight, bias, x[:, 1:]), r"queries has shape \[200, 11\]; wanted \[B, 12\]"),
        (lambda: index.rehash(weight, bias, x[0]), r"queries has shape \[12\]; wanted \[B, 12\]"),
        (lambda: index.outdated(weight, bias, x.half()), "queries has dtype torch.float16"),
        (lambda: index.query(x[:, 1:], 3), r"x has shape \[200, 11\]; wanted \[B, 12\]"),
        (lambda: index.query(x.half(), 3), "x has dtype torch.float16"),
        (lambda: index.query(x, 0), "max_candidates is 0; wanted at least 1"),
        (lambda: index.update(weight, bias, some), f"rows runs from {N} to {N}; wanted 0 to {N - 1}"),
        (lambda: index.update(weight, bias, some - N - 1), "rows runs from -1 to -1"),
        (lambda: index.drift(weight, bias, some), f"rows runs from {N} to {N}"),
        (lambda: index.update(weight, bias, rows.float()), r"dtype torch.float32; wanted \[A\] int64"),
        (lambda: index.update(weight[1:], bias, rows), r"weight has shape \[699, 12\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    labels = torch.zeros(len(x), 1, dtype=torch.int64)
    if index.takes_labels:
        with pytest.raises(ValueError, match=r"labels has shape \[199, 1\], dtype torch.int64; wanted \[200, P\]"):
            index.query(x, 5, labels[1:])
        with pytest.raises(ValueError, match=r"dtype torch\.float32; wanted"):
            index.query(x, 5, labels.float())
    else:
        with pytest.raises(ValueError, match=r"labels is a tensor; wanted None: .*Index does not insert labels"):
            index.query(x, 5, labels)
