"""Cross entropy over the rows of all shards: processes exchange partial sums, not logits and not weights."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...nn.logits.losses import correction_of, log_weights_of_logits
from ...sampling.active_set import ActiveSet
from .owner import ShardOwner
from .samples import Samples

_BLOCK_ELEMENTS = 1 << 22  # logits at a time of an exact loss


def losses(layer: ShardOwner, x: Tensor, labels: Tensor, shares: Tensor, several: bool) -> Tensor:
    """The loss of each sample of this process: the sum of ``share * (log_z - logit)`` over its labels.

    Sampled while the layer trains, exact in ``eval()`` mode.

    Args:
        layer: the shard.
        x: ``[B, in]``.
        labels: ``[B, P]`` rows of the whole layer; negative: no label.
        shares: ``[B, P]``, 0 where there is no label.
        several: whether samples may have several labels.

    Returns:
        ``[B]``.
    """
    samples, x, labels, shares = _gathered(layer, x, labels, shares)
    own = layer.shards.own
    inside = (labels >= own.start) & (labels < own.stop)
    local = torch.where(inside, labels - own.start, -1)
    if layer.training:
        active = layer.sampler.draw(layer.weight, layer.bias, x.detach(), local)
        correction = correction_of(layer.sampler, several)
    elif torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad):
        every_row = torch.arange(layer.own_rows)
        active = ActiveSet(every_row, torch.zeros_like(every_row, dtype=torch.bool), local, layer.own_rows)
        correction = "none"
    else:
        return _exact(layer, samples, x, local, shares)
    logits = layer.active_logits(x, active.rows)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    keep = layer.sampler.keeper_of_hardest_rows(active, correction == "stratified") if layer.training else None
    if keep is not None and logits.requires_grad:
        logits.register_hook(lambda gradient: keep(ops.positive_sums(gradient)))
    log_weights = log_weights_of_logits(active, correction, logits.dtype)
    result: Tensor = _Losses.apply(logits, log_weights, active.positions, shares.to(logits.dtype), samples)
    return result


def _gathered(layer: ShardOwner, x: Tensor, labels: Tensor, shares: Tensor) -> tuple[Samples, Tensor, Tensor, Tensor]:
    """Inputs, labels and shares of all processes, padded to the most labels that a sample has in any of them."""
    channel, same = layer.channel, layer.same_inputs
    if same or channel.size == 1:
        samples = Samples(channel, (len(x),) * channel.size, same)
        return samples, samples.gather_inputs(x), labels, shares
    sizes = torch.stack(channel.gather(torch.tensor(labels.shape)))
    samples = Samples(channel, tuple(sizes[:, 0].tolist()), same)
    most = int(sizes[:, 1].max())
    padding = (0, most - labels.shape[1])
    parts = (F.pad(labels, padding, value=-1), F.pad(shares, padding))
    # One message of bytes: a collective costs more than its bytes here.
    packed = samples.gather(torch.cat([part.contiguous().view(torch.uint8) for part in parts], 1))
    labels, shares = (
        part.clone(memory_format=torch.contiguous_format).view(dtype)
        for part, dtype in zip(packed.split([8 * most, shares.element_size() * most], 1), (torch.int64, shares.dtype))
    )
    return samples, samples.gather_inputs(x), labels, shares


def _joined(samples: Samples, log_z: Tensor, at_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The log partition functions and the weighted logits of the labels over all shards, ``[own samples]`` each.

    A process sends the logarithm of its partial sum, which stands for the maximum and the sum of exponentials.
    """
    parts = torch.stack([log_z, at_labels], 1)
    if samples.same:
        arrived = torch.stack(samples.channel.gather(parts))
    else:
        own = samples.counts[samples.channel.rank]
        arrived = torch.stack(samples.channel.exchange(list(parts.split(samples.counts)), [own] * samples.channel.size))
    return arrived[..., 0].logsumexp(0), arrived[..., 1].sum(0)


class _Losses(torch.autograd.Function):
    """Losses of the own samples from the logits of this shard's active rows for all samples."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor, samples: Samples
    ) -> Tensor:
        here = shares.masked_fill(positions < 0, 0)
        if log_weights is not None and log_weights.dim() == 2:
            logits = logits.contiguous()
        partial, log_z = ops.sampled_softmax_loss(logits, log_weights, positions, here)
        log_z, at_labels = _joined(samples, log_z, here.sum(1) * log_z - partial)
        mass = shares.sum(1)
        ctx.samples = samples
        ctx.save_for_backward(logits, log_weights, positions, here, mass, samples.gather(log_z))
        return mass[samples.own] * log_z - at_labels

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, log_weights, positions, here, mass, log_z = ctx.saved_tensors
        samples: Samples = ctx.samples
        grad = samples.gather(grads[0].contiguous()) / samples.scale
        slopes = logits - log_z.unsqueeze(1) if log_weights is None else (logits + log_weights).sub_(log_z.unsqueeze(1))
        slopes = slopes.exp_().mul_((grad * mass).unsqueeze(1))
        slopes.scatter_add_(1, positions.clamp(min=0), -grad.unsqueeze(1) * here)
        return slopes, None, None, None, None


def _exact(layer: ShardOwner, samples: Samples, x: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    """Exact, without gradients, some rows at a time."""
    shares = shares.to(torch.promote_types(x.dtype, torch.float32))
    log_z = shares.new_full((len(x),), -math.inf)
    size = max(1024, _BLOCK_ELEMENTS // max(1, len(x)))
    for start in range(0, layer.own_rows, size):
        block = slice(start, start + size)
        logits = F.linear(x, layer.weight[block], None if layer.bias is None else layer.bias[block])
        log_z = torch.logaddexp(log_z, logits.to(log_z.dtype).logsumexp(1))
    at = ops.sampled_dot(x.contiguous(), layer.weight, labels).to(log_z.dtype)
    if layer.bias is not None:
        at = at + layer.bias[labels.clamp(min=0)]
    here = (shares * at).masked_fill(labels < 0, 0).sum(1)
    log_z, at_labels = _joined(samples, log_z, here)
    return shares.sum(1)[samples.own] * log_z - at_labels
