"""Every operator again in plain PyTorch: the oracle of the tests, and the documentation of what each one computes.

Same names and arguments as in :mod:`torch_lsh.ops`; clarity before speed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return table[rows].to(dtype or table.dtype)


def gather_matmul(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    logits = x @ weight[rows].T
    return logits if bias is None else logits + bias[rows]


def sampled_dot(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    products = (x.unsqueeze(1) * table[rows.clamp(min=0)]).sum(2)
    return products.masked_fill(rows < 0, 0)


def select_rows(
    labels: Tensor, candidates: Tensor, num_rows: int, active: int, num_random: int, seed: int, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws its random rows from PyTorch's generator: the same distribution as the operator, other rows."""
    if per_sample:
        sets = [
            select_rows(labels[b : b + 1], candidates[b : b + 1], num_rows, active, num_random, seed + b, False)
            for b in range(len(labels))
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        rows = pad([rows for rows, _, _ in sets], batch_first=True, padding_value=-1)
        is_random = pad([is_random for _, is_random, _ in sets], batch_first=True, padding_value=False)
        return rows, is_random, torch.cat([positions for _, _, positions in sets])

    fixed = {int(label) for label in labels.flatten() if label >= 0}
    for candidate in candidates.T.flatten().tolist():
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
    return rows, is_random, positions
