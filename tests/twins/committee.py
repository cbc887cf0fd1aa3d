from __future__ import annotations

import torch
from torch import Tensor


def _scaled(values: Tensor, none: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """In float64; 0 where there is no candidate."""
    return ((values - mean) / deviation).clamp(-10, 10).masked_fill(none.unsqueeze(2), 0).double()


def committee_scores(
    values: Tensor, none: Tensor, mean: Tensor, deviation: Tensor, weight: Tensor, bias: Tensor, output: Tensor
) -> Tensor:
    units = (_scaled(values, none, mean, deviation) @ weight.double().T + bias).relu()
    return (units @ output.double()).masked_fill(none, -torch.inf).float()


def fit_committee(
    values: Tensor,
    none: Tensor,
    right: Tensor,
    order: Tensor,
    batch: int,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    rate: float,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    known = values[~none].double()
    mean = known.mean(0).nan_to_num()
    deviation = known.std(0, correction=0)
    deviation = deviation.where(deviation > 1e-5, 1).float()
    inputs, right = _scaled(values, none, mean.float(), deviation), right & ~none
    found = right.sum(1)
    weights = found.clamp(max=5) / found[found > 0].clamp(max=5).double().mean() / found.clamp(min=1)
    members = torch.block_diag(*torch.ones(len(output) // 16, 1, 16, dtype=torch.float64))
    parameters = [some.detach().double().requires_grad_() for some in (weight, bias, output)]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    steps = [rows for epoch in order for rows in epoch.split(batch) if len(rows) > 0]
    for step, rows in enumerate(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / len(steps))
        with torch.enable_grad():
            hidden, offset, out = parameters
            scores = (inputs[rows] @ hidden.T + offset).relu() @ (out * members).T  # [rows, K, members]
            is_right, is_wrong = (some[rows].unsqueeze(2) for some in (right, ~right & ~none))
            # A number in place of -inf, whose gradient would be NaN where no candidate is wrong.
            wrong = scores.masked_fill(~is_wrong, -1e9).logsumexp(1, keepdim=True)
            losses = torch.logaddexp(scores, wrong).sub(scores).where(is_right, 0)
            loss = (losses.sum((1, 2)) * weights[rows]).sum() / len(rows)
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = slope
        optimizer.step()
    made = [some.detach().float() for some in parameters]
    return made[0], made[1], made[2], mean.float(), deviation
