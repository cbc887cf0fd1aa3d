"""Sparse rows per label: sums of training rows, linear classifiers, their products with queries, their columns."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import NeedsData, operator


@operator
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
    """Sums the sparse rows of each label.

    Args:
        row_start, row_columns, row_values: rows ``[R, num_columns]`` in CSR form, int64, int32 and float32.
        num_columns: F.
        label_start, label_rows: the rows of each label ``[L, R]`` in CSR form, int64 and int32.
        threshold: sums whose magnitude is not above it are left out.
        unit: whether to scale the sums of a label to length 1 before.

    Returns:
        The sums ``[L, F]`` in CSR form; columns increase within a row.

    >>> import torch
    >>> rows = torch.tensor([0, 1, 3]), torch.tensor([1, 0, 1]).int(), torch.tensor([5.0, 7.0, 2.0])
    >>> sum_rows(*rows, 2, torch.tensor([0, 2]), torch.tensor([0, 1]).int(), 0.0)
    (tensor([0, 2]), tensor([0, 1], dtype=torch.int32), tensor([0.7071, 0.7071]))
    """
    raise NeedsData


@operator
def transpose_rows(
    row_start: Tensor, row_columns: Tensor, row_values: Tensor, num_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Turns a sparse matrix that is stored by rows into one that is stored by columns.

    Args:
        row_start, row_columns, row_values: ``[R, num_columns]`` in CSR form, int64, int32 and float32.
        num_columns: F.

    Returns:
        The same in CSC form: offsets ``[F + 1]`` int64, row numbers int32, which increase within a column, and values.

    >>> import torch
    >>> transpose_rows(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 1]).int(), torch.tensor([5.0, 7.0, 2.0]), 2)
    (tensor([0, 1, 3]), tensor([1, 0, 1], dtype=torch.int32), tensor([7., 5., 2.]))
    """
    columns = row_start.new_empty(num_columns + 1)
    return columns, torch.empty_like(row_columns), torch.empty_like(row_values)


@operator
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
    """Fits linear classifiers for each label on rows of its own, one for each cost, by dual coordinate descent.

    A classifier minimises ``(|w|² + b²) / 2 + cost * sum(max(0, 1 - y (w x + b))²)``. It begins with the solution for
    the cost before, and depends on its rows and the seed only. Passes end early when no dual variable changes by 0.01,
    or when one adds too little. They leave out rows that no longer matter ("shrinking"). After each pass, all dual
    variables are multiplied by the factor that is best for the objective.

    Args:
        row_start, row_columns, row_values: rows ``[R, num_columns]`` in CSR form, int64, int32 and float32.
        num_columns: F.
        label_start, label_rows: the training rows of each label ``[L, R]`` in CSR form, int64 and int32.
        positive: for each of ``label_rows``, whether the row has the label, bool.
        costs: of the errors ``[C]`` float32; they increase.
        passes: most passes over the rows of a label, for each cost.
        threshold: columns whose weights have at most this magnitude for every cost are left out.
        seed: of the order of the rows.
        tolerance: passes for a cost end when one adds less to the dual objective than this share of what they all have.

    Returns:
        Weights ``[L, F]`` in CSR form with values ``[C, entries]``, columns increasing within a row; and bias
        ``[C, L]``, float32.

    >>> import torch
    >>> rows = torch.tensor([0, 1, 2]), torch.tensor([0, 1]).int(), torch.ones(2)
    >>> members = torch.tensor([0, 2]), torch.tensor([0, 1]).int(), torch.tensor([True, False])
    >>> start, columns, weights, bias = fit_linear_rows(*rows, 2, *members, torch.tensor([1.0]), 10, 0.0, 0)
    >>> columns.tolist(), weights.sign().tolist()
    ([0, 1], [[1.0, -1.0]])

    Hsieh et al., *A Dual Coordinate Descent Method for Large-scale Linear SVM*, ICML 2008.
    """
    raise NeedsData


@operator
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
    """Computes the inner products of each sparse query with sparse rows of its own choice.

    Args:
        crow, col, values: queries ``[B, F]`` in CSR form, int64, int64 and float32.
        row_start, row_columns, row_values: the matrix ``[R, F]`` in CSR form, int64, int32 and float32.
        num_columns: F.
        rows: ``[B, K]`` int64, negative where there is none.

    Returns:
        ``[B, K]`` float32; 0 where there is no row.

    >>> import torch
    >>> query = torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([2.0])
    >>> matrix = torch.tensor([0, 1, 2]), torch.tensor([1, 0]).int(), torch.tensor([5.0, 7.0])
    >>> sparse_dot(*query, *matrix, 2, torch.tensor([[1, 0, -1]]))
    tensor([[ 0., 10.,  0.]])
    """
    return values.new_empty(rows.shape)
