"""Active sets: the selection operator against its twin, and the statistics of the stratified correction."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import twins
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_lsh import FixedInterval, LSHConfig, LSHLinear, ops
from torch_lsh.sampling.active_set import ActiveSet


@st.composite
def selections(draw, per_sample):
    num_rows = draw(st.integers(1, 200))
    batch, width, ranks = draw(st.integers(0, 5)), draw(st.integers(0, 3)), draw(st.integers(0, 20))
    active = draw(st.integers(1, num_rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    labels = torch.randint(-1, num_rows, (batch, width), generator=generator)
    lists = batch if per_sample else draw(st.integers(0, 5))
    candidates = torch.randint(-1, num_rows, (lists, ranks), generator=generator)
    num_random, seed = draw(st.integers(0, active)), draw(st.integers(0, 100))
    carried = None
    if not per_sample and draw(st.booleans()):
        carried = torch.randint(-1, num_rows, (draw(st.integers(0, 60)),), generator=generator)
    return labels, candidates, num_rows, active, num_random, seed, per_sample, carried


@settings(max_examples=200, deadline=None)
@given(st.booleans().flatmap(selections))
def test_select_rows_has_the_properties_it_promises(arguments):
    labels, _, num_rows, *_, per_sample, _ = arguments
    rows, is_random, positions, log_weights = ops.select_rows(*arguments)
    torch.testing.assert_close(log_weights, ActiveSet(rows, is_random, positions, num_rows).weights().log())
    has_samples = len(labels) > 0
    expected_rows, expected_random, _, expected_weights = (
        twins.select_rows(*arguments) if has_samples else (rows, is_random, positions, log_weights)
    )
    torch.testing.assert_close(log_weights.exp().sum(), expected_weights.exp().sum())
    if not per_sample:
        rows, is_random, positions = rows[None], is_random[None], positions.reshape(1, -1)
        labels = labels.reshape(1, -1)
        expected_rows, expected_random = expected_rows.reshape(1, -1), expected_random.reshape(1, -1)
    for b in range(len(rows)):
        present = rows[b] >= 0
        chosen, random = rows[b][present], is_random[b][present]
        assert torch.equal(chosen, chosen.unique())  # increasing, no repetition
        assert (chosen < num_rows).all()
        for label, position in zip(labels[b].tolist(), positions[b].tolist()):
            assert (position == -1) if label < 0 else (rows[b, position] == label and not is_random[b, position])
        want = expected_rows[b][expected_rows[b] >= 0]
        if has_samples:
            assert len(chosen) == len(want)
            fixed = want[~expected_random[b][: len(want)]]
            assert torch.equal(chosen[~random], fixed)  # the fixed part does not depend on the draw
    again = ops.select_rows(*arguments)
    assert torch.equal(again[0].reshape(rows.shape), rows)


def test_random_rows_are_uniform():
    labels, none = torch.tensor([[3]]), torch.empty(1, 0, dtype=torch.int64)
    for num_rows, active in ((40, 9), (12, 9)):  # rejection, and shuffling where most rows are drawn
        counts = torch.zeros(num_rows)
        draws = 4000
        for seed in range(draws):
            rows, is_random, _, _ = ops.select_rows(labels, none, num_rows, active, active - 1, seed, False)
            counts[rows[is_random]] += 1
        expected = draws * (active - 1) / (num_rows - 1)
        assert counts[3] == 0
        rest = torch.cat([counts[:3], counts[4:]])
        # draws without replacement: variance of a count is draws * p * (1 - p)
        sigma = math.sqrt(expected * (1 - (active - 1) / (num_rows - 1)))
        assert ((rest - expected).abs() < 4.5 * sigma).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([[10]]), torch.empty(1, 0).long(), 10, 2, 1, 0, False), "class 10; wanted 0 to 9"),
        ((torch.tensor([[1]]), torch.tensor([[10]]), 10, 2, 1, 0, False), "candidates holds row 10"),
        ((torch.tensor([[1]]), torch.tensor([[1]]), 10, 11, 1, 0, False), "active is 11; wanted 1 to 10"),
        ((torch.tensor([[1]]), torch.tensor([[1]]), 10, 2, 3, 0, False), "num_random is 3"),
        ((torch.tensor([1]), torch.tensor([[1]]), 10, 2, 1, 0, False), "labels has shape"),
        ((torch.tensor([[1]]), torch.tensor([[1], [2]]), 10, 2, 1, 0, True), "candidates has shape"),
        ((torch.tensor([[1]]), torch.tensor([[1]]), 10, 2, 1, 0, False, torch.tensor([10])), "carried holds row 10"),
        ((torch.tensor([[1]]), torch.tensor([[1]]), 10, 2, 1, 0, False, torch.tensor([[1]])), "carried has shape"),
        (
            (torch.tensor([[1]]), torch.tensor([[1]]), 10, 2, 1, 0, True, torch.tensor([1])),
            "carried is given with per_sample",
        ),
    ],
)
def test_select_rows_names_the_bad_argument(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        ops.select_rows(*arguments)


@pytest.mark.parametrize("per_sample", [False, True])
def test_opcheck_select_rows(per_sample):
    carried = None if per_sample else torch.tensor([8, 9])
    arguments = (torch.tensor([[1, -1], [4, 2]]), torch.tensor([[5], [6]]), 50, 7, 2, 0, per_sample, carried)
    torch.library.opcheck(torch.ops.torch_lsh.select_rows, arguments, test_utils=("test_schema", "test_faketensor"))


N, D, B = 400, 8, 5


def stratified_draws(count, num_random, per_sample=False):
    """``count`` active sets with the same labels and the same retrieved rows."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(N, D, generator=generator, dtype=torch.float64)
    y = torch.randint(0, N, (B, 1), generator=generator)
    retrieved = (x @ weight.T).topk(4).indices
    fixed = 4 if per_sample else 20
    for seed in range(count):
        rows, is_random, positions, _ = ops.select_rows(
            y, retrieved, N, fixed + num_random, num_random, seed, per_sample
        )
        yield x, weight, y, ActiveSet(rows, is_random, positions, N)


