from __future__ import annotations

import copy
import gc
import itertools
import logging
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import Drift, ExponentialBackoff, FixedInterval, LSHConfig, LSHLinear, RehashScheduler
from torch_lsh.row_sparse import parameters as row_sparse

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
    index = model[1].sampler.tables
    update = index.update
    monkeypatch.setattr(index, "update", lambda w, b, rows: updated.append(len(rows)) or update(w, b, rows))
    monkeypatch.setattr(index, "build", lambda *_: pytest.fail("a full re-hash"))
    train(model, optimizer, 9)
    assert len(updated) == 3
    assert all(0 < rows < N for rows in updated)


def buckets_of_rows(layer):
    return layer.sampler.tables.state_dict()["row_buckets"].clone()


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
    stale = model[1].stats().stale_rows
    train(model, optimizer, 1)  # re-hashes first, then touches some rows once more
    assert 0 < model[1].stats().stale_rows < stale + N
    assert 0 < model[1].rehash(touches=2) < model[1].rehash()
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
    assert model[1].sampler.rehashes == 2
    resumed = RehashScheduler(model, FixedInterval(4))
    resumed.load_state_dict(scheduler.state_dict())
    assert [resumed.step() for _ in range(2)] == [False, True]
    resumed.detach()
    train(model, optimizer, 2)
    assert model[1].sampler.rehashes == 4  # the layer's own policy again


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
    for options in ({"initial": 0}, {"factor": math.inf}, {"factor": math.nan}, {"maximum": 2**60}):
        with pytest.raises(ValueError, match="wanted initial >= 1, factor 1 to 1e"):
            ExponentialBackoff(**options)


def moved(layer, rows, size=10.0):
    """Rows change as a row-sparse optimizer changes them."""
    before = layer.weight._version
    with torch.no_grad():
        layer.weight[rows] += size * torch.randn(len(rows), D)
    row_sparse.record_update(rows, (layer.weight, before))


def a_layer(policy=None, rows=N):
    layer = LSHLinear(D, rows, bias=False, config=LSHConfig(active=40, rehash=policy or FixedInterval(1000)))
    layer.rehash(full=True)
    return layer


def test_drift_is_that_of_the_touched_rows():
    layer = a_layer()
    assert layer.drift() == 0.0  # no row was touched
    moved(layer, torch.arange(0, N, 2), size=0.0)
    assert layer.drift() == 0.0
    moved(layer, torch.arange(1, N, 2))
    before = buckets_of_rows(layer)
    everything = layer.drift(sample=N)
    assert layer.drift(sample=N, touches=2) == 0.0
    layer.rehash()
    exact = (before != buckets_of_rows(layer)).float().mean().item()
    assert exact > 0.1
    assert everything == pytest.approx(exact)
    assert layer.drift() == 0.0


def test_drift_is_estimated_without_bias():
    layer = a_layer(rows=20_000)
    moved(layer, torch.arange(0, 20_000, 4), size=0.0)
    moved(layer, torch.arange(0, 20_000, 16))  # a quarter of the touched rows
    exact = layer.drift(sample=20_000)
    estimates = torch.tensor([layer.drift(sample=64, seed=seed) for seed in range(100)])
    # a row's share of changed codes has at most the variance of a coin
    assert abs(estimates.mean().item() - exact) < 4 * (exact * (1 - exact) / 6400) ** 0.5
    assert estimates.std() < 2 * (exact * (1 - exact) / 64) ** 0.5
    assert layer.drift(sample=64, seed=7) == layer.drift(sample=64, seed=7)


def test_a_check_of_the_drift_hashes_no_more_than_the_sample(monkeypatch):
    layer = a_layer(rows=20_000)
    moved(layer, torch.arange(20_000))
    hashed = []
    codes = layer.sampler.tables.family.codes
    monkeypatch.setattr(layer.sampler.tables.family, "codes", lambda x: hashed.append(len(x)) or codes(x))
    layer.drift(sample=64)
    with torch.no_grad():
        layer.weight.mul_(1.5)  # nobody recorded which rows
    layer.drift(sample=64)
    assert len(hashed) == 2
    assert all(32 < rows <= 64 for rows in hashed)


