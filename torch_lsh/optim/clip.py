"""Gradient clipping that knows row-sparse gradients.

:func:`clip_grad_norm_` and :func:`clip_grad_value_` are those of :mod:`torch.nn.utils`, so that training loops which
call these go on working. What PyTorch lacks for them is registered here: norms and clamps of sparse tensors on CPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as clip_grad_norm_
from torch.nn.utils import clip_grad_value_ as clip_grad_value_

from .optimizers import row_sparse_gradient


def _vector_norm(
    tensor: Tensor,
    ord: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Of all entries, those of repeated rows summed."""
    if dim or keepdim:
        raise NotImplementedError("torch.linalg.vector_norm of a sparse tensor along some dimensions")
    values = row_sparse_gradient(tensor)[1] if tensor.sparse_dim() == 1 else tensor.coalesce()._values()
    if values.numel() == 0 or (ord < 0 and values.numel() < tensor.numel()):  # of zeros, or with zeros
        return torch.zeros((), dtype=dtype or values.dtype)
    return torch.linalg.vector_norm(values, ord, dtype=dtype)


def _clamp_(tensor: Tensor, least: float | None = None, largest: float | None = None) -> Tensor:
    if (least is not None and least > 0) or (largest is not None and largest < 0):
        raise NotImplementedError(f"a sparse tensor clamped to {least} .. {largest}, between which 0 does not lie")
    if not tensor.is_coalesced():
        tensor.copy_(tensor.coalesce())
    tensor._values().clamp_(least, largest)
    return tensor


_kernels = torch.library.Library("aten", "IMPL", "SparseCPU")
for _name, _kernel in {
    "linalg_vector_norm": _vector_norm,
    "clamp_": _clamp_,
    "clamp_min_": _clamp_,
    "clamp_max_": lambda tensor, largest: _clamp_(tensor, None, largest),
}.items():
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{_name}", "SparseCPU"):
        _kernels.impl(_name, _kernel)