@pytest.mark.parametrize("per_sample", [False, True])
def test_partition_function_is_unbiased(per_sample):
    estimates = []
    for x, weight, _, active in stratified_draws(2000, num_random=30, per_sample=per_sample):
        logits = (x @ weight.T).gather(1, active.rows.clamp(min=0).expand(B, -1))
        estimates.append((active.weights().double() * logits.exp()).sum(1))
    estimates = torch.stack(estimates)
    exact = (x @ weight.T).exp().sum(1)
    standard_error = estimates.std(0) / math.sqrt(len(estimates))
    assert (standard_error > 0).all()
    assert ((estimates.mean(0) - exact).abs() < 3 * standard_error).all()


def test_mean_gradient_approaches_the_full_one():
    errors = []
    for num_random in (10, 40, 160):
        mean = 0.0
        draws = list(stratified_draws(300, num_random))
        x, weight, y, _ = draws[0]
        for *_, active in draws:
            z = x @ weight[active.rows].T + active.weights().double().log()
            p = torch.zeros(B, N, dtype=torch.float64)
            p[:, active.rows] = z.softmax(1) - F.one_hot(active.positions[:, 0], len(active.rows))
            mean = mean + p / 300
        full = (x @ weight.T).softmax(1) - F.one_hot(y[:, 0], N)
        errors.append((mean - full).norm() / full.norm())
    # The bias falls as 1 / |R|, the noise of the mean as 1 / sqrt(300 |R|).
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]
    assert errors[2] < 0.05


SCOPES_AND_CARRY = pytest.mark.parametrize(("scope", "carry"), [("batch", 0.0), ("batch", 0.5), ("sample", 0.0)])


def layer_with(num_random, scope, carry, retrieved=20):
    """A layer whose steps, where it carries none over, find the same rows every time, and draw others beside them."""
    config = LSHConfig(
        active=retrieved + num_random,
        random_fraction=num_random / (retrieved + num_random),
        scope=scope,
        carry=carry,
        correction="stratified",
        rehash=FixedInterval(10**9),
    )
    torch.manual_seed(5)
    layer = LSHLinear(D, N, dtype=torch.float64, config=config)
    with torch.no_grad():
        layer.weight.mul_(3)  # logits farther apart than those of a new layer
    return layer, torch.randn(B, D, dtype=torch.float64), torch.randint(0, N, (B,))


