"""Binary cross entropy over the rows of all shards, each of which sums the losses of its own."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.logits.binary_cross_entropy import values_and_weights
from ...nn.logits.targets import Target
from ...sampling.active_set import ActiveSet
from ...stopwatch import part
from .owner import ShardOwner
from .rows import active_logits, all_logits, draw
from .targets import Gathered, gather


def binary_cross_entropy(
    layer: ShardOwner, x: Tensor, target: Target, weight: Tensor | None, pos_weight: Tensor | None, reduction: str
) -> Tensor:
    """The loss of this process's samples: sampled while the layer trains, exact in ``eval()`` mode.

    Args:
        layer: the shard.
        x: ``[B, in]``.
        target: labels are rows of the whole layer; their shares are the values of the target.
        weight, pos_weight: ``[N]``, for each row of the whole layer, or None.
        reduction: "mean" or "sum".
    """
    gathered = gather(layer, x, target)
    own = layer.shards.own
    of_own_rows = [None if one is None else one[own] for one in (weight, pos_weight)]
    sums = (_of_active_rows if layer.training else _of_all_rows)(layer, x, gathered, *of_own_rows)
    loss, count = gathered.samples.join(sums).sum((0, 1))
    return loss / count if reduction == "mean" else loss


def _of_active_rows(
    layer: ShardOwner, input: Tensor, gathered: Gathered, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    drawn = draw(layer, input, gathered, several_labels=False)
    with part(layer.sampler.stopwatch, "loss"):
        logits = active_logits(layer, gathered, drawn)
        return sums_of_logits(logits, drawn.active, gathered.target, drawn.correction, weight, pos_weight)


def _of_all_rows(
    layer: ShardOwner, input: Tensor, gathered: Gathered, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    parts = [
        sums_of_logits(logits, active, gathered.target, "none", weight, pos_weight)
        for active, logits in all_logits(layer, gathered)
    ]
    return torch.stack(parts).sum(0)


def sums_of_logits(
    logits: Tensor,
    active: ActiveSet,
    target: Target,
    correction: str,
    class_weight: Tensor | None,
    pos_weight: Tensor | None,
) -> Tensor:
    """The losses of some rows, summed for each sample, and the number of rows that they stand for: ``[B, 2]``.

    Args:
        logits: ``[B, A]`` of the active rows.
        active: rows and the positions of labels.
        target: shares are the values of the target.
        correction: as in :func:`torch_lsh.nn.logits.binary_cross_entropy.sampled_binary_cross_entropy`.
        class_weight, pos_weight: for each row that ``active`` can hold, or None.
    """
    rows = active.rows.clamp(min=0)
    here = replace(target, shares=target.shares.masked_fill(active.positions < 0, 0))
    values, weight = values_and_weights(logits, active, here, correction)
    exact = correction == "none"
    count = weight.expand_as(logits).sum(1) if exact else logits.new_full((len(logits),), active.num_rows)
    losses = F.binary_cross_entropy_with_logits(
        logits,
        values,
        weight if class_weight is None else weight * class_weight[rows],
        pos_weight=None if pos_weight is None else pos_weight[rows],
        reduction="none",
    )
    return torch.stack([losses.sum(1), count], 1)
