"""Adam's step on weight and bias in one operator, also with the backward pass: errors before anything changes."""

from __future__ import annotations

import pytest
import torch
from twins.samples import SAMPLES

from torch_lsh import ops

ERRORS = [
    ("step", torch.tensor(2), "step has dtype Long; wanted Float"),
    ("bias", torch.zeros(8), r"bias has shape \[8\]; wanted 9"),
    ("bias_second", torch.zeros(9).bfloat16(), "bias_second has dtype BFloat16; wanted Float"),
    ("rows", torch.tensor([4, 1, 7]), "strictly increasing rows"),
    ("weight", torch.tensor(1.0), r"weight has shape \[\]; wanted 2 dimension"),
    ("touches", torch.zeros(8).byte(), r"touches has shape \[8\]; wanted 9"),
    ("touches", torch.zeros(9), "touches has dtype Float; wanted Byte"),
]
ERRORS_OF = [
    *[(name, *error) for error in ERRORS for name in ("linear_adam_", "linear_softmax_adam_")],
    ("linear_adam_", "bias_gradient", torch.zeros(2), r"bias_gradient has shape \[2\]; wanted 3"),
    ("linear_adam_", "gradient", torch.zeros(3, 5), r"gradient has shape \[3, 5\]; wanted 4"),
    ("linear_softmax_adam_", "bias_first", None, "bias is given without state"),
    ("linear_softmax_adam_", "hardest", -1, "hardest is -1; wanted at least 0"),
    ("linear_softmax_adam_", "log_weights", torch.zeros(2), r"log_weights has shape \[2\]; wanted 3"),
    ("linear_softmax_adam_", "log_weights", torch.zeros(6)[::2], "log_weights is not contiguous"),
    ("linear_softmax_adam_", "log_weights", torch.zeros(3).double(), "log_weights has dtype Double; wanted Float"),
    ("linear_softmax_adam_", "x", torch.zeros(2, 4).double(), "wanted Float or Double for both"),
]


def arguments_of(operator):
    names = [argument.name for argument in getattr(torch.ops.torch_lsh, operator).default._schema.arguments]
    return dict(zip(names, SAMPLES[operator]()[1].arguments, strict=True))


@pytest.mark.parametrize(("operator", "name", "wrong", "message"), ERRORS_OF)
def test_errors_leave_everything_as_it_was(operator, name, wrong, message):
    arguments = arguments_of(operator) | {name: wrong}
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(RuntimeError, match=message):
        getattr(ops, operator)(**arguments)
    assert all(torch.equal(arguments[key], value) for key, value in before.items())


@pytest.mark.parametrize(("operator", "inputs"), [("linear_adam_", 3), ("linear_softmax_adam_", 6)])
def test_counts_versions_of_what_it_changes(operator, inputs):
    arguments = arguments_of(operator)
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    versions = [value._version for value in tensors]
    getattr(ops, operator)(**arguments)
    # Weight, bias, the state of each and touches change.
    assert [tensor._version - old for tensor, old in zip(tensors, versions)] == [0] * inputs + [1] * 9


# Rows and samples that one thread takes in one pass, that several share, and whose gradient of x is too large for that.
@pytest.mark.parametrize(("count", "batch", "width"), [(700, 20, 24), (40, 70, 24), (60, 300, 256)])
@pytest.mark.parametrize(
    "dtypes", [(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)]
)  # of x and of the weight
def test_the_backward_pass_with_the_step_equals_the_two_in_turn(simd_level, count, batch, width, dtypes):
    of_x, dtype = dtypes
    rows = torch.arange(3, 2 * count + 3, 2)
    x, start = torch.randn(batch, width, dtype=of_x), torch.randn(2 * count + 9, width, dtype=dtype)
    slopes, factors = torch.randn(count, batch, dtype=dtype), torch.rand(batch, dtype=dtype)
    if ops.multiplies_bfloat16():
        slopes = slopes.to(of_x)
    options = (1e-2, 0.9, 0.999, 1e-8, 0.1)
    results = []
    before = torch.get_num_threads()
    for threads in (0, 1, 2, 3):  # 0: in turn
        torch.set_num_threads(threads or before)
        weight, first, second, step = start.clone(), start.clone() / 9, start.square(), torch.tensor(4.0)
        if threads:
            arguments = (slopes, factors, x, rows, None, 5, None, weight, first, second, step)
            grad_x, hardest = ops.linear_softmax_adam_(*arguments, *[None] * 5, *options, False, False, False)
        else:
            grad_x, gradient, _, hardest, _ = ops.linear_softmax_loss_backward(
                slopes, factors, x, weight, rows, True, None, 5
            )
            corrections = 1 - 0.9**5.0, 1 - 0.999**5.0
            ops.row_sparse_adam_(weight, first, second, rows, gradient, None, *options, *corrections, False, False)
            step += 1
        results.append((weight, first, second, step, grad_x, hardest))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))
