"""Precision at k, as the XMC repository defines it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class PrecisionAtK:
    """The share of correct labels among the best k classes, averaged over rows that have a label.

    The divisor is k even for rows with fewer than k labels. Rows without labels are left out: no prediction of theirs
    could be right.

    Args:
        ks: the values of k.

    >>> import torch
    >>> metric = PrecisionAtK((1, 3))
    >>> metric.update(torch.tensor([[4, 2, 7]]), torch.tensor([[7, 2, -100]]))
    >>> metric.compute()
    {1: 0.0, 3: 0.6666666666666666}
    """

    def __init__(self, ks: Sequence[int] = (1, 3, 5)) -> None:
        if len(ks) == 0 or min(ks) < 1:
            raise ValueError(f"ks is {tuple(ks)}; wanted positive numbers")
        self.ks = tuple(ks)
        self._hits = dict.fromkeys(self.ks, 0)
        self._rows = 0

    def update(self, classes: Tensor, labels: Tensor) -> None:
        """Adds rows.

        Args:
            classes: ``[B, k]`` int64, best first, k at least ``max(ks)``.
            labels: ``[B, P]`` int64, negative where there is none.
        """
        if classes.dim() != 2 or classes.shape[1] < max(self.ks):
            raise ValueError(f"classes has shape {tuple(classes.shape)}; wanted [B, k] with k >= {max(self.ks)}")
        if labels.dim() != 2 or len(labels) != len(classes):
            raise ValueError(f"labels has shape {tuple(labels.shape)}; wanted [{len(classes)}, P]")
        known = (classes.unsqueeze(2) == labels.unsqueeze(1)) & (classes >= 0).unsqueeze(2)
        correct = known.any(2)
        for k in self.ks:
            self._hits[k] += int(correct[:, :k].sum())
        self._rows += int((labels >= 0).any(1).sum()) if labels.shape[1] else 0

    def compute(self) -> dict[int, float]:
        """Precision by k; NaN if no row had a label."""
        return {k: self._hits[k] / (k * self._rows) if self._rows else float("nan") for k in self.ks}
