"""Row-sparse gradients: sums over equal rows."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_coalesce_rows_equals_the_twin(simd_level, dtype):
    check_coalesce_rows(dtype, (1000, 33))


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (300,), (20, 0)])
def test_coalesce_rows_of_any_shape(shape):
    check_coalesce_rows(torch.float32, shape)


def check_coalesce_rows(dtype, shape):
    rows = torch.randint(0, 70, shape[:1]) * 5_000_000_000  # more bits than one pass of the sort takes
    values = torch.randn(shape).to(dtype)
    unique, sums = ops.coalesce_rows(rows, values)
    expected_unique, expected = twins.coalesce_rows(rows, values.double())
    assert torch.equal(unique, expected_unique)
    assert sums.dtype is dtype
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(sums.double(), expected, rtol=tolerance, atol=tolerance)


def test_coalesce_rows_is_deterministic():
    rows, values = torch.randint(0, 50, (5000,)), torch.randn(5000, 17)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(ops.coalesce_rows(rows, values))
    torch.set_num_threads(before)
    assert all(torch.equal(r[0], results[0][0]) and torch.equal(r[1], results[0][1]) for r in results)
