"""Structured random projections: Walsh-Hadamard transforms and random signs instead of a Gaussian matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
        """Draws ``count`` projections of ``in_features`` coordinates.

        The transform needs a power of two D. A Gaussian matrix takes up to an eighth more coordinates (a layer's width
        and the coordinates that an index adds for bias and norm); wider vectors are padded to the next power of two.

        >>> StructuredProjections.draw(130, 200, torch.Generator()).signs.shape
        torch.Size([2, 3, 128])
        >>> StructuredProjections.draw(150, 200, torch.Generator()).signs.shape
        torch.Size([1, 3, 256])
        """
        size = 1 << (in_features.bit_length() - 1)
        if in_features > size + size // 8:
            size *= 2
        signs = 2 * torch.randint(2, (-(-count // size), 3, size), generator=generator, device="cpu").float() - 1
        return cls(
            signs,
            torch.randn(max(0, in_features - size), count, generator=generator, dtype=torch.float32, device="cpu"),
        )

    @property
    def nbytes(self) -> int:
        return self.signs.nbytes + self.rest.nbytes
