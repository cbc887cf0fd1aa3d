"""MinHash: a hash family for sets."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ... import ops
from .base import HashFamily


class MinHash(HashFamily):
    """Densified one-permutation minwise hashing (Shrivastava 2017), for sets: the columns where a row is not zero.

    For sparse binary inputs. The weights of a layer have no zeros, so it is no family for a layer. See
    :func:`torch_lsh.ops.minhash_codes_csr`.

    >>> family = MinHash(100, hashes_per_table=2, num_tables=8)
    >>> x = torch.zeros(1, 100)
    >>> x[0, [3, 14, 15]] = 1.0
    >>> bool((family.codes(x) == family.codes((7 * x).to_sparse_csr())).all())
    True
    >>> family.collision_probability(torch.tensor([1.0, 0.0]))
    tensor([1.0000, 0.0039])
    """

    bits_per_hash = 4
    of_sets: ClassVar[bool] = True

    def _codes_dense(self, x: Tensor) -> Tensor:
        sparse: Tensor = x.to(torch.float32).to_sparse_csr()
        return self._codes_csr(sparse.crow_indices(), sparse.col_indices(), sparse.values())

    def _codes_csr(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        return ops.minhash_codes_csr(
            crow,
            col,
            values,
            self.in_features,
            self.num_tables,
            self.hashes_per_table,
            self.bits_per_hash,
            self.seed,
        )

    def collision_probability(self, similarity: Tensor) -> Tensor:
        """``(J + (1 - J) / 2**bits) ** K``, where ``similarity`` is J = size of the intersection / of the union."""
        chance = 2.0**-self.bits_per_hash
        return (similarity + (1 - similarity) * chance) ** self.hashes_per_table

    @property
    def nbytes(self) -> int:
        return 0
