"""Linear classifiers of dense rows."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator


@operator
def fit_dense_rows(
    rows: Tensor, label_start: Tensor, label_rows: Tensor, positive: Tensor, cost: float, passes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Fits a linear classifier for each label on rows of its own, as :func:`fit_linear_rows` does.

    Args:
        rows: ``[R, d]`` float32.
        label_start, label_rows: the training rows of each label ``[L, R]`` in CSR form, int64 and int32.
        positive: for each of ``label_rows``, whether the row has the label, bool.
        cost: of the errors.
        passes: most passes over the rows of a label.
        seed: of the order of the rows.

    Returns:
        Weights ``[L, d]`` and bias ``[L]``, float32; 0 for labels without rows.

    >>> import torch
    >>> members = torch.tensor([0, 2]), torch.tensor([0, 1]).int(), torch.tensor([True, False])
    >>> weights, bias = fit_dense_rows(torch.eye(2), *members, 1.0, 10, 0)
    >>> weights.sign()
    tensor([[ 1., -1.]])
    """
    labels = label_start.shape[0] - 1
    return rows.new_empty(labels, rows.shape[1]), rows.new_empty(labels)
