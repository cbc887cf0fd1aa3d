"""Columns of hashed text: how often they occur, and as weighted features."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import operator


@operator
def count_columns_(counts: Tensor, crow: Tensor, col: Tensor, labels: Tensor, feature_of: Tensor | None = None) -> None:
    """Adds, for each label and column or feature, the number of entries in rows of that label.

    Args:
        counts: ``[C, F]`` int32, changed.
        crow: ``[B + 1]`` int64.
        col: ``[nnz]`` int32, each in ``0 .. columns - 1``.
        labels: ``[B]`` int32, each in ``0 .. C - 1``.
        feature_of: ``[columns]`` int32: the feature of each column, below F; entries of a negative one do not count.
            None: columns are features.

    >>> counts = torch.zeros(2, 3, dtype=torch.int32)
    >>> count_columns_(
    ...     counts,
    ...     torch.tensor([0, 2, 3]),
    ...     torch.tensor([0, 2, 2], dtype=torch.int32),
    ...     torch.tensor([1, 0], dtype=torch.int32),
    ... )
    >>> counts
    tensor([[0, 0, 1],
            [1, 0, 1]], dtype=torch.int32)
    """


@operator
def weigh_columns(
    crow: Tensor, col: Tensor, values: Tensor, feature_of: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces columns by features, multiplies values by the weights of these, and scales rows to unit length.

    Args:
        crow: ``[B + 1]`` int64.
        col: ``[nnz]`` int64 or int32, each in ``0 .. columns - 1``.
        values: ``[nnz]`` float32.
        feature_of: ``[columns]`` int32: the feature of each column, below F; entries of a negative one are dropped.
        weights: ``[F]`` float32.

    Returns:
        ``crow``, ``col`` and ``values`` of rows with features in place of columns.

    >>> rows = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]), torch.tensor([3.0, 2.0, 9.0])
    >>> weigh_columns(*rows, torch.tensor([0, -1, 1], dtype=torch.int32), torch.tensor([1.0, 2.0]))
    (tensor([0, 2, 2]), tensor([0, 1]), tensor([0.6000, 0.8000]))
    """
    count = torch.library.get_ctx().new_dynamic_size()
    return crow.new_empty(crow.shape), col.new_empty(count), values.new_empty(count)
