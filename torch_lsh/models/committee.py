"""A committee: several small networks that score candidates, trained side by side, as one network."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adamw import adamw

from .. import ops

_MEMBERS, _UNITS = 4, 16
_LEAST_EPOCHS, _LEAST_STEPS = 8, 250
_MOST_EPOCHS = 16  # of few rows: they overfit with more
_BATCH, _RATE, _DECAY = 32, 0.015, 1e-3
_BETAS, _EPS = (0.9, 0.999), 1e-8  # of AdamW
_MOST_COUNTED = 5  # right candidates of a row
_LEAST_EXPONENT = -30.0  # exponentials of far less, denormal or 0, take several times as long
_AWAY = -1e9  # added to scores that do not count; finite, for rows whose candidates are all right


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


def first_value(size: int) -> nn.Sequential:
    """A committee whose output is the first of the values, which is at most 0."""
    made = committee(size)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        hidden, _, output = made.parameters()
        hidden[0, 0] = output[0, 0] = -1
    return made


def train_committee(examples: Examples, seed: int) -> nn.Sequential:
    """Trains a committee by the mean cross entropy of the right candidates of a row, each beside the wrong ones alone.

    Right candidates do not compete with each other: those that are right in 99 % and in 98 % of the rows are told apart
    even where a row has many. A row counts by the number of its right candidates up to five, as for precision@5.
    Gradients are written out: there are some hundred small steps, in which autograd would take half of the time. Sums
    of many numbers are those of :func:`torch_lsh.ops.product`, as PyTorch's differ from three threads on.

    Args:
        examples: Rows that have a right candidate each.
        seed: Of all random choices.
    """
    members = torch.block_diag(*torch.ones(_MEMBERS, 1, _UNITS))  # which units are whose
    hidden, output = _initial_weights(examples.values.shape[2], seed)
    parameters = [hidden, output]
    means, squares = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    counts = [torch.zeros(()) for _ in parameters]
    present = ~examples.none
    values = F.pad(examples.values[present], (0, 1), value=1.0)  # of the candidates there are; the input of the bias
    place = torch.full(present.shape, -1).masked_scatter_(present, torch.arange(len(values)))  # of each in `values`
    away = torch.zeros_like(examples.none, dtype=torch.float32).masked_fill_(examples.none | examples.right, _AWAY)
    count, width = examples.right.shape
    found = examples.right.sum(1, keepdim=True)
    weights = found.clamp(max=_MOST_COUNTED).float()
    weights /= weights.mean()
    targets = examples.right * (weights / found)
    per_epoch = -(-count // _BATCH)
    steps = per_epoch * min(max(_LEAST_EPOCHS, -(-_LEAST_STEPS // per_epoch)), _MOST_EPOCHS)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(count, generator=generator).split(_BATCH)
        rows = order[step % per_epoch]
        places = place[rows].flatten()
        known = (places >= 0).nonzero()[:, 0]
        inputs = values[places[known]]  # [C, E + 1]
        units = (inputs @ hidden.t()).relu_()
        outputs = output * members  # [members, units]
        scores = torch.zeros(_MEMBERS, len(rows) * width).index_copy_(1, known, ops.product(outputs, units.t()))
        scores = scores.view(_MEMBERS, len(rows), width)
        wrong = scores + away[rows]
        largest = wrong.amax(2, keepdim=True)
        shares = wrong.sub_(largest).clamp_(min=_LEAST_EXPONENT).exp_()
        sums = shares.sum(2, keepdim=True)  # shares of the wrong candidates, once they are divided by these
        missed = (largest + sums.log() - scores).sigmoid_().mul_(targets[rows])  # slopes of right ones, negative
        slopes = shares.mul_(missed.sum(2, keepdim=True) / sums).sub_(missed)
        slopes = slopes.div_(len(rows)).flatten(1)[:, known]  # of the scores
        of_output = (slopes @ units).mul_(members).sum(0)
        of_units = (slopes.t() @ outputs).mul_(units.sign_())
        of_hidden = ops.product(inputs.t(), of_units).t().contiguous()
        rate = _RATE * (1 - step / steps)
        adamw(
            parameters,
            [of_hidden, of_output],
            means,
            squares,
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=rate,
            weight_decay=_DECAY,
            eps=_EPS,
            maximize=False,
        )
    with torch.device("meta"):  # draws no random numbers
        made = committee(examples.values.shape[2])
    mean = {"0.weight": hidden[:, :-1], "0.bias": hidden[:, -1], "2.weight": output.unsqueeze(0) / _MEMBERS}
    made.load_state_dict({name: value.contiguous() for name, value in mean.items()}, assign=True)
    return made


def _initial_weights(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights of the hidden units, the bias last, ``[units, size + 1]``, and of the outputs ``[units]``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(size, _MEMBERS * _UNITS)
        output = torch.empty(_MEMBERS * _UNITS).uniform_(-(_UNITS**-0.5), _UNITS**-0.5)
    return torch.cat([layer.weight.detach(), layer.bias.detach().unsqueeze(1)], 1), output
