"""A change of coordinates that leaves inner products as they are and makes angles tell them apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops

_RIDGE = 0.03  # of the mean second moment, added to each: directions that were hardly seen stay as they are


class Balance(NamedTuple):
    """Linear maps of rows and queries with ``map_rows(w) · map_queries(q) = w · q``.

    Hidden activations behind a ReLU have most of their length in common, so all queries point the same way and the
    angles between a query and the rows say little. Of all maps of rows, with the inverse transpose of queries, the
    one whose square is the geometric mean of the inverse second moment of the rows and that of the queries makes the
    product of their mean squared lengths smallest: both sides have the same second moment then. So the cosines that
    belong to the same inner products are larger.

    Attributes:
        rows, queries: ``[d, d]`` float32, to multiply from the right.
    """

    rows: Tensor
    queries: Tensor

    @classmethod
    def fit(cls, row_moment: Tensor, query_moment: Tensor) -> Balance:
        """The balance of two second moments ``[d, d]`` float64, ``mean(v v^T)``.

        >>> moments = torch.eye(3).double(), torch.diag(torch.tensor([9.0, 1.0, 1.0])).double()
        >>> balance = Balance.fit(*moments)
        >>> torch.allclose(balance.rows @ balance.queries.T, torch.eye(3), atol=1e-5)
        True
        """
        row_moment, query_moment = _regularised(row_moment), _regularised(query_moment)
        root, inverse_root = _power(row_moment, 0.5), _power(row_moment, -0.5)
        square = inverse_root @ _power(root @ query_moment @ root, 0.5) @ inverse_root
        return cls(_power(square, 0.5).float(), _power(square, -0.5).float())

    def map_rows(self, rows: Tensor) -> Tensor:
        # not a BLAS product, whose last bits may depend on the batch and the number of threads
        return ops.simhash_products(rows.contiguous(), self.rows)

    def map_queries(self, queries: Tensor) -> Tensor:
        return ops.simhash_products(queries.contiguous(), self.queries)


def _regularised(moment: Tensor) -> Tensor:
    mean = moment.diagonal().mean()
    if not bool(mean > 0) or not bool(moment.isfinite().all()):
        return torch.eye(len(moment), dtype=moment.dtype, device="cpu")
    return moment / mean + _RIDGE * torch.eye(len(moment), dtype=moment.dtype, device="cpu")


def _power(moment: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp(min=1e-9 * float(values[-1])) ** exponent) @ vectors.T
