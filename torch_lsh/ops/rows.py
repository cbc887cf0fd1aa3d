"""Properties of lists of row numbers."""

from __future__ import annotations

from torch import Tensor

from .declaration import NeedsData, operator


@operator
def is_increasing(rows: Tensor, below: int | None = None) -> bool:
    """Whether row numbers are strictly increasing and, with ``below``, all in ``0 .. below - 1``.

    Args:
        rows: ``[A]`` int64.
        below: the number of rows there are.

    >>> import torch
    >>> is_increasing(torch.tensor([2, 3, 5])), is_increasing(torch.tensor([2, 2]))
    (True, False)
    >>> is_increasing(torch.tensor([2, 3, 5]), below=5)
    False
    """
    raise NeedsData


@operator(name="extremes")
def extremes_of_contiguous(numbers: Tensor) -> tuple[int, int]:
    """:func:`extremes` of a contiguous tensor that is not empty.

    >>> import torch
    >>> extremes_of_contiguous(torch.tensor([3, -1]))
    (-1, 3)
    """
    raise NeedsData


def extremes(numbers: Tensor) -> tuple[int, int]:
    """The smallest and the largest of int64 numbers of any shape; ``(0, 0)`` where there are none.

    >>> import torch
    >>> extremes(torch.tensor([[3, -1], [7, 2]]))
    (-1, 7)
    >>> extremes(torch.tensor([], dtype=torch.int64))
    (0, 0)
    """
    return extremes_of_contiguous(numbers.contiguous()) if numbers.numel() > 0 else (0, 0)
