from __future__ import annotations

import contextlib
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import ExponentialBackoff, FixedInterval, LSHConfig, LSHLinear, StatsWriter
from torch_lsh.data import synthetic_xmc
from torch_lsh.models import XMCClassifier
from torch_lsh.sampling.stats import Estimate, share_found
from torch_lsh.stopwatch import Stopwatch

N, D = 3_000, 16


def a_layer(**config):
    return LSHLinear(D, N, config=LSHConfig.from_options(**{"active": 150, **config}))


def train(layer, optimizer, steps, after_step=lambda: None):
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(layer(torch.randn(20, D)), torch.randint(0, N, (20,)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        after_step()
    return losses


# --- recall ---


def recall_by_hand(layer, x, rows, k=10):
    best = F.linear(x, layer.weight, layer.bias).topk(k).indices
    return torch.tensor([len(set(b.tolist()) & set(r.tolist())) / k for b, r in zip(best, rows)])


@pytest.mark.parametrize("config", [{}, {"scope": "sample"}, {"sampler": "uniform"}, {"balance": True, "mips": True}])
def test_recall_of_all_inputs_is_that_of_the_active_set(config):
    layer = a_layer(**config)
    x = torch.randn(60, D)
    layer.sampler.keep_queries(x)
    if layer.config.sampler == "lsh":
        layer.rehash(full=True)
    stats = layer.stats(x, queries=60, seed=0)
    # the very draw that stats makes: seed 0, no labels
    active = layer.sample(x)
    rows = active.rows if active.per_sample else active.rows.expand(60, -1)
    by_hand = recall_by_hand(layer, x, rows)
    assert 0.01 < by_hand.mean() < 1
    assert stats.queries == 60
    assert stats.recall.mean == pytest.approx(by_hand.mean().item())
    assert stats.recall.error == 0.0
    if layer.config.sampler == "lsh":
        found = layer.sampler.tables.query(x, 150)
        assert stats.lookup_recall.mean == pytest.approx(recall_by_hand(layer, x, found).mean().item())
        assert stats.candidates.mean == pytest.approx((found >= 0).sum(1).float().mean().item())
    else:
        assert stats.lookup_recall is stats.candidates is stats.tables is None


def test_recall_is_estimated_without_bias_and_so_is_its_error():
    layer = a_layer(random_fraction=0.0)  # so that active sets do not depend on the seed
    layer.rehash(full=True)
    x = torch.randn(200, D)
    exact = layer.stats(x, queries=200, batch_size=50).recall
    runs = [layer.stats(x, queries=20, batch_size=50, seed=seed).recall for seed in range(200)]
    means = torch.tensor([run.mean for run in runs])
    variances = torch.tensor([run.error**2 for run in runs])
    theory = variances.mean().item()
    assert abs(means.mean().item() - exact.mean) < 4 * math.sqrt(theory / 200)
    # The spread of the estimates is what their errors say, within what 200 runs tell.
    assert means.var().item() == pytest.approx(theory, rel=0.4)
    shares = [abs(run.mean - exact.mean) < 2 * run.error for run in runs]
    assert sum(shares) / 200 > 0.9


def test_estimate_against_every_sample():
    """The mean over all samples of 2 of 4 values, and of the squared errors: exactly unbiased."""
    values = torch.tensor([0.0, 0.25, 0.5, 1.0])
    pairs = torch.combinations(torch.arange(4), 2)
    estimates = [Estimate.of(values[pair], population=4) for pair in pairs]
    assert sum(e.mean for e in estimates) / 6 == pytest.approx(values.mean().item())
    variance = sum((e.mean - values.mean().item()) ** 2 for e in estimates) / 6
    assert sum(e.error**2 for e in estimates) / 6 == pytest.approx(variance)
    assert math.isnan(Estimate.of(values[:1], population=4).error)
    assert Estimate.of(values[:1], population=1).error == 0.0


def test_share_found_with_padding_and_nothing():
    best = torch.tensor([[0, 5], [7, 2]])
    assert share_found(torch.tensor([[5, -1, 0], [-1, -1, -1]]), best).tolist() == [1.0, 0.0]
    assert share_found(torch.tensor([2, 5]), best).tolist() == [0.5, 0.5]
    assert share_found(torch.empty(2, 0, dtype=torch.int64), best).tolist() == [0.0, 0.0]


def test_all_rows_active_find_everything():
    assert a_layer(active=1.0).stats(torch.randn(30, D)).recall == Estimate(1.0, 0.0)


def test_learned_buckets_have_stats_too():
    layer = a_layer(hash="learned")
    layer.watch()
    train(layer, torch_lsh.optim.Adam(layer.parameters(), lr=1e-2), 3)
    stats = layer.stats(k=5)
    assert stats.tables == 1
    assert stats.overflowing == 0.0
    assert stats.load_mean == pytest.approx(N / stats.buckets)
    assert stats.calls["choosing"] == 3
    assert stats.calls["look-up"] == 3  # measuring what was learned is no part of a step
    assert stats.bucket_size is None  # buckets hold all their rows
    assert 0 < stats.recall.mean <= 1
    assert stats.stale_rows > 0
    assert 0 <= layer.drift() < 1


# --- tables and stale rows ---


def test_bucket_loads():
    layer = a_layer(bucket_size=4, hashes_per_table=8, num_tables=3)
    layer.rehash(full=True)
    stats = layer.stats()
    loads = layer.sampler.tables.bucket_loads()
    assert loads.shape == (3, 256)
    assert loads.sum(1).tolist() == [N] * 3
    assert stats.load_mean == pytest.approx(N / 256)
    assert stats.load_max == max(loads.flatten().tolist())
    assert stats.empty == pytest.approx(sum(load == 0 for load in loads.flatten().tolist()) / 768)
    assert stats.overflowing == pytest.approx(sum(load > 4 for load in loads.flatten().tolist()) / 768)
    assert (stats.tables, stats.hashes_per_table, stats.buckets, stats.bucket_size) == (3, 8, 256, 4)
    assert stats.recall is None


def test_stale_rows_and_rehashes():
    layer = a_layer(rehash=FixedInterval(1000))
    assert layer.stats().stale_rows is None
    optimizer = torch_lsh.optim.Adam(layer.parameters(), lr=1e-2)
    touched = set()
    for _ in range(3):
        loss = F.cross_entropy(layer(torch.randn(20, D)), torch.randint(0, N, (20,)))
        loss.backward()
        touched |= set(layer.weight.grad.coalesce().indices()[0].tolist())
        optimizer.step()
        optimizer.zero_grad()
    stats = layer.stats()
    assert stats.stale_rows == len(touched)
    assert (stats.rehashes, stats.since_rehash) == (0, 3)
    layer.rehash()
    assert layer.stats().stale_rows == 0
    assert layer.stats().rehashes == 1
    with torch.no_grad():
        layer.weight.mul_(2)  # it is not known which rows
    assert layer.stats().stale_rows == N


def test_stats_change_nothing():
    torch.set_num_threads(2)

    def losses(watch, ask):
        torch.manual_seed(0)
        layer = a_layer(balance=True, mips=True, insert_labels=True, rehash=ExponentialBackoff(2, 1.1, 5, 1))
        layer.watch(watch)
        x = torch.randn(40, D)
        optimizer = torch_lsh.optim.Adam(layer.parameters(), lr=1e-2)
        return train(layer, optimizer, 12, (lambda: layer.stats(x)) if ask else lambda: None)

    assert losses(False, False) == losses(True, True)


# --- time ---


def test_stopwatch_counts_parts_within_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("torch_lsh.stopwatch.time.perf_counter", lambda: now[0])
    stopwatch = Stopwatch()
    for _ in range(2):
        with stopwatch.part("outer"):
            now[0] += 1
            with stopwatch.part("inner"):
                now[0] += 2
                with contextlib.suppress(KeyError), stopwatch.part("innermost"):
                    now[0] += 4
                    raise KeyError
            now[0] += 8
    assert stopwatch.milliseconds() == {"outer": 9e3, "inner": 2e3, "innermost": 4e3}
    assert stopwatch.calls() == {"outer": 2, "inner": 2, "innermost": 2}


def test_parts_are_timed_where_the_layer_is_watched():
    layer = a_layer(rehash=FixedInterval(2))
    optimizer = torch_lsh.optim.Adam(layer.parameters(), lr=1e-2)
    train(layer, optimizer, 1)
    assert layer.stats().milliseconds == {}
    layer.watch()
    train(layer, optimizer, 4)
    layer.stats(torch.randn(20, D))  # its own look-ups do not count
    stats = layer.stats()
    assert stats.calls == {"choosing": 4, "look-up": 4, "loss": 4, "re-hash": 2}
    assert all(milliseconds > 0 for milliseconds in stats.milliseconds.values())
    assert stats.recall is not None  # of the inputs of the last step
    assert stats.queries == 20
    twin = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    train(twin, torch_lsh.optim.Adam(twin.parameters(), lr=1e-2), 1)
    assert layer.stats().calls["choosing"] == 4
    layer.watch(False)
    train(layer, optimizer, 1)
    assert layer.stats().milliseconds == {}
    assert layer.stats().recall is None


# --- output ---


def test_as_dict_and_text():
    layer = a_layer()
    layer.watch()
    train(layer, torch_lsh.optim.Adam(layer.parameters()), 1)
    stats = layer.stats(torch.randn(100, D), k=7)
    numbers = stats.as_dict()
    assert numbers["recall"] == stats.recall.mean
    assert numbers["recall_error"] == stats.recall.error
    assert numbers["ms/look-up"] == stats.milliseconds["look-up"]
    assert all(isinstance(number, (int, float)) for number in numbers.values())
    text = str(stats)
    for part in ("recall@7", "look-up", "tables", "load", "stale", "choosing", "ms per call"):
        assert part in text


class Recorder:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, tag, scalar_value, global_step):
        self.scalars.append((tag, scalar_value, global_step))


def test_writer_in_a_plain_loop():
    model = nn.Sequential(nn.Linear(D, D), a_layer())
    recorder = Recorder()
    with StatsWriter(model, recorder, every=3, k=5, queries=8) as write:
        train(model, torch_lsh.optim.Adam(model.parameters()), 7, write)
        assert write.state_dict() == {"steps": 7}
    assert {step for *_, step in recorder.scalars} == {3, 6}
    tags = {tag for tag, *_ in recorder.scalars}
    assert {"torch_lsh/1/recall@5", "torch_lsh/1/recall@5_error", "torch_lsh/1/stale_rows"} <= tags
    assert {"torch_lsh/1/ms/look-up", "torch_lsh/1/load_max"} <= tags
    calls = [value for tag, value, _ in recorder.scalars if tag.endswith("calls/choosing")]
    assert calls == [3, 3]  # since the last time
    assert model[1].sampler.stopwatch is None


def test_writer_writes_event_files_from_fit(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    dataset, _ = synthetic_xmc(512, 64, num_features=500, num_labels=3_000)
    model = XMCClassifier(500, 3_000, hidden=8, config=LSHConfig(active=100))
    with StatsWriter(model, tmp_path / "run", every=2) as write:
        model.fit(dataset, epochs=2, batch_size=128, progress=False, callbacks=[write])
    events = event_accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    recall = events.Scalars("torch_lsh/output/recall@10")
    assert [event.step for event in recall] == [2, 4, 6, 8]
    assert all(0 < event.value <= 1 for event in recall)


def test_writer_without_tensorboard(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    model = nn.Sequential(a_layer())
    with pytest.raises(ImportError, match=r"pip install 'torch_lsh\[tensorboard\]'"):
        StatsWriter(model, tmp_path)
    assert model[0].sampler.stopwatch is None


# --- bad input ---


def test_bad_arguments():
    layer = a_layer()
    x = torch.randn(5, D)
    with pytest.raises(ValueError, match="k is 0; wanted at least 1"):
        layer.stats(x, k=0)
    with pytest.raises(ValueError, match="k is 3001; wanted 1 to 3000"):
        layer.stats(x, k=N + 1)
    with pytest.raises(ValueError, match="queries is 0"):
        layer.stats(x, queries=0)
    with pytest.raises(ValueError, match=r"input has shape \(5, 3\); wanted 16 features"):
        layer.stats(x[:, :3])
    with pytest.raises(RuntimeError, match=r"torch\.float16 has no sampled path"):
        a_layer().half().stats(x.half())
    with pytest.raises(ValueError, match="every is 0; wanted a positive int"):
        StatsWriter(nn.Sequential(layer), Recorder(), every=0)
    with pytest.raises(ValueError, match="writer is a int"):
        StatsWriter(nn.Sequential(layer), 5)
    with pytest.raises(ValueError, match="no LSH layer"):
        StatsWriter(nn.Linear(2, 3), Recorder())
    with pytest.raises(ValueError, match="k is 5000; wanted at most 3000"):
        StatsWriter(nn.Sequential(layer), Recorder(), k=5000)
    assert layer.sampler.tables is None


def test_no_inputs_and_samplers_of_labels():
    assert a_layer().stats(torch.empty(0, D)).recall is None
    assert a_layer(sampler="in_batch").stats(torch.randn(5, D)).recall is None
    layer = a_layer(sampler="frequency")
    assert layer.stats(torch.randn(5, D)).recall is None
    layer.set_label_counts(torch.ones(N, dtype=torch.int64))
    assert layer.stats(torch.randn(5, D)).recall is not None
