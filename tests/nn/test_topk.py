"""The best classes of a layer: exactly, and among candidates by sign codes."""

from __future__ import annotations

import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.index.sign_codes import SignCodeIndex
from torch_lsh.sampling.synchronised_index import SynchronisedIndex


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layer_topk_equals_linear(dtype):
    layer = LSHLinear(24, 700, dtype=dtype).eval()
    x = torch.randn(3, 2, 24, dtype=dtype)
    values, classes = layer.topk(x, 6)
    logits = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    tolerance = 1e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(values.double(), logits.topk(6).values, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(values.double(), logits.gather(-1, classes), rtol=tolerance, atol=tolerance)
    assert values.dtype is dtype


def test_layer_topk_under_autocast():
    layer = LSHLinear(24, 700).eval()
    x = torch.randn(5, 24)
    expected = layer.topk(x, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, classes = layer.topk(x.bfloat16(), 6)
    assert values.dtype is torch.bfloat16
    torch.testing.assert_close(values.float(), expected.values, rtol=2e-2, atol=2e-2)
    assert (classes[:, 0] == expected.indices[:, 0]).float().mean() > 0.5


def test_approximate_topk_is_exact_where_everything_is_scored():
    layer = LSHLinear(8, 500).eval()
    x = torch.randn(4, 8)
    exact, found = layer.topk(x, 15), layer.topk(x, 15, exact=False)  # 512 candidates
    torch.testing.assert_close(found.values, exact.values)
    assert torch.equal(found.indices, exact.indices)
    assert found.values.requires_grad
    with pytest.raises(ValueError, match="candidates is 3; wanted at least k, which is 15"):
        layer.topk(x, 15, exact=False, candidates=3)


@pytest.mark.parametrize("recorded", [True, False])
def test_sign_codes_follow_the_weights(recorded):
    layer = LSHLinear(16, 3000, config=LSHConfig(active=300))
    optimizer = torch_lsh.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(4, 16)
    layer.topk(x, 1, exact=False, candidates=1)
    if recorded:
        for _ in range(50):
            F.cross_entropy(layer(x), torch.tensor([11, 2000, 0, 2999])).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        if not recorded:
            layer.weight[[11, 2000, 0, 2999]] = 10 * x
        found = layer.topk(x, 1, exact=False, candidates=30).indices
        assert torch.equal(found, layer.topk(x, 1).indices)
    copied = copy.deepcopy(layer)
    assert torch.equal(copied.topk(x, 1, exact=False, candidates=30).indices, found)


def common_mean(batch, width):
    return 0.5 * torch.randn(batch, width) + 2 * torch.randn(width)


@pytest.mark.parametrize("trained", [True, False])
def test_a_layer_knows_what_its_inputs_have_in_common(trained):
    torch.manual_seed(5)
    layer, inputs = LSHLinear(64, 20_000), common_mean(600, 64)
    with torch.no_grad():
        layer.weight.normal_()
    if trained:
        F.cross_entropy(layer(inputs[:500]), torch.zeros(500, dtype=torch.int64))
        layer = pickle.loads(pickle.dumps(layer.eval()))
        layer.topk(torch.zeros(1, 64), 1, exact=False)  # says nothing, then
    else:
        layer.eval().topk(inputs[:500], 1, exact=False)
    best = layer.topk(inputs[500:], 10).indices
    found = layer.topk(inputs[500:], 10, exact=False, candidates=200).indices
    assert (best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean() > 0.95


def test_the_mean_of_inputs_is_resumed_and_follows_training():
    torch.manual_seed(6)
    layer, inputs = LSHLinear(64, 2_000, config=LSHConfig(active=1_500)), common_mean(300, 64)
    F.cross_entropy(layer(inputs), torch.zeros(300, dtype=torch.int64))
    resumed = LSHLinear(64, 2_000, config=layer.config)
    resumed.load_state_dict(layer.state_dict())
    resumed.sampler.load_state_dict(layer.sampler.state_dict())
    found = [one.topk(inputs, 10, exact=False, candidates=20).indices for one in (layer, resumed)]
    assert torch.equal(*found)
    optimizer = torch_lsh.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(5):  # which change most rows
        F.cross_entropy(layer(-inputs), torch.zeros(300, dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad()
    # What the new inputs have in common is not estimated any more; that of the old ones is.
    recall = []
    for x in (-inputs, inputs):
        best, found = layer.topk(x, 10).indices, layer.topk(x, 10, exact=False, candidates=20).indices
        recall.append((best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean().item())
    assert recall[0] > recall[1] + 0.05


def test_threads_that_meet_at_the_first_use_build_the_codes_once():
    made = []

    def make():
        time.sleep(0.02)  # the other threads arrive
        made.append(SignCodeIndex(500, 16))
        return made[-1]

    synchronised, weight = SynchronisedIndex(make), torch.randn(500, 16)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: synchronised.exact(weight, None, None).query(weight[:3], 8), range(4)))
    assert len(made) == 1
    assert all(torch.equal(rows, found[0]) for rows in found)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_places_of_classes_that_were_not_found_are_marked(monkeypatch, with_gradient):
    layer = LSHLinear(4, 100).eval()
    monkeypatch.setattr(layer.sampler, "candidates", lambda *_: torch.tensor([[7, -1, -1]]))
    with torch.set_grad_enabled(with_gradient):
        values, classes = layer.topk(torch.randn(1, 4), 3, exact=False, candidates=3)
    assert classes.tolist() == [[7, -1, -1]]
    assert values[0, 1:].tolist() == [-torch.inf, -torch.inf]
