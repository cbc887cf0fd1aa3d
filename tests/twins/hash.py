from __future__ import annotations

import torch
from torch import Tensor

from .random_numbers import random_below


def pack(hashes: Tensor, hashes_per_table: int, bits: int) -> Tensor:
    """Codes ``[n, L]`` of hashes ``[n, L * K]``, each of ``bits`` bits, the first in the lowest bits."""
    shifts = bits * torch.arange(hashes_per_table)
    return (hashes.long().unflatten(1, (-1, hashes_per_table)) << shifts).sum(2).int()


def query_vectors(x: Tensor, zeros: int) -> Tensor:
    return torch.cat([x.float(), torch.ones(len(x), 1), torch.zeros(len(x), zeros)], 1)


def simhash_codes(x: Tensor, projections: Tensor, hashes_per_table: int) -> Tensor:
    return pack(x.float() @ projections > 0, hashes_per_table, bits=1)


def simhash_products(x: Tensor, projections: Tensor) -> Tensor:
    return x @ projections


def dwta_codes(x: Tensor, bins: Tensor, hashes_per_table: int, seed: int) -> Tensor:
    values = x.float()[:, bins]
    present = (values != 0) & ~values.isnan()
    # The first of the largest among those present: lexicographic by (value, -position).
    masked = values.masked_fill(~present, -float("inf"))
    is_best = present & (masked == masked.amax(2, keepdim=True))
    winners = torch.where(present.any(2), is_best.int().argmax(2), -1)
    attempts = 100
    for row in winners:
        original = row.tolist()
        for h, winner in enumerate(original):
            if winner < 0:
                donors = (original[random_below(seed, h * attempts + a, len(original))] for a in range(attempts))
                row[h] = next((donor for donor in donors if donor >= 0), 0)
    return pack(winners, hashes_per_table, bits=3)
