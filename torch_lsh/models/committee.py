"""A committee: several small networks that score candidates, trained side by side, as one network."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MEMBERS, _UNITS = 4, 16
_EPOCHS, _LEAST_STEPS = 4, 250
_BATCH, _RATE, _DECAY = 32, 0.015, 1e-3


class Examples(NamedTuple):
    """Rows whose candidates are known to be right or wrong.

    Attributes:
        values: ``[R, K, E]``, what is known of the candidates.
        none: ``[R, K]``, where there is no candidate.
        right: ``[R, K]``, which candidates the row has.
    """

    values: Tensor
    none: Tensor
    right: Tensor

    def take(self, rows: Tensor) -> Examples:
        """The rows of the given numbers ``[R]``."""
        return Examples(self.values[rows], self.none[rows], self.right[rows])


def committee(size: int) -> nn.Sequential:
    """A network ``[..., size]`` -> ``[..., 1]`` whose output is the mean of those of four networks of 16 units each.

    Held-out rows are few, and the networks that they train differ; the mean of some is better than each.
    """
    width = _MEMBERS * _UNITS
    return nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, 1, bias=False))


def train_committee(examples: Examples, seed: int) -> nn.Sequential:
    """Trains a committee by the cross entropy of the candidates; the right ones of a row share the target equally.

    Args:
        examples: Rows that have a right candidate each.
        seed: Of all random choices.
    """
    members = torch.block_diag(*torch.ones(_MEMBERS, 1, _UNITS))  # which units are whose
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = nn.Linear(examples.values.shape[2], members.shape[1])
        weight = nn.Parameter(torch.empty(1, members.shape[1]).uniform_(-(_UNITS**-0.5), _UNITS**-0.5))
    optimizer = torch.optim.AdamW([*hidden.parameters(), weight], lr=_RATE, weight_decay=_DECAY, fused=True)
    count = len(examples.none)
    per_epoch = -(-count // _BATCH)
    steps = per_epoch * max(_EPOCHS, -(-_LEAST_STEPS // per_epoch))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(count, generator=generator).split(_BATCH)
        optimizer.param_groups[0]["lr"] = _RATE * (1 - step / steps)
        some = examples.take(order[step % per_epoch])
        with torch.enable_grad():
            scores = F.linear(F.relu(hidden(some.values)), weight * members)
            loss = _loss(scores, some)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = committee(examples.values.shape[2])
    mean = {"0.weight": hidden.weight, "0.bias": hidden.bias, "2.weight": weight / _MEMBERS}
    made.load_state_dict({name: value.detach() for name, value in mean.items()})
    return made


def _loss(scores: Tensor, examples: Examples) -> Tensor:
    """The sum over members of the mean over rows, for scores ``[R, K, members]``."""
    shares = examples.right / examples.right.sum(1, keepdim=True)
    logs = scores.masked_fill(examples.none.unsqueeze(2), -torch.inf).log_softmax(1)
    return -(shares.unsqueeze(2) * logs.masked_fill(~examples.right.unsqueeze(2), 0)).sum() / len(shares)
