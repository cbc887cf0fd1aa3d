"""Nearest neighbours among sparse rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import operator


@operator
def nearest_rows(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    row_start: Tensor,
    row_columns: Tensor,
    row_values: Tensor,
    column_start: Tensor,
    column_rows: Tensor,
    column_values: Tensor,
    k: int,
    candidates: int,
    max_postings: int,
) -> tuple[Tensor, Tensor]:
    """Finds the ``k`` rows of a sparse matrix with the largest inner products with each sparse query.

    The matrix is given by rows and by columns (an inverted index). First, products are summed column by column, from
    the column with the fewest entries, until the next one would exceed ``max_postings`` entries; the first is always
    read. Then the full products of the ``candidates`` rows with the largest sums are computed. Where that is no less
    work than to read all entries of the query's columns, they are read, and the result is exact. It also is if
    ``max_postings`` and ``candidates`` cover the matrix. Rows that share no column with the query are never found.

    Args:
        crow, col, values: queries ``[B, F]`` in CSR form, int64, int64 and float32; columns increase within a row.
        row_start, row_columns, row_values: the matrix ``[R, F]`` in CSR form, int64, int32 and float32; columns
            increase within a row.
        column_start, column_rows, column_values: the same in CSC form.
        k: rows wanted.
        candidates: at least ``k``; or 0: values are the sums, and rows those with the largest sums.
        max_postings: entries of the matrix to read for the candidates.

    Returns:
        Values ``[B, k]`` float32, largest first, and rows ``[B, k]`` int64, the lower one first among equals; padded
        with -inf and -1.

    >>> matrix = torch.tensor([0, 1, 2]), torch.tensor([1, 0]).int(), torch.tensor([5.0, 7.0])
    >>> by_column = torch.tensor([0, 1, 2]), torch.tensor([1, 0]).int(), torch.tensor([7.0, 5.0])
    >>> query = torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([2.0])
    >>> nearest_rows(*query, *matrix, *by_column, k=2, candidates=2, max_postings=10)
    (tensor([[10., -inf]]), tensor([[ 0, -1]]))

    Salton et al., *A Vector Space Model for Automatic Indexing*, CACM 1975; Persin et al., *Filtered Document Retrieval
    with Frequency-Sorted Indexes*, JASIS 1996.
    """
    queries = crow.shape[0] - 1
    return values.new_empty((queries, k)), values.new_empty((queries, k), dtype=torch.int64)
