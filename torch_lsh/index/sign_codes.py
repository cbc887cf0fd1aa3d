"""RowSketch: which rows of a weight matrix have large inner products with a vector, from one bit per dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops

_BLOCK_ROWS = 16384  # rows that are sketched at a time
_LAYOUT_ROWS = 64  # rows of a block of codes; see csrc/kernels/sketch.h


class RowSketch:
    """Sign codes of rows, all of which a query is compared with.

    A row ``w``, less the mean row ``c``, is kept as the signs of its coordinates in a random rotation, which are the
    bits of a SimHash code with orthogonal projections, and the factor that makes the inner product of these signs with
    a rotated vector ``h`` an unbiased estimate of ``h · (w - c)``. (``h · c`` is the same for all rows.) The query is
    not rounded to bits, so estimates are far better than the Hamming distance of codes; their error falls with
    ``1 / sqrt(width)``, and it grows with the length of ``h``. What queries have in common, which is most of them
    behind a ReLU, is therefore not estimated: the product of each row with the mean query ``m`` is kept beside its
    bias, and ``h`` is a query less ``m``.

    Hash tables find rows in time that grows little with their number, but in trained output layers the best row is at
    70 to 80 degrees from the query, so far that 64 tables find it for a third of the queries. A sketch is linear in
    the number of rows with a small constant: ``width / 8 + 4`` bytes each, a sixth of int8 weights at width 128.

    Args:
        num_rows: N, rows of the weight.
        in_features: width of the weight.
        seed: of the rotation.

    References:
        Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002; Gao & Long, "RaBitQ:
        Quantizing High-Dimensional Vectors with a Theoretical Error Bound", SIGMOD 2024; André et al., "Cache locality
        is not enough" (tables in registers), VLDB 2015.

    >>> weight = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    >>> sketch = RowSketch(1000, 16)
    >>> sketch.build(weight)
    >>> 7 in sketch.query(weight[[7]], count=50)
    True
    """

    def __init__(self, num_rows: int, in_features: int, seed: int = 0) -> None:
        for name, value in (("num_rows", num_rows), ("in_features", in_features)):
            if value < 1:
                raise ValueError(f"{name} is {value}; wanted at least 1")
        self.num_rows, self.in_features = num_rows, in_features
        width = -(-in_features // 8) * 8
        gaussian = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self._rotation = torch.linalg.qr(gaussian).Q[:in_features].float().contiguous()
        blocks = -(-num_rows // _LAYOUT_ROWS)
        self._codes = torch.zeros(blocks, width // 8, _LAYOUT_ROWS, dtype=torch.uint8)
        self._factors = torch.zeros(blocks, 2, _LAYOUT_ROWS, dtype=torch.bfloat16)
        self._center = torch.zeros(in_features, dtype=torch.float32)
        self._mean_query = torch.zeros(in_features, dtype=torch.float32)

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._factors.nbytes + self._rotation.nbytes

    @torch.no_grad()
    def build(self, weight: Tensor, bias: Tensor | None = None, queries: Tensor | None = None) -> None:
        """Sketches every row anew.

        Args:
            weight: ``[num_rows, in_features]`` floating point.
            bias: ``[num_rows]`` or None.
            queries: ``[Q, in_features]`` floating point: some such as will come, for their mean. Any number: beside
                them a query of zeros is counted, so that the less is known the less is taken for granted. Those with a
                NaN or an infinity are left out.

        Raises:
            ValueError: a shape does not fit.
        """
        self._check(weight, bias)
        self._mean_query = torch.zeros(self.in_features, dtype=torch.float32)
        if queries is not None:
            self._check_queries(queries, "queries", "Q")
            finite = queries.float()[queries.isfinite().all(1)]
            self._mean_query = finite.sum(0) / (len(finite) + 1)
        total = torch.zeros(self.in_features, dtype=torch.float64)
        for begin in range(0, self.num_rows, _BLOCK_ROWS):
            total += weight[begin : begin + _BLOCK_ROWS].float().nan_to_num(0, 0, 0).sum(0, dtype=torch.float64)
        self._center = (total / self.num_rows).float()
        for rows in torch.arange(self.num_rows).split(_BLOCK_ROWS):
            self._write(weight, bias, rows, slice(int(rows[0]), int(rows[-1]) + 1))

    @torch.no_grad()
    def update(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> None:
        """Sketches some rows ``[A]`` int64 anew, around the mean row and the mean query of the last :meth:`build`."""
        self._check(weight, bias)
        for some in rows.split(_BLOCK_ROWS):
            self._write(weight, bias, some, some)

    def _check(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.shape != (self.num_rows, self.in_features):
            raise ValueError(f"weight has shape {list(weight.shape)}; wanted [{self.num_rows}, {self.in_features}]")
        if bias is not None and bias.shape != (self.num_rows,):
            raise ValueError(f"bias has shape {list(bias.shape)}; wanted [{self.num_rows}]")

    def _write(self, weight: Tensor, bias: Tensor | None, rows: Tensor, index: slice | Tensor) -> None:
        rows_less_mean = weight[index].float() - self._center
        rotated = rows_less_mean @ self._rotation
        bits = (rotated > 0).unflatten(1, (-1, 8)) << torch.arange(8)
        block, row = rows // _LAYOUT_ROWS, rows % _LAYOUT_ROWS
        half = _LAYOUT_ROWS // 2
        self._codes[block, :, row % half * 2 + row // half] = bits.sum(2).to(torch.uint8)
        # h · v is estimated by (h · signs) * |v|^2 / (v · signs), which is right where h is a multiple of v.
        self._factors[block, 0, row] = (rotated.square().sum(1) / rotated.abs().sum(1).clamp(min=1e-30)).bfloat16()
        known = rows_less_mean @ self._mean_query
        self._factors[block, 1, row] = (known if bias is None else known + bias[index].float()).bfloat16()

    @torch.no_grad()
    def query(self, x: Tensor, count: int) -> Tensor:
        """The rows with the largest estimates for each query.

        Args:
            x: ``[B, in_features]`` floating point.
            count: M, 1 to ``num_rows``.

        Returns:
            ``[B, M]`` int64, increasing. A query with a NaN or an infinity gets some rows.
        """
        self._check_queries(x, "x", "B")
        h = (x.float() - self._mean_query) @ self._rotation
        return ops.sketch_candidates(h, self._codes, self._factors, self.num_rows, count)

    def _check_queries(self, queries: Tensor, name: str, size: str) -> None:
        if queries.dim() != 2 or queries.shape[1] != self.in_features:
            raise ValueError(f"{name} has shape {list(queries.shape)}; wanted [{size}, {self.in_features}]")
