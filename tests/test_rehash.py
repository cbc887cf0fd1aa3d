from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import ExponentialBackoff, FixedInterval, LSHConfig, LSHLinear, RehashScheduler

N, D = 500, 8


def make_model(policy=None):
    config = LSHConfig(active=40, rehash=policy or FixedInterval(3))
    return nn.Sequential(nn.Linear(4, D), LSHLinear(D, N, config=config))


def train(model, optimizer, steps, after_step=lambda: None):
    for _ in range(steps):
        F.cross_entropy(model(torch.randn(6, 4)), torch.randint(0, N, (6,))).backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step()


def test_default_policy_runs_by_itself_and_rehashes_touched_rows_only(monkeypatch):
    model = make_model()
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=1e-2)
    updated = []
    train(model, optimizer, 1)
    index = model[1]._index
    update = index.update
    monkeypatch.setattr(index, "update", lambda w, b, rows: updated.append(len(rows)) or update(w, b, rows))
    monkeypatch.setattr(index, "build", lambda *_: pytest.fail("a full re-hash"))
    train(model, optimizer, 9)
    assert len(updated) == 3
    assert all(0 < rows < N for rows in updated)


def buckets_of_rows(layer):
    return layer._index.state_dict()["row_buckets"].clone()


def test_incremental_rehash_equals_full():
    model = make_model(FixedInterval(1000))
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.5)
    train(model, optimizer, 5)
    touched = model[1].rehash()
    assert 0 < touched < N
    assert model[1].rehash() == 0
    incremental = buckets_of_rows(model[1])
    model[1].rehash(full=True)
    assert torch.equal(incremental, buckets_of_rows(model[1]))


def test_rows_with_few_touches_wait_but_are_not_forgotten():
    model = make_model(FixedInterval(4, touches=3))
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.5)
    train(model, optimizer, 4)
    touches = model[1]._changed[0][1]._touches.clone()
    assert (touches >= 3).any()
    assert (touches == 1).any()
    train(model, optimizer, 1)  # re-hashes first, then touches some rows once more
    waiting = model[1]._changed[0][1]._touches
    assert (waiting[touches >= 3] <= 1).all()
    assert (waiting[touches < 3] >= touches[touches < 3]).all()
    model[1].rehash()
    incremental = buckets_of_rows(model[1])
    model[1].rehash(full=True)
    assert torch.equal(incremental, buckets_of_rows(model[1]))


def test_scheduler_takes_over_and_keeps_its_place():
    model = make_model(FixedInterval(1))
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = RehashScheduler(model, FixedInterval(4))
    stepped = []
    train(model, optimizer, 10, lambda: stepped.append(scheduler.step()))
    assert stepped == [False, False, False, True] * 2 + [False, False]
    assert model[1].sampler_state()["rehashes"] == 2
    resumed = RehashScheduler(model, FixedInterval(4))
    resumed.load_state_dict(scheduler.state_dict())
    assert [resumed.step() for _ in range(2)] == [False, True]
    resumed.detach()
    train(model, optimizer, 2)
    assert model[1].sampler_state()["rehashes"] == 4  # the layer's own policy again


def test_full_on_demand():
    model = make_model()
    scheduler = RehashScheduler(model, FixedInterval(1), full_every=2)
    calls = []
    model[1].rehash = lambda full, touches: calls.append(full)
    for _ in range(4):
        scheduler.step()
    assert calls == [False, True, False, True]


def test_intervals():
    policy = ExponentialBackoff(initial=3, factor=1.1, maximum=20)
    intervals = [policy.interval(n) for n in range(100)]
    assert intervals[0] == 3
    assert all(a < b or b == 20 for a, b in itertools.pairwise(intervals))
    assert policy.interval(10**6) == 20


def test_bad_arguments():
    with pytest.raises(ValueError, match="no LSH layer"):
        RehashScheduler(nn.Linear(2, 3))
    with pytest.raises(TypeError, match="policy is 5"):
        RehashScheduler(make_model(), 5)
    with pytest.raises(ValueError, match="steps=0"):
        FixedInterval(0)
    with pytest.raises(ValueError, match="wanted initial >= 1"):
        ExponentialBackoff(initial=0)
