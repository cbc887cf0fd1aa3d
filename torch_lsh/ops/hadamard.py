"""Structured random projections and the hash codes made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import check_range, operator


@operator
def hadamard_products(x: Tensor, signs: Tensor, rest: Tensor) -> Tensor:
    """Structured random projections ``H D3 H D2 H D1 x``: D of them cost O(D log D).

    H is the Walsh-Hadamard matrix of size D, each ``D_i`` a diagonal of signs. These project the first D coordinates of
    ``x`` (padded with zeros where there are fewer); the rows of the projection have length ``sqrt(D)``, as those of a
    Gaussian matrix. ``rest`` projects the other coordinates.

    Args:
        x: ``[n, in]`` float32, contiguous.
        signs: ``[blocks, 3, D]`` float32 of 1 and -1, D a power of two; ``blocks * D >= H``.
        rest: ``[max(0, in - D), H]`` float32.

    Returns:
        ``[n, H]`` float32.

    >>> hadamard_products(torch.tensor([[1.0, 0.0]]), torch.ones(1, 3, 2), torch.empty(0, 2))
    tensor([[1., 1.]])

    Andoni et al., *Practical and Optimal LSH for Angular Distance*, NIPS 2015.
    """
    return x.new_empty((x.shape[0], rest.shape[1]))


@operator
def hadamard_codes(x: Tensor, signs: Tensor, rest: Tensor, hashes_per_table: int) -> Tensor:
    """The signs of :func:`hadamard_products`, packed as in :func:`simhash_codes`.

    Args:
        x, signs, rest: as in :func:`hadamard_products`.
        hashes_per_table: K, 1 to 30.

    Returns:
        ``[n, H / K]`` int32, each in ``0 .. 2**K - 1``.

    >>> hadamard_codes(torch.tensor([[1.0, 0.0]]), torch.ones(1, 3, 2), torch.empty(0, 2), 2)
    tensor([[3]], dtype=torch.int32)
    """
    check_range("hashes_per_table", hashes_per_table, 1, 30)
    return x.new_empty((x.shape[0], rest.shape[1] // hashes_per_table), dtype=torch.int32)


@operator
def cross_polytope_codes(x: Tensor, signs: Tensor, rest: Tensor, dimension: int, hashes_per_table: int) -> Tensor:
    """Cross-polytope codes: which of the vertices ``±e_i`` is the closest, K times.

    Each hash takes the next ``dimension`` of the :func:`hadamard_products`. It is ``2 * i`` for the product of the
    largest magnitude, plus 1 if that is negative. The first wins among equals; products that are all 0 or NaN give 0.

    Args:
        x, signs, rest: as in :func:`hadamard_products`.
        dimension: a power of two.
        hashes_per_table: K; ``K * log2(2 * dimension)`` is at most 30.

    Returns:
        ``[n, H / (K * dimension)]`` int32.

    >>> cross_polytope_codes(torch.tensor([[-3.0, 0.0]]), torch.ones(1, 3, 2), torch.empty(0, 2), 2, 1)
    tensor([[1]], dtype=torch.int32)

    Andoni et al., *Practical and Optimal LSH for Angular Distance*, NIPS 2015.
    """
    check_range("dimension", dimension, 1, 1 << 20)
    check_range("hashes_per_table", hashes_per_table, 1, 30)
    return x.new_empty((x.shape[0], rest.shape[1] // (dimension * hashes_per_table)), dtype=torch.int32)
