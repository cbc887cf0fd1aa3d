"""The backward pass of a loss with Adam's step, in one operator: errors before anything changes."""

from __future__ import annotations

import pytest
import torch
from twins.samples import SAMPLES

from torch_lsh import ops

NAMES = list(torch.ops.torch_lsh.linear_softmax_adam_.default._schema.arguments)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("step", torch.tensor(2), "step has dtype Long; wanted Float"),
        ("bias", torch.zeros(8), r"bias has shape \[8\]; wanted 9"),
        ("bias_first", None, "bias is given without state"),
        ("bias_second", torch.zeros(9).bfloat16(), "bias_second has dtype BFloat16; wanted Float"),
        ("rows", torch.tensor([4, 1, 7]), "strictly increasing rows"),
        ("x", torch.zeros(2, 4).bfloat16(), "wanted Float or Double for both"),
        ("weight", torch.tensor(1.0), r"weight has shape \[\]; wanted 2 dimension"),
    ],
)
def test_errors_leave_everything_as_it_was(name, wrong, message):
    arguments = dict(zip([argument.name for argument in NAMES], SAMPLES["linear_softmax_adam_"]()[1].arguments))
    arguments[name] = wrong
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(RuntimeError, match=message):
        ops.linear_softmax_adam_(**arguments)
    assert all(torch.equal(arguments[key], value) for key, value in before.items())


def test_counts_versions_of_what_it_changes():
    arguments = SAMPLES["linear_softmax_adam_"]()[1].arguments
    versions = [value._version for value in arguments if isinstance(value, torch.Tensor)]
    ops.linear_softmax_adam_(*arguments)
    after = [value._version for value in arguments if isinstance(value, torch.Tensor)]
    # slopes, factors, x, rows, grad and log_weights stay; weight, bias, the state of each and touches change.
    assert [new - old for new, old in zip(after, versions)] == [0] * 6 + [1] * 9
