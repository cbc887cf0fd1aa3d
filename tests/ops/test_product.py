"""Matrix products of active sets against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops

SHAPES = [
    (1, 1, 1),
    (5, 3, 2),
    (12, 128, 32),
    (13, 300, 33),
    (100, 7, 257),
    (49, 513, 31),
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
]


def matrix(rows: int, columns: int, layout: str, dtype: torch.dtype) -> torch.Tensor:
    if layout == "rows":
        return torch.randn(rows, columns, dtype=dtype)
    if layout == "columns":
        return torch.randn(columns, rows, dtype=dtype).T
    return torch.randn(2 * rows, 3 * columns, dtype=dtype)[::2, ::3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "layouts", [("rows", "rows"), ("rows", "columns"), ("columns", "rows"), ("strided", "strided")]
)
def test_product_equals_its_twin(product_level, dtype, shape, layouts):
    rows, depth, columns = shape
    a, b = matrix(rows, depth, layouts[0], dtype), matrix(depth, columns, layouts[1], dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2**-8}[dtype] * max(1, depth) ** 0.5
    for bias in (None, torch.randn(rows, dtype=dtype)):
        result = ops.product(a, b, bias)
        assert result.is_contiguous()
        expected = twins.product(a.double(), b.double(), None if bias is None else bias.double())
        torch.testing.assert_close(result, expected.to(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_element_does_not_depend_on_threads_or_its_neighbours(product_level, dtype):
    a, b = torch.randn(150, 600, dtype=dtype), torch.randn(600, 150, dtype=dtype)
    torch.set_num_threads(1)
    whole = ops.product(a, b)
    for num_threads in (2, 3, 8):
        torch.set_num_threads(num_threads)
        assert torch.equal(ops.product(a, b), whole)
    assert torch.equal(ops.product(a[7:51], b[:, 3:40]), whole[7:51, 3:40])
    for copies in (1, 3):  # numbers of a row near to each other, and far apart
        assert torch.equal(ops.product(torch.cat([a] * copies).T.contiguous().T, b)[:150], whole)


def test_non_finite_values_spread_as_in_pytorch(product_level):
    a, b = torch.randn(20, 9), torch.randn(9, 40)
    a[3, 2], b[4, 5] = torch.nan, torch.inf
    torch.testing.assert_close(ops.product(a, b), a @ b, equal_nan=True)


@pytest.mark.parametrize("with_bias", [False, True])
def test_gradcheck(with_bias):
    a = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = (a, b) if bias is None else (a, b, bias)
    torch.autograd.gradcheck(lambda a, b, *bias: ops.product(a, b.T, *bias), inputs)
    torch.autograd.gradgradcheck(lambda a, b, *bias: ops.product(a, b.T, *bias), inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.randn(2, 3).half(), torch.randn(3, 2), None), "a has dtype Half; wanted Float, Double or BFloat16"),
        ((torch.randn(2, 3), torch.randn(3, 2).double(), None), "b has dtype Double; wanted Float"),
        ((torch.randn(3), torch.randn(3, 2), None), "a has shape"),
        ((torch.randn(2, 3), torch.randn(2, 2), None), "b has shape"),
        ((torch.randn(2, 3), torch.randn(3, 2), torch.randn(3)), "bias has shape"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        ops.product(*arguments)