def fixed_rows(active):
    """The rows of each sample that are not random."""
    rows, is_random = (part.expand(B, -1) for part in (active.rows, active.is_random))
    return [row[(row >= 0) & ~random].tolist() for row, random in zip(rows, is_random)]


@SCOPES_AND_CARRY
def test_loss_of_a_layer_estimates_the_partition_function_without_bias(scope, carry):
    """The same as above, but through everything that a training step runs: look-up, kernels, loss."""
    layer, x, y = layer_with(30, scope, carry)
    sets = [layer.sample(x, y) for _ in range(3)]
    assert fixed_rows(sets[0]) == fixed_rows(sets[1]) == fixed_rows(sets[2])
    assert all(len(rows) >= 20 for rows in fixed_rows(sets[0]))
    assert not torch.equal(sets[0].rows, sets[1].rows)
    logits = F.linear(x, layer.weight, layer.bias).detach()
    losses = []
    for _ in range(1000):
        with torch.set_grad_enabled(carry > 0):
            loss = F.cross_entropy(layer(x), y, reduction="none")
        if carry > 0:
            loss.sum().backward()  # decides which rows come along
        losses.append(loss.detach())
    estimates = (torch.stack(losses) + logits.gather(1, y[:, None])[:, 0]).exp()
    standard_error = estimates.std(0) / math.sqrt(len(estimates))
    assert (standard_error > 0).all()
    assert ((estimates.mean(0) - logits.exp().sum(1)).abs() < 3 * standard_error).all()


@SCOPES_AND_CARRY
def test_mean_gradient_of_a_layer_approaches_the_full_one(scope, carry):
    draws, errors = 200, []
    for num_random in (10, 40, 160):
        layer, x, y = layer_with(num_random, scope, carry)
        leaves = [x.requires_grad_(), layer.weight, layer.bias]
        full = torch.autograd.grad(F.cross_entropy(F.linear(*leaves), y), leaves)
        mean = [torch.zeros_like(leaf) for leaf in leaves]
        for _ in range(draws):
            for total, gradient in zip(mean, torch.autograd.grad(F.cross_entropy(layer(x), y), leaves)):
                total += gradient / draws
        errors.append(torch.stack([(a - b).norm() / b.norm() for a, b in zip(mean, full)]))
    assert (errors[0] > 1.5 * errors[1]).all()
    assert (errors[1] > 1.5 * errors[2]).all()
    assert (errors[2] < 0.05).all()


def test_weights_of_an_active_set():
    active = ActiveSet(
        torch.tensor([[0, 3, 7, -1], [2, 4, 5, 6]]),
        torch.tensor([[False, True, True, False], [False, False, False, True]]),
        torch.tensor([[0], [0]]),
        num_rows=10,
    )
    assert active.weights().tolist() == [[1, 4.5, 4.5, 0], [1, 1, 1, 7]]


def test_random_fraction_zero_means_no_random_row():
    layer = LSHLinear(D, N, config=LSHConfig(active=50, random_fraction=0.0))
    assert not layer.sample(torch.randn(3, D), torch.tensor([1, 2, 3])).is_random.any()
    layer = LSHLinear(D, N, config=LSHConfig(active=50, random_fraction=1.0))
    active = layer.sample(torch.randn(3, D), torch.tensor([1, 2, 3]))
    assert (~active.is_random).sum() == 3
    assert len(active.rows) == 53


def test_hardest_rows_are_those_a_softmax_pushes_down_most():
    active = ActiveSet(torch.arange(0, 60, 2), torch.arange(30) % 3 == 0, torch.zeros(4, 1).long(), num_rows=100)
    z = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    found = []
    for corrected in (False, True):
        shift = active.weights().double().log() if corrected else 0.0
        loss = F.cross_entropy(z + shift, active.positions[:, 0])
        (gradient,) = torch.autograd.grad(loss, z)
        ops.HardestRows(active.rows, 7, active.log_weights() if corrected else None, found.append).find(gradient)
        # the softmax over the set without corrections, up to a factor per sample where there are some
        p = ((z + shift).softmax(1) / (shift.exp() if corrected else 1)).detach()
        p[:, 0] = 0
        assert torch.equal(found.pop(), active.rows[p.sum(0).argsort(descending=True)[:7]])
    ops.HardestRows(active.rows, 99, None, found.append).find(gradient)
    assert len(found.pop()) == 30


