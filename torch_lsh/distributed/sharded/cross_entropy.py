"""Cross entropy over the rows of all shards: processes exchange partial sums, not logits and not weights.

The loss of a sample is ``mass * log_z - at_labels``: the log partition function, weighted by the shares of the labels,
without the weighted sum of their logits. Both are sums over shards, of which each computes its part by the fused
operator of a single process. With label smoothing three sums over all classes join them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...nn.logits.cross_entropy import Options, reduced, smoothed
from ...nn.logits.losses import class_weighted, log_weights, log_weights_of_logits
from ...nn.logits.targets import Target
from ...ops.gradients import check_first_order
from ...sampling.active_set import ActiveSet
from ...stopwatch import part
from .owner import ShardOwner
from .rows import active_logits, all_logits, draw
from .samples import Samples
from .targets import Gathered, gather


def cross_entropy(layer: ShardOwner, x: Tensor, target: Target, options: Options) -> Tensor:
    """The loss of this process's samples: sampled while the layer trains, exact in ``eval()`` mode.

    Args:
        layer: the shard.
        x: ``[B, in]``.
        target: its labels are rows of the whole layer.
        options: ``class_weight`` has a weight for each row of the whole layer.

    Returns:
        A scalar, or ``[B]`` with reduction "none".
    """
    shares = class_weighted(target, options.class_weight)
    gathered = gather(layer, x, replace(target, shares=shares))
    own = None if options.class_weight is None else options.class_weight[layer.shards.own]
    local = options._replace(class_weight=own)
    sums = _of_active_rows(layer, x, gathered, local) if layer.training else _of_all_rows(layer, gathered, local)
    ignored = None if target.complete else (target.labels < 0).all(1)
    if options.label_smoothing == 0:
        loss = _LossOfOwners.apply(sums, shares.sum(1), ignored, gathered.samples)
    else:
        log_z, at_labels, total, mass, count = _joined(gathered.samples.join(sums))
        loss = shares.sum(1) * log_z - at_labels
        loss = loss if ignored is None else loss.masked_fill(ignored, 0)
        loss = smoothed(loss, (mass * log_z - total) / count, target, options.label_smoothing)
    return reduced(loss, shares if options.class_weight is not None else target.shares, target, options.reduction)


def _joined(parts: Tensor) -> list[Tensor]:
    """The sums over shards ``[own samples]`` each, from ``[shards, own samples, sums]``."""
    return [_finite(parts[..., 0]).logsumexp(0), *parts[..., 1:].sum(0).unbind(1)]


def _finite(log_z: Tensor) -> Tensor:
    """Log partition functions, of which that of no rows is a very small number: it has no infinite differences."""
    return log_z.clamp(min=torch.finfo(log_z.dtype).min)


class _LossOfOwners(torch.autograd.Function):
    """The losses of the own samples, from the sums of each shard: what follows from :func:`_joined`, in few operators.

    Args:
        sums: ``[all samples, 2]``: log partition functions, and sums of the labels' logits, of the own rows.
        mass: ``[own samples]``, the sum of the shares of the labels.
        ignored: ``[own samples]``, those without a loss; None: none.
        samples: of all processes.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor, mass: Tensor, ignored: Tensor | None, samples: Samples) -> Tensor:
        sizes = [2] * samples.channel.size
        log_z, at_labels = samples.send_to_owners(sums, sizes).view(len(sizes), samples.own_count, 2).unbind(2)
        log_z = _finite(log_z)
        whole = log_z.logsumexp(0)
        loss = (mass * whole).sub_(at_labels.sum(0))
        ctx.slopes = (log_z - whole).exp_().mul_(mass)
        ctx.ignored, ctx.samples, ctx.sizes = ignored, samples, sizes
        return loss if ignored is None else loss.masked_fill_(ignored, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        check_first_order()
        grad = grads[0] / ctx.samples.scale
        if ctx.ignored is not None:
            grad.masked_fill_(ctx.ignored, 0)
        of_sums = torch.stack([ctx.slopes * grad, (-grad).expand_as(ctx.slopes)], 2)
        return ctx.samples.send_to_shards(of_sums.view(-1), ctx.sizes), None, None, None


def _of_active_rows(layer: ShardOwner, input: Tensor, gathered: Gathered, options: Options) -> Tensor:
    drawn, shares = draw(layer, input, gathered, gathered.target.several), gathered.target.shares
    active = drawn.active
    with part(layer.sampler.stopwatch, "loss"):
        weights = log_weights(active, drawn.correction, shares.dtype)
        if options.label_smoothing > 0 or active.per_sample or (weights is not None and weights.dim() == 2):
            logits = active_logits(layer, gathered, drawn)
            return sums_of_logits(logits, active, shares, drawn.correction, options)
        log_z, at_labels = ops.active_rows_sums(
            gathered.x, layer.weight, layer.bias, active.rows, weights, active.positions, drawn.hardest
        )
        return torch.stack([log_z, (shares * at_labels).sum(1)], 1)


def _of_all_rows(layer: ShardOwner, gathered: Gathered, options: Options) -> Tensor:
    parts = [
        sums_of_logits(logits, active, gathered.target.shares, "none", options)
        for active, logits in all_logits(layer, gathered)
    ]
    return torch.stack(_joined(torch.stack(parts)), 1)


def sums_of_logits(logits: Tensor, active: ActiveSet, shares: Tensor, correction: str, options: Options) -> Tensor:
    """The parts of the loss that come from some rows.

    Args:
        logits: ``[B, A]`` of the active rows, float32 or float64.
        active: rows and the positions of labels.
        shares: ``[B, P]``, multiplied by class weights.
        correction: as in :func:`torch_lsh.nn.logits.cross_entropy.sampled_cross_entropy`.
        options: ``class_weight`` has a weight for each row that ``active`` can hold.

    Returns:
        ``[B, 2]``: log partition function, and weighted sum of the labels' logits. With label smoothing ``[B, 5]``: the
        estimated sums over all classes of weight times logit, of the weights, and of 1.
    """
    weights = log_weights_of_logits(active, correction, logits.dtype)
    at_labels = logits.gather(1, active.positions.clamp(min=0)) if logits.shape[1] > 0 else shares
    at_labels = (shares * at_labels).masked_fill(active.positions < 0, 0).sum(1)
    sums = [(logits if weights is None else logits + weights).logsumexp(1), at_labels]
    if options.label_smoothing > 0:
        of_classes = count = active.weights().to(logits.dtype).expand_as(logits)
        if options.class_weight is not None:
            of_classes = count * options.class_weight[active.rows.clamp(min=0)]
        sums += [(of_classes * logits).sum(1), of_classes.sum(1), count.sum(1)]
    return torch.stack(sums, 1)
