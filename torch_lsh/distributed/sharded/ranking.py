"""The best classes of all shards: each shard ranks its own rows, and the owner of a sample merges the results."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from .owner import ShardOwner
from .samples import Samples


@torch.no_grad()
def topk(layer: ShardOwner, x: Tensor, k: int, candidates: int | None = None) -> tuple[Tensor, Tensor]:
    """The ``k`` largest logits of ``x`` ``[B, in]`` and their classes ``[B, k]``, equal ones by increasing class.

    Args:
        layer: the shard.
        x: this process's samples.
        k: 1 to ``out_features``.
        candidates: rows per sample and shard that are scored, those with the nearest sign codes; None: all rows.
    """
    samples, (inputs,), _ = Samples.gather(layer.channel, layer.same_inputs, [x])
    everyone = inputs.detach().to(layer.weight.dtype).contiguous()
    count = min(k, layer.own_rows)
    if candidates is None:
        values, rows = ops.linear_topk(everyone, layer.weight, layer.bias, count)
    else:
        found = layer.sampler.candidates(layer.weight, layer.bias, everyone, max(candidates, count))
        values, rows = ops.rows_topk(everyone, layer.weight, layer.bias, found, count)
    classes = (rows + layer.shards.own.start).masked_fill(rows < 0, -1)
    padding = 0, k - count
    # In one message: float64 holds both.
    ranked = [F.pad(values.double(), padding, value=-math.inf), F.pad(classes.double(), padding, value=-1)]
    joined = samples.join(torch.cat(ranked, 1)).transpose(0, 1)
    all_values, all_classes = (part.flatten(1) for part in joined.split(k, 2))
    # Shards come in the order of their rows, and a stable sort keeps that among equals.
    best, places = all_values.sort(dim=1, descending=True, stable=True)
    return best[:, :k].to(values.dtype), all_classes.gather(1, places[:, :k]).long()
