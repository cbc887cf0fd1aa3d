"""Which rows of a parameter changed."""

from __future__ import annotations

import pytest
import torch

from torch_lsh.row_sparse.changed_rows import ChangedRows
from torch_lsh.row_sparse.parameters import record_update

N, D = 37, 5


def test_the_same_rows_of_weight_and_bias_are_touched_once():
    weight, bias = torch.zeros(N, D), torch.zeros(N)
    changed = ChangedRows(weight, bias)

    def update(parameter, rows):
        before = parameter._version
        parameter[rows] += 1
        record_update(rows, (parameter, before))

    rows = torch.tensor([2, 9])
    update(weight, rows)
    update(bias, rows.unsqueeze(0)[0])  # the same memory
    assert changed.take(touches=2).tolist() == []
    update(weight, rows)
    update(bias, torch.tensor([2, 5]))
    assert changed.take(touches=2).tolist() == [2, 9]
    assert changed.take().tolist() == [5]
    update(weight, rows)
    rows[0] = 4
    update(bias, rows)
    assert changed.take().tolist() == [2, 4, 9]
    update(weight, rows)
    assert changed.take().tolist() == [4, 9]
    update(bias, rows)  # after those of the weight were taken
    assert changed.take().tolist() == [4, 9]
    bias += 1
    assert changed.take() is None
    assert not changed.any()


def update(parameter, rows):
    before = parameter._version
    parameter[rows] += 1
    record_update(rows, (parameter, before))


def test_which_parameters_are_watched():
    weight, bias = torch.zeros(N, D), torch.zeros(N)
    assert ChangedRows(weight, bias).are_of(weight, bias)
    assert ChangedRows(weight).are_of(weight, None)
    assert not ChangedRows(weight).are_of(weight, bias)
    assert not ChangedRows(weight).are_of(torch.zeros(N, D))


def test_every_change_of_exactly_these_parameters_was_recorded():
    weight, bias = torch.zeros(N, D), torch.zeros(N)
    both, one = ChangedRows(weight, bias), ChangedRows(weight)
    assert both.holds_all_of(weight, bias)
    assert one.holds_all_of(weight, None)
    assert not both.holds_all_of(weight, None)
    assert not one.holds_all_of(weight, bias)
    assert not both.holds_all_of(torch.zeros(N, D), bias)
    assert not both.holds_all_of(weight, torch.zeros(N))
    update(weight, torch.tensor([1]))
    assert both.holds_all_of(weight, bias)
    bias += 1
    assert not both.holds_all_of(weight, bias)
    assert one.holds_all_of(weight, None)
    weight += 1
    assert not one.holds_all_of(weight, None)


def test_a_change_before_an_update_is_not_forgotten():
    weight = torch.zeros(N, D)
    changed = ChangedRows(weight)
    weight += 1
    update(weight, torch.tensor([1]))
    assert changed.any()
    assert changed.touched() is None
    assert changed.sample(3) is None
    assert changed.take() is None
    update(weight, torch.tensor([1]))
    assert changed.touched().nonzero().tolist() == [[1]]


def test_rows_that_wait_for_more_touches_are_reported_as_changes():
    weight = torch.zeros(N, D)
    changed = ChangedRows(weight)
    update(weight, torch.tensor([1, 2]))
    update(weight, torch.tensor([2]))
    assert changed.take(touches=2).tolist() == [2]
    assert changed.any()
    assert changed.take().tolist() == [1]
    assert not changed.any()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_samples_are_of_the_changed_rows(share):
    bias = torch.zeros(4_000)
    changed = ChangedRows(bias)
    rows = torch.arange(int(share * 4_000)) * 2
    update(bias, rows)
    sample = changed.sample(50, seed=1)
    assert len(sample) == min(50, len(rows))
    assert torch.isin(sample, rows).all()
    assert torch.equal(sample, changed.sample(50, seed=1))
    assert len(changed.sample(50, touches=2)) == 0
    assert torch.equal(changed.take(), rows)


def test_a_parameter_that_is_gone_is_an_error():
    changed = ChangedRows(torch.zeros(3))
    with pytest.raises(RuntimeError, match="does not exist any more"):
        changed.take()
