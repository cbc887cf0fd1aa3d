"""DWTA: a hash family for the rank order of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import ops
from .base import HashFamily, costs_of_runners_up


class DWTA(HashFamily):
    """Densified winner-take-all, for the rank order of coordinates; the hash of SLIDE.

    Each hash looks at 8 coordinates, cut from random permutations, and gives the position of the largest (3 bits). An
    empty bin borrows the hash of another one; see :func:`torch_lsh.ops.dwta_codes`. Agreement grows with the similarity
    of the rank order (Yagnik et al. 2011).

    References:
        Chen & Shrivastava, "Densified Winner Take All (WTA) Hashing for Sparse Datasets", UAI 2018.

    >>> family = DWTA(20, hashes_per_table=2, num_tables=3)
    >>> x = torch.rand(4, 20)
    >>> bool((family.codes(x) == family.codes(x.exp())).all())
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
            permutation = torch.randperm(in_features, generator=generator, device="cpu")
            if in_features < self.bin_width:  # a repeated coordinate never wins over its first occurrence
                permutation = permutation.repeat(math.ceil(self.bin_width / in_features))
            bins.append(permutation[: bins_per_permutation * self.bin_width].view(-1, self.bin_width))
        self.bins = torch.cat(bins)[:num_hashes].contiguous()

    def _codes(self, x: Tensor) -> Tensor:
        return ops.dwta_codes(x, self.bins, self.hashes_per_table, self.seed)

    def _changes(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        values = x[:, self.bins].view(len(x), self.num_tables, self.hashes_per_table, self.bin_width)
        # A hash borrowed from another bin has no runner-up.
        present = (values != 0) & ~values.isnan()
        return costs_of_runners_up(
            values.masked_fill(~present, -math.inf),
            torch.arange(self.bin_width, device="cpu"),
            codes,
            self.bits_per_hash,
        )

    @property
    def nbytes(self) -> int:
        return self.bins.nbytes
