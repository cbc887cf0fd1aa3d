"""A run that was saved and resumed equals one that never stopped: the state_dict of model and optimizer is enough."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import (
    Drift,
    FixedInterval,
    HashTableConfig,
    LSHConfig,
    LSHFeedForward,
    LSHLinear,
    PartitionConfig,
    RehashScheduler,
    SignCodeConfig,
)

N, WIDTH, STEPS, SAVED = 600, 8, 14, 7
POLICY = FixedInterval(3, touches=2)
CONFIGS = {
    "hash tables": LSHConfig(active=80, rehash=POLICY),
    "balanced": LSHConfig(active=80, rehash=POLICY, index=HashTableConfig(mips=True, balance=True)),
    "inserted labels": LSHConfig(active=80, rehash=POLICY, index=HashTableConfig(insert_labels=True)),
    "drift": LSHConfig(active=80, rehash=Drift(threshold=0.01, every=1, minimum=2)),
    "partition": LSHConfig(active=80, rehash=POLICY, index=PartitionConfig()),
    "sign codes": LSHConfig(active=80, rehash=POLICY, index=SignCodeConfig()),
    "sample": LSHConfig(active=20, rehash=POLICY, scope="sample"),
    "frequency": LSHConfig(active=80, sampler="frequency"),
    "in batch": LSHConfig(sampler="in_batch"),
}


def make_model(config: LSHConfig) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), LSHLinear(WIDTH, N, config=config))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, after=lambda step: None) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, WIDTH, generator=generator)
        y = torch.randint(N, (16,), generator=generator)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after(step + 1)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, wanted), got in zip(one.named_parameters(), other.parameters()):
        assert torch.equal(wanted, got), name


@pytest.mark.parametrize("optimizer_type", [torch_lsh.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_resumes_bit_for_bit(config, optimizer_type, tmp_path):
    model = make_model(config)
    optimizer = optimizer_type(model.parameters(), lr=0.05)

    def save(step: int) -> None:
        if step == SAVED:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")

    train(model, optimizer, 0, STEPS, save)
    resumed = make_model(config)
    with torch.no_grad():
        resumed[2].weight.zero_()
    resumed_optimizer = optimizer_type(resumed.parameters(), lr=0.05)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    train(resumed, resumed_optimizer, SAVED, STEPS)
    assert_same(model, resumed)
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        model.eval()[2].topk(x, 5, exact=False).indices, resumed.eval()[2].topk(x, 5, exact=False).indices
    )


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    """Plain loop, torch.save of model and optimizer only, SIGKILL, load."""
    script = textwrap.dedent(
        """
        import hashlib, os, signal, sys
        import torch, torch_lsh
        import torch.nn.functional as F

        folder, kill_at = sys.argv[1], int(sys.argv[2])
        torch.manual_seed(0)
        config = torch_lsh.LSHConfig(active=100, rehash=torch_lsh.FixedInterval(4, touches=2))
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch_lsh.LSHLinear(8, 2_000, config=config))
        optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.05)
        start = 0
        if os.path.exists(folder + "/run.pt"):
            saved = torch.load(folder + "/run.pt")
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            start = saved["step"]
        for step in range(start, 30):
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(16, 8, generator=generator), torch.randint(2_000, (16,), generator=generator)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step + 1 == 15:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                torch.save(state, folder + "/run.tmp")
                os.replace(folder + "/run.tmp", folder + "/run.pt")
            if step + 1 == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        print(start, hashlib.sha256(model[1].weight.detach().numpy().tobytes()).hexdigest())
        """
    )

    def run(folder: str, kill_at: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", script, folder, str(kill_at)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    (tmp_path / "straight").mkdir()
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", str(tmp_path / "straight"), "0"])
        exec(compile(script, "script", "exec"), {})
    straight = output.getvalue().split()
    assert run(str(tmp_path), kill_at=21).returncode == -signal.SIGKILL
    resumed = run(str(tmp_path), kill_at=0).stdout.split()
    assert (straight[0], resumed[0]) == ("0", "15")
    assert straight[1] == resumed[1]


def test_distributed_checkpoint_resumes(tmp_path):
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    config = CONFIGS["hash tables"]
    model = make_model(config)
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.05)

    def save(step: int) -> None:
        if step == SAVED:
            dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path)
            torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one process without a group
        train(model, optimizer, 0, STEPS, save)
        resumed = make_model(config)
        state = {"model": resumed.state_dict()}
        dcp.load(state, checkpoint_id=tmp_path)
    resumed.load_state_dict(state["model"])
    resumed_optimizer = torch_lsh.optim.Adam(resumed.parameters(), lr=0.05)
    resumed_optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    train(resumed, resumed_optimizer, SAVED, STEPS)
    assert_same(model, resumed)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_go_on_as_the_original(copied):
    model = make_model(CONFIGS["hash tables"])
    optimizer = torch_lsh.optim.SGD(model.parameters(), lr=0.5)
    train(model, optimizer, 0, SAVED)
    other = copied(model)
    other_optimizer = torch_lsh.optim.SGD(other.parameters(), lr=0.5)
    train(model, optimizer, SAVED, STEPS)
    train(other, other_optimizer, SAVED, STEPS)
    assert_same(model, other)


def test_a_shallow_copy_has_a_sampler_of_its_own():
    layer = LSHLinear(WIDTH, N, config=CONFIGS["hash tables"])
    other = copy.copy(layer)
    assert other.weight is layer.weight
    assert other.sampler is not layer.sampler
    x = torch.randn(4, WIDTH)
    assert torch.equal(layer.sample(x).rows, other.sample(x).rows)


SHARED = """
import torch
import torch.nn.functional as F
from torch_lsh import LSHConfig, LSHLinear, SamplerState


