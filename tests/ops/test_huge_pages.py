from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torch_lsh import LSHLinear, ops, optim

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _is_advised(tensor: torch.Tensor) -> bool:
    """Whether the mapping that holds the middle of a tensor is one that the kernel gives huge pages where it can."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *flags = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= middle < end
        elif inside and first == "VmFlags:":
            return "hg" in flags
    raise AssertionError("no mapping holds the tensor")


needs_huge_pages = pytest.mark.skipif(
    not _SETTING.exists() or "[never]" in _SETTING.read_text(), reason="the system has no transparent huge pages"
)


@needs_huge_pages
def test_memory_is_to_be_in_huge_pages():
    tensor = torch.empty(16 << 20, dtype=torch.uint8)
    assert ops.prefer_huge_pages(tensor)
    assert _is_advised(tensor)


def test_moving_keeps_the_values():
    tensor = torch.randn(4 << 20)
    before = tensor.clone()
    ops.prefer_huge_pages(tensor, move=True)  # whether it can depends on the kernel
    assert torch.equal(tensor, before)


@pytest.mark.parametrize(
    "tensor", [torch.empty(0), torch.empty(100), torch.empty(4 << 20, device="meta"), torch.empty(2, 4 << 20).T]
)
def test_other_tensors_are_left_alone(tensor):
    assert not ops.prefer_huge_pages(tensor)


@needs_huge_pages
def test_layers_and_optimizers_ask_for_them():
    layer = LSHLinear(64, 100_000)
    assert _is_advised(layer.weight)
    optimizer = optim.Adam(layer.parameters())
    layer.cross_entropy(torch.randn(64, 64), torch.arange(0, 64_000, 1000)).backward()
    optimizer.step()
    assert _is_advised(optimizer.state[layer.weight]["exp_avg"])
