"""Structured random projections: Walsh-Hadamard transforms and random signs in place of a Gaussian matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 22  # of dense rows made of sparse ones at a time


class StructuredProjections(NamedTuple):
    """Parameters of :func:`torch_lsh.ops.hadamard_products`.

    Attributes:
        signs: ``[blocks, 3, D]`` float32.
        rest: ``[max(0, in - D), count]`` float32.
    """

    signs: Tensor
    rest: Tensor

    @classmethod
    def draw(cls, in_features: int, count: int, generator: torch.Generator) -> StructuredProjections:
        """``count`` projections of ``in_features`` coordinates.

        The transform needs a power of two D. Up to an eighth more than that is left to a Gaussian matrix (a layer's
        width and the coordinates that an index adds for bias and norm), beyond that the next power of two is padded.

        >>> StructuredProjections.draw(130, 200, torch.Generator()).signs.shape
        torch.Size([2, 3, 128])
        >>> StructuredProjections.draw(150, 200, torch.Generator()).signs.shape
        torch.Size([1, 3, 256])
        """
        size = 1 << (in_features.bit_length() - 1)
        if in_features > size + size // 8:
            size *= 2
        signs = 2 * torch.randint(2, (-(-count // size), 3, size), generator=generator).float() - 1
        return cls(signs, torch.randn(max(0, in_features - size), count, generator=generator, dtype=torch.float32))

    @property
    def nbytes(self) -> int:
        return self.signs.nbytes + self.rest.nbytes


def dense_blocks(crow: Tensor, col: Tensor, values: Tensor, in_features: int) -> list[Tensor]:
    """The rows of a sparse CSR matrix as dense blocks of some MiB; repeated columns add up."""
    rows = max(1, _BLOCK_ELEMENTS // in_features)
    blocks = []
    for begin in range(0, len(crow) - 1, rows):
        starts = crow[begin : begin + rows + 1]
        entries = slice(int(starts[0]), int(starts[-1]))
        block = values.new_zeros(len(starts) - 1, in_features)
        row = torch.repeat_interleave(starts.diff())
        blocks.append(block.index_put_((row, col[entries]), values[entries], accumulate=True))
    return blocks
