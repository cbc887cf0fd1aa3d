"""Hash families for the angle: signs of random projections."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import ops
from .base import HashFamily
from .projections import StructuredProjections


class SimHash(HashFamily):
    """Signs of Gaussian projections (Charikar 2002), for the angle between vectors. A zero vector has the code 0.

    >>> family = SimHash(3, hashes_per_table=4, num_tables=2)
    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> bool((family.codes(x) == family.codes(5 * x)).all())
    True
    >>> family.collision_probability(torch.tensor([1.0, 0.0]))
    tensor([1.0000, 0.0625])
    """

    bits_per_hash = 1

    def __init__(self, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> None:
        super().__init__(in_features, hashes_per_table, num_tables, seed)
        self.projections = self._draw(torch.Generator().manual_seed(seed))

    def _draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(
            self.in_features, self.num_tables * self.hashes_per_table, generator=generator, dtype=torch.float32
        )

    def _codes_dense(self, x: Tensor) -> Tensor:
        return ops.simhash_codes(x, self.projections, self.hashes_per_table)

    def _products(self, x: Tensor) -> Tensor:
        return ops.simhash_products(x, self.projections)

    def _changes(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        costs = self._products(x).square().view(len(x), self.num_tables, self.hashes_per_table, 1)
        flips = (1 << torch.arange(self.hashes_per_table, dtype=torch.int32)).view(-1, 1)
        return flips.expand(costs.shape), costs

    def collision_probability(self, similarity: Tensor) -> Tensor:
        """``(1 - angle / pi) ** K``, where ``similarity`` is the cosine. Exact (Goemans & Williamson 1995)."""
        return (1 - similarity.clamp(-1, 1).acos() / math.pi) ** self.hashes_per_table

    @property
    def nbytes(self) -> int:
        return self.projections.nbytes


class SparseSignProjection(SimHash):
    """Signs of projections with ±1 on a random third of the coordinates, zero elsewhere, as in SLIDE.

    Approaches SimHash where no few coordinates carry the vector (Li, Hastie & Church 2006); its collision probability
    is SimHash's in that limit.

    >>> SparseSignProjection(9, hashes_per_table=2, num_tables=1).projections.abs().sum(0)
    tensor([3., 3.])
    """

    def _draw(self, generator: torch.Generator) -> Tensor:
        count = math.ceil(self.in_features / 3)
        projections = torch.zeros(self.in_features, self.num_tables * self.hashes_per_table, dtype=torch.float32)
        for column in projections.T:
            chosen = torch.randperm(self.in_features, generator=generator)[:count]
            column[chosen] = 2 * torch.randint(2, (count,), generator=generator).float() - 1
        return projections


class HadamardSimHash(SimHash):
    """SimHash with structured projections, which cost O(d log d) in place of O(d * L * K).

    See :func:`torch_lsh.ops.hadamard_products`. Its collision probability is SimHash's in the limit of wide vectors
    (Andoni et al. 2015; Bojarski et al. 2017).

    >>> family = HadamardSimHash(100, hashes_per_table=4, num_tables=2)
    >>> x = torch.randn(3, 100)
    >>> bool((family.codes(x) == family.codes(5 * x)).all())
    True
    """

    def __init__(self, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> None:
        HashFamily.__init__(self, in_features, hashes_per_table, num_tables, seed)
        generator = torch.Generator().manual_seed(seed)
        self.structured = StructuredProjections.draw(in_features, num_tables * hashes_per_table, generator)

    def _codes_dense(self, x: Tensor) -> Tensor:
        return ops.hadamard_codes(x.float(), *self.structured, self.hashes_per_table)

    def _products(self, x: Tensor) -> Tensor:
        return ops.hadamard_products(x, *self.structured)

    @property
    def nbytes(self) -> int:
        return self.structured.nbytes
