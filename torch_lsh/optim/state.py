"""State of optimizers: its dtype and its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops


def check_moment_dtype(moment_dtype: torch.dtype | None) -> None:
    """Raises ValueError if the option ``moment_dtype`` has a value that the operators do not take."""
    if moment_dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"moment_dtype is {moment_dtype}; wanted torch.float32, torch.bfloat16 or None")


def state_dtype(group: dict[str, Any], parameter: Tensor) -> torch.dtype:
    """The dtype of moments and sums of ``parameter``, a member of ``group``."""
    if parameter.dtype is torch.float64:
        return torch.float64
    dtype: torch.dtype | None = group.get("moment_dtype")
    return torch.float32 if dtype is None else dtype


def has_bfloat16(group: dict[str, Any], parameter: Tensor) -> bool:
    """Whether the parameter or its state is bfloat16, so that a step rounds and PyTorch's own steps do not fit."""
    return parameter.dtype is torch.bfloat16 or state_dtype(group, parameter) is torch.bfloat16


def untouched_zeros(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous zeros of the shape of ``parameter``, aligned to cache lines.

    Unlike ``torch.zeros`` this writes nothing, so rows that are never touched take no memory.
    """
    size = parameter.numel() * dtype.itemsize
    memory = np.zeros(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    zeros = torch.from_numpy(memory[start : start + size]).view(dtype).view(parameter.shape)
    ops.prefer_huge_pages(zeros)
    return zeros
