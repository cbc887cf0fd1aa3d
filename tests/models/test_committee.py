"""train_committee: its written-out gradients against those of autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torch_lsh.models import committee as module
from torch_lsh.models.committee import Examples, committee, train_committee

MEMBERS, UNITS, STEPS = 4, 16, 12


def examples(rows=70, width=9, size=5):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, width, size, generator=generator)
    none = torch.rand(rows, width, generator=generator) < 0.3
    none[:, 0] = False
    right = (values[:, :, 0] > 0.5) & ~none
    right[:, 0] = True
    return Examples(values, none, right)


def trained_by_autograd(given, seed):
    """The same committee: AdamW on the sum over members of the weighted mean, over rows, of their cross entropies."""
    members = torch.block_diag(*torch.ones(MEMBERS, 1, UNITS))
    torch.manual_seed(seed)
    hidden = torch.nn.Linear(given.values.shape[2], MEMBERS * UNITS)
    output = torch.nn.Parameter(torch.empty(MEMBERS * UNITS).uniform_(-0.25, 0.25))
    optimizer = torch.optim.AdamW([*hidden.parameters(), output], lr=0.015, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        if step % 3 == 0:
            order = torch.randperm(len(given.none), generator=generator).split(32)
        some = given.take(order[step % 3])
        scores = F.linear(F.relu(hidden(some.values)), output * members).masked_fill(some.none.unsqueeze(2), -torch.inf)
        right = some.right.unsqueeze(2)
        wrong = scores.masked_fill(right, -torch.inf).logsumexp(1, keepdim=True)
        losses = torch.logaddexp(scores, wrong).sub(scores).where(right, 0)
        optimizer.param_groups[0]["lr"] = 0.015 * (1 - step / STEPS)
        optimizer.zero_grad()
        mean = given.right.sum(1).clamp(max=5).float().mean()
        found = some.right.sum(1)
        weights = found.clamp(max=5) / mean
        ((losses.sum((1, 2)) / found * weights).sum() / len(found)).backward()
        optimizer.step()
    made = committee(given.values.shape[2])
    with torch.no_grad():
        for parameter, value in zip(made.parameters(), (hidden.weight, hidden.bias, output.unsqueeze(0) / MEMBERS)):
            parameter.copy_(value)
    return made


@torch.no_grad()
def test_gradients_are_those_of_autograd(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_EPOCHS", 1)
    monkeypatch.setattr(module, "_LEAST_STEPS", STEPS)
    given = examples()
    ours = train_committee(given, seed=3)
    with torch.enable_grad():
        theirs = trained_by_autograd(given, seed=3)
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("rows", "steps"), [(40, 2 * 16), (1_000, 8 * 32), (3_200, 8 * 100)])
def test_few_rows_are_not_passed_often(monkeypatch, rows, steps):
    taken = []
    monkeypatch.setattr(module, "adamw", lambda *arguments, **options: taken.append(options["lr"]))
    train_committee(examples(rows), seed=0)
    assert len(taken) == steps
    assert taken == sorted(taken, reverse=True)


@torch.no_grad()
def test_equal_seeds_give_equal_committees_and_leave_the_generator_alone(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_EPOCHS", 1)
    monkeypatch.setattr(module, "_LEAST_STEPS", STEPS)
    state = torch.get_rng_state()
    first, second, other = (train_committee(examples(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first[0].weight, other[0].weight)


@torch.no_grad()
def test_any_number_of_threads_gives_the_same_committee(monkeypatch):
    """As many candidates as rankers have: PyTorch's sums differ from three threads on."""
    monkeypatch.setattr(module, "_LEAST_EPOCHS", 1)
    monkeypatch.setattr(module, "_LEAST_STEPS", STEPS)
    draw = torch.Generator().manual_seed(0)
    right = torch.rand(69, 90, generator=draw) < 0.03
    right[:, 0] = True
    given = Examples(torch.randn(69, 90, 17, generator=draw), torch.zeros_like(right), right)
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 4, 8):
            torch.set_num_threads(threads)
            made.append(train_committee(given, seed=1))
    finally:
        torch.set_num_threads(before)
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), other.parameters()))


@torch.no_grad()
def test_rows_whose_candidates_are_all_right_change_nothing(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_EPOCHS", 1)
    monkeypatch.setattr(module, "_LEAST_STEPS", STEPS)
    given = examples()
    made = train_committee(given._replace(right=~given.none), seed=1)
    untrained = train_committee(given._replace(values=torch.zeros_like(given.values), right=~given.none), seed=1)
    for mine, other in zip(made.parameters(), untrained.parameters()):
        torch.testing.assert_close(mine, other)
