from __future__ import annotations

import copy
import logging
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import AutoTuner, HashTableConfig, LSHConfig, LSHLinear, autotune
from torch_lsh.index.families import FAMILIES
from torch_lsh.sampling.stats import Estimate, share_found
from torch_lsh.tuning import Trial, TuningTable
from torch_lsh.tuning.steps import StepCosts, Task, simulate_steps

N, D = 40_000, 24


@pytest.fixture(scope="module")
def clustered():
    """A layer whose rows are in clusters, as after training, and inputs near the clusters."""
    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.randn(400, D, generator=generator)
    layer = LSHLinear(D, N, config=LSHConfig(correction="none", seed=7))
    with torch.no_grad():
        layer.weight.copy_(centers.repeat(N // 400, 1) + 0.3 * torch.randn(N, D, generator=generator))
        layer.bias.copy_(0.1 * torch.randn(N, generator=generator))
    numbers = torch.randint(400, (1_500,), generator=generator)
    return layer, centers[numbers] + 0.5 * torch.randn(1_500, D, generator=generator)


def held_out_recall(layer, config, known, held, k=10, batch_size=64):
    index = config.index.make(N, D, config.seed)
    index.build(layer.weight.detach(), layer.bias.detach(), known)
    best = F.linear(held, layer.weight, layer.bias).topk(k).indices
    task = Task(layer.weight.detach(), layer.bias.detach(), known, held, best, batch_size)
    return simulate_steps(index, config, task)[0].mean().item()


def test_the_pick_reaches_the_target_on_held_out_inputs(clustered):
    layer, x = clustered
    config, table = autotune(layer, x[:400], target_recall=0.6, batch_size=64)
    pick = next(trial for trial in table if trial.config == config and trial.stage == "steps")
    assert pick.reaches
    fastest = min(trial.milliseconds for trial in table if trial.stage == "steps" and trial.reaches)
    assert pick.milliseconds <= fastest / 0.95
    assert config.active_rows(N) < N
    assert held_out_recall(layer, config, x[:200], x[400:]) >= 0.58
    # What is not tuned is the layer's.
    assert (config.correction, config.seed, config.rehash) == ("none", 7, layer.config.rehash)
    assert {trial.config.index.name for trial in table if trial.stage == "families"} == {"learned", *FAMILIES}
    assert {trial.stage for trial in table} == {"families", "sizes", "steps"}
    assert {trial.config.scope for trial in table} == {"batch"}
    assert any(trial.dense and trial.recall.mean == 1.0 for trial in table)


def test_scopes_that_are_asked_for_are_tried(clustered):
    layer, x = clustered
    for scopes in (["sample"], ["batch", "sample"]):
        config, table = autotune(layer, x[:200], 0.5, batch_size=64, hashes=["learned"], scopes=scopes)
        steps = [trial for trial in table if trial.stage == "steps" and not trial.dense]
        assert {trial.config.scope for trial in steps} == set(scopes)
        assert config.scope in scopes
    with pytest.raises(ValueError, match=r"scopes is .*'batch', 'sample'"):
        autotune(layer, x[:200], scopes=["epoch"])


def test_recall_in_the_table_is_that_of_the_settings(clustered):
    """Every trial's recall again, from scratch."""
    layer, x = clustered
    x = x[:300]
    _, table = autotune(layer, x, target_recall=0.6, batch_size=50, hashes=["simhash_hadamard"])
    steps = [trial for trial in table if trial.stage == "steps" and not trial.dense]
    assert len(steps) > 3
    for trial in steps[:4]:
        assert held_out_recall(layer, trial.config, x[:150], x[150:], batch_size=50) == pytest.approx(trial.recall.mean)
    best = F.linear(x[150:], layer.weight, layer.bias).topk(10).indices
    for trial in [trial for trial in table if trial.stage == "sizes"][:5]:
        index = trial.config.index.make(N, D, trial.config.seed)
        index.build(layer.weight.detach(), layer.bias.detach(), x[:150])
        counts = (3 * N // 1000, N // 100, 3 * N // 100)
        found = index.query(x[150:], counts[-1])
        shares = [share_found(found[:, :count], best).mean() for count in counts]
        assert trial.recall.mean == pytest.approx(torch.stack(shares).mean().item())


def test_a_step_of_the_simulation_is_one_of_the_layer(clustered):
    """Without carrying, recall is that of the layer's draws."""
    layer, x = clustered
    config = LSHConfig(active=300, carry=0.0, random_fraction=0.0, index=HashTableConfig(mips=True))
    index = config.index.make(N, D, config.seed)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    index.build(weight, bias)
    best = F.linear(x[:64], weight, bias).topk(10).indices
    shares, seconds = simulate_steps(index, config, Task(weight, bias, x[64:128], x[:64], best, 64))
    twin = LSHLinear.from_linear(layer, config)
    assert torch.equal(shares, share_found(twin.sample(x[:64]).rows, best))
    assert seconds > 0


def test_nothing_changes_unless_asked(clustered):
    layer, x = clustered
    layer = copy.deepcopy(layer)
    layer.rehash(full=True)
    config, index, weight = layer.config, layer.sampler.tables, layer.weight.clone()
    held, stream = copy.deepcopy(index.state_dict()), torch.get_rng_state()
    autotune(layer, x[:200], 0.5, seconds=0.5, hashes=["simhash"])
    assert layer.config is config
    assert layer.sampler.tables is index
    assert all(torch.equal(index.state_dict()[name], held[name]) for name in ("ids", "row_buckets"))
    assert torch.equal(layer.weight, weight)
    assert torch.equal(torch.get_rng_state(), stream)
    assert layer.weight.grad is None
    twin = LSHLinear.from_linear(layer, config)
    assert torch.equal(layer.sample(x[:16]).rows, twin.sample(x[:16]).rows)  # the layer's stream of draws stayed


def test_settings_are_applied_where_asked_for(clustered):
    layer, x = clustered
    layer = copy.deepcopy(layer)
    applied, _ = autotune(layer, x[:200], 0.5, seconds=0.5, hashes=["dwta"], apply=True)
    assert layer.config == applied
    optimizer = torch_lsh.optim.Adam(layer.parameters())
    F.cross_entropy(layer(x[:16]), torch.arange(16)).backward()
    optimizer.step()
    if applied.active_rows(N) < N:
        assert layer.sampler.tables.hash == "dwta"
        assert layer.sampler.tables.probes == applied.index.probes


def test_sign_codes_are_a_candidate_where_asked_for(clustered):
    layer, x = clustered
    config, table = autotune(layer, x[:100], 0.5, seconds=2.0, hashes=["sign_codes", "learned"])
    tried = {trial.config.index.name for trial in table if not trial.dense}
    assert tried == {"sign_codes", "learned"}
    assert config.index.name in ("sign_codes", "learned", "simhash")  # the last: dense


def test_time_is_kept(clustered):
    layer, x = clustered
    start = time.monotonic()
    config, table = autotune(layer, x, 0.999, seconds=0.2)
    assert time.monotonic() - start < 10  # of a machine that others use, too
    assert len(table) < 40
    if next(trial for trial in table if trial.config == config).dense:
        assert config.active == 1.0
        assert LSHLinear(D, N, config=config).stats(x[:20]).recall == Estimate(1.0, 0.0)


def test_a_layer_too_narrow_to_gain_stays_dense():
    layer = LSHLinear(32, 600)
    config, _ = autotune(layer, torch.randn(64, 32), 0.99, seconds=3.0)
    assert config.active == 1.0


def test_step_costs_grow_with_the_active_rows():
    costs = StepCosts(16, 20_000, True, 32)
    assert 0 < costs("batch", 100) <= costs("batch", 10_000)
    assert 0 < costs("sample", 10) <= costs("sample", 1_000)
    assert costs.dense > 0


def test_table_prints():
    table = TuningTable(
        [
            Trial("steps", LSHConfig(active=1.0), Estimate(1.0, 0.0), 170.0, reaches=True, dense=True),
            Trial("families", LSHConfig(index=HashTableConfig(hash="dwta", probes=4)), Estimate(0.25, 0.01), 2.0, 0.5),
        ]
    )
    lines = str(table).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["steps", "1.000", "±", "0.000", "170.00", "yes", "dense"]
    assert lines[2].endswith("index=HashTableConfig(hash='dwta', probes=4)")


# --- AutoTuner ---


def trained(model, tuner, x, steps):
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=1e-3)
    changed = []
    for step in range(steps):
        batch = x[torch.randperm(len(x))[:40]]
        F.cross_entropy(model(batch), torch.randint(N, (40,))).backward()
        optimizer.step()
        optimizer.zero_grad()
        if tuner.step():
            changed.append(step)
    return changed


def test_tuner_acts_when_recall_is_low_and_only_then(clustered, caplog):
    caplog.set_level(logging.INFO, logger="torch_lsh")
    layer, x = clustered
    low = LSHLinear.from_linear(layer, LSHConfig(active=40, random_fraction=0.5, index=HashTableConfig(hash="dwta")))
    model = nn.Sequential(copy.deepcopy(low))
    tuner = AutoTuner(model, 0.9, every=10, seconds=2.0)
    changed = trained(model, tuner, x, 25)
    assert changed[0] == 9
    assert "recall@10 of 0 fell to" in caplog.text
    assert "autotune: " in caplog.text
    assert model[0].config != low.config
    assert model[0].stats(x[:40], queries=40).recall.mean > 0.8
    caplog.clear()
    exact = nn.Sequential(LSHLinear.from_linear(copy.deepcopy(layer), LSHConfig(active=1.0)))
    tuner = AutoTuner(exact, 0.9, every=10)
    assert trained(exact, tuner, x, 20) == []
    assert caplog.text == ""
    tuner.detach()
    assert exact[0].sampler.stopwatch is None


# --- bad input ---


def test_bad_arguments(clustered):
    layer, x = clustered
    x = x[:100]
    with pytest.raises(TypeError, match="layer is a Linear; wanted LSHLinear"):
        autotune(nn.Linear(2, 3), x)
    for target in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match=f"target_recall is {target}"):
            autotune(layer, x, target)
    with pytest.raises(ValueError, match="k is 0; wanted more than 0"):
        autotune(layer, x, k=0)
    with pytest.raises(ValueError, match=f"k is {N + 1}; wanted at most {N}"):
        autotune(layer, x, k=N + 1)
    with pytest.raises(ValueError, match="seconds is 0"):
        autotune(layer, x, seconds=0)
    with pytest.raises(ValueError, match="wanted 24 features"):
        autotune(layer, x[:, :3])
    with pytest.raises(ValueError, match="inputs has 20 finite samples; wanted at least 32"):
        autotune(layer, torch.cat([x[:20], torch.full((80, D), torch.nan)]))
    with pytest.raises(ValueError, match=r"hashes is \['simhash', 'sha256'\]"):
        autotune(layer, x, hashes=["simhash", "sha256"])
    with pytest.raises(ValueError, match="hashes is"):
        autotune(layer, x, hashes=["minhash"])
    with pytest.raises(TypeError, match="input has dtype"):
        autotune(layer, x.double())
    with pytest.raises(ValueError, match="no LSH layer"):
        AutoTuner(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="wanted 0 <= tolerance < target_recall < 1"):
        AutoTuner(nn.Sequential(layer), 0.5, tolerance=0.6)
    with pytest.raises(ValueError, match="every is 0"):
        AutoTuner(nn.Sequential(layer), every=0)
    with pytest.raises(TypeError, match="config is a dict; wanted LSHConfig"):
        layer.reconfigure({})
    assert layer.sampler.stopwatch is None
