"""Approximate top-k of layers: recall as asked for, threads, training, quantised weights."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear, QuantizedLinear
from torch_lsh.index import lookup
from torch_lsh.index.partition import PartitionIndex
from torch_lsh.index.sign_codes import SignCodeIndex

N, D = 6_000, 24


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(lookup, "_LEAST_PARTITIONED", 5_000)


def layer_and_inputs(rows=N):
    centers = torch.randn(300, D)
    layer = LSHLinear(D, rows, config=LSHConfig(active=500)).eval()
    with torch.no_grad():
        layer.weight.copy_(2 * centers[torch.randint(300, (rows,))] + 0.5 * torch.randn(rows, D))
    x = F.relu(centers[(300 * torch.rand(1600) ** 2).long()] + 0.5 * torch.randn(1600, D) + 0.5)
    return layer, x


def recall(layer, x, k=10, **options):
    best = layer.topk(x, k).indices
    return (layer.topk(x, k, exact=False, **options).indices.unsqueeze(1) == best.unsqueeze(2)).any(2).float().mean()


@pytest.mark.parametrize("kind", [LSHLinear, QuantizedLinear])
def test_recall_is_as_asked_for(kind):
    layer, x = layer_and_inputs()
    if kind is QuantizedLinear:
        layer = QuantizedLinear.from_linear(layer)
    with torch.inference_mode():
        layer.topk(x[:1000], 10, exact=False)
    assert recall(layer, x[1000:]) > 0.93
    assert 0.68 < recall(layer, x[1000:], recall=0.7) < 0.9
    assert recall(layer, x[1000:], recall=0.99) > 0.98
    values, classes = layer.topk(x[:7], 10, exact=False)
    torch.testing.assert_close(values, F.linear(x[:7], layer.weight, layer.bias).gather(1, classes))
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same.topk(x[1000:], 10, exact=False).indices, layer.topk(x[1000:], 10, exact=False).indices)


def test_other_memory_is_noticed_and_a_full_rehash_is_for_edits_in_place():
    layer, x = layer_and_inputs()
    assert recall(layer, x) > 0.93
    layer.weight.data = layer.weight.detach().flip(0)
    assert recall(layer, x) > 0.93
    layer.weight.data.copy_(layer.weight.detach().flip(0))
    assert recall(layer, x) < 0.5  # nothing tells
    layer.rehash(full=True)
    assert recall(layer, x) > 0.93


def test_a_layer_that_was_made_in_inference_mode():
    layer, x = layer_and_inputs()
    with torch.inference_mode():
        made = copy.deepcopy(layer)
    assert made.weight.is_inference()
    with torch.no_grad():
        found = made.topk(x, 10, exact=False).indices
    assert torch.equal(found, layer.topk(x, 10, exact=False).indices)


def test_stats_tell_what_was_measured():
    layer, x = layer_and_inputs()
    assert layer.stats().topk is None
    layer.topk(x, 10, exact=False)
    layer.topk(x, 3, exact=False, recall=0.9)
    topk = layer.stats().topk
    assert topk.kind == "PartitionIndex"
    assert topk.index_bytes > N * D // 4
    assert [(effort.k, effort.target) for effort in topk.efforts] == [(10, 0.95), (3, 0.9)]
    numbers = layer.stats().as_dict()
    assert numbers["topk@10/0.95/recall"] >= 0.95
    assert numbers["topk_bytes"] == topk.index_bytes
    route = topk.efforts[0].route
    assert (numbers["topk@10/0.95/route_learned"], numbers["topk@10/0.95/route_bits"]) == route
    assert f"buckets by {route}" in str(layer.stats())
    assert "recall@3 0.9" in str(layer.stats())


@pytest.mark.parametrize("rows", [4_000, N])
def test_many_threads_share_the_first_use(rows):
    layer, x = layer_and_inputs(rows)
    layer.topk(x[:1100], 10, exact=False)
    expected = layer.topk(x[1100:1200], 10, exact=False)
    for _ in range(3):
        layer.rehash(full=True)
        layer.sampler.forget()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i: layer.topk(x[1100 + i : 1101 + i], 10, exact=False), range(100)))
        assert torch.equal(torch.cat([one.indices for one in found]), expected.indices)
        torch.testing.assert_close(torch.cat([one.values for one in found]), expected.values)


def test_inputs_of_the_first_calls_are_kept_until_they_are_enough():
    layer, x = layer_and_inputs()
    for i in range(0, 255, 15):
        layer.topk(x[i : i + 15], 10, exact=False)
        assert layer.sampler.look_up_index.kind.__class__ is SignCodeIndex
        assert not layer.sampler.look_up_index.is_measured
    layer.topk(x[:1], 10, exact=False)
    assert layer.sampler.look_up_index.is_measured
    assert isinstance(layer.sampler.look_up_index.kind, PartitionIndex)


def test_look_ups_learn_from_training_and_follow_it():
    layer, x = layer_and_inputs()
    layer.train()
    optimizer = torch_lsh.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(40):
        F.cross_entropy(layer(x[20 * step : 20 * step + 80]), torch.arange(80)).backward()
        optimizer.step()
        optimizer.zero_grad()
    layer.eval()
    layer.topk(x[:1], 10, exact=False)
    index = layer.sampler.look_up_index
    assert index.is_measured
    assert recall(layer, x[1000:]) > 0.9
    layer.train()
    for _ in range(3):
        F.cross_entropy(layer(x[:80]), torch.arange(80)).backward()
        optimizer.step()
        optimizer.zero_grad()
    layer.eval()
    assert recall(layer, x[1000:]) > 0.9
    assert layer.sampler.look_up_index is index  # only the rows that changed were taken in


def train(layer, x, steps):
    layer.train()
    optimizer = torch_lsh.optim.SGD(layer.parameters(), lr=1e-3)
    for step in range(steps):
        F.cross_entropy(layer(x[20 * step : 20 * step + 80]), torch.arange(80)).backward()
        optimizer.step()
        optimizer.zero_grad()
    layer.eval()


def test_inputs_of_calls_that_differ_from_those_of_training():
    layer, x = layer_and_inputs()
    train(layer, x, 40)
    far = 3 * torch.randn(2000, D) * torch.linspace(0, 1, D)
    assert recall(layer, far[:200], recall=0.9) < 0.88
    layer.topk(far[200:400], 10, exact=False)  # 256 were seen
    assert recall(layer, far[1000:], recall=0.9) > 0.89
    index = layer.sampler.look_up_index
    effort = index.known_effort(10, 0.9)
    layer.topk(x[:400], 10, exact=False)  # once is enough
    assert index.known_effort(10, 0.9) is effort
    train(layer, x, 40)
    layer.topk(x[:400], 10, exact=False, recall=0.9)
    assert layer.sampler.look_up_index is index
    assert index.known_effort(10, 0.9).examined < effort.examined


def test_inputs_of_training_that_change_where_the_rows_do_not():
    layer, x = layer_and_inputs()
    train(layer, x, 40)
    far = 3 * torch.randn(2000, D) * torch.linspace(0, 1, D)
    assert recall(layer, far[1600:1800], recall=0.9) < 0.88
    layer.train()
    for some in far[:1600].split(40):
        layer.cross_entropy(some, torch.arange(40))
    layer.eval()
    assert recall(layer, far[1800:], recall=0.9) > 0.89


@pytest.mark.parametrize("kind", [LSHLinear, QuantizedLinear])
def test_weights_that_are_loaded_bring_inputs_of_their_own(kind):
    layer, x = layer_and_inputs()
    if kind is LSHLinear:
        train(layer, x, 40)
    loaded, _ = layer_and_inputs()
    if kind is QuantizedLinear:
        layer, loaded = QuantizedLinear.from_linear(layer), QuantizedLinear.from_linear(loaded)
    layer.topk(x, 10, exact=False)
    layer.load_state_dict(loaded.state_dict())
    far = 3 * torch.randn(1500, D)
    layer.topk(far[:1000], 10, exact=False)
    assert recall(layer, far[1000:]) > 0.93


def test_a_recall_of_one_is_exact():
    layer, x = layer_and_inputs()
    for same in (layer, QuantizedLinear.from_linear(layer)):
        same.topk(x[:1000], 3, exact=False)
        exact, found = same.topk(x[:50], 3), same.topk(x[:50], 3, exact=False, recall=1.0)
        assert torch.equal(found.indices, exact.indices)
        torch.testing.assert_close(found.values, exact.values)
    x = x[:9].requires_grad_()
    layer.topk(x, 3, exact=False, recall=1.0).values.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight[layer.topk(x, 3).indices].sum(1))


def test_inputs_that_are_not_finite():
    layer, x = layer_and_inputs(4_000)
    bad = torch.full((300, D), float("nan"))
    assert layer.topk(bad, 3, exact=False).indices.shape == (300, 3)
    assert layer.topk(x[:5], 3, exact=False).indices.shape == (5, 3)


def test_arguments_that_do_not_fit():
    layer, x = layer_and_inputs(4_000)
    for target in (layer, QuantizedLinear.from_linear(layer)):
        for options, error, message in (
            ({"recall": 0}, ValueError, "recall is 0; wanted over 0, at most 1"),
            ({"recall": 1.5}, ValueError, "recall is 1.5"),
            ({"recall": "high"}, TypeError, "recall is 'high'; wanted a float"),
            ({"candidates": 2}, ValueError, "candidates is 2; wanted at least k, which is 3"),
            ({"candidates": 2.5}, TypeError, "candidates is 2.5; wanted an int"),
        ):
            with pytest.raises(error, match=message):
                target.topk(x, 3, exact=False, **options)


def test_training_and_look_ups_in_turn_are_measured_ever_more_rarely(monkeypatch):
    layer = LSHLinear(16, 2_000)
    measured, original = [], lookup._measured

    def counted(*arguments):
        measured.append(layer.sampler.draws)
        return original(*arguments)

    monkeypatch.setattr(lookup, "_measured", counted)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        x = torch.randn(64, 16, generator=generator)
        layer.train().sample(x, torch.zeros(64, dtype=torch.int64))
        layer.eval().topk(x, 1, exact=False)
    # As soon as 256 inputs are known, when training doubled, and after each 8,192 inputs of calls, which are 128 steps.
    assert len([one for one in measured if one < 32]) <= 7
    assert 1 <= len([one for one in measured if one >= 64]) <= 4
