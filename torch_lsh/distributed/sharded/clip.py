"""Gradient clipping where processes own different rows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...row_sparse.parameters import placement_of
from ..channel import Channel
from .shards import Shards


@torch.no_grad()
def clip_grad_norm_(
    parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """:func:`torch.nn.utils.clip_grad_norm_` for models with a :class:`ShardedLSHLinear`.

    The norm is that of the whole model: rows of all processes, and the other parameters once. PyTorch's function would
    see another norm in each process, and processes would scale equal gradients differently. All processes call it.

    Args:
        parameters, max_norm, norm_type, error_if_nonfinite: as in PyTorch.

    Returns:
        The norm before clipping.
    """
    parameters = list(parameters)
    placements = [placement_of(parameter) for parameter in parameters]
    shards = next((placement for placement in placements if isinstance(placement, Shards)), None)

    def norm(sharded: bool) -> Tensor:
        chosen = [one for one, placement in zip(parameters, placements) if isinstance(placement, Shards) == sharded]
        gradients = [parameter.grad for parameter in chosen if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients, norm_type, error_if_nonfinite).float()

    total = norm(sharded=False)
    if shards is not None:
        of_shards = Channel(shards.mesh.get_group()).gather(norm(sharded=True))
        total = torch.linalg.vector_norm(torch.stack([total, *of_shards]), norm_type)
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return total
