"""Gradient clipping that knows row-sparse gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .optim import row_sparse_gradient


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The values of all gradients, to be changed in place; rows that repeat in a row-sparse one are summed first."""
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    values: list[Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout is torch.strided:
            values.append(gradient)
            continue
        rows, summed = row_sparse_gradient(gradient)
        if len(rows) != gradient._nnz():
            gradient = torch.sparse_coo_tensor(rows.unsqueeze(0), summed, gradient.shape, check_invariants=False)
            parameter.grad = gradient
        values.append(gradient._values())
    return values


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """:func:`torch.nn.utils.clip_grad_norm_` for dense and row-sparse gradients, in place.

    Args:
        parameters: tensors with gradients; those without one are passed over.
        max_norm: largest norm of all gradients together.
        norm_type: type of the p-norm; may be ``inf``.
        error_if_nonfinite: raise where the norm is NaN or infinite.
        foreach: as in PyTorch.

    Returns:
        The norm before clipping.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_grad_norm_([weight], 1.0)
    tensor(5.)
    """
    # A row-sparse gradient without rows has no norm of its own.
    values = [value for value in _gradients(parameters) if value.numel() > 0]
    total = torch.nn.utils.get_total_norm(values, norm_type, error_if_nonfinite, foreach)
    scale = (float(max_norm) / (total + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale.to(value.device))
    return total


@torch.no_grad()
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """:func:`torch.nn.utils.clip_grad_value_` for dense and row-sparse gradients, in place."""
    for value in _gradients(parameters):
        value.clamp_(-float(clip_value), float(clip_value))