def train(model, x, y):
    with torch.no_grad():
        model[0].weight += 1
    F.cross_entropy(model[0](x), y).backward()


if __name__ == "__main__":
    layer, x, y = LSHLinear(8, 600, config=LSHConfig(active=80)), torch.randn(300, 8), torch.arange(300)
    model, before = torch.nn.Sequential(layer, SamplerState(layer.weight)).share_memory(), layer.weight.detach().clone()
    F.cross_entropy(layer(x), y).backward()
    layer.zero_grad()
    layer.topk(x, 3, exact=False)
    process = torch.multiprocessing.get_context("spawn").Process(target=train, args=(model, x, y))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert torch.equal(layer.weight, before + 1)
"""


def test_a_layer_that_was_used_goes_to_a_new_process(tmp_path):
    """Which maps the tensors of the state; they must live until it has started."""
    (tmp_path / "shared.py").write_text(SHARED)
    subprocess.run([sys.executable, tmp_path / "shared.py"], check=True)


def test_a_scheduler_resumes_with_the_model():
    def run(model, optimizer, scheduler, first, last):
        train(model, optimizer, first, last, lambda _: scheduler.step())

    model = make_model(CONFIGS["hash tables"])
    optimizer = torch_lsh.optim.SGD(model.parameters(), lr=0.5)
    scheduler = RehashScheduler(model, FixedInterval(4))
    run(model, optimizer, scheduler, 0, SAVED)
    state, position = copy.deepcopy(model.state_dict()), scheduler.state_dict()
    run(model, optimizer, scheduler, SAVED, STEPS)
    resumed = make_model(CONFIGS["hash tables"])
    resumed.load_state_dict(state)
    other = RehashScheduler(resumed, FixedInterval(4))
    other.load_state_dict(position)
    run(resumed, torch_lsh.optim.SGD(resumed.parameters(), lr=0.5), other, SAVED, STEPS)
    assert_same(model, resumed)


def test_a_feed_forward_block_resumes():
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(LSHFeedForward(WIDTH, N, config=CONFIGS["hash tables"]), nn.Linear(WIDTH, N))

    model = make()
    optimizer = torch_lsh.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 0, SAVED)
    state = copy.deepcopy(model.state_dict())
    train(model, optimizer, SAVED, STEPS)
    resumed = make()
    resumed.load_state_dict(state)
    train(resumed, torch_lsh.optim.SGD(resumed.parameters(), lr=0.1), SAVED, STEPS)
    assert_same(model, resumed)


# --- what the state looks like from outside ---------------------------------------------------------------------------


def test_the_state_of_a_plain_linear_loads_strictly():
    linear, layer = nn.Linear(WIDTH, N), LSHLinear(WIDTH, N)
    assert layer.load_state_dict(linear.state_dict(), strict=True).missing_keys == []
    assert torch.equal(layer.weight, linear.weight)
    with pytest.raises(RuntimeError, match=r"Missing key.*bias"):
        layer.load_state_dict({"weight": linear.weight}, strict=True)
    result = linear.load_state_dict(layer.state_dict(), strict=False)
    assert result.unexpected_keys == ["_extra_state"]
    assert set(torch_lsh.densify_(nn.Sequential(layer)).state_dict()) == {"0.weight", "0.bias"}


def test_the_state_is_a_small_tensor_of_constant_size():
    model = make_model(CONFIGS["hash tables"])
    before = model.state_dict()["2._extra_state"]
    train(model, torch_lsh.optim.Adam(model.parameters()), 0, 3)
    after = model.state_dict()["2._extra_state"]
    assert before.dtype is after.dtype is torch.uint8
    assert before.shape == after.shape
    assert after.nbytes < 4_000 < model[2].weight.nbytes


def test_what_the_settings_have_no_room_for_is_left_out_of_the_state():
    layer = LSHLinear(WIDTH, N, config=CONFIGS["hash tables"])
    size = layer.get_extra_state().shape
    layer.set_label_counts(torch.ones(N))  # which this layer does not draw by
    layer.sampler.keep_queries(torch.randn(5_000, WIDTH))
    F.cross_entropy(layer(torch.randn(16, WIDTH)), torch.arange(16)).backward()
    assert layer.get_extra_state().shape == size
    layer.reconfigure(LSHConfig(active=1.0))  # looks nothing up, so carries nothing
    resumed = LSHLinear(WIDTH, N, config=LSHConfig(active=1.0))
    resumed.set_extra_state(layer.get_extra_state())
    assert resumed.sampler.draws == layer.sampler.draws == 1


def test_the_state_of_a_resized_layer_is_that_of_its_weight():
    layer = LSHLinear(WIDTH, N)
    layer.sample(torch.randn(4, WIDTH))
    layer.weight, layer.bias = nn.Parameter(torch.randn(N + 1, WIDTH)), nn.Parameter(torch.zeros(N + 1))
    layer.out_features = N + 1
    LSHLinear(WIDTH, N + 1).load_state_dict(layer.state_dict(), strict=True)


def test_the_state_of_other_rows_is_refused():
    state = LSHLinear(WIDTH, N).get_extra_state()
    layer = LSHLinear(WIDTH, N + 1)
    with pytest.raises(ValueError, match=r"is that of \(600, 8\) rows and features; wanted \(601, 8\)"):
        layer.set_extra_state(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_state_dict_that_was_cast_as_a_whole(dtype):
    layer, resumed = LSHLinear(WIDTH, N), LSHLinear(WIDTH, N)
    layer.sample(torch.randn(300, WIDTH))
    state = {name: value.to(dtype) for name, value in layer.state_dict().items()}
    resumed.load_state_dict(state)
    assert torch.equal(resumed.get_extra_state(), layer.get_extra_state())


def test_what_fits_of_a_model_of_other_classes_loads():
    old, new = (nn.Sequential(nn.Linear(4, WIDTH), LSHLinear(WIDTH, count)) for count in (N, N + 1))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*\"1._extra_state\"[^$]*size mismatch for 1.weight"):
        new.load_state_dict(old.state_dict())
    own = new.state_dict()
    fitting = {name: value for name, value in old.state_dict().items() if value.shape == own[name].shape}
    assert new.load_state_dict(fitting, strict=False).unexpected_keys == ["1._extra_state"]
    assert torch.equal(new[0].weight, old[0].weight)
    F.cross_entropy(new(torch.randn(2, 4)), torch.tensor([0, N])).backward()


def test_a_weight_of_other_rows_keeps_its_sampler():
    old, new = (torch_lsh.SamplerState(nn.Parameter(torch.randn(count, WIDTH))) for count in (N, N + 1))
    old.sampler.draw(old.weight, None, torch.randn(2, WIDTH), torch.tensor([[1], [2]]))
    assert new.load_state_dict(old.state_dict(), strict=False).unexpected_keys == ["_extra_state"]
    assert new.sampler.draws == 0


def test_taking_the_state_often_warns_once():
    model = make_model(CONFIGS["hash tables"])
    optimizer = torch_lsh.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"state_dict\(\) was called 4 times within 32 training steps") as warned:
        train(model, optimizer, 0, STEPS, lambda _: model.state_dict())
    assert len(warned) == 1


def test_reading_the_state_again_and_again_without_training_warns_not():
    model = make_model(CONFIGS["hash tables"])
    train(model, torch_lsh.optim.SGD(model.parameters(), lr=0.1), 0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            model.state_dict()
