"""The layer that tests of lazy logits use."""

from __future__ import annotations

import pytest
import torch

from torch_lsh import LSHConfig, LSHLinear


@pytest.fixture
def layer() -> LSHLinear:
    return LSHLinear(6, 97, config=LSHConfig(active=20), dtype=torch.float64)
