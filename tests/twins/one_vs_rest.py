from __future__ import annotations

import torch
from torch import Tensor

from .random_numbers import random_below, random_bits


def _dense(start: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    matrix = torch.zeros(len(start) - 1, num_columns)
    of_entry = torch.repeat_interleave(torch.arange(len(start) - 1), start.diff())
    return matrix.index_put_((of_entry, columns.long()), values, accumulate=True)


def _sparse(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    csr = matrix.to_sparse_csr()
    return csr.crow_indices(), csr.col_indices().int(), csr.values()


def sum_rows(
    row_start: Tensor,
    row_columns: Tensor,
    row_values: Tensor,
    num_columns: int,
    label_start: Tensor,
    label_rows: Tensor,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _dense(row_start, row_columns, row_values, num_columns)
    labels = _dense(label_start, label_rows, torch.ones(len(label_rows)), len(rows))
    sums = torch.nn.functional.normalize(labels @ rows, dim=1)
    return _sparse(sums.where(sums.abs() > threshold, 0))


def transpose_rows(
    row_start: Tensor, row_columns: Tensor, row_values: Tensor, num_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    order = row_columns.argsort(stable=True)
    row = torch.repeat_interleave(torch.arange(len(row_start) - 1, dtype=torch.int32), row_start.diff())
    counts = torch.bincount(row_columns, minlength=num_columns)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), row[order], row_values[order]


def fit_linear_rows(
    row_start: Tensor,
    row_columns: Tensor,
    row_values: Tensor,
    num_columns: int,
    label_start: Tensor,
    label_rows: Tensor,
    positive: Tensor,
    cost: float,
    passes: int,
    threshold: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = torch.cat([_dense(row_start, row_columns, row_values, num_columns), torch.ones(len(row_start) - 1, 1)], 1)
    weights = torch.zeros(len(label_start) - 1, num_columns + 1)
    for label, w in enumerate(weights):
        run = slice(int(label_start[label]), int(label_start[label + 1]))
        x, signs = rows[label_rows[run].long()], positive[run].float() * 2 - 1
        order, dual = list(range(len(x))), torch.zeros(len(x))
        label_seed, draws = random_bits(seed, label), 0
        for _ in range(passes):
            for i in range(len(order) - 1, 0, -1):
                j = random_below(label_seed, draws, i + 1)
                draws += 1
                order[i], order[j] = order[j], order[i]
            largest = 0.0
            for i in order:
                slope = signs[i] * (w @ x[i]) - 1 + dual[i] / (2 * cost)
                change = (dual[i] - slope / (x[i] @ x[i] + 1 / (2 * cost))).clamp(min=0) - dual[i]
                dual[i] += change
                w += signs[i] * change * x[i]
                largest = max(largest, abs(float(change)))
            if largest < 0.01:
                break
    kept = weights[:, :-1].where(weights[:, :-1].abs() > threshold, 0)
    return *_sparse(kept), weights[:, -1].clone()


def sparse_dot(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    row_start: Tensor,
    row_columns: Tensor,
    row_values: Tensor,
    num_columns: int,
    rows: Tensor,
) -> Tensor:
    queries = _dense(crow, col, values, num_columns)
    products = queries @ _dense(row_start, row_columns, row_values, num_columns).T
    return products.gather(1, rows.clamp(min=0)) * (rows >= 0)