@pytest.mark.parametrize("scheduled", [False, True])
def test_drift_policy_waits_for_the_codes_to_change(scheduled, caplog):
    caplog.set_level(logging.INFO, logger="torch_lsh")
    policy = Drift(threshold=0.2, every=2, sample=64, minimum=4, maximum=50, touches=1)
    layer = a_layer(FixedInterval(1) if scheduled else policy)
    scheduler = RehashScheduler(nn.Sequential(layer), policy) if scheduled else None

    def rehashed_after(steps, size):
        done = []
        for step in range(steps):
            moved(layer, torch.arange(40), size)
            before = layer.sampler.rehashes
            if scheduler is not None:
                scheduler.step()
            layer.sample(torch.randn(2, D), torch.zeros(2, dtype=torch.int64))
            if layer.sampler.rehashes > before:
                done.append(step)
        return done

    start = 0 if not scheduled else 1  # the layer looks before the step, the scheduler after it
    assert rehashed_after(50 + 1 - start, size=0.0) == [50 - start]  # the maximum
    assert "after the maximum of 50 steps" in caplog.text
    caplog.clear()
    often = rehashed_after(12, size=10.0)
    assert len(often) == 3 - (not scheduled and len(often) == 2)
    assert all(b - a == 4 for a, b in itertools.pairwise(often))  # the minimum
    assert "% of the codes of touched rows have changed (threshold: 20 %)" in caplog.text
    assert "re-hashed 40 rows of" in caplog.text


def test_layers_drift_each_for_itself():
    still, moving = a_layer(), a_layer()
    scheduler = RehashScheduler(nn.Sequential(still, moving), Drift(0.2, every=1, minimum=3, maximum=100, touches=1))
    rehashed = []
    for _ in range(7):
        moved(moving, torch.arange(40))
        rehashed.append(scheduler.step())
    assert rehashed == [False, False, True, False, False, True, False]
    assert scheduler.state_dict() == {"since_rehash": {"0": 7, "1": 1}, "rehashes": {"0": 0, "1": 2}}


def trained_with_drift(steps, resume_at=None):
    """Weights after so many steps; ``resume_at``: with a new model, optimizer and scheduler from there on."""

    def make():
        model = make_model()
        optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.02)
        return model, optimizer, RehashScheduler(model, Drift(0.07, every=2, sample=16, minimum=3, touches=1))

    torch.manual_seed(0)
    model, optimizer, scheduler = make()
    rehashed = []
    for step in range(steps):
        if step == 11:  # a checkpoint
            states = [copy.deepcopy(part.state_dict()) for part in (model, optimizer, scheduler)]
            if resume_at == step:
                generator = torch.get_rng_state()
                model, optimizer, scheduler = make()
                for part, state in zip((model, optimizer, scheduler), states):
                    part.load_state_dict(state)
                torch.set_rng_state(generator)
        train(model, optimizer, 1)
        rehashed.append(scheduler.step())
    return model[1].weight.detach().clone(), rehashed


def test_drift_policy_resumes_exactly(threads):
    weight, rehashed = trained_with_drift(30)
    assert 2 < sum(rehashed) < 10
    resumed, rehashed_too = trained_with_drift(30, resume_at=11)
    assert rehashed_too == rehashed
    assert torch.equal(resumed, weight)


def test_scheduler_refuses_what_is_no_position():
    scheduler = RehashScheduler(make_model(), FixedInterval(4))
    scheduler.load_state_dict({"since_rehash": {"1": 2}, "rehashes": {"1": 1}})
    assert [scheduler.step() for _ in range(2)] == [False, True]
    position = scheduler.state_dict()
    with pytest.raises(ValueError, match="since_rehash is"):
        scheduler.load_state_dict({"since_rehash": {"other": 2}, "rehashes": {"other": 1}})
    with pytest.raises(ValueError, match="rehashes is"):
        scheduler.load_state_dict({"since_rehash": {"1": 2}, "rehashes": {"1": -1}})
    with pytest.raises(KeyError, match="rehashes"):
        scheduler.load_state_dict({"since_rehash": {"1": 2}})
    assert scheduler.state_dict() == position


def test_bad_drift():
    for bad in ({"threshold": 0.0}, {"threshold": 1.0}, {"every": 0}, {"sample": 0}, {"touches": 256}):
        with pytest.raises(ValueError, match="wanted 0 < threshold < 1"):
            Drift(**bad)
    with pytest.raises(ValueError, match="1 <= minimum <= maximum"):
        Drift(minimum=30, maximum=20)
    with pytest.raises(TypeError, match="whole numbers"):
        Drift(every=2.5)
    with pytest.raises(ValueError, match="sample is 0; wanted at least 1"):
        a_layer().drift(sample=0)
    with pytest.raises(ValueError, match="touches is 0; wanted at least 1"):
        a_layer().drift(touches=0)
    layer = a_layer()
    with pytest.raises(ValueError, match="rows runs from 0 to 500"):
        layer.sampler.tables.drift(layer.weight, None, torch.tensor([0, N]))


def test_without_its_scheduler_a_layer_follows_its_own_policy():
    model = nn.Sequential(LSHLinear(8, 100))
    scheduler = RehashScheduler(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not copied[0].scheduled
    scheduler.step()
    scheduler = RehashScheduler(model)  # the one before dies after this one was made
    gc.collect()
    scheduler.step()
    assert model[0].scheduled
    del scheduler
    gc.collect()
    assert not model[0].scheduled
