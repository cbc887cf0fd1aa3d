"""Every operator against its twin in plain PyTorch, on its sample arguments: results, and what it changes in place."""

from __future__ import annotations

import pytest
import torch
import twins
from twins.samples import SAMPLES

from torch_lsh.ops.declaration import declared

WITHOUT_TWIN = {"cpu_tuning", "multiplies_bfloat16", "simd_level", "use_simd_level", "prefer_huge_pages"}


def copies(arguments):
    return [argument.detach().clone() if torch.is_tensor(argument) else argument for argument in arguments]


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        if torch.is_tensor(a):
            torch.testing.assert_close(a, b)
        else:
            assert a == b


def test_every_operator_has_a_twin():
    assert set(declared) <= set(twins.__all__) | WITHOUT_TWIN


@pytest.mark.parametrize("name", sorted(set(SAMPLES) - WITHOUT_TWIN))
def test_equals_its_twin(name, simd_level):
    for sample in SAMPLES[name]():
        if sample.has_twin:
            ours, theirs = copies(sample.arguments), copies(sample.arguments)
            results = declared[name](*ours), getattr(twins, name)(*theirs)
            assert_equal(*(result if isinstance(result, tuple) else (result,) for result in results))
            assert_equal(ours, theirs)
