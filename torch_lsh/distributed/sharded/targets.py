"""The samples of all processes with their targets, as one shard sees them."""

from __future__ import annotations

from dataclasses import dataclass

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
    samples, (labels, shares, inputs), several = Samples.gather(
        layer.channel, layer.same_inputs, [target.labels, target.shares, x], target.several
    )
    own = layer.shards.own
    elsewhere = (labels < own.start) | (labels >= own.stop)
    here = Target((labels - own.start).masked_fill(elsewhere, -1), shares.masked_fill(elsewhere, 0), several)
    return Gathered(samples, samples.attach(x, inputs), here)
