"""SimHash: hash families for the angle, from the signs of random projections."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ops
from .base import HashFamily
from .projections import StructuredProjections


class SimHash(HashFamily):
    """Signs of Gaussian projections, for the angle between vectors. A zero vector has the code 0.

    Two vectors at an angle a share a code with probability ``(1 - a / pi) ** K``.

    References:
        Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002.

    >>> family = SimHash(3, hashes_per_table=4, num_tables=2)
    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> bool((family.codes(x) == family.codes(5 * x)).all())
    True
    """

    bits_per_hash = 1

    def __init__(self, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> None:
        super().__init__(in_features, hashes_per_table, num_tables, seed)
        generator = torch.Generator().manual_seed(seed)
        self.projections = torch.randn(
            in_features, num_tables * hashes_per_table, generator=generator, dtype=torch.float32, device="cpu"
        )

    def _codes(self, x: Tensor) -> Tensor:
        return ops.simhash_codes(x, self.projections, self.hashes_per_table)

    def _products(self, x: Tensor) -> Tensor:
        return ops.simhash_products(x, self.projections)

    def _changes(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        costs = self._products(x).square().view(len(x), self.num_tables, self.hashes_per_table, 1)
        flips = (1 << torch.arange(self.hashes_per_table, dtype=torch.int32, device="cpu")).view(-1, 1)
        return flips.expand(costs.shape), costs

    @property
    def nbytes(self) -> int:
        return self.projections.nbytes


class HadamardSimHash(SimHash):
    """SimHash with structured projections, which cost O(d log d) instead of O(d * L * K).

    See :func:`torch_lsh.ops.hadamard_products`. The collision probability is that of SimHash in the limit of wide
    vectors.

    References:
        Andoni et al., "Practical and Optimal LSH for Angular Distance", NIPS 2015;
        Bojarski et al., "Structured adaptive and random spinners for fast machine learning computations", AISTATS 2017.

    >>> family = HadamardSimHash(100, hashes_per_table=4, num_tables=2)
    >>> x = torch.randn(3, 100)
    >>> bool((family.codes(x) == family.codes(5 * x)).all())
    True
    """

    def __init__(self, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> None:
        HashFamily.__init__(self, in_features, hashes_per_table, num_tables, seed)
        generator = torch.Generator().manual_seed(seed)
        self.structured = StructuredProjections.draw(in_features, num_tables * hashes_per_table, generator)

    def _codes(self, x: Tensor) -> Tensor:
        return ops.hadamard_codes(x.float(), *self.structured, self.hashes_per_table)

    def _products(self, x: Tensor) -> Tensor:
        return ops.hadamard_products(x, *self.structured)

    @property
    def nbytes(self) -> int:
        return self.structured.nbytes
