"""The samples of all processes with their targets, as one shard sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.logits.targets import Target
from .owner import ShardOwner
from .samples import Samples


@dataclass(frozen=True)
class Gathered:
    """Inputs and targets of all processes.

    Attributes:
        samples: how many each process brings.
        x: ``[all samples, in]``, differentiable.
        target: labels are rows of this shard, -1 for those of others, which have a share of 0.
    """

    samples: Samples
    x: Tensor
    target: Target


def gather(layer: ShardOwner, x: Tensor, target: Target) -> Gathered:
    """Gathers inputs ``[B, in]`` and targets, padded to the most labels that a sample has in any process."""
    channel, same = layer.channel, layer.same_inputs
    labels, shares, several, everyone = target.labels, target.shares, target.several, x
    samples = Samples(channel, (len(x),) * channel.size, same)
    if not same and channel.size > 1:
        sizes = torch.stack(channel.gather(torch.tensor([*labels.shape, several])))
        most, several = int(sizes[:, 1].max()), bool(sizes[:, 2].any())
        samples = Samples(channel, tuple(sizes[:, 0].tolist()), same)
        padding = (0, most - labels.shape[1])
        padded = [F.pad(labels, padding, value=-1), F.pad(shares, padding)]
        everyone, labels, shares = samples.gather_packed([x, *padded])
    own = layer.shards.own
    elsewhere = (labels < own.start) | (labels >= own.stop)
    here = Target((labels - own.start).masked_fill(elsewhere, -1), shares.masked_fill(elsewhere, 0), several)
    return Gathered(samples, samples.attach(x, everyone), here)
