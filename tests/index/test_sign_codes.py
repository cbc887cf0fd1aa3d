"""SignCodeIndex: rows as one bit per dimension."""

from __future__ import annotations

import math

import pytest
import torch

from torch_lsh.index.sign_codes import SignCodeIndex


def rotation(width, seed):
    gaussian = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.float()


def test_estimates_without_bias():
    """The mean of the estimates over 200 rotations is the inner product, within 5 standard errors."""
    torch.manual_seed(3)
    weight, x = torch.randn(64, 64), torch.randn(1, 64)
    estimates = []
    for seed in range(200):
        index = SignCodeIndex(64, 64, seed=seed)
        index.build(weight)
        codes, factors = (index.state_dict()[name][0] for name in ("codes", "factors"))
        bits = codes.T[2 * (torch.arange(64) % 32) + torch.arange(64) // 32]
        signs = 2.0 * (bits.unsqueeze(2) >> torch.arange(8) & 1).flatten(1) - 1
        estimates.append((signs @ (x @ rotation(64, seed)).T)[:, 0] * factors[0].float())
    estimates = torch.stack(estimates)
    truth = (weight - weight.mean(0)) @ x[0]
    error = estimates.std(0) / 200**0.5
    assert ((estimates.mean(0) - truth).abs() < 5 * error + 0.01 * truth.abs()).all()


def test_it_finds_most_of_the_best():
    weight, x = torch.randn(20_000, 128), torch.randn(50, 128)
    index = SignCodeIndex(20_000, 128)
    index.build(weight)
    best = (x @ weight.T).argmax(1, keepdim=True)
    assert (index.query(x, 512) == best).any(1).float().mean() > 0.9


def test_updated_codes_equal_built_ones():
    weight, bias = torch.randn(300, 24), torch.randn(300)
    index = SignCodeIndex(300, 24)
    index.build(weight, bias)
    rows = torch.tensor([0, 70, 299])
    changed, center = weight.clone(), index.state_dict()["center"]
    changed[rows] += torch.randn(3, 24)
    index.update(changed, bias, rows)
    built = SignCodeIndex(300, 24)
    built.build(changed, bias)
    built.load_state_dict({**built.state_dict(), "center": center})
    built.update(changed, bias, torch.arange(300))
    updated, whole = index.state_dict(), built.state_dict()
    assert torch.equal(updated["codes"], whole["codes"])
    torch.testing.assert_close(updated["factors"], whole["factors"])


def test_rows_and_queries_that_are_not_finite(simd_level):
    weight = torch.randn(100, 16)
    weight[3, 2], weight[7, 1] = math.nan, math.inf
    index = SignCodeIndex(100, 16)
    index.build(weight)
    x = torch.randn(3, 16)
    x[1, 4], x[2] = math.nan, 0
    found = index.query(x, 10)
    assert found.min() >= 0
    assert found.max() < 100
    assert 3 in found[0]  # NaN is the largest


def common_mean(batch, width):
    return 0.5 * torch.randn(batch, width) + 2 * torch.randn(width)


def test_what_queries_have_in_common_is_not_estimated():
    torch.manual_seed(4)
    weight, bias, queries = torch.randn(20_000, 64), torch.randn(20_000), common_mean(600, 64)
    best = (queries[500:] @ weight.T + bias).topk(10).indices
    recall = []
    for known in (None, queries[:0], queries[:1], queries[:500]):
        index = SignCodeIndex(20_000, 64)
        index.build(weight, bias, known)
        found = index.query(queries[500:], 200)
        recall.append((best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean().item())
    assert recall[0] == recall[1]
    assert recall[0] + 0.1 < recall[2] < recall[3]
    assert recall[3] > 0.95
    poisoned = torch.cat([queries[:500], torch.full((1, 64), math.nan)])
    again = SignCodeIndex(20_000, 64)
    again.build(weight, bias, poisoned)
    assert torch.equal(again.state_dict()["factors"], index.state_dict()["factors"])
    again.build(weight, bias)
    assert not again.state_dict()["mean_query"].any()
    with pytest.raises(ValueError, match=r"queries has shape \[500\]; wanted \[B, 64\]"):
        again.build(weight, bias, queries[:500, 0])


def test_it_names_the_bad_argument():
    with pytest.raises(ValueError, match="num_rows is 0; wanted at least 1"):
        SignCodeIndex(0, 3)
    with pytest.raises(ValueError, match=r"weight has shape \[3, 3\]; wanted \[4, 3\]"):
        SignCodeIndex(4, 3).build(torch.zeros(3, 3))
    index = SignCodeIndex(4, 3)
    index.build(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"x has shape \[1, 2\]; wanted \[B, 3\]"):
        index.query(torch.zeros(1, 2), 1)
