"""autotune for the metric of a model: rounds, equal time, what is picked, and what stays as it was."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear, PartitionConfig, autotune
from torch_lsh.tuning import TrainingTable, TrainingTrial, best_is_label
from torch_lsh.tuning.halving import candidates, combinations
from torch_lsh.tuning.trials import Settings

N = 3_000


class Clock:
    """Every look at it takes a second, so a training of s seconds has about s steps on any machine."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture(scope="module")
def task():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(N, 16, generator=generator)
    labels = torch.randint(40, (640,), generator=generator)
    rows = centers[labels] + 0.3 * torch.randn(640, 16, generator=generator)
    batches = list(zip(rows.split(64), labels.split(64), strict=True))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), LSHLinear(32, N, config=LSHConfig(active=256, seed=5)))
    return model, batches[:8], batches[8:]


@pytest.fixture(scope="module")
def tuned(task):
    model, batches, held_out = task
    state, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    config, table = autotune(model, batches, held_out=held_out, seconds=400.0, lr=1e-3, clock=Clock())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert model[2].config.active == 256
    return config, table


def test_a_learning_rate_that_is_too_low_is_raised(tuned):
    config, table = tuned
    assert table.best.lr > 2e-3
    assert table.best.config is config
    assert config.seed == 5  # what is not tuned is the layer's
    last = [trial for trial in table if trial.round == 3]
    assert any(trial is table.best for trial in last)
    assert last[0].settings == Settings(LSHConfig(active=256, seed=5), 1e-3)
    assert table.best.metric.mean > last[0].metric.mean


def test_trials_of_a_round_train_for_equal_time_and_longer_in_later_rounds(tuned):
    _, table = tuned
    seconds = [{trial.seconds for trial in table if trial.round == number} for number in (1, 2, 3)]
    assert all(max(some) - min(some) <= 2 for some in seconds)
    assert min(seconds[1]) > max(seconds[0])
    assert min(seconds[2]) > max(seconds[1])
    assert len({trial.settings for trial in table if trial.round == 1}) >= 10
    assert sum(trial.round == 3 for trial in table) == 3


def test_the_metric_is_that_of_training_again(task, tuned):
    model, batches, held_out = task
    trial = tuned[1].best
    twin = copy.deepcopy(model)
    twin[2].reconfigure(trial.config)
    optimizer = torch_lsh.optim.Adam(twin.parameters(), lr=trial.lr)
    for step in range(trial.steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
    twin.eval()
    right = torch.cat([twin(x).argmax(1) == y for x, y in held_out])
    assert trial.metric.mean == pytest.approx(right.float().mean().item())


def test_settings_that_are_no_better_are_not_picked(task):
    """All settings have the same metric, so the present ones stay."""
    model, batches, held_out = task
    config, table = autotune(
        model, batches, held_out=held_out, seconds=60.0, metric=lambda logits, y: torch.ones(len(y)), clock=Clock()
    )
    assert config == model[2].config
    assert table.best.lr == 1e-3
    assert "lr=0.001" in next(line for line in str(table).splitlines() if line.endswith("<- best"))


def test_a_function_makes_the_models_and_batches_of_any_form(task):
    _, batches, held_out = task
    made = []

    def make(config):
        made.append(config)
        torch.manual_seed(0)
        return nn.Sequential(LSHLinear(16, N, config=config))

    def forward(model, batch):
        return model(batch["x"]), batch["y"]

    dicts = [{"x": x, "y": y} for x, y in batches]
    config, table = autotune(
        make,
        dicts,
        held_out=[{"x": x, "y": y} for x, y in held_out],
        forward=forward,
        metric=lambda logits, y: -F.cross_entropy(logits, y),
        optimizer=torch_lsh.optim.Adagrad,
        seconds=30.0,
        clock=Clock(),
    )
    assert config in made
    assert all(trial.metric.mean < 0 for trial in table)
    assert {trial.config.index for trial in table if trial.round == 1} > {PartitionConfig()}


def test_candidates_differ_from_the_present_settings_in_one_thing():
    present = Settings(LSHConfig(active=100), 0.01)
    tried = candidates(present, 1_000)
    assert tried[0].settings == present
    for candidate in tried[1:]:
        changed = {
            name
            for name in vars(present.config)
            if getattr(candidate.settings.config, name) != getattr(present.config, name)
        }
        changed |= {"lr"} if candidate.settings.lr != present.lr else set()
        assert len(changed) == 1
    assert {one.settings.config.active for one in tried} == {100, 64, 400}  # 1,600 are more than there are


def test_changes_that_gain_are_combined():
    config = LSHConfig(active=100)
    tried = candidates(Settings(config, 0.01), 10_000)

    def trial(candidate):
        gain = {"lr": 2.0 * (candidate.settings.lr == 0.03), "active": 1.0 * (candidate.settings.config.active == 400)}
        if candidate.settings.config.correction == "even":
            gain["correction"] = 0.5
        return TrainingTrial(candidate.settings, 1, 1.0, torch.full((4,), gain.get(candidate.changed, 0.0)))

    two, all_of_them = combinations(tried, [trial(candidate) for candidate in tried], [])
    assert two.settings == Settings(replace(config, active=400), 0.03)
    assert all_of_them.settings == Settings(replace(config, active=400, correction="even"), 0.03)
    assert combinations(tried, [trial(tried[0])] * len(tried), []) == []


def test_better_by_less_than_the_error_is_no_better():
    values = torch.tensor([1.0, 0.0] * 50)
    few, many = values.clone(), values.clone()
    few[0], few[1], few[3] = 0.0, 1.0, 1.0
    many[1:20:2] = 1.0
    settings = Settings(LSHConfig(), 0.1)
    old, slightly, clearly = (TrainingTrial(settings, 1, 1.0, some) for some in (values, few, many))
    assert not slightly.beats(old)
    assert clearly.beats(old)
    assert old.beats(TrainingTrial(settings, 1, 1.0, torch.full((100,), -torch.inf)))
    assert isinstance(TrainingTable([old]), list)


def test_the_best_class_is_a_label_in_every_form_of_targets():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert best_is_label(logits, torch.tensor([1, 2, 2])).tolist() == [1, 0, 1]
    assert best_is_label(logits, torch.tensor([[0, 1], [1, -100], [2, -100]])).tolist() == [1, 0, 1]
    rows = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]]).to_sparse_csr()
    assert best_is_label(logits, rows).tolist() == [1, 0, 1]


def test_bad_arguments(task):
    model, batches, held_out = task
    with pytest.raises(ValueError, match="seconds is 0; wanted more than 0"):
        autotune(model, batches, held_out=held_out, seconds=0)
    with pytest.raises(ValueError, match="lr is nan"):
        autotune(model, batches, held_out=held_out, lr=float("nan"))
    with pytest.raises(ValueError, match="model has no LSH layer"):
        autotune(nn.Linear(16, N), batches, held_out=held_out)
    with pytest.raises(ValueError, match="held_out has no batch"):
        autotune(model, batches, held_out=[])
    with pytest.raises(ValueError, match="batches has no batch, or cannot be iterated twice"):
        autotune(model, iter(batches[:1]), held_out=held_out, seconds=30.0, clock=Clock())
