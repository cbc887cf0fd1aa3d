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
    def of(cls, channel: Channel, count: int, same: bool) -> Samples:
        """Tells the processes that this one brings ``count`` samples."""
        if same or channel.size == 1:
            return cls(channel, (count,) * channel.size, same)
        return cls(channel, tuple(torch.cat(channel.gather(torch.tensor([count]))).tolist()), same)

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

    def gather(self, tensor: Tensor) -> Tensor:
        """``tensor`` ``[own samples, ...]`` of all processes, one after the other; not differentiable."""
        if self.same or self.channel.size == 1:
            return tensor
        return torch.cat(self.channel.gather_lengths(tensor.detach(), list(self.counts)))

    def gather_inputs(self, x: Tensor) -> Tensor:
        """:meth:`gather`, differentiable: ``[all samples, in]``."""
        return self.attach(x, self.gather(x))

    def gather_packed(self, tensors: list[Tensor]) -> list[Tensor]:
        """:meth:`gather` of several tensors ``[own samples, n]``, in one message of bytes."""
        if self.same or self.channel.size == 1:
            return tensors
        parts = [tensor.detach().contiguous().view(torch.uint8) for tensor in tensors]
        columns = self.gather(torch.cat(parts, 1)).split([part.shape[1] for part in parts], 1)
        return [
            column.clone(memory_format=torch.contiguous_format).view(tensor.dtype)
            for column, tensor in zip(columns, tensors)
        ]

    def attach(self, x: Tensor, gathered: Tensor) -> Tensor:
        """Makes ``gathered``, the :meth:`gather` of inputs ``x``, differentiable."""
        if self.channel.size == 1:
            return x
        attached: Tensor = _Gather.apply(x, gathered, self)
        return attached

    def to_owners(self, local: Tensor, sizes: list[int]) -> Tensor:
        """Turns results of each shard for all samples into results of all shards for the own samples; differentiable.

        Args:
            local: ``[all samples, sizes[rank]]``.
            sizes: the width of the results of each shard.

        Returns:
            ``[own samples, sum(sizes)]``.
        """
        if self.channel.size == 1:
            return local
        owned: Tensor = _ToOwners.apply(local, self, sizes)
        return owned

    def join(self, parts: Tensor) -> Tensor:
        """Brings what each shard found for all samples ``[all samples, C]`` to their owners; differentiable.

        Returns:
            ``[own samples, shards, C]``.
        """
        width, count = parts.shape[1], self.channel.size
        return self.to_owners(parts, [width] * count).view(-1, count, width)

    def send_to_owners(self, local: Tensor, sizes: list[int]) -> Tensor:
        """:meth:`to_owners` without gradients."""
        if self.same:
            parts = [part.view(-1, size) for part, size in zip(self._gather_flat(local, sizes), sizes)]
            return torch.cat(parts, 1)
        own = self.counts[self.channel.rank]
        parts = [part.reshape(-1) for part in local.split(self.counts)]
        came = self.channel.exchange(parts, [own * size for size in sizes])
        return torch.cat([part.view(own, size) for part, size in zip(came, sizes)], 1)

    def _gather_flat(self, local: Tensor, sizes: list[int]) -> list[Tensor]:
        return self.channel.gather_lengths(local.reshape(-1), [len(local) * size for size in sizes])

    def send_to_shards(self, owned: Tensor, sizes: list[int]) -> Tensor:
        """The opposite of :meth:`send_to_owners`."""
        columns = owned.split(sizes, 1)
        if self.same:
            return columns[self.channel.rank]
        size = sizes[self.channel.rank]
        came = self.channel.exchange([part.reshape(-1) for part in columns], [count * size for count in self.counts])
        return torch.cat([part.view(-1, size) for part in came])


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
        own = samples.counts[samples.channel.rank]
        parts = samples.channel.exchange(list(grads[0].split(samples.counts)), [own] * samples.channel.size)
        return torch.stack(parts).sum(0).mul_(samples.scale), None, None


class _ToOwners(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, samples: Samples, sizes: list[int]) -> Tensor:
        ctx.samples, ctx.sizes = samples, sizes
        return samples.send_to_owners(local, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        samples: Samples = ctx.samples
        return samples.send_to_shards(grads[0], ctx.sizes) / samples.scale, None, None
