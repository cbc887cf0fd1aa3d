"""Votes of rows for their labels."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator


@operator
def label_votes(
    rows: Tensor, weights: Tensor, label_start: Tensor, labels: Tensor, num_labels: int, keep: int, also: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums the weights of each query's rows by label.

    A row may have several weights; each kind is summed by itself.

    Args:
        rows: ``[B, k]`` int64, negative where there is none.
        weights: ``[B, k, W]`` float32.
        label_start, labels: the labels of each row in CSR form, int64 and int32.
        num_labels: number of labels.
        keep: labels to list for each query: those with the largest sums of the first weight.
        also: ``[B, M]`` int64: labels to list in any case, negative where there is none.

    Returns:
        Labels ``[B, keep + M]`` int64 without repetition: the best first, the lower one first among equals, then the
        others of ``also``, then -1; and their sums ``[B, keep + M, W]`` float32.

    >>> import torch
    >>> labels = torch.tensor([0, 1, 3]), torch.tensor([4, 4, 2]).int(), 5
    >>> rows, weights = torch.tensor([[0, 1]]), torch.tensor([[[0.5], [0.25]]])
    >>> found, votes = label_votes(rows, weights, *labels, keep=2, also=torch.tensor([[3, 4]]))
    >>> found.tolist(), votes[..., 0].tolist()
    ([[4, 2, 3, -1]], [[0.75, 0.25, 0.0, 0.0]])
    """
    width = keep + also.shape[1]
    return rows.new_empty((rows.shape[0], width)), weights.new_empty((rows.shape[0], width, weights.shape[2]))
