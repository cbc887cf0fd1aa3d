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
    ("linear_softmax_adam_", "x", torch.zeros(2, 4).bfloat16(), "wanted Float or Double for both"),
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
