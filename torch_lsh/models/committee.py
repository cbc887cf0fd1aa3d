"""A committee: several small networks that score candidates, trained side by side, as one network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import ops

_MEMBERS, _UNITS = 4, 16
_LEAST_EPOCHS, _LEAST_STEPS = 8, 500
_MOST_EPOCHS = 16  # of few rows: they overfit with more
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


def committee(size: int) -> nn.Sequential:
    """A network ``[..., size]`` -> ``[..., 1]`` whose output is the mean of those of four networks of 16 units each.

    Held-out rows are few, and the networks that they train differ; the mean of some is better than each.
    """
    width = _MEMBERS * _UNITS
    return nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, 1, bias=False))


def first_value(size: int) -> nn.Sequential:
    """A committee whose output is the first of the values, which is at most 0."""
    made = committee(size)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        hidden, _, output = made.parameters()
        hidden[0, 0] = output[0, 0] = -1
    return made


def train_committee(examples: Examples, seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Trains a committee by the mean cross entropy of the right candidates of a row, each beside the wrong ones alone.

    Right candidates do not compete with each other: those that are right in 99 % and in 98 % of the rows are told apart
    even where a row has many. See :func:`torch_lsh.ops.fit_committee`.

    Args:
        examples: Rows, some of which have a right candidate.
        seed: Of all random choices.

    Returns:
        The committee, and mean and deviation of the values, ``[E]``, by which its inputs are normalised.
    """
    rows = examples.right.any(1).nonzero()[:, 0]
    per_epoch = -(-len(rows) // _BATCH)
    epochs = min(max(_LEAST_EPOCHS, -(-_LEAST_STEPS // per_epoch)), _MOST_EPOCHS)
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([rows[torch.randperm(len(rows), generator=generator)] for _ in range(epochs)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = committee(examples.values.shape[2])
    weight, bias, output = (parameter.detach() for parameter in made.parameters())
    layers = weight, bias, output[0] * _MEMBERS**0.5  # drawn for all units together, where each member is for itself
    weight, bias, output, mean, deviation = ops.fit_committee(*examples, order, _BATCH, *layers, _RATE, _DECAY)
    with torch.no_grad():
        for parameter, value in zip(made.parameters(), (weight, bias, output.unsqueeze(0) / _MEMBERS)):
            parameter.copy_(value)
    return made, mean, deviation
