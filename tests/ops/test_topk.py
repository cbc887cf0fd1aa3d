"""linear_topk and rows_topk against the dense product and their twins."""

from __future__ import annotations

import math

import pytest
import torch
import twins

from torch_lsh import ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int8]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-5, torch.int8: 1e-5}
# One group of few samples, of one to three vectors, and several groups, at every vector size.
BATCHES = [0, 1, 2, 3, 5, 13, 17, 50, 101]
BOUNDS_INT8 = {"avx512_bf16", "amx_bf16", "amx_emulated", "neon_bf16", "sve256", "arm_emulated"}


def problem(batch, rows, width, dtype, bias=True):
    """x, weight, bias and scale of a layer whose logits are about 1."""
    x = torch.randn(batch, width) / width**0.5
    weight, scale = torch.randn(rows, width), None
    b = torch.randn(rows) if bias else None
    if dtype is torch.int8:
        scale = weight.abs().amax(1) / 127
        weight = (weight / scale.unsqueeze(1)).round().to(torch.int8)
    else:
        x, weight, b = x.to(dtype), weight.to(dtype), None if b is None else b.to(dtype)
    return x, weight, b, scale


def exact_logits(x, weight, bias, scale):
    logits = x.double() @ weight.double().T
    logits = logits if scale is None else logits * scale.double()
    return logits if bias is None else logits + bias.double()


def assert_is_topk(result, logits, k, tolerance):
    values, classes = result
    expected = logits.topk(k).values
    torch.testing.assert_close(values.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(values.double(), logits.gather(1, classes), rtol=tolerance, atol=tolerance)
    assert (values[:, 1:] <= values[:, :-1]).all()
    assert all(row.unique().numel() == k for row in classes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 33, 128])
def test_equals_the_dense_product_with_topk(product_level, dtype, width):
    for rows in (1, 9, 515):
        for batch in BATCHES:
            arguments = problem(batch, rows, width, dtype, bias=batch % 2 == 0)
            logits = exact_logits(*arguments)
            x, weight, bias, scale = arguments
            for k in {1, min(5, rows), rows}:
                assert_is_topk(ops.linear_topk(x, weight, bias, k, scale), logits, k, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_its_twin(dtype):
    x, weight, bias, scale = problem(7, 300, 20, dtype)
    for k in (1, 5, 300):
        values, classes = ops.linear_topk(x, weight, bias, k, scale)
        expected, expected_classes = twins.linear_topk(x, weight, bias, k, scale)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(classes, expected_classes)
        assert values.dtype is expected.dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 4, 40])
def test_the_number_of_threads_changes_nothing(product_level, dtype, batch):
    x, weight, bias, scale = problem(batch, 1000, 20, dtype)
    rows = torch.randint(-1, 1000, (batch, 200))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((*ops.linear_topk(x, weight, bias, 9, scale), *ops.rows_topk(x, weight, bias, rows, 9, scale)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_the_lower_class_comes_first_among_equals(product_level, batch):
    weight = torch.arange(400).remainder(4).float().unsqueeze(1)  # the logits 0 1 2 3 0 1 2 3 ...
    values, classes = ops.linear_topk(torch.ones(batch, 1), weight, None, 150)
    expected = [*range(3, 400, 4), *range(2, 200, 4)]
    assert classes.tolist() == [expected] * batch
    assert values.tolist() == [[3.0] * 100 + [2.0] * 50] * batch
    zeros = ops.linear_topk(torch.ones(batch, 1), torch.tensor([[-0.0], [0.0], [-0.0]]), None, 3)
    assert zeros[1].tolist() == [[0, 1, 2]] * batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_nan_is_the_largest_and_infinities_have_their_place(product_level, dtype, batch):
    weight = torch.linspace(-1, 1, 500).to(dtype).unsqueeze(1)
    for row, value in ((3, math.nan), (450, math.nan), (7, math.inf), (400, -math.inf), (401, -math.inf)):
        weight[row] = value
    x = torch.ones(batch, 1, dtype=dtype)
    values, classes = ops.linear_topk(x, weight, None, 500)
    torch.testing.assert_close(values[0].to(dtype), weight[:, 0].topk(500).values, equal_nan=True)
    assert classes[:, :4].tolist() == [[3, 450, 7, 499]] * batch
    assert classes[:, -2:].tolist() == [[400, 401]] * batch
    for k in (1, 2, 3):
        assert torch.equal(ops.linear_topk(x, weight, None, k)[1], classes[:, :k])


def test_a_sample_of_nan_leaves_the_others_alone(product_level):
    x, weight, bias, _ = problem(20, 300, 8, torch.float32)
    expected = ops.linear_topk(x, weight, bias, 4)
    x[5] = math.nan
    values, classes = ops.linear_topk(x, weight, bias, 4)
    assert values[5].isnan().all()
    assert classes[5].tolist() == [0, 1, 2, 3]
    others = torch.arange(20) != 5
    assert torch.equal(values[others], expected[0][others])
    assert torch.equal(classes[others], expected[1][others])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e-44])
