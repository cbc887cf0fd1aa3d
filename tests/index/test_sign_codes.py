"""SignCodeIndex: its operator, its estimates, and layers that train with it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import twins

from torch_lsh import LSHConfig, LSHLinear, SignCodeConfig, ops, optim
from torch_lsh.index.sign_codes import SignCodeIndex


def built(weight, bias=None, queries=None, seed=0):
    index = SignCodeIndex(*weight.shape, seed=seed)
    index.build(weight, bias, queries)
    return index


def recall(found, best):
    return (best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean().item()


@pytest.mark.parametrize("width", [8, 32, 128])
def test_sketch_candidates_equal_reference(simd_level, threads, width):
    """The operator rounds the query's products, so rows at the edge of the shortlist may differ."""
    for rows, batch in ((1, 1), (64, 3), (700, 5)):
        index = built(torch.randn(rows, width), torch.randn(rows))
        codes, factors = (index.state_dict()[name] for name in ("codes", "factors"))
        x = torch.randn(batch, width)
        for count in {1, min(40, rows), rows}:
            arguments = (x, codes, factors, rows, count)
            found, expected = ops.sketch_candidates(*arguments), twins.sketch_candidates(*arguments)
            assert found.shape == (batch, count)
            assert found.dtype is torch.int64
            assert (found.diff(dim=1) > 0).all()
            same = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist()))
            assert same >= 0.9 * batch * count - 1


def test_factors_make_estimates_unbiased():
    """The length of a row is estimated exactly: its product with its own signs, times its factor."""
    weight = torch.randn(64, 64)
    index = built(weight)
    state = index.state_dict()
    codes, factors = state["codes"], state["factors"]
    # The mean over rotations of the squared length that signs and factor stand for, 64 * factor^2, is pi / 2 times
    # the length of the row for a Gaussian one.
    lengths = (weight - weight.mean(0)).square().sum(1)
    assert codes.shape == (1, 8, 64)
    assert (64 * factors[0, 0].float().square() / lengths).mean() == pytest.approx(math.pi / 2, rel=0.02)


def test_order_of_rows_is_that_of_their_inner_products_on_average():
    """With all rotations, the share of 200 look-ups that find a row grows with its inner product."""
    weight, x = torch.randn(64, 64), torch.randn(1, 64)
    found = torch.stack([built(weight, seed=seed).query(x, 16)[0] for seed in range(200)])
    shares = found.flatten().bincount(minlength=64) / 200
    products = weight @ x[0]
    best = products.topk(8).indices
    assert shares[best].min() > 0.5
    assert torch.corrcoef(torch.stack([shares, products]))[0, 1] > 0.85


def test_candidates_do_not_depend_on_the_number_of_threads(simd_level):
    index, x = built(torch.randn(5000, 40)), torch.randn(3, 40)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(index.query(x, 100))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


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
