"""The rows of a shard that take part in a loss, and their logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...nn.logits.losses import correction_of
from ...nn.logits.recipe import BLOCK_ELEMENTS
from ...nn.paths import EXACT
from ...sampling.active_set import ActiveSet
from .owner import ShardOwner
from .targets import Gathered


@dataclass(frozen=True)
class Drawn:
    """The active rows of a training step.

    Attributes:
        active: the rows, numbered within the shard.
        correction: as in :func:`torch_lsh.nn.logits.cross_entropy.sampled_cross_entropy`.
        hardest: asks the backward pass for the hardest rows; None: nobody wants them.
    """

    active: ActiveSet
    correction: str
    hardest: ops.HardestRows | None


def draw(layer: ShardOwner, input: Tensor, gathered: Gathered, several_labels: bool) -> Drawn:
    """Draws active rows for the samples of all processes; ``input`` is the one that the layer was called with."""
    sampler = layer.sampler
    active = sampler.draw(layer.weight, layer.bias, gathered.x.detach(), gathered.target.labels)
    layer.paths.sampled(input, active)
    correction = correction_of(sampler, several_labels)
    return Drawn(active, correction, sampler.hardest_rows(active, correction == "stratified"))


def active_logits(layer: ShardOwner, gathered: Gathered, drawn: Drawn) -> Tensor:
    """The logits ``[all samples, A]`` of active rows, in at least float32; differentiable."""
    logits = layer.active_logits(gathered.x, drawn.active.rows).to(gathered.target.shares.dtype)
    if drawn.hardest is not None and logits.requires_grad:
        logits.register_hook(drawn.hardest.find)
    return logits


def all_logits(layer: ShardOwner, gathered: Gathered) -> Iterator[tuple[ActiveSet, Tensor]]:
    """All rows of the shard with their logits: at once where these have gradients, otherwise some rows at a time."""
    x, target = gathered.x, gathered.target
    layer.paths.took(EXACT)
    wants_grad = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
    size = layer.own_rows if wants_grad else max(1024, BLOCK_ELEMENTS // max(1, len(x)))
    for start in range(0, layer.own_rows, size):
        stop = min(start + size, layer.own_rows)
        logits = F.linear(x, layer.weight[start:stop], None if layer.bias is None else layer.bias[start:stop])
        rows = torch.arange(start, stop, device="cpu")
        outside = (target.labels < start) | (target.labels >= stop)
        positions = (target.labels - start).masked_fill(outside, -1)
        active = ActiveSet(rows, torch.zeros_like(rows, dtype=torch.bool), positions, layer.own_rows)
        yield active, logits.to(target.shares.dtype)