def test_int8_rows_and_one_sample_that_has_no_digits_of_8_bits(simd_level, value):
    x, weight, _, scale = problem(1, 30, 40, torch.int8)
    x[0] *= value if value < 1 else 1
    x[0, 7] = value
    values, _ = ops.linear_topk(x, weight, None, 30, scale)
    expected = (x * weight * scale.unsqueeze(1)).sum(1).sort(descending=True).values
    torch.testing.assert_close(values[0], expected, rtol=1e-4, atol=1e-43, equal_nan=True)


INT8_KINDS = [
    *("normal", "one large feature", "equal rows", "nearly equal rows", "negative scales", "large biases"),
    *("zeros", "infinities", "many infinite biases"),
]


@pytest.mark.parametrize("kind", INT8_KINDS)
def test_int8_rows_of_a_batch(product_level, kind):
    """Levels that bound logits from above must miss no row, and return what they return for one sample."""
    x, weight, bias, scale = problem(60, 700, 130, torch.int8)
    if kind == "one large feature":
        x[:, 3] *= 1000
    elif kind == "equal rows":
        weight[100:600], scale[100:600], bias[100:600] = weight[0], scale[0], bias[0]
    elif kind == "nearly equal rows":
        weight[:] = (weight[0].int() + torch.randint(-1, 2, weight.shape)).clamp(-128, 127)
        scale[:], bias[:] = scale[0], bias[0]
    elif kind == "negative scales":
        scale[::2] *= -1
    elif kind == "large biases":
        bias = 1e5 + bias.sign()
    elif kind == "zeros":
        x[::3], weight[::3], bias = 0, -128, None
    elif kind == "many infinite biases":
        bias[::7] = math.inf  # more than the best
    elif kind == "infinities":
        x[7, 5], bias[::50], bias[3] = math.inf, -math.inf, math.inf
        x[7], weight[:, 5] = x[7].abs(), weight[:, 5].int().abs().clamp(1, 127).to(torch.int8)
    for k in (3, 90):  # bounds are refined at once, or at the end
        values, classes = ops.linear_topk(x, weight, bias, k, scale)
        if kind != "infinities":
            assert_is_topk((values, classes), exact_logits(x, weight, bias, scale), k, 1e-5)
        if product_level in BOUNDS_INT8 or kind == "infinities":
            alone = [ops.linear_topk(sample, weight, bias, k, scale) for sample in x.split(1)]
            torch.testing.assert_close(values, torch.cat([v for v, _ in alone]), equal_nan=True)
        if product_level in BOUNDS_INT8:
            assert torch.equal(values.nan_to_num(nan=-1), torch.cat([v for v, _ in alone]).nan_to_num(nan=-1))
            assert torch.equal(classes, torch.cat([c for _, c in alone]))


