"""What is asked of lists of rows, and rows of different lengths."""

from __future__ import annotations

import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st

from torch_lsh import ops


def test_what_is_asked_of_lists_of_rows():
    for rows, increasing in (([], True), ([5], True), ([-3, 0, 2**62], True), ([1, 2, 2], False), ([1, 3, 2], False)):
        assert ops.is_increasing(torch.tensor(rows, dtype=torch.int64)) is increasing
    for rows, below, within in (([], 0, True), ([0, 4], 5, True), ([0, 4], 4, False), ([-1, 4], 5, False)):
        assert ops.is_increasing(torch.tensor(rows, dtype=torch.int64), below=below) is within
    numbers = torch.randint(-(2**62), 2**62, (7, 13))
    assert ops.extremes(numbers) == tuple(int(number) for number in numbers.aminmax())
    assert ops.extremes(numbers[:1, :1]) == (int(numbers[0, 0]),) * 2
    with pytest.raises(RuntimeError, match="rows has dtype Int; wanted Long"):
        ops.is_increasing(torch.zeros(3, dtype=torch.int32))
    assert ops.extremes(numbers[::2, 3:].T) == tuple(int(number) for number in numbers[::2, 3:].aminmax())
    assert ops.extremes(numbers[:0]) == (0, 0)
    with pytest.raises(RuntimeError, match="numbers has shape"):
        torch.ops.torch_lsh.extremes(torch.empty(0, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="numbers is not contiguous"):
        torch.ops.torch_lsh.extremes(numbers.T)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.data())
def test_chosen_runs_are_those_of_the_twin(lengths, data):
    start = torch.tensor([0, *lengths]).cumsum(0)
    runs = torch.tensor(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=20)), dtype=torch.int64)
    for values in (torch.rand(start[-1]), torch.arange(start[-1]).int()):
        for some, wanted in zip(ops.take_runs(start, values, runs), twins.take_runs(start, values, runs)):
            assert some.dtype == wanted.dtype
            assert torch.equal(some, wanted)


@pytest.mark.parametrize(
    ("start", "values", "runs", "message"),
    [
        ([0, 2], torch.rand(2), [0, 1], "runs has 1 at position 1; wanted numbers from 0 to 0"),
        ([0, 2], torch.rand(2), [-1], "runs has -1 at position 0"),
        ([], torch.rand(2), [0], "runs has 0 at position 0; wanted numbers from 0 to -1"),
        ([0, 3], torch.rand(2), [0], "start has a run from 0 to 3; wanted it within the 2 values"),
        ([2, 1], torch.rand(2), [0], "start has a run from 2 to 1"),
        ([-1, 1], torch.rand(2), [0], "start has a run from -1 to 1"),
        ([0, 2], torch.rand(2).double(), [0], "values has dtype Double; wanted Int or Float"),
    ],
)
def test_runs_that_are_not_there_are_refused(start, values, runs, message):
    with pytest.raises(RuntimeError, match=message):
        ops.take_runs(torch.tensor(start, dtype=torch.int64), values, torch.tensor(runs))
