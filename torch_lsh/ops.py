"""Typed wrappers of the C++ operators: documentation, fake kernels, autograd and autocast.

The operators themselves are ``torch.ops.torch_lsh.*`` (schemas in ``csrc/library.cpp``); their plain-PyTorch twins are
in :mod:`torch_lsh.reference`. The wrappers check nothing: argument errors come from C++ and name the argument.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library  # noqa: F401  (registers torch.ops.torch_lsh)

_ops = torch.ops.torch_lsh


# --- dispatch -------------------------------------------------------------------------------------------------------


def simd_level() -> str:
    """The instruction set that the kernels run on: ``"avx512"``, ``"avx2"``, ``"neon"`` or ``"scalar"``.

    >>> simd_level() in {"avx512", "avx2", "neon", "scalar"}
    True
    """
    return _ops.simd_level()


def use_simd_level(level: str) -> None:
    """Switches the kernels to another instruction set, for tests and benchmarks; ``""`` goes back to the best one.

    Raises:
        RuntimeError: this CPU does not run ``level``.
    """
    _ops.use_simd_level(level)


# --- rows -----------------------------------------------------------------------------------------------------------


def gather_rows(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``table[rows]`` with software prefetch, optionally converted on the way.

    Args:
        table: ``[N, width]`` or ``[N]``; float32, float64 or bfloat16, contiguous.
        rows: ``[A]`` int64, each in ``0 .. N - 1``.
        dtype: dtype of the result; default: that of ``table``. float32 and bfloat16 convert into each other.

    Returns:
        ``[A, width]`` or ``[A]``. Not differentiable.

    >>> gather_rows(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0]))
    tensor([[3.],
            [1.]])
    """
    return _ops.gather_rows(table, rows, dtype)


@torch.library.register_fake("torch_lsh::gather_rows")
def _(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return table.new_empty((rows.shape[0], *table.shape[1:]), dtype=dtype)
