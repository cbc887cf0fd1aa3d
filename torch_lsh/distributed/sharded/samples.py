"""The samples of all processes: the way of inputs to the shards of a layer, and of results back.

Each process brings samples of its own, as in data-parallel training; or all bring the same, as in tensor parallelism.

In the first case each process computes the loss of its own samples alone, and gradients of other parameters are
averaged over the processes. So that the rows of a shard get the same mean, gradients that reach a shard are divided by
the number of processes, and gradients that leave it towards the inputs are multiplied by it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
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
    ) -> tuple[Samples, list[list[Tensor]], bool]:
        """Brings together what the processes know of their samples; not differentiable.

        Args:
            channel: the processes.
            same: whether all bring the same samples.
            tensors: ``[own samples, n]``, where ``n`` may differ between processes; larger elements first.
            flag: any of this process.

        Returns:
            The samples; each of the tensors, of every process that brings samples of its own; whether any has the flag.
        """
        count = len(tensors[0])
        if same or channel.size == 1:
            return cls(channel, (count,) * channel.size, same), [[tensor] for tensor in tensors], flag
        numbers = [count, flag, *[tensor.shape[1] for tensor in tensors]]
        parts = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in tensors]
        all_numbers, messages = channel.gather_messages(numbers, parts)
        found = [
            _unpack(message, count, widths, tensors) for (count, _, *widths), message in zip(all_numbers, messages)
        ]
        samples = cls(channel, tuple([numbers[0] for numbers in all_numbers]), same)
        return samples, [list(one) for one in zip(*found)], any(numbers[1] for numbers in all_numbers)

    @property
    def own(self) -> slice:
        """The place of this process's samples among all."""
        if self.same:
            return slice(0, self.counts[0])
        start = sum(self.counts[: self.channel.rank])
        return slice(start, start + self.counts[self.channel.rank])

    @property
    def scale(self) -> int:
        """What gradients are divided by at a shard."""
        return 1 if self.same else self.channel.size

    @property
    def own_count(self) -> int:
        """The number of this process's samples."""
        return self.counts[self.channel.rank]

    def attach(self, x: Tensor, gathered: list[Tensor]) -> Tensor:
        """``[all samples, in]``, differentiable, from inputs ``x`` and those of all processes."""
        if self.channel.size == 1:
            return x
        attached: Tensor = _Gather.apply(x, gathered[0] if self.same else torch.cat(gathered), self)
        return attached

    def to_owners(self, local: Tensor, sizes: list[int]) -> list[Tensor]:
        """Turns results of each shard for all samples into results of all shards for the own samples; differentiable.

        Args:
            local: ``[all samples, sizes[rank]]``.
            sizes: the width of the results of each shard.

        Returns:
            ``[own samples, sizes[r]]`` of each shard ``r``.
        """
        if self.channel.size == 1:
            return [local]
        count = self.own_count
        flat: Tensor = _ToOwners.apply(local, self, sizes)
        return [part.view(count, size) for part, size in zip(flat.split([count * size for size in sizes]), sizes)]

    def join(self, parts: Tensor) -> Tensor:
        """Brings what each shard found for all samples ``[all samples, C]`` to their owners; differentiable.

        Returns:
            ``[shards, own samples, C]``.
        """
        if self.channel.size == 1:
            return parts.unsqueeze(0)
        width, count = parts.shape[1], self.channel.size
        flat: Tensor = _ToOwners.apply(parts, self, [width] * count)
        return flat.view(count, self.own_count, width)

    def send_to_owners(self, local: Tensor, sizes: list[int]) -> Tensor:
        """The results of :meth:`to_owners`, flat, one after the other, without gradients."""
        lengths = [self.own_count * size for size in sizes]
        if self.same:
            return self.channel.gather_lengths(local.reshape(-1), lengths)
        size = sizes[self.channel.rank]
        return self.channel.exchange(local.reshape(-1), [count * size for count in self.counts], lengths)

    def send_to_shards(self, owned: Tensor, sizes: list[int]) -> Tensor:
        """The opposite of :meth:`send_to_owners`."""
        size, lengths = sizes[self.channel.rank], [self.own_count * size for size in sizes]
        if self.same:
            return owned.split(lengths)[self.channel.rank].view(-1, size)
        came = self.channel.exchange(owned.contiguous(), lengths, [count * size for count in self.counts])
        return came.view(-1, size)


def _unpack(message: Tensor, count: int, widths: list[int], like: list[Tensor]) -> list[Tensor]:
    """The tensors ``[count, widths[i]]`` in a message of bytes, of the dtypes of others."""
    sizes = [count * width * tensor.element_size() for width, tensor in zip(widths, like)]
    parts = zip(message.split(sizes), widths, like)
    return [part.view(tensor.dtype).view(count, width) for part, width, tensor in parts]


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
        return came.view(count, own, -1).sum(0).mul_(samples.scale), None, None


class _ToOwners(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, samples: Samples, sizes: list[int]) -> Tensor:
        ctx.samples, ctx.sizes = samples, sizes
        return samples.send_to_owners(local, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        samples: Samples = ctx.samples
        return samples.send_to_shards(grads[0], ctx.sizes) / samples.scale, None, None
