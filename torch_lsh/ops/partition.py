"""Rows partitioned into buckets around centers, with short codes of their residuals."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import check_range, operator


@operator
def residual_codes(x: Tensor, centers: Tensor, buckets: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes of the residuals ``v = x - centers[buckets]``.

    Each dimension becomes an odd number ``s`` from ``1 - 2**bits`` to ``2**bits - 1``; the steps between the numbers
    suit a normal distribution. ``s`` is the sum of ``2**(bits - 1 - plane) * sign`` over planes; a plane holds signs.

    Args:
        x: ``[n, width]`` float32; ``width`` is a multiple of 8.
        centers: ``[C, width]`` float32.
        buckets: ``[n]`` int32, each in ``0 .. C - 1``.
        bits: 1 to 4 per dimension.

    Returns:
        Codes ``[n, bits * width / 8]`` uint8, plane by plane: bit ``i`` of byte ``j`` of a plane is 1 where the sign of
        dimension ``8 * j + i`` is positive. Factors ``[n]`` float32: ``v · v / v · s``, which scales the product of a
        query with ``s``.

    >>> x = torch.tensor([[1.0, -1.0, 1.0, 3.0, 1.0, -1.0, -1.0, -1.0]])
    >>> residual_codes(x, torch.zeros(1, 8), torch.tensor([0]).int(), 1)
    (tensor([[29]], dtype=torch.uint8), tensor([1.6000]))
    >>> residual_codes(x, torch.zeros(1, 8), torch.tensor([0]).int(), 2)
    (tensor([[ 29, 234]], dtype=torch.uint8), tensor([1.]))
    """
    check_range("bits", bits, 1, 4)
    return x.new_empty((x.shape[0], bits * x.shape[1] // 8), dtype=torch.uint8), x.new_empty(x.shape[0])


@operator
def update_partition(
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    places: Tensor,
    row_buckets: Tensor,
    rows: Tensor,
    buckets: Tensor,
    row_codes: Tensor,
    row_factors: Tensor,
) -> Tensor:
    """Inserts rows into buckets, or moves them to others, and writes their codes. In place.

    The rows of a bucket fill a chain of blocks of 64; all blocks but the first are full. The last row of the first
    block takes the place of a row that leaves.

    Args:
        codes: ``[blocks, bits * width / 8, 64]`` uint8, rows placed as in :func:`sketch_candidates`. ``N // 64 + C``
            blocks are enough.
        factors: ``[blocks, 2, 64]`` bfloat16: 0 and -inf where there is no row.
        ids: ``[blocks, 64]`` int32, row numbers; -1: no row.
        next: ``[blocks]`` int32: the next block of the chain; -1: none.
        heads: ``[C + 1, 2]`` int32: the first block of each bucket (-1: none) and the number of rows in it. The last
            entry is the chain of free blocks.
        places: ``[N]`` int32: 64 * block + position of each row; -1: the row is in no bucket yet.
        row_buckets: ``[N]`` int32: the bucket of each row.
        rows: ``[A]`` int64, unique.
        buckets: ``[A]`` int32: the new buckets of ``rows``.
        row_codes: ``[A, bits * width / 8]`` uint8, from :func:`residual_codes`.
        row_factors: ``[A, 2]`` bfloat16: factor and addend of the estimate of each row.

    Returns:
        The number of rows that moved: a scalar int64 tensor.
    """
    return rows.new_empty(())


@operator
def query_partition(
    x: Tensor,
    scores: Tensor,
    centers: Tensor,
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    max_candidates: int,
    examined: int,
) -> Tensor:
    """Finds the rows with the largest estimates ``x · center + factor * (x · s) + addend`` in the best buckets.

    ``s`` is what the code of a row stands for, see :func:`residual_codes`. Products with signs are rounded as in
    :func:`sketch_candidates`.

    Args:
        x: ``[B, width]`` float32, in the coordinates of the codes.
        scores: ``[B, C]`` float32. Buckets are visited in decreasing order of their scores.
        centers: ``[C, width]`` float32.
        codes, factors, ids, next, heads: as in :func:`update_partition`.
        max_candidates: M, at least 1.
        examined: visits no further bucket once this many rows are compared.

    Returns:
        ``[B, M]`` int64, largest first (the lower row among equals), padded with -1.
    """
    return x.new_empty((x.shape[0], max_candidates), dtype=torch.int64)


@operator
def search_partition(
    x: Tensor,
    query_map: Tensor,
    bucket_codes: Tensor,
    bucket_factors: Tensor,
    centers: Tensor,
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    max_candidates: int,
    examined: int,
) -> Tensor:
    """Does what :func:`query_partition` does, in one call: maps queries, and scores buckets by codes of their own.

    The score of a bucket is an estimate of the product with its direction, as those of the rows are.

    Args:
        x: ``[B, in]`` float32.
        query_map: ``[width, in]`` float32: ``query_map @ x`` has the coordinates of the codes.
        bucket_codes: ``[S, bits * width / 8, 64]`` uint8, of directions; with at most as many bits as the rows. S is
            up to ``ceil(C / 64)``: only the first ``64 * S`` buckets are visited.
        bucket_factors: ``[S, 2, 64]`` bfloat16: factors and addends of the estimates.
        centers, codes, factors, ids, next, heads, max_candidates, examined: as in :func:`query_partition`.

    Returns:
        ``[B, M]`` int64, largest first (the lower row among equals), padded with -1.
    """
    return x.new_empty((x.shape[0], max_candidates), dtype=torch.int64)