@pytest.mark.parametrize("k", [1, 7, 300, 1999])
def test_many_best_of_values_in_few_steps(threads, k):
    """Equal logits at every place where the best are selected: lower classes come first."""
    logits = torch.randint(-9, 9, (6, 2000)).float()
    values, classes = ops.linear_topk(torch.eye(6), logits.T.contiguous(), None, k)
    expected = logits.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(classes, expected.indices[:, :k])


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_rows_in_order_of_their_logits(threads, order):
    weight = torch.arange(2000.0).unsqueeze(1)
    weight = weight if order == "ascending" else weight.flip(0)
    values, _ = ops.linear_topk(torch.ones(5, 1), weight, None, 7)
    assert values.tolist() == [[1999.0, 1998, 1997, 1996, 1995, 1994, 1993]] * 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_candidates(product_level, dtype):
    for batch in (0, 1, 6):
        x, weight, bias, scale = problem(batch, 200, 37, dtype)
        rows = torch.stack([torch.randperm(200)[:60] for _ in range(batch)]) if batch else torch.empty(0, 60).long()
        rows[:, ::3] = -1
        for k in (1, 5, 40, 70):
            values, classes = ops.rows_topk(x, weight, bias, rows, k, scale)
            expected, expected_classes = twins.rows_topk(x, weight, bias, rows, k, scale)
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(classes, expected_classes)
    assert (
        ops.rows_topk(*problem(2, 5, 3, torch.float32)[:3], torch.empty(2, 0).long(), 2)[1].tolist() == [[-1, -1]] * 2
    )


X, WEIGHT = torch.zeros(2, 4), torch.zeros(3, 4)
INT8, SCALE = torch.zeros(3, 4, dtype=torch.int8), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.linear_topk(X, WEIGHT, None, 0), "k is 0; wanted 1 to 3"),
        (lambda: ops.linear_topk(X, WEIGHT, None, 4), "k is 4; wanted 1 to 3"),
        (lambda: ops.linear_topk(X.double(), WEIGHT, None, 1), "x has dtype Double; wanted Float"),
        (lambda: ops.linear_topk(X.half(), WEIGHT.half(), None, 1), "weight has dtype Half; wanted Float, Double or"),
        (lambda: ops.linear_topk(X[0], WEIGHT, None, 1), r"x has shape \[4\]; wanted 2"),
        (lambda: ops.linear_topk(X, WEIGHT[:, :3].contiguous(), None, 1), r"weight has shape \[3, 3\]; wanted 4"),
        (lambda: ops.linear_topk(X, torch.zeros(4, 3).T, None, 1), "weight is not contiguous"),
        (lambda: ops.linear_topk(X, WEIGHT, torch.zeros(2), 1), r"bias has shape \[2\]; wanted 3"),
        (lambda: ops.linear_topk(X, WEIGHT, torch.zeros(3).double(), 1), "bias has dtype Double; wanted Float"),
        (lambda: ops.linear_topk(X, INT8, None, 1), "scale is missing; wanted with weights of dtype Char"),
        (lambda: ops.linear_topk(X, WEIGHT, None, 1, SCALE), "scale is given; wanted with weights of dtype Char"),
        (lambda: ops.linear_topk(X, INT8, None, 1, SCALE[:2]), r"scale has shape \[2\]; wanted 3"),
        (lambda: ops.linear_topk(X.bfloat16(), INT8, None, 1, SCALE), "x has dtype BFloat16; wanted Float"),
        (lambda: ops.rows_topk(X, WEIGHT, None, torch.tensor([[3], [0]]), 1), "rows holds 3; wanted at most 2"),
        (lambda: ops.rows_topk(X, WEIGHT, None, torch.tensor([[0]]), 1), r"rows has shape \[1, 1\]; wanted 2"),
        (lambda: ops.rows_topk(X, WEIGHT, None, torch.tensor([[0], [0]]), 0), "k is 0; wanted 1 to 2147483647"),
    ],
)
def test_operators_name_the_bad_argument(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
