"""Samplers beside hashing: what they draw, with which probabilities, and that their corrections are right."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import twins

from torch_lsh import HashTableConfig, LSHConfig, LSHFeedForward, LSHLinear, ops, optim
from torch_lsh.sampling.active_set import Budget, choose_active_rows
from torch_lsh.sampling.label_counts import LabelCounts, log_uniform

WEIGHTED = ("log_uniform", "frequency")


def tables(num_rows, kind):
    if kind == "log_uniform":
        return None, log_uniform(num_rows)
    counts = torch.randint(0, 50, (num_rows,), generator=torch.Generator().manual_seed(1)) ** 2
    return LabelCounts(num_rows, counts).tables()


@pytest.mark.parametrize("kind", WEIGHTED)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("num_rows", "active"), [(1, 1), (50, 1), (50, 20), (50, 49), (50, 50), (3000, 400)])
def test_draw_rows_equals_reference(threads, kind, per_sample, num_rows, active):
    order, cumulative = tables(num_rows, kind)
    labels = torch.randint(-1, num_rows, (4, 3))
    for seed in range(5):
        arguments = (labels, order, cumulative, active, seed, per_sample)
        for ours, theirs in zip(ops.draw_rows(*arguments), twins.draw_rows(*arguments)):
            assert torch.allclose(ours, theirs, rtol=1e-6) if ours.is_floating_point() else torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", WEIGHTED)
@pytest.mark.parametrize("active", [3, 12, 36])
def test_rows_are_drawn_with_the_probabilities_that_come_back(kind, active):
    num_rows, draws = 40, 4000
    order, cumulative = tables(num_rows, kind)
    counts, told = torch.zeros(num_rows), torch.full((num_rows,), float("nan"))
    sizes = []
    for seed in range(draws):
        rows, is_random, _, inclusion = ops.draw_rows(torch.tensor([[7]]), order, cumulative, active, seed, False)
        counts[rows] += 1
        assert told[rows].isnan().logical_or(told[rows] == inclusion).all()  # a function of the row alone
        told[rows] = inclusion
        assert not is_random[rows == 7]
        sizes.append(len(rows))
    assert counts[7] == draws
    assert told[7] == 1
    told = told.nan_to_num(0)  # never drawn: hardly ever due
    sigma = (draws * told * (1 - told)).sqrt()
    assert ((counts - draws * told).abs() <= 4.5 * sigma + 1e-3).all()
    assert told.unique().numel() > 3
    assert 0.9 * active <= sum(sizes) / draws <= active


def test_frequent_rows_are_drawn_more_often():
    order, cumulative = LabelCounts(1000, torch.arange(1000)).tables()
    rows = ops.draw_rows(torch.empty(0, 0).long(), order, cumulative, 100, 0, False)[0]
    assert 600 < rows.float().mean() < 730  # proportional to the row: 2/3 of the way up
    rows = ops.draw_rows(torch.empty(0, 0).long(), None, log_uniform(1000), 100, 0, False)[0]
    assert rows.float().mean() < 300


N, D, B = 300, 8, 6
NONE = torch.empty(1, 0, dtype=torch.int64)


def partition(active, logits):
    rows = active.rows.clamp(min=0).expand(B, -1)
    return (active.weights().double() * logits.gather(1, rows).exp()).sum(1)


@pytest.mark.parametrize("sampler", ["uniform", *WEIGHTED])
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_partition_function_is_unbiased(sampler, scope):
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(B, N, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, N, (B, 2), generator=generator)
    labels[1, 1] = -1
    counts = LabelCounts(N, torch.randint(0, 100, (N,), generator=generator))
    config = LSHConfig(sampler=sampler, scope=scope, active=40)
    x = torch.zeros(B, D)
    budget = Budget.of(config, N)
    estimates = torch.stack(
        [partition(choose_active_rows(None, x, labels, budget, seed, counts=counts), logits) for seed in range(2000)]
    )
    standard_error = estimates.std(0) / math.sqrt(len(estimates))
    assert (standard_error > 0).all()
    assert ((estimates.mean(0) - logits.exp().sum(1)).abs() < 3.5 * standard_error).all()


def test_partition_function_of_in_batch_negatives_is_unbiased():
    """Over the rows that can be labels, for a sample whose own label is given and others drawn independently."""
    generator = torch.Generator().manual_seed(5)
    p = torch.rand(N, generator=generator, dtype=torch.float64) ** 2 + 0.1
    p[:50] = 0
    p /= p.sum()
    logits = torch.randn(1, N, generator=generator, dtype=torch.float64).expand(64, N)
    counts = LabelCounts(N, 1e9 * p)
    config = LSHConfig(sampler="in_batch")
    estimates = []
    for _ in range(2000):
        labels = torch.multinomial(p, 64, replacement=True, generator=generator).view(64, 1)
        labels[0] = 123
        active = choose_active_rows(None, torch.zeros(64, D), labels, Budget.of(config, N), 0, counts=counts)
        assert torch.equal(active.rows, labels.unique())
        estimates.append((active.weights()[0].double() * logits[0, active.rows].exp()).sum())
    estimates = torch.stack(estimates)
    standard_error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - logits[0, p > 0].exp().sum()) < 3.5 * standard_error
    assert standard_error / estimates.mean() < 0.01


@pytest.mark.parametrize("sampler", ["uniform", *WEIGHTED])
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_loss_of_a_layer_estimates_the_partition_function_without_bias(sampler, scope):
    """Through everything that a training step runs: draws, kernels, loss."""
    config = LSHConfig(sampler=sampler, scope=scope, active=60, correction="stratified")
    layer = LSHLinear(D, N, dtype=torch.float64, config=config)
    layer.set_label_counts(torch.arange(N))
    x, y = 3 * torch.randn(B, D, dtype=torch.float64), torch.randint(0, N, (B,))
    logits = F.linear(x, layer.weight, layer.bias).detach()
    with torch.no_grad():
        losses = torch.stack([F.cross_entropy(layer(x), y, reduction="none") for _ in range(1000)])
    estimates = (losses + logits.gather(1, y[:, None])[:, 0]).exp()
    standard_error = estimates.std(0) / math.sqrt(len(estimates))
    assert (standard_error > 0).all()
    assert ((estimates.mean(0) - logits.exp().sum(1)).abs() < 3.5 * standard_error).all()


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform", "frequency", "in_batch"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("correction", ["stratified", "none"])
def test_layers_train_with_every_sampler(sampler, loss, correction):
    layer = LSHLinear(D, 2000, config=LSHConfig(sampler=sampler, active=200, correction=correction))
    optimizer = optim.Adam(layer.parameters(), lr=0.1)
    x, y = torch.randn(64, D), torch.randint(0, 40, (64, 2))
    before = None
    for _ in range(30):
        value = getattr(F, loss)(layer(x), y)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        before = before or value.item()
    assert value.item() < 0.9 * before
    assert layer.sampler.tables is None  # nothing is hashed
    assert layer.rehash() == 0


@pytest.mark.parametrize("sampler", ["uniform", *WEIGHTED])
def test_with_every_row_active_the_loss_is_exact(sampler):
    layer = LSHLinear(D, 50, dtype=torch.float64, config=LSHConfig(sampler=sampler, correction="stratified"))
    x, y = torch.randn(B, D, dtype=torch.float64), torch.randint(0, 50, (B,))
    expected = F.cross_entropy(F.linear(x, layer.weight, layer.bias), y)
    assert torch.allclose(F.cross_entropy(layer(x), y), expected)


def test_one_sample_has_only_its_own_label_in_its_batch():
    layer = LSHLinear(D, N, config=LSHConfig(sampler="in_batch", correction="stratified"))
    active = layer.sample(torch.randn(1, D), torch.tensor([3]))
    assert active.rows.tolist() == [3]
    assert active.weights().tolist() == [[1.0]]
    assert layer.sample(torch.randn(2, D)).rows.numel() == 0


def test_counts_are_kept_while_training_and_in_checkpoints():
    layer = LSHLinear(D, N, config=LSHConfig(sampler="frequency", active=20))
    y = torch.tensor([1, 1, 2])
    for _ in range(4):
        layer.sample(torch.randn(3, D), y)
    layer.eval()
    layer.sample(torch.randn(3, D), y)
    layer.train()
    state = layer.sampler.state_dict()
    assert state["label_counts"]["samples"] == 12
    assert state["label_counts"]["counts"][:4].tolist() == [0, 8, 4, 0]
    other = LSHLinear(D, N, config=layer.config)
    other.sampler.load_state_dict(state)
    x = torch.randn(3, D)
    assert torch.equal(other.sample(x, y).rows, layer.sample(x, y).rows)
    layer.set_label_counts(torch.ones(N))
    layer.sample(x, y)
    assert layer.sampler.state_dict()["label_counts"]["counts"].eq(1).all()  # given ones stay
    other.sampler.load_state_dict({**state, "label_counts": None})
    assert other.sampler.state_dict()["label_counts"] is None


@pytest.mark.parametrize("sampler", ["frequency", "in_batch"])
def test_hidden_layers_have_no_labels_to_draw_by(sampler):
    block = LSHFeedForward(D, 500, config=LSHConfig(sampler=sampler, active=50))
    with pytest.raises(ValueError, match="which needs labels; hidden neurons have none"):
        block(torch.randn(3, D))


def test_counts_follow_the_labels():
    counts = LabelCounts(100)
    assert counts.tables()[1].diff().eq(1).all()
    for _ in range(50):
        counts.add(torch.full((20, 1), 42))
    order, cumulative = counts.tables()
    assert order[0] == 42
    assert 900 < cumulative[1] <= 1001  # a tenth more may have come since it was last sorted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelCounts(5, torch.ones(4)), r"counts has shape \[4\]"),
        (lambda: LabelCounts(5, -torch.ones(5)), "counts holds negative"),
        (lambda: LabelCounts(5, torch.full((5,), math.nan)), "counts holds negative or infinite numbers or NaN"),
        (lambda: LabelCounts(5, torch.ones(5), samples=0), "samples is 0"),
        (lambda: LSHLinear(4, 9).set_label_counts(torch.ones(8)), r"wanted \[9\]"),
        (lambda: LSHConfig(sampler="random"), "sampler is 'random'; wanted one of 'lsh', 'uniform'"),
        (lambda: LSHConfig(sampler="in_batch", scope="sample"), "wanted scope 'batch'"),
        (lambda: LSHConfig.bolt(0, 0.1), "out_features is 0"),
        (lambda: LSHConfig.bolt(10, 0.0), "active is 0.0"),
        (
            lambda: choose_active_rows(None, torch.ones(1, 2), NONE, Budget.of(LSHConfig(sampler="in_batch"), 9), 0),
            "counts is None",
        ),
    ],
)
def test_names_the_bad_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([[9]]), None, log_uniform(9), 2, 0, False), "class 9; wanted 0 to 8"),
        ((NONE, None, log_uniform(9), 10, 0, False), "active is 10; wanted 1 to 9"),
        ((NONE, None, log_uniform(9).float(), 2, 0, False), "cumulative has dtype Float"),
        ((NONE, None, torch.zeros(1).double(), 1, 0, False), "wanted at least 2 entries"),
        ((NONE, None, torch.zeros(4).double(), 1, 0, False), "cumulative runs from 0 to 0"),
        ((NONE, torch.arange(8), log_uniform(9), 2, 0, False), "order has shape"),
        ((NONE, torch.arange(9) + 9, log_uniform(9), 2, 0, False), "order holds a row out of range"),
    ],
)
def test_draw_rows_names_the_bad_argument(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        ops.draw_rows(*arguments)


@pytest.mark.parametrize("per_sample", [False, True])
def test_opcheck_draw_rows(per_sample):
    arguments = (torch.tensor([[1, -1], [4, 2]]), torch.arange(50), log_uniform(50), 7, 0, per_sample)
    torch.library.opcheck(torch.ops.torch_lsh.draw_rows, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    "config",
    [
        LSHConfig.slide_amazon670k(),
        LSHConfig.bolt(3000, 0.05),
        LSHConfig(active=200, index=HashTableConfig(insert_labels=True)),
        LSHConfig(active=200, index=HashTableConfig(probes=4, min_matches=2, selection="frequency")),
        LSHConfig(active=200, index=HashTableConfig(hash="cross_polytope", bucket_policy="fifo", selection="vanilla")),
        LSHConfig(
            active=200,
            index=HashTableConfig(hash="simhash_hadamard", mips=True, sketch_bits=100, balance=True),
        ),
    ],
)
def test_layers_train_with_published_and_other_settings(config):
    layer = LSHLinear(D, 3000, config=config)
    optimizer = optim.Adam(layer.parameters(), lr=0.05)
    x, y = torch.randn(40, D), torch.randint(0, 3000, (40,))
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(layer(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    index, tables = layer.sampler.tables, config.index
    assert (index.probes, index.bucket_policy) == (tables.probes, tables.bucket_policy)
    assert (index.selection, index.min_matches) == (tables.selection_mode, tables.min_matches)


def test_labels_go_into_the_buckets_of_their_queries_in_training_only():
    config = LSHConfig(active=50, scope="sample", random_fraction=0.0, index=HashTableConfig(insert_labels=True))
    layer = LSHLinear(D, 20_000, config=config)
    x, y = torch.randn(30, D), torch.randint(0, 20_000, (30,))

    def found():
        return (layer.topk(x, 50, exact=False).indices == y[:, None]).any(1).float().mean()

    layer.rehash(full=True)
    before = found()
    layer.eval()
    layer.sample(x, y)
    assert found() == before
    layer.train()
    layer.sample(x, y)
    assert layer.sampler.tables.query(x, 20)[:, :].eq(y[:, None]).any(1).float().mean() > before + 0.5
