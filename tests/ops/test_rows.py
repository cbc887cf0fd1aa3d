"""What is asked of lists of rows."""

from __future__ import annotations

import pytest
import torch

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
