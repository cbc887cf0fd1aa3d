"""train_committee: which rows it trains on how often, and what comes of it. Its steps: tests/ops/test_committee.py."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops
from torch_lsh.models.committee import Examples, committee, first_value, train_committee


def examples(rows=70, width=9, size=5):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, width, size, generator=generator)
    none = torch.rand(rows, width, generator=generator) < 0.3
    none[:, 0] = False
    right = (values[:, :, 0] > 0.5) & ~none
    right[:, 0] = True
    return Examples(values, none, right)


@pytest.fixture
def trained(monkeypatch):
    """The arguments of all calls of fit_committee."""
    calls, fit = [], ops.fit_committee

    def fit_and_keep(*arguments):
        calls.append([some.clone() if torch.is_tensor(some) else some for some in arguments])
        return fit(*arguments)

    monkeypatch.setattr(ops, "fit_committee", fit_and_keep)
    return calls


@pytest.mark.parametrize(("rows", "epochs"), [(40, 16), (1_600, 10), (3_200, 8)])
def test_few_rows_are_not_passed_often(trained, rows, epochs):
    given = examples(rows)
    given.right[3] = False
    train_committee(given, seed=0)
    order, batch = trained[0][3:5]
    assert batch == 32
    assert order.shape == (epochs, rows - 1)
    kept = torch.arange(rows)[torch.arange(rows) != 3]
    assert all(torch.equal(epoch.sort().values, kept) for epoch in order)
    assert not torch.equal(order[0], order[1])


def test_is_the_mean_of_its_members(trained):
    given = examples()
    made, mean, deviation = train_committee(given, seed=3)
    weight, bias, output, *_ = twins.fit_committee(*trained[0])
    inputs = (given.values - mean) / deviation
    with torch.no_grad():
        found = made(inputs).squeeze(2)
        of_members = [
            torch.relu(inputs @ weight[some].T + bias[some]) @ output[some] for some in torch.arange(64).split(16)
        ]
        torch.testing.assert_close(found, sum(of_members) / 4, rtol=0.02, atol=0.02)
        layers = made[0].weight, made[0].bias, made[2].weight[0]
        scores = ops.committee_scores(given.values, given.none, mean, deviation, *layers)
    torch.testing.assert_close(scores, found.masked_fill(given.none, -torch.inf))


def test_finds_what_makes_candidates_right():
    values, none, right = examples(300)
    right[:, 0] = values[:, 0, 0] > 0.5
    made, mean, deviation = train_committee(Examples(values, none, right), seed=0)
    with torch.no_grad():
        scores = made((values - mean) / deviation).squeeze(2).masked_fill(none, -torch.inf)
    best = right.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    assert float(best[right.any(1)].float().mean()) > 0.97


def test_equal_seeds_give_equal_committees_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (train_committee(examples(), seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first[0].weight, other[0].weight)


def test_the_first_value_ranks_as_it_is():
    values = -torch.rand(3, 4)
    with torch.no_grad():
        assert torch.equal(first_value(4)(values)[:, 0], values[:, 0])
    made = first_value(4)
    assert [parameter.shape for parameter in made.parameters()] == [
        parameter.shape for parameter in committee(4).parameters()
    ]
