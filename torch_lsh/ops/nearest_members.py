"""The best of many centers that are kept in groups."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import operator


@operator
def nearest_members(x: Tensor, groups: Tensor, first: Tensor, centers: Tensor, offsets: Tensor) -> Tensor:
    """Finds for each row the center with the largest ``x · center + offset`` in some groups of centers.

    With ``offsets = -centers.square().sum(1) / 2`` that is the nearest one.

    Args:
        x: ``[n, d]`` float32.
        groups: ``[n, t]`` int64: the groups to look into, for each row.
        first: ``[G + 1]`` int64: group ``g`` holds centers ``first[g]`` to ``first[g + 1] - 1``.
        centers: ``[C, d]`` float32, group by group.
        offsets: ``[C]`` float32.

    Returns:
        ``[n]`` int32; the first among equals. Where all groups of a row are empty: any number.

    >>> centers = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> offsets = -centers.square().sum(1) / 2
    >>> groups = torch.tensor([[0], [1], [0]])
    >>> nearest_members(torch.tensor([[0.9], [0.9], [2.6]]), groups, torch.tensor([0, 2, 4]), centers, offsets)
    tensor([1, 2, 1], dtype=torch.int32)
    """
    return x.new_empty(x.shape[0], dtype=torch.int32)
