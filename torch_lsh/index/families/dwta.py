"""DWTA: a hash family for the rank order of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import ops
from .base import HashFamily, costs_of_runners_up


class DWTA(HashFamily):
    """Densified winner-take-all (Chen & Shrivastava 2018), for the rank order of coordinates; SLIDE's hash.

    Each hash looks at 8 coordinates, cut from random permutations, and gives the position of the largest (3 bits).
    Suits sparse vectors; see :func:`torch_lsh.ops.dwta_codes` for how empty bins are filled.

    >>> family = DWTA(20, hashes_per_table=2, num_tables=3)
    >>> x = torch.rand(4, 20)
    >>> bool((family.codes(x) == family.codes(x.to_sparse_csr())).all())
    True
    """

    bits_per_hash = 3
    bin_width = 8

    def __init__(self, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> None:
        super().__init__(in_features, hashes_per_table, num_tables, seed)
        generator = torch.Generator().manual_seed(seed)
        num_hashes = num_tables * hashes_per_table
        bins_per_permutation = max(in_features // self.bin_width, 1)
        bins = []
        for _ in range(math.ceil(num_hashes / bins_per_permutation)):
            permutation = torch.randperm(in_features, generator=generator)
            if in_features < self.bin_width:  # a repeated coordinate never wins over its first occurrence
                permutation = permutation.repeat(math.ceil(self.bin_width / in_features))
            bins.append(permutation[: bins_per_permutation * self.bin_width].view(-1, self.bin_width))
        self.bins = torch.cat(bins)[:num_hashes].contiguous()

    def _codes_dense(self, x: Tensor) -> Tensor:
        return ops.dwta_codes(x, self.bins, self.hashes_per_table, self.seed)

    def _changes(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        values = x[:, self.bins].view(len(x), self.num_tables, self.hashes_per_table, self.bin_width)
        # A hash that was borrowed from another bin has no runner-up.
        present = (values != 0) & ~values.isnan()
        return costs_of_runners_up(
            values.masked_fill(~present, -math.inf), torch.arange(self.bin_width), codes, self.bits_per_hash
        )

    def collision_probability(self, similarity: Tensor) -> Tensor:
        """For pairs of vectors whose coordinates are jointly Gaussian with this correlation.

        What holds in general is only that agreement grows with the similarity of rank order (Yagnik et al. 2011). The
        Gaussian case has no closed form for 8 coordinates: it is estimated from 65,536 fixed draws (standard error of
        one hash below 0.002).
        """
        generator = torch.Generator().manual_seed(0)
        a, independent = torch.randn(2, 65536, self.bin_width, generator=generator, dtype=torch.float32)
        agree = []
        for rho in similarity.flatten().clamp(-1, 1).tolist():
            b = rho * a + math.sqrt(1 - rho * rho) * independent
            agree.append((a.argmax(1) == b.argmax(1)).float().mean())
        one = torch.stack(agree) if agree else similarity.new_empty(0)
        return one.to(similarity.dtype).view(similarity.shape) ** self.hashes_per_table

    @property
    def nbytes(self) -> int:
        return self.bins.nbytes
