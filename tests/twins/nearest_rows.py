from __future__ import annotations

import itertools

import torch
from torch import Tensor


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
    """Sums in float64, so that rows with nearly equal ones may come in another order."""
    num_rows, num_columns = len(row_start) - 1, len(column_start) - 1
    matrix = torch.zeros(num_rows, num_columns, dtype=torch.float64)
    of_entry = torch.repeat_interleave(torch.arange(num_rows), row_start.diff())
    matrix[of_entry, row_columns.long()] = row_values.double()
    counts = column_start.diff()
    best = torch.full((len(crow) - 1, k), -torch.inf)
    indices = torch.full((len(crow) - 1, k), -1)
    for i, (begin, end) in enumerate(itertools.pairwise(crow.tolist())):
        columns, weights = col[begin:end], values[begin:end].double()
        sums = torch.zeros(num_rows, dtype=torch.float64)
        touched = torch.zeros(num_rows, dtype=torch.bool)
        postings, every = 0, int(counts[columns].sum())
        # Reading all entries is no more work than comparing the candidates.
        reads_all = every <= max_postings + candidates * (len(row_columns) // max(1, num_rows))
        most = every if reads_all else max_postings
        for j in counts[columns].argsort(stable=True).tolist():
            column, count = int(columns[j]), int(counts[columns[j]])
            if postings > 0 and postings + count > most:
                break
            postings += count
            run = slice(int(column_start[column]), int(column_start[column + 1]))
            rows = column_rows[run].long()
            sums[rows] += weights[j] * column_values[run].double()
            touched[rows] = True
        found = touched.nonzero()[:, 0]
        found = found[sums[found].argsort(descending=True, stable=True)][: candidates or k].sort().values
        products = sums[found] if reads_all or candidates == 0 else matrix[found][:, columns] @ weights
        order = products.argsort(descending=True, stable=True)[:k]
        best[i, : len(order)] = products[order].float()
        indices[i, : len(order)] = found[order]
    return best, indices
