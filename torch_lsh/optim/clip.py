"""Gradient clipping that also takes row-sparse gradients.

:func:`clip_grad_norm_` and :func:`clip_grad_value_` are those of :mod:`torch.nn.utils`, so training loops that call
those keep working. They need norms and clamps of sparse CPU tensors, which PyTorch lacks or, from 2.14 on, computes
of the stored entries alone. The kernels are here; :mod:`~torch_lsh.optim.global_hooks` registers them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from .gradients import rows_and_values

__all__ = ["clamp", "clamp_", "clamp_max", "clamp_max_", "clip_grad_norm_", "clip_grad_value_", "vector_norm"]


def vector_norm(
    tensor: Tensor,
    ord: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.linalg.vector_norm`` of a sparse tensor over all entries, after repeated ones are summed."""
    if keepdim or (dim and len(dim) != tensor.dim()):
        raise NotImplementedError("torch.linalg.vector_norm of a sparse tensor along some dimensions")
    values = rows_and_values(tensor)[1] if tensor.sparse_dim() == 1 else tensor.coalesce()._values()
    if values.numel() == 0 or (ord < 0 and values.numel() < tensor.numel()):  # all entries are 0, or the smallest is
        return torch.zeros((), dtype=dtype or values.dtype, device="cpu")
    return torch.linalg.vector_norm(values, ord, dtype=dtype)


def clamp(tensor: Tensor, least: float | None = None, largest: float | None = None) -> Tensor:
    """``tensor.clamp`` of a sparse tensor: sparse if 0 is between the bounds, so that zeros stay; else dense."""
    if (least is not None and least > 0) or (largest is not None and largest < 0):
        return tensor.to_dense().clamp(least, largest)
    tensor = tensor.coalesce()
    values = tensor._values().clamp(least, largest)
    return torch.sparse_coo_tensor(
        tensor._indices(), values, tensor.shape, is_coalesced=True, check_invariants=False, device=values.device
    )


def clamp_max(tensor: Tensor, largest: float) -> Tensor:
    """``tensor.clamp_max`` of a sparse tensor; as :func:`clamp`."""
    return clamp(tensor, None, largest)


def clamp_(tensor: Tensor, least: float | None = None, largest: float | None = None) -> Tensor:
    """``tensor.clamp_`` of a sparse tensor, with 0 between the bounds so that zeros stay."""
    if (least is not None and least > 0) or (largest is not None and largest < 0):
        raise NotImplementedError(f"a sparse tensor is clamped to {least} .. {largest}; wanted bounds around 0")
    if not tensor.is_coalesced():
        tensor.copy_(tensor.coalesce())
    tensor._values().clamp_(least, largest)
    return tensor


def clamp_max_(tensor: Tensor, largest: float) -> Tensor:
    """``tensor.clamp_max_`` of a sparse tensor; as :func:`clamp_`."""
    return clamp_(tensor, None, largest)