@pytest.mark.parametrize("loss", [F.cross_entropy, F.binary_cross_entropy_with_logits])
def test_the_hardest_rows_of_a_step_are_active_in_the_next(loss):
    config = LSHConfig(active=60, carry=0.2, random_fraction=0.5, correction="none")
    layer = LSHLinear(D, 2_000, config=config)
    x, y = torch.randn(B, D), torch.randint(0, 2_000, (B, 1))
    with torch.no_grad():
        layer.weight[:6] = 3 * x[:1]  # six rows that score high for the first sample
    layer.rehash(full=True)
    loss(layer(x), y).backward()
    carried = layer.sampler.carried
    assert len(carried) == 12
    assert set(range(6)) <= set(carried.tolist())
    assert torch.isin(carried, layer.sample(torch.randn(B, D), y).rows).sum() >= 10


def test_nothing_is_carried_where_it_is_not_wanted():
    x, y = torch.randn(B, D), torch.randint(0, 2_000, (B,))
    for config in (LSHConfig(active=60, carry=0.0), LSHConfig(active=60, scope="sample"), LSHConfig(active=1.0)):
        layer = LSHLinear(D, 2_000, config=config)
        F.cross_entropy(layer(x), y).backward()
        assert layer.sampler.carried is None


def test_what_was_carried_is_forgotten_by_a_layer_that_carries_nothing():
    layer = LSHLinear(D, 2_000, config=LSHConfig(active=60))
    x, y = torch.randn(B, D), torch.randint(0, 2_000, (B,))
    F.cross_entropy(layer(x), y).backward()
    assert layer.sampler.carried is not None
    layer.reconfigure(LSHConfig(active=60, carry=0.0, seed=1))
    fresh = LSHLinear.from_linear(layer, layer.config)
    fresh.sampler.load_state_dict({**layer.sampler.state_dict(), "carried": None})
    assert torch.equal(layer.sample(x, y).rows, fresh.sample(x, y).rows)


def test_tables_are_not_needed_where_labels_leave_no_room():
    config = LSHConfig(active=60)
    layer, twin = (LSHLinear(D, 2_000, config=config) for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    twin.rehash()
    x = torch.randn(B, D)
    many, few = torch.arange(B * 30).reshape(B, 30), torch.arange(B * 30).reshape(B, 30) % 7
    for labels in (many, many):
        assert torch.equal(layer.sample(x, labels).rows, twin.sample(x, labels).rows)
        assert torch.isin(labels, layer.sample(x, labels).rows).all()
        twin.sample(x, labels)
    assert layer.sampler.tables is None
    layer.sample(x, few)
    assert layer.sampler.tables is not None


@pytest.mark.parametrize("size", [0, 1, 7, 129, 5000])
@pytest.mark.parametrize("count", [0, 1, 3000, 9000])
def test_largest_rows_equals_reference(size, count):
    values = torch.randn(size).mul(10).round() / 7  # many equal ones
    rows = torch.randperm(10_000)[:size]
    if size > 6:
        values[2], values[3], values[4], values[5] = torch.inf, -torch.inf, -0.0, torch.nan
    result = ops.largest_rows(values, rows, count)
    assert torch.equal(result, twins.largest_rows(values, rows, count))
    log_weights = torch.tensor([0.0, 1.0, 2.0])[torch.randint(3, (size,))]
    result = ops.largest_rows(values, rows, count, log_weights)
    assert torch.equal(result, twins.largest_rows(values, rows, count, log_weights))


def test_largest_rows_names_the_bad_argument():
    with pytest.raises(RuntimeError, match="values has dtype Double"):
        ops.largest_rows(torch.ones(3).double(), torch.arange(3), 1)
    with pytest.raises(RuntimeError, match="rows has shape"):
        ops.largest_rows(torch.ones(3), torch.arange(4), 1)
    with pytest.raises(RuntimeError, match="count is -1"):
        ops.largest_rows(torch.ones(3), torch.arange(3), -1)
    with pytest.raises(RuntimeError, match="log_weights has shape"):
        ops.largest_rows(torch.ones(3), torch.arange(3), 1, torch.ones(2))
