"""The classes with the largest logits, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import operator


def _values_and_classes(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values = x.new_empty((x.shape[0], k), dtype=torch.promote_types(x.dtype, torch.float32))
    return values, x.new_empty((x.shape[0], k), dtype=torch.int64)


@operator
def linear_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Computes ``F.linear(x, weight, bias).topk(k)`` without the ``[B, N]`` tensor. Not differentiable.

    A small batch takes as long as reading the weights once, a large one as long as the product: logits stay in the
    cache, where one vector comparison with the k-th best value of each sample so far rules out nearly all of them.

    The order is total, so results do not depend on the number of threads: larger values first, NaN above all as in
    ``torch.topk``, the lower class first among equals. Sums are rounded in float32 (float64 for float64), in an order
    that may differ with the size of the batch.

    Args:
        x: ``[B, in]`` of the dtype of ``weight``; float32 for int8 weights.
        weight: ``[N, in]`` float32, float64, bfloat16 or int8, contiguous; fewer than 2**31 rows.
        bias: ``[N]`` of the dtype of ``x``, or None.
        k: 1 to N.
        scale: ``[N]`` float32, for int8 weights only: row ``n`` stands for ``scale[n] * weight[n]``.

    Returns:
        Values ``[B, k]`` in descending order, float32 (float64 for float64), and classes ``[B, k]`` int64.

    Raises:
        RuntimeError: an argument does not fit.

    >>> linear_topk(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), None, 2)
    (tensor([[3., 2.]]), tensor([[2, 1]]))
    """
    return _values_and_classes(x, k)


@operator
def rows_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`linear_topk` among candidates of each sample.

    Args:
        x, weight, bias, scale: as in :func:`linear_topk`.
        rows: ``[B, M]`` int64, each in ``0 .. N - 1``, or negative: no candidate. A row listed twice counts twice.
        k: at least 1.

    Returns:
        As :func:`linear_topk`, padded with ``-inf`` and -1 where there are fewer than ``k`` candidates.

    >>> rows_topk(torch.tensor([[1.0, 2.0]]), torch.eye(2), None, torch.tensor([[0, -1]]), 2)
    (tensor([[1., -inf]]), tensor([[ 0, -1]]))
    """
    return _values_and_classes(x, k)
