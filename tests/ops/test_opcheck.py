"""PyTorch's own checks of custom operators, for all of them."""

from __future__ import annotations

import pytest
import torch
from twins.samples import SAMPLES

from torch_lsh.ops.declaration import declared


def test_every_operator_has_samples():
    assert set(SAMPLES) == set(declared)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    for sample in SAMPLES[name]():
        checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(
            getattr(torch.ops.torch_lsh, name), sample.arguments, test_utils=checks if sample.has_fake else checks[:2]
        )
