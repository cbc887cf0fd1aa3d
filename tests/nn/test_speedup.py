"""pays and block_pays: what is measured, how often, and that a measurement leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from torch_lsh import LSHConfig, LSHLinear, sparsify_
from torch_lsh.nn import speedup
from torch_lsh.nn.speedup import block_pays, pays


@pytest.fixture(autouse=True)
def nothing_measured():
    speedup.linear_speedup.cache_clear()
    speedup.block_speedup.cache_clear()


def test_what_cannot_gain_is_not_measured(monkeypatch):
    for name in ("linear_speedup", "block_speedup"):
        monkeypatch.setattr(speedup, name, lambda *_: pytest.fail("a measurement"))
    assert not pays(nn.Linear(64, 4095))
    assert not pays(nn.Linear(8, 5000), LSHConfig(active=1.0))
    assert not pays(nn.Linear(8, 5000, device="meta"))
    assert not block_pays(nn.Linear(8, 4095), nn.Linear(4095, 8))
    assert not block_pays(nn.Linear(8, 5000), nn.Linear(5000, 8), LSHConfig(active=1.0))
    assert not block_pays(nn.Linear(8, 5000), nn.Linear(5000, 8, device="meta"))


@pytest.mark.parametrize(("measured", "kind", "verdict"), [(0.9, nn.Linear, "not worth"), (1.1, LSHLinear, "worth")])
def test_the_measurement_decides(monkeypatch, caplog, measured, kind, verdict):
    monkeypatch.setattr(speedup, "linear_speedup", lambda *_: measured)
    with caplog.at_level("INFO", "torch_lsh"):
        assert type(sparsify_(nn.Sequential(nn.Linear(4, 5000)))[0]) is kind
    figure = f"a sampled training step is {measured:.2f} times as fast as a dense one"
    assert caplog.messages == [f"nn.Linear(4, 5000): {figure}: {verdict} swapping"]


def test_measured_on_this_machine():
    """A very wide layer is some 30 times faster, so no noise reverses the result."""
    wide = nn.Linear(16, 200_000)
    before = torch.get_rng_state()
    assert pays(wide)
    assert torch.equal(torch.get_rng_state(), before)
    assert pays(wide)
    assert speedup.linear_speedup.cache_info().misses == 1  # one measurement per shape


def test_a_block_is_measured_on_this_machine():
    assert block_pays(nn.Linear(128, 16_384), nn.Linear(16_384, 128), LSHConfig(active=64))


@dataclass
class Policy:  # not frozen, hence not hashable
    steps: int = 3

    def interval(self, rehashes):
        return self.steps


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.device("meta")], ids=["no_grad", "inference", "meta"]
)
def test_measures_wherever_it_is_called(context):
    model = nn.Sequential(nn.Linear(4, 5000))
    with context():
        sparsify_(model, LSHConfig(rehash=Policy()))
    assert speedup.linear_speedup.cache_info().misses == 1
    assert model[0].weight.grad is None
