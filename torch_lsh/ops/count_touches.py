"""Counts of the updates of each row."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator


@operator
def count_touches_(touches: Tensor, rows: Tensor) -> None:
    """Adds 1 to ``touches[row]`` for each of ``rows``, in place, up to 255.

    Args:
        touches: ``[N]`` uint8, contiguous.
        rows: ``[A]`` int64, each in ``0 .. N - 1``; they may repeat.

    >>> import torch
    >>> touches = torch.tensor([0, 254, 0], dtype=torch.uint8)
    >>> count_touches_(touches, torch.tensor([0, 1, 1, 1]))
    >>> touches
    tensor([  1, 255,   0], dtype=torch.uint8)
    """
