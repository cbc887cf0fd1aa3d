"""CrossPolytope: a hash family for the angle with a nearly optimal exponent."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ops
from .base import HashFamily, costs_of_runners_up
from .projections import StructuredProjections


class CrossPolytope(HashFamily):
    """The closest vertex ``±e_i`` after a random rotation, for the angle between vectors.

    Near neighbours collide more often, and far ones less often, than with SimHash codes of as many buckets. The
    rotation is structured (:func:`torch_lsh.ops.hadamard_products`) and cut to 16 coordinates, so a hash has 32 values.

    References:
        Andoni et al., "Practical and Optimal LSH for Angular Distance", NIPS 2015.

    >>> family = CrossPolytope(100, hashes_per_table=2, num_tables=3)
    >>> x = torch.randn(5, 100)
    >>> bool((family.codes(x) == family.codes(2 * x)).all())
    True
    """

    dimension = 16
    bits_per_hash = 5

    def __init__(self, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> None:
        super().__init__(in_features, hashes_per_table, num_tables, seed)
        count = num_tables * hashes_per_table * self.dimension
        self.projections = StructuredProjections.draw(in_features, count, torch.Generator().manual_seed(seed))

    def _codes(self, x: Tensor) -> Tensor:
        return ops.cross_polytope_codes(x.float(), *self.projections, self.dimension, self.hashes_per_table)

    def _changes(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        products = ops.hadamard_products(x, *self.projections)
        products = products.view(len(x), self.num_tables, self.hashes_per_table, self.dimension)
        # Of the two vertices of an axis only the one on the side of the vector can be second best.
        numbers = 2 * torch.arange(self.dimension, device="cpu") + (products < 0)
        return costs_of_runners_up(products.abs(), numbers, codes, self.bits_per_hash)

    @property
    def nbytes(self) -> int:
        return self.projections.nbytes
