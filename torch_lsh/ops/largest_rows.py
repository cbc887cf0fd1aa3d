"""The rows with the largest values; the hardest rows of a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .declaration import operator
from .softmax import positive_sums


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


@dataclass(eq=False, slots=True)  # not frozen, as that takes microseconds to make
class HardestRows:
    """Asks a backward pass for the active rows that it pushes down most.

    These are the rows with the largest sums of the positive gradients of their logits.

    Attributes:
        rows: ``[A]`` int64, the active rows.
        count: rows wanted.
        log_weights: ``[A]`` float32: the gradients of the rows' logits carry these weights, which do not count; None:
            they carry none.
        keep: is called with the ``[min(count, A)]`` hardest rows, hardest first.
    """

    rows: Tensor
    count: int
    log_weights: Tensor | None
    keep: Callable[[Tensor], None]

    def find(self, gradient: Tensor) -> None:
        """Finds them in the gradient of the logits ``[B, A]``."""
        sums = positive_sums(gradient).float()
        self.keep(largest_rows(sums, self.rows, self.count, self.log_weights))
