"""Gradient clipping where processes own different rows.

PyTorch's own function sees another norm in each process, and processes would scale equal gradients differently. So the
first row-sharded layer has :mod:`torch.nn.utils` take the norm of the whole model where gradients of shards are among
those that are clipped. Models without such layers are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.utils.clip_grad
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakIdKeyDictionary

from ..channel import Channel
from .shards import Shards

_NORM = "_get_total_norm"  # what torch.nn.utils.clip_grad_norm_ calls

_sharded: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameter -> Shards
_norm_of_whole: Callable[..., Tensor] = getattr(torch.nn.utils.clip_grad, _NORM, torch.nn.utils.get_total_norm)


def clip_by_whole_norm(parameter: Tensor, shards: Shards) -> None:
    """Has gradients of ``parameter``, which holds some rows of all, clipped by the norm of the whole model."""
    _sharded[parameter] = shards
    setattr(torch.nn.utils.clip_grad, _NORM, total_norm)


@torch.no_grad()
def clip_grad_norm_(
    parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """:func:`torch.nn.utils.clip_grad_norm_` for models with a :class:`ShardedLSHLinear`, also inside of FSDP.

    The norm is that of the whole model: rows of all processes, and the other parameters once. All processes call it.
    PyTorch's function does the same, but takes no model of which FSDP shards one part and leaves out another.

    Args:
        parameters, max_norm, norm_type, error_if_nonfinite: as in PyTorch.

    Returns:
        The norm before clipping.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    total = total_norm([parameter.grad for parameter in parameters], norm_type, error_if_nonfinite)
    for of_fsdp in (False, True):
        chosen = [parameter for parameter in parameters if isinstance(parameter.grad, DTensor) == of_fsdp]
        torch.nn.utils.clip_grads_with_norm_(chosen, max_norm, total)
    return total


def total_norm(
    tensors: Any, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """:func:`torch.nn.utils.get_total_norm` of gradients, with the rows that other processes own."""
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    # Looked up, as gradients come without their parameters.
    meshes = {id(gradient): one.mesh for p, one in _sharded.items() if (gradient := p.grad) is not None}
    parts: dict[Any, list[Tensor]] = {}  # by mesh; "DTensor"; None: whole in every process
    for tensor in tensors:
        kind = "DTensor" if isinstance(tensor, DTensor) else meshes.get(id(tensor))
        parts.setdefault(kind, []).append(tensor)
    if parts.keys() <= {None} or parts.keys() == {"DTensor"}:
        return _norm_of_whole(tensors, norm_type, error_if_nonfinite, foreach)
    norms: list[Tensor] = []
    for kind, members in parts.items():
        norm = _norm_of_whole(members, norm_type, False, foreach)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        norms += [norm.float()] if kind in (None, "DTensor") else Channel(kind.get_group()).gather(norm.float())
    return _norm_of_whole(norms, norm_type, error_if_nonfinite, foreach)
