"""The samples of all processes: the way of inputs to the shards of a layer, and of results back.

Each process brings samples of its own, as in data-parallel training; or all bring the same, as in tensor parallelism.

In the first case each process computes the loss of its own samples alone, and gradients of other parameters are
averaged over the processes. So that the rows of a shard get the same mean, gradients that reach a shard are divided by
the number of processes, and gradients that leave it towards the inputs are multiplied by it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..channel import Channel


@dataclass(frozen=True)
class Samples:
    """How many samples the processes bring to one call.

    Attributes:
        channel: the processes.
        counts: samples of each process.
        same: whether all processes bring the same ones.
    """

    channel: Channel
    counts: tuple[int, ...]
    same: bool

    @classmethod
    def gather(
        cls, channel: Channel, same: bool, tensors: list[Tensor], flag: bool = False
    ) -> tuple[Samples, list[Tensor], bool]:
        """Brings together what the processes know of their samples; not differentiable.

        Args:
            channel: the processes.
            same: whether all bring the same samples.
            tensors: ``[own samples, n]``, where ``n`` may differ between processes; larger elements first.
            flag: any of this process.

        Returns:
            The samples; the tensors ``[all samples, n]``, padded with -1 to the largest ``n``; whether any process has
            the flag.
        """
        count = len(tensors[0])
        if same or channel.size == 1:
            return cls(channel, (count,) * channel.size, same), tensors, flag
        heads, messages = channel.gather_messages(
            [count, flag, *[tensor.shape[1] for tensor in tensors]],
            [tensor.detach().reshape(-1).view(torch.uint8) for tensor in tensors],
        )
        counts, flags, *widths = zip(*heads)
        samples, dtypes = cls(channel, counts, same), [tensor.dtype for tensor in tensors]
        if all(head == heads[0] for head in heads):
            return samples, _unpack(messages, count, heads[0][2:], dtypes), any(flags)
        of_each = [_unpack(message[None], head[0], head[2:], dtypes) for head, message in zip(heads, messages)]
        return samples, [_padded(parts, max(width)) for parts, width in zip(zip(*of_each), widths)], any(flags)

    @property
    def scale(self) -> int:
        """What gradients are divided by at a shard."""
        return 1 if self.same else self.channel.size

    @property
    def own_count(self) -> int:
        """The number of this process's samples."""
        return self.counts[self.channel.rank]

    def attach(self, x: Tensor, gathered: Tensor) -> Tensor:
        """Makes ``gathered`` ``[all samples, in]``, the inputs ``x`` of all processes, differentiable."""
        if self.channel.size == 1:
            return x
        attached: Tensor = _Gather.apply(x, gathered, self)
        return attached

    def to_owners(self, local: Tensor, sizes: list[int]) -> list[Tensor]:
        """Turns results of each shard for all samples into results of all shards for the own samples; differentiable.

        Args:
            local: ``[all samples, sizes[rank]]``.
            sizes: the width of the results of each shard.

        Returns:
            ``[own samples, sizes[r]]`` of each shard ``r``.
        """
        count = self.own_count
        flat: Tensor = _ToOwners.apply(local, self, sizes)
        return [part.view(count, size) for part, size in zip(flat.split([count * size for size in sizes]), sizes)]

    def join(self, parts: Tensor) -> Tensor:
        """Brings what each shard found for all samples ``[all samples, C]`` to their owners; differentiable.

        Returns:
            ``[shards, own samples, C]``.
        """
        width, count = parts.shape[1], self.channel.size
        flat: Tensor = _ToOwners.apply(parts, self, [width] * count)
        return flat.view(count, self.own_count, width)

    def send_to_owners(self, local: Tensor, sizes: list[int]) -> Tensor:
        """The results of :meth:`to_owners`, flat, one after the other, without gradients."""
        if self.channel.size == 1:
            return local.reshape(-1)
        lengths = [self.own_count * size for size in sizes]
        if self.same:
            return self.channel.gather_lengths(local.reshape(-1), lengths)
        size = sizes[self.channel.rank]
        return self.channel.exchange(local.reshape(-1), [count * size for count in self.counts], lengths)

    def send_to_shards(self, owned: Tensor, sizes: list[int]) -> Tensor:
        """The opposite of :meth:`send_to_owners`."""
        size, lengths = sizes[self.channel.rank], [self.own_count * size for size in sizes]
        if self.same or self.channel.size == 1:
            return owned.split(lengths)[self.channel.rank].view(-1, size)
        came = self.channel.exchange(owned.contiguous(), lengths, [count * size for count in self.counts])
        return came.view(-1, size)


def _unpack(messages: Tensor, count: int, widths: Sequence[int], dtypes: list[torch.dtype]) -> list[Tensor]:
    """The tensors ``[messages * count, widths[i]]`` in messages of bytes ``[messages, at least the size of all]``."""
    found, start = [], 0
    for width, dtype in zip(widths, dtypes):
        stop = start + count * width * dtype.itemsize
        found.append(messages[:, start:stop].reshape(-1).view(dtype).view(len(messages) * count, width))
        start = stop
    return found


def _padded(parts: Sequence[Tensor], width: int) -> Tensor:
    """Tensors ``[B, at most width]``, one after the other."""
    return torch.cat([F.pad(part, (0, width - part.shape[1]), value=-1) for part in parts])


class _Gather(torch.autograd.Function):
    """Inputs of all processes; the gradients that the shards give an input are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gathered: Tensor, samples: Samples) -> Tensor:
        ctx.samples = samples
        return gathered.view_as(gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        samples: Samples = ctx.samples
        if samples.same:
            return samples.channel.sum_(grads[0].contiguous().clone()), None, None
        own, count = samples.own_count, samples.channel.size
        came = samples.channel.exchange(grads[0].contiguous(), list(samples.counts), [own] * count)
        return came.unflatten(0, (count, own)).sum(0).mul_(samples.scale), None, None


class _ToOwners(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, samples: Samples, sizes: list[int]) -> Tensor:
        ctx.samples, ctx.sizes = samples, sizes
        return samples.send_to_owners(local, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        samples: Samples = ctx.samples
        return samples.send_to_shards(grads[0], ctx.sizes) / samples.scale, None, None
