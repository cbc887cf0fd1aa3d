"""Row-sparse gradients: sparse COO tensors with one sparse dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops


def rows_and_values(gradient: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Takes a row-sparse gradient apart; repeated rows are summed.

    Args:
        gradient: sparse COO tensor with one sparse dimension.
        known: rows that this function returned for another gradient of equally many rows. Saves the check if this
            gradient holds the same rows.

    Returns:
        Rows ``[A]`` int64, strictly increasing, and their values ``[A, ...]``.

    Raises:
        RuntimeError: ``gradient`` has another form, or a row is out of range. (Rows of a gradient that says that it is
            coalesced are checked by the operators that take them.)
    """
    if gradient.layout is not torch.sparse_coo or gradient.sparse_dim() != 1:
        form = f"{gradient.sparse_dim()} sparse dimensions" if gradient.layout is torch.sparse_coo else "no rows"
        raise RuntimeError(
            f"a gradient has layout {gradient.layout} with {form}; "
            "wanted a dense tensor or a sparse COO tensor with one sparse dimension"
        )
    rows, values = gradient._indices()[0].contiguous(), gradient._values().contiguous()
    if gradient.is_coalesced():
        return rows, values
    if known is not None and known.data_ptr() == rows.data_ptr() and known.shape == rows.shape:
        return known, values
    return sum_repeated_rows(rows, values, gradient.shape[0])


def sum_repeated_rows(rows: Tensor, values: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Brings rows into strictly increasing order and sums the values of repeated ones.

    Args:
        rows: ``[A]`` int64, contiguous.
        values: ``[A, ...]``, contiguous.
        num_rows: number of rows of the parameter.

    Raises:
        RuntimeError: a row is out of range.
    """
    if ops.is_increasing(rows, below=num_rows):
        return rows, values
    if not ops.is_increasing(rows):
        rows, sums = ops.coalesce_rows(rows, as_matrix(values))
        values = sums.view(len(rows), *values.shape[1:])
    if not 0 <= int(rows[0]) <= int(rows[-1]) < num_rows:
        raise RuntimeError(
            f"a row-sparse gradient has rows {int(rows[0])} to {int(rows[-1])}; wanted 0 to {num_rows - 1}"
        )
    return rows, values


def row_sparse(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """The row-sparse gradient of strictly increasing ``rows`` and their ``values``."""
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), values, shape, is_coalesced=True, check_invariants=False, device=values.device
    )


def as_matrix(tensor: Tensor) -> Tensor:
    """``tensor`` in the one or two dimensions that the operators take; shares memory and version."""
    return tensor.flatten(1) if tensor.dim() > 2 else tensor
