"""Properties of lists of row numbers, and rows of different lengths."""

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


@operator
def take_runs(start: Tensor, values: Tensor, runs: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen runs of numbers, one after the other: rows of a sparse matrix, or the labels of some rows.

    Args:
        start: ``[R + 1]`` int64; run r is ``values[start[r]:start[r + 1]]``.
        values: float32 or int32.
        runs: ``[A]`` int64, each in ``0 .. R - 1``.

    Returns:
        The same of the chosen runs: where each begins, ``[A + 1]`` int64, and their values.

    >>> import torch
    >>> take_runs(torch.tensor([0, 2, 2, 5]), torch.tensor([7, 8, 4, 5, 6]).int(), torch.tensor([2, 0]))
    (tensor([0, 3, 5]), tensor([4, 5, 6, 7, 8], dtype=torch.int32))
    """
    raise NeedsData
