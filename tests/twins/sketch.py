from __future__ import annotations

import torch
from torch import Tensor


def places_of_codes(positions: Tensor) -> Tensor:
    """Where in a block of codes the rows at some positions are."""
    return 2 * (positions % 32) + positions // 32


def sketch_candidates(x: Tensor, codes: Tensor, factors: Tensor, num_rows: int, count: int) -> Tensor:
    """Without the rounding of the products with signs, so estimates that are close may rank differently."""
    row = torch.arange(64)
    in_order = codes[:, :, 2 * (row % 32) + row // 32]  # [blocks, width / 8, 64]
    bits = in_order.movedim(1, 2).flatten(0, 1).unsqueeze(2) >> torch.arange(8) & 1
    signs = 2.0 * bits.flatten(1) - 1
    scores = (x @ signs.T) * factors[:, 0].flatten().float() + factors[:, 1].flatten().float()
    return scores[:, :num_rows].topk(count, dim=1).indices.sort(dim=1).values
