from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1000, 33), (300, 128), (50, 0)])
def test_gather_rows_equals_its_twin(simd_level, threads, dtype, shape):
    table = torch.randn(shape).to(dtype)
    for count in (0, 1, 9, 257):
        rows = torch.randint(0, shape[0], (count,))
        assert torch.equal(ops.gather_rows(table, rows), twins.gather_rows(table, rows))


@pytest.mark.parametrize(("stored", "wanted"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_gather_rows_converts_as_pytorch_does(simd_level, stored, wanted):
    table = torch.randn(100, 17).to(stored)
    table[3, 2], table[4, 0], table[5, 1] = float("nan"), float("inf"), -0.0
    rows = torch.randint(0, 100, (200,))
    torch.testing.assert_close(
        ops.gather_rows(table, rows, wanted), twins.gather_rows(table, rows, wanted), rtol=0, atol=0, equal_nan=True
    )


def test_gather_rows_of_a_vector():
    table, rows = torch.randn(50), torch.tensor([4, 4, 49])
    assert torch.equal(ops.gather_rows(table, rows), table[rows])


@pytest.mark.parametrize(
    ("table", "rows", "message"),
    [
        (torch.randn(10, 3), torch.tensor([10]), r"rows\[0\] is 10; wanted 0 to 9"),
        (torch.randn(10, 3), torch.tensor([-1]), r"rows\[0\] is -1"),
        (torch.randn(10, 3), torch.tensor([1], dtype=torch.int32), "rows has dtype Int; wanted Long"),
        (torch.randn(10, 3).int(), torch.tensor([1]), "table has dtype Int"),
        (torch.randn(10, 6)[:, ::2], torch.tensor([1]), "table is not contiguous"),
        (torch.randn(2, 2, 2), torch.tensor([1]), "table has shape"),
    ],
)
def test_gather_rows_names_the_bad_argument(table, rows, message):
    with pytest.raises(RuntimeError, match=message):
        ops.gather_rows(table, rows)
