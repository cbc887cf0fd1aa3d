"""SignCodeIndex: rows of a weight matrix as one bit per dimension."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .base import Index, StoredTensor, finite_queries, mean_row, random_rotation, row_blocks

CODE_ROWS = 64  # rows of a block of codes; see csrc/kernels/sketch.h


class SignCodes(NamedTuple):
    """The tensors of :func:`torch_lsh.ops.sketch_candidates`."""

    codes: Tensor
    factors: Tensor


class SignCodeIndex(Index):
    """Sign codes of rows; a query is compared with all of them.

    A row ``w``, less the mean row ``c``, is kept as the signs of its coordinates in a random rotation (the bits of a
    SimHash code with orthogonal projections), and one factor, which makes the inner product of these signs with a
    rotated vector ``h`` an unbiased estimate of ``h · (w - c)``. (``h · c`` is the same for all rows.) The query is not
    rounded to bits, so estimates are far better than the Hamming distance of codes. Their error falls with
    ``1 / sqrt(width)`` and grows with the length of ``h``.

    Queries have much in common, behind a ReLU most of their length. That part is not estimated: the product of each row
    with the mean query ``m`` is kept beside its bias, and ``h`` is a query less ``m``.

    Hash tables find rows in time that grows little with their number. But in trained output layers the best row is at
    70 to 80 degrees from the query, so far away that 64 tables find it for a third of the queries. Sign codes take time
    linear in the number of rows, with a small constant: ``width / 8 + 4`` bytes each, a sixth of int8 weights at width
    128.

    A look-up returns its rows in increasing order of their numbers, not best first (``best_first`` is False). All M of
    them are among the best by estimate.

    Args:
        num_rows: N, rows of the weight.
        in_features: width of the weight.
        seed: of the rotation.

    Raises:
        ValueError: an argument is out of range.

    References:
        Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002; Gao & Long, "RaBitQ:
        Quantizing High-Dimensional Vectors with a Theoretical Error Bound", SIGMOD 2024; André et al., "Cache locality
        is not enough" (tables in registers), VLDB 2015.

    >>> weight = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    >>> index = SignCodeIndex(1000, 16)
    >>> index.build(weight)
    >>> 7 in index.query(weight[[7]], max_candidates=50)
    True
    """

    best_first = False

    def __init__(self, num_rows: int, in_features: int, *, seed: int = 0) -> None:
        super().__init__(num_rows, in_features, seed)
        self._rotation = random_rotation(in_features, seed)
        self._clear()

    def _clear(self) -> None:
        self._center = torch.zeros(self.in_features, dtype=torch.float32, device="cpu")
        self._mean_query = torch.zeros(self.in_features, dtype=torch.float32, device="cpu")
        self._store: SignCodes | None = None

    @property
    def is_built(self) -> bool:
        return self._store is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of the rotation."""
        return self._rotation.nbytes + sum(part.nbytes for part in self._store or ())

    def _build(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None:
        """Beside the queries one of zeros is counted: the fewer are known, the less is taken for granted."""
        mean_query = torch.zeros(self.in_features, dtype=torch.float32, device="cpu")
        if queries is not None:
            finite = finite_queries(queries)
            mean_query = finite.sum(0) / (len(finite) + 1)
        self._mean_query, self._center = mean_query, mean_row(weight)
        store = self._empty() if self._store is None else self._store
        for some, rows, biases in row_blocks(weight, bias):
            self._write(store, torch.arange(self.num_rows, device="cpu")[some], rows, biases)
        self._store = store

    def _empty(self) -> SignCodes:
        blocks, width = -(-self.num_rows // CODE_ROWS), self._rotation.shape[1]
        return SignCodes(
            codes=torch.zeros(blocks, width // 8, CODE_ROWS, dtype=torch.uint8, device="cpu"),
            factors=torch.zeros(blocks, 2, CODE_ROWS, dtype=torch.bfloat16, device="cpu"),
        )

    def _write(self, store: SignCodes, rows: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        less_mean, signs, scale = self._coded(weight)
        block, place = rows // CODE_ROWS, rows % CODE_ROWS
        store.codes[block, :, code_places(place)] = signs
        store.factors[block, 0, place] = scale.bfloat16()
        known = less_mean @ self._mean_query
        store.factors[block, 1, place] = (known if bias is None else known + bias.float()).bfloat16()

    def _coded(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Some rows less the mean row ``[n, in_features]``, their signs ``[n, width / 8]`` uint8 and scales ``[n]``.

        ``h · v`` is estimated by ``(h · signs) * |v|^2 / (v · signs)``: right where ``h`` is a multiple of ``v``.
        """
        less_mean = weight.float() - self._center
        rotated = ops.product(less_mean, self._rotation)
        of_row = torch.zeros(len(rotated), dtype=torch.int32, device="cpu")
        return less_mean, *ops.residual_codes(rotated, torch.zeros_like(rotated[:1]), of_row, 1)

    def _update(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> int:
        store = self._built()
        before = self._codes_of(rows)
        self._write(store, rows, weight[rows], None if bias is None else bias[rows])
        return int((self._codes_of(rows) != before).any(1).sum())

    def _differs(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        """A code is one byte, so that it has about as many bits as one of a hash table."""
        return self._coded(weight[rows])[1] != self._codes_of(rows)

    def _codes_of(self, rows: Tensor) -> Tensor:
        """``[A, width / 8]`` uint8."""
        return self._built().codes[rows // CODE_ROWS, :, code_places(rows % CODE_ROWS)]

    def _query(self, x: Tensor, max_candidates: int, labels: Tensor | None) -> Tensor:
        h = ops.product(x.float() - self._mean_query, self._rotation)
        count = min(max_candidates, self.num_rows)
        found = ops.sketch_candidates(h, *self._built(), self.num_rows, count)
        return found if count == max_candidates else F.pad(found, (0, max_candidates - count), value=-1)

    def _built(self) -> SignCodes:
        self._check_built()
        assert self._store is not None
        return self._store

    def _settings(self) -> dict[str, Any]:
        return {"num_rows": self.num_rows, "in_features": self.in_features, "seed": self.seed}

    def _stored(self) -> dict[str, StoredTensor]:
        vector = StoredTensor((self.in_features,), torch.float32)
        stored = {name: StoredTensor(tuple(part.shape), part.dtype) for name, part in self._empty()._asdict().items()}
        return {"center": vector, "mean_query": vector, **stored}

    def _state(self) -> dict[str, Any]:
        return {"center": self._center, "mean_query": self._mean_query, **self._built()._asdict()}

    def _load(self, state: dict[str, Any]) -> None:
        self._center, self._mean_query = state["center"], state["mean_query"]
        self._store = SignCodes(*(state[name] for name in SignCodes._fields))


def code_places(place: Tensor) -> Tensor:
    """Where the code of a row of a block is kept: the halves of the block alternate."""
    half = CODE_ROWS // 2
    return place % half * 2 + place // half
