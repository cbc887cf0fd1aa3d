"""Hash codes by random projections and by winner-take-all."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import check_range, operator


@operator
def query_vectors(x: Tensor, zeros: int) -> Tensor:
    """Computes ``[x, 1, 0, ...]``: inputs as the vectors that an index compares with rows ``[w, b, ...]``.

    Args:
        x: ``[n, in]`` float32, float64 or bfloat16, of any strides.
        zeros: the number of zeros in every row.

    Returns:
        ``[n, in + 1 + zeros]`` float32.

    >>> query_vectors(torch.tensor([[2.0, 3.0]]), 1)
    tensor([[2., 3., 1., 0.]])
    """
    return x.new_empty(x.shape[0], x.shape[1] + 1 + zeros, dtype=torch.float32)


@operator
def simhash_codes(x: Tensor, projections: Tensor, hashes_per_table: int) -> Tensor:
    """SimHash codes: the signs of random projections, K of them packed into the code of a table.

    Bit ``k`` of ``codes[i, t]`` is ``x[i] · projections[:, t * K + k] > 0``, so 0 where the product is 0 or NaN.
    Products are summed in float32 and in the order of the features: a row has the same code in any batch.

    Args:
        x: ``[n, in]`` float32, float64 or bfloat16, contiguous.
        projections: ``[in, L * K]`` float32.
        hashes_per_table: K, 1 to 30.

    Returns:
        ``[n, L]`` int32, each in ``0 .. 2**K - 1``.

    >>> simhash_codes(torch.tensor([[1.0, -1.0]]), torch.eye(2), 2)
    tensor([[1]], dtype=torch.int32)

    Charikar, *Similarity Estimation Techniques from Rounding Algorithms*, STOC 2002.
    """
    check_range("hashes_per_table", hashes_per_table, 1, 30)
    return x.new_empty((x.shape[0], projections.shape[1] // hashes_per_table), dtype=torch.int32)


@operator
def simhash_products(x: Tensor, projections: Tensor) -> Tensor:
    """Computes ``x @ projections`` in the order of :func:`simhash_codes`, whose codes are the signs of these products.

    The result depends neither on the batch nor on the number of threads.

    Args:
        x: ``[n, in]`` float32, contiguous.
        projections: ``[in, H]`` float32.

    Returns:
        ``[n, H]`` float32.

    >>> simhash_products(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    return x.new_empty((x.shape[0], projections.shape[1]))


@operator
def dwta_codes(x: Tensor, bins: Tensor, hashes_per_table: int, seed: int) -> Tensor:
    """Densified winner-take-all codes: which of 8 coordinates is the largest, K times.

    Coordinates that are 0 or NaN do not take part. A bin with no other coordinate borrows the winner of a bin drawn by
    hashing (seed, bin, attempt). After 100 attempts without a winner its hash is 0, as for a row of zeros. The first
    coordinate wins among equals. Values are compared in float32.

    Args:
        x: ``[n, in]`` float32, float64 or bfloat16, contiguous.
        bins: ``[L * K, 8]`` int64: the coordinates that each hash compares.
        hashes_per_table: K, 1 to 10.
        seed: of the borrowing.

    Returns:
        ``[n, L]`` int32, each in ``0 .. 8**K - 1``; hash ``k`` is in bits ``3 * k .. 3 * k + 2``.

    >>> dwta_codes(torch.tensor([[0.0, -2.0, 0, 0, 0, 7.0, 0, 0]]), torch.arange(8).view(1, 8), 1, seed=0)
    tensor([[5]], dtype=torch.int32)

    Chen & Shrivastava, *Densified Winner Take All (WTA) Hashing for Sparse Datasets*, UAI 2018.
    """
    check_range("hashes_per_table", hashes_per_table, 1, 30)
    return x.new_empty((x.shape[0], bins.shape[0] // hashes_per_table), dtype=torch.int32)
