from __future__ import annotations

import math

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
    unit: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _dense(row_start, row_columns, row_values, num_columns)
    labels = _dense(label_start, label_rows, torch.ones(len(label_rows)), len(rows))
    sums = labels @ rows
    if unit:
        sums = torch.nn.functional.normalize(sums, dim=1)
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
    costs: Tensor,
    passes: int,
    threshold: float,
    seed: int,
    tolerance: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = torch.cat([_dense(row_start, row_columns, row_values, num_columns), torch.ones(len(row_start) - 1, 1)], 1)
    weights = torch.zeros(len(costs), len(label_start) - 1, num_columns + 1)
    for label in range(len(label_start) - 1):
        run = slice(int(label_start[label]), int(label_start[label + 1]))
        x, signs = rows[label_rows[run].long()], positive[run].float() * 2 - 1
        order, dual, w = list(range(len(x))), torch.zeros(len(x)), torch.zeros(num_columns + 1)
        for kind, cost in enumerate(costs.tolist()):
            of_kind = random_bits(random_bits(seed, label), kind)
            w = _descend(x, signs, cost, passes, of_kind, order, dual, w, tolerance)
            weights[kind, label] = w
    kept = weights[:, :, :-1].abs().amax(0) > threshold
    start, columns, _ = _sparse(kept.float())
    return start, columns, weights[:, :, :-1][:, kept], weights[:, :, -1].clone()


def fit_dense_rows(
    rows: Tensor, label_start: Tensor, label_rows: Tensor, positive: Tensor, cost: float, passes: int, seed: int
) -> tuple[Tensor, Tensor]:
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    weights = torch.zeros(len(label_start) - 1, rows.shape[1])
    for label in range(len(weights)):
        run = slice(int(label_start[label]), int(label_start[label + 1]))
        x, signs = rows[label_rows[run].long()], positive[run].float() * 2 - 1
        order, dual = list(range(len(x))), torch.zeros(len(x))
        weights[label] = _descend(x, signs, cost, passes, random_bits(seed, label), order, dual, weights[label])
    return weights[:, :-1].clone(), weights[:, -1].clone()


def _descend(
    x: Tensor,
    signs: Tensor,
    cost: float,
    passes: int,
    seed: int,
    order: list[int],
    dual: Tensor,
    w: Tensor,
    tolerance: float = 0.0,
) -> Tensor:
    """Passes over rows; order and dual variables are changed in place, and the weights returned."""
    w, draws, active, most, gained = w.clone(), 0, len(order), math.inf, 0.0
    reached = _stretch(x, signs, cost, dual, w)
    for _ in range(passes):
        for i in range(active - 1, 0, -1):
            j = random_below(seed, draws, i + 1)
            draws += 1
            order[i], order[j] = order[j], order[i]
        largest = downhill = 0.0
        place = 0
        while place < active:
            i = order[place]
            slope = float(signs[i] * (w @ x[i]) - 1 + dual[i] / (2 * cost))
            if dual[i] == 0 and slope > most:
                active -= 1
                order[place], order[active] = order[active], order[place]
                continue
            place += 1
            downhill = max(downhill, -slope)
            change = (dual[i] - slope / (x[i] @ x[i] + 1 / (2 * cost))).clamp(min=0) - dual[i]
            dual[i] += change
            w += signs[i] * change * x[i]
            largest = max(largest, abs(float(change)))
        most = downhill
        gain = _dual_objective(x, signs, cost, dual) - reached
        gained += gain
        reached = _stretch(x, signs, cost, dual, w)
        if largest < 0.01 or gain < tolerance * gained:
            break
    return w


def _stretch(x: Tensor, signs: Tensor, cost: float, dual: Tensor, w: Tensor) -> float:
    """Multiplies dual variables and weights by the factor that is best for the objective, and returns that."""
    w64 = (signs * dual).double() @ x.double()
    curvature = float(w64.square().sum() + dual.double().square().sum() / (2 * cost))
    factor = float(dual.double().sum()) / curvature if curvature > 0 else 1.0
    if abs(factor - 1) > 0.003:
        dual *= factor
        w *= factor
    return _dual_objective(x, signs, cost, dual)


def _dual_objective(x: Tensor, signs: Tensor, cost: float, dual: Tensor) -> float:
    w = (signs * dual).double() @ x.double()
    return float(dual.sum() - w.square().sum() / 2 - dual.double().square().sum() / (4 * cost))


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
