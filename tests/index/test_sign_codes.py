"""SignCodeIndex: its estimates, and layers that train with it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from torch_lsh import LSHConfig, LSHLinear, SignCodeConfig, optim
from torch_lsh.index.sign_codes import SignCodeIndex


def built(weight, bias=None, queries=None, seed=0):
    index = SignCodeIndex(*weight.shape, seed=seed)
    index.build(weight, bias, queries)
    return index


def recall(found, best):
    return (best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean().item()


def rotation(width, seed):
    gaussian = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.float()


def test_estimates_without_bias():
    """The mean of the estimates over 200 rotations is the inner product, within 5 standard errors."""
    torch.manual_seed(3)
    weight, x = torch.randn(64, 64), torch.randn(1, 64)
    estimates = []
    for seed in range(200):
        codes, factors = (built(weight, seed=seed).state_dict()[name][0] for name in ("codes", "factors"))
        bits = codes.T[2 * (torch.arange(64) % 32) + torch.arange(64) // 32]
        signs = 2.0 * (bits.unsqueeze(2) >> torch.arange(8) & 1).flatten(1) - 1
        estimates.append((signs @ (x @ rotation(64, seed)).T)[:, 0] * factors[0].float())
    estimates = torch.stack(estimates)
    truth = (weight - weight.mean(0)) @ x[0]
    error = estimates.std(0) / 200**0.5
    assert ((estimates.mean(0) - truth).abs() < 5 * error + 0.01 * truth.abs()).all()


def test_finds_most_of_the_best():
    weight, x = torch.randn(20_000, 128), torch.randn(50, 128)
    found = built(weight).query(x, 512)
    assert recall(found, (x @ weight.T).argmax(1, keepdim=True)) > 0.9
    assert (found.diff(dim=1) > 0).all()  # in the order of their numbers


def test_values_that_are_not_finite(simd_level):
    weight = torch.randn(100, 16)
    weight[3, 2], weight[7, 1] = math.nan, math.inf
    x = torch.randn(3, 16)
    x[1, 4], x[2] = math.nan, 0
    found = built(weight).query(x, 10)
    assert found.min() >= 0
    assert found.max() < 100
    assert 3 in found[0]  # NaN is the largest


def test_what_queries_have_in_common_is_not_estimated():
    torch.manual_seed(4)
    weight, bias = torch.randn(20_000, 64), torch.randn(20_000)
    queries = 0.5 * torch.randn(600, 64) + 2 * torch.randn(64)
    best = (queries[500:] @ weight.T + bias).topk(10).indices
    recalls = [
        recall(built(weight, bias, known).query(queries[500:], 200), best)
        for known in (None, queries[:0], queries[:1], queries[:500])
    ]
    assert recalls[0] == recalls[1]
    assert recalls[0] + 0.1 < recalls[2] < recalls[3]
    assert recalls[3] > 0.95
    poisoned = built(weight, bias, torch.cat([queries[:500], torch.full((1, 64), math.nan)])).state_dict()
    clean = built(weight, bias, queries[:500]).state_dict()
    torch.testing.assert_close(poisoned["mean_query"], queries[:500].sum(0) / 501)
    assert torch.equal(poisoned["factors"], clean["factors"])


# --- in training ---


@pytest.mark.parametrize("options", [{}, {"scope": "sample"}, {"carry": 0.0}])
def test_layers_train_with_sign_codes(options):
    config = LSHConfig(active=200, index=SignCodeConfig(), **options)
    layer = LSHLinear(24, 3000, config=config)
    optimizer = optim.Adam(layer.parameters(), lr=0.05)
    x, y = torch.randn(40, 24), torch.randint(0, 3000, (40,))
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(layer(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    layer.rehash(full=True)
    stats = layer.stats(x, k=5)
    assert stats.tables is None
    assert stats.index_bytes > 0
    assert stats.lookup_recall.mean > 0.8
    assert stats.recall.mean > 3 * 200 / 3000
    assert 0 <= layer.drift() <= 1


def test_too_many_candidates_are_cut_without_regard_to_their_numbers():
    """A look-up returns rows in increasing order; the active ones must not be those with small numbers."""
    layer = LSHLinear(16, 4000, config=LSHConfig(active=400, carry=0.0, random_fraction=0.0, index=SignCodeConfig()))
    rows = layer.sample(torch.randn(64, 16)).rows
    assert len(rows) == 400
    assert abs(rows.float().mean().item() - 2000) < 5 * 4000 / 12**0.5 / 20
