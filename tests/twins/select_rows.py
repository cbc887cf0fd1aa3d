from __future__ import annotations

import bisect
import itertools
import math

import torch
from torch import Tensor

from .random_numbers import random_bits


def select_rows(
    labels: Tensor,
    candidates: Tensor,
    num_rows: int,
    active: int,
    num_random: int,
    seed: int,
    per_sample: bool,
    carried: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws its random rows from PyTorch's generator: the same distribution as the operator, other rows."""
    if per_sample:
        sets = [
            select_rows(labels[b : b + 1], candidates[b : b + 1], num_rows, active, num_random, seed + b, False)
            for b in range(len(labels))
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        rows, is_random, log_weights = (
            pad([one[part] for one in sets], batch_first=True, padding_value=padding)
            for part, padding in ((0, -1), (1, False), (3, -math.inf))
        )
        return rows, is_random, torch.cat([positions for _, _, positions, _ in sets]), log_weights

    fixed = {int(label) for label in labels.flatten() if label >= 0}
    kinds = ([] if carried is None else carried.tolist(), candidates.T.flatten().tolist())
    for candidate in itertools.chain.from_iterable(itertools.zip_longest(*kinds, fillvalue=-1)):
        if len(fixed) >= active - num_random:
            break
        if candidate >= 0:
            fixed.add(candidate)
    rest = torch.tensor([row for row in range(num_rows) if row not in fixed], dtype=torch.int64)
    wanted = min(max(num_random, active - len(fixed)), len(rest)) if num_random > 0 else 0
    drawn = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:wanted]]
    rows = torch.tensor(sorted(fixed), dtype=torch.int64)
    rows, order = torch.cat([rows, drawn]).sort()
    is_random = order >= len(fixed)
    positions = torch.where(labels < 0, -1, torch.searchsorted(rows, labels.clamp(min=0)))
    log_weights = torch.zeros(len(rows))
    if wanted > 0:
        log_weights[is_random] = math.log((num_rows - len(fixed)) / wanted)
    return rows, is_random, positions, log_weights


def draw_rows(
    labels: Tensor, order: Tensor | None, cumulative: Tensor, active: int, seed: int, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if per_sample:
        sets = [
            draw_rows(of_sample.unsqueeze(0), order, cumulative, active, random_bits(seed, b), False)
            for b, of_sample in enumerate(labels)
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        rows, is_random, inclusion = (
            pad([chosen[i] for chosen in sets], batch_first=True, padding_value=padding)
            for i, padding in ((0, -1), (1, False), (3, 1.0))
        )
        return rows, is_random, torch.cat([chosen[2] for chosen in sets]), inclusion

    num_rows = len(cumulative) - 1
    row_of = list(range(num_rows)) if order is None else order.tolist()
    total = cumulative.tolist()
    inclusion_of = {int(label): (1.0, False) for label in labels.flatten() if label >= 0}
    wanted = active - len(inclusion_of)
    certain = 0
    while certain < wanted:
        weight, rest = total[certain + 1] - total[certain], total[-1] - total[certain]
        if (wanted - certain) * weight < rest:
            break
        inclusion_of.setdefault(row_of[certain], (1.0, True))
        certain += 1
    strata = wanted - certain
    for stratum in range(strata):
        length = (total[-1] - total[certain]) / strata
        point = total[certain] + (stratum + (random_bits(seed, stratum) >> 11) * 2.0**-53) * length
        rank = min(bisect.bisect_right(total, point, certain + 1), num_rows) - 1
        first, last = ((total[end] - total[certain]) / length for end in (rank, rank + 1))
        missed = 1.0
        for which in range(math.floor(first), math.floor(last) + 1):
            missed *= 1 - max(0.0, min(last, which + 1) - max(first, which))
        inclusion_of.setdefault(row_of[rank], (1 - missed, True))
    rows = torch.tensor(sorted(inclusion_of), dtype=torch.int64)
    inclusion = torch.tensor([inclusion_of[row][0] for row in rows.tolist()], dtype=torch.float32)
    is_random = torch.tensor([inclusion_of[row][1] for row in rows.tolist()], dtype=torch.bool)
    positions = torch.where(labels < 0, -1, torch.searchsorted(rows, labels.clamp(min=0)))
    return rows, is_random, positions, inclusion
