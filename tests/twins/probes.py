from __future__ import annotations

import functools
import itertools
import math
import operator

import torch
from torch import Tensor


def probe_codes(codes: Tensor, flips: Tensor, costs: Tensor, probes: int) -> Tensor:
    out = torch.full((*codes.shape, probes), -1, dtype=torch.int32)
    for row, table in itertools.product(*map(range, codes.shape)):
        code = int(codes[row, table])
        choices = [
            [(0.0, 0), *((cost, flip) for cost, flip in zip(*alternatives) if cost < math.inf and flip != 0)]
            for alternatives in zip(costs[row, table].tolist(), flips[row, table].tolist())
        ]
        sets = sorted(itertools.product(*choices), key=lambda chosen: sum(sorted(cost for cost, _ in chosen)))
        for p, chosen in enumerate(sets[:probes]):
            out[row, table, p] = code ^ functools.reduce(operator.xor, (flip for _, flip in chosen), 0)
    return out
