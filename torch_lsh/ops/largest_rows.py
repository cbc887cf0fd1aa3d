"""The rows with the largest values."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import operator


@operator
def largest_rows(values: Tensor, rows: Tensor, count: int, log_weights: Tensor | None = None) -> Tensor:
    """Finds the ``count`` rows with the largest values.

    Args:
        values: ``[A]`` float32. NaN is the largest.
        rows: ``[A]`` int64.
        count: rows wanted, 0 or more.
        log_weights: ``[A]`` float32: compares ``values / exp(log_weights)``.

    Returns:
        ``[min(count, A)]`` int64, largest first; among equals in the order of ``rows``.

    >>> largest_rows(torch.tensor([0.5, 2.0, 1.0]), torch.tensor([10, 20, 30]), 2)
    tensor([20, 30])
    """
    return rows.new_empty(torch.sym_min(count, rows.shape[0]))
