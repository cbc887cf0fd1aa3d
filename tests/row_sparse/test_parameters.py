"""Facts about parameters."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from torch_lsh import optim
from torch_lsh.row_sparse.parameters import (
    mark,
    marked_optimizers,
    note_forward,
    report_to,
    reporters,
    take_back,
    updater,
    wants_row_sparse,
    wants_row_sparse_and_updater,
    yield_to,
)


class Reporter:
    def __init__(self):
        self.reasons = []

    def updated_densely(self, reason, **facts):
        self.reasons.append(reason)


def test_reporters_are_told_as_long_as_they_live():
    weight, reporter = nn.Parameter(torch.zeros(4, 2)), Reporter()
    assert reporters(weight) == []
    report_to(weight, reporter)
    report_to(weight, reporter)
    assert reporters(weight) == [reporter]
    assert reporters(nn.Parameter(torch.zeros(4, 2))) == []
    del reporter
    gc.collect()
    assert reporters(weight) == []


def test_the_optimizer_that_steps_decides_about_gradients():
    weight = nn.Parameter(torch.zeros(4, 2))
    ours, other, third = optim.SGD([weight], lr=0.1), torch.optim.SGD([weight], lr=0.1), torch.optim.Adam([weight])
    yield_to(weight, other)
    assert not wants_row_sparse(weight)
    take_back([weight])
    assert wants_row_sparse(weight)
    yield_to(weight, other)
    yield_to(weight, third)
    del other
    gc.collect()
    assert not wants_row_sparse(weight)
    del third
    gc.collect()
    assert wants_row_sparse(weight)
    assert marked_optimizers(weight) == [ours]


def test_a_mark_lasts_as_long_as_the_optimizer():
    weight = nn.Parameter(torch.zeros(4, 2))
    assert not wants_row_sparse(weight)
    optimizer = optim.SGD([weight], lr=0.1)
    mark(weight, optimizer)  # once more
    assert wants_row_sparse(weight)
    assert updater(weight) is None
    del optimizer
    gc.collect()
    assert not wants_row_sparse(weight)


def test_the_updater_is_the_optimizer_that_updates_in_backward():
    weight = nn.Parameter(torch.zeros(4, 2))
    first = optim.SGD([weight], lr=0.1)
    second = optim.Adam([weight], in_backward=True)
    assert wants_row_sparse_and_updater(weight) == (True, second)
    del first
    gc.collect()
    assert updater(weight) is second


def test_what_data_parallel_reduces_has_dense_gradients(monkeypatch: pytest.MonkeyPatch):
    weight = nn.Parameter(torch.zeros(4, 2))
    optimizer = optim.SGD([weight], lr=0.1, in_backward=True)
    note_forward(weight)
    assert updater(weight) is optimizer
    wrapper = nn.Module()
    wrapper.module = nn.Linear(1, 1)
    wrapper.module.weight = weight
    wrapper.parameters_to_ignore = set()
    monkeypatch.setattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", wrapper)
    reporter = Reporter()
    report_to(weight, reporter)
    note_forward(weight)
    note_forward(weight)
    assert reporter.reasons == ["data_parallel"]
    assert wants_row_sparse_and_updater(weight) == (False, None)
    monkeypatch.setattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    note_forward(weight)  # outside of it
    assert updater(weight) is optimizer
    ignoring = nn.Module()
    ignoring.module, ignoring.parameters_to_ignore = wrapper.module, {"weight"}
    monkeypatch.setattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", ignoring)
    note_forward(weight)
    assert updater(weight) is optimizer
