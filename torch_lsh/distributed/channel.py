"""Channel: the collectives that this package uses, on one process group, with a count of what they send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ALIGNMENT = 8  # bytes of the largest element
_COPIED = 1 << 18  # bytes of a tensor of which a copy for every process costs less than a call for every process


def timeout_of(group: dist.ProcessGroup | None) -> timedelta | None:
    """How long collectives of ``group`` (None: all processes) wait; None: as long as PyTorch has them by default."""
    try:
        backend: Any = (group or dist.group.WORLD)._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    except RuntimeError:  # a group without CPUs
        return None
    timeout: timedelta | None = getattr(getattr(backend, "options", None), "_timeout", None)
    return timeout


class Channel:
    """A process group and the traffic of this process in it.

    Sums are made in the order of the ranks, so that all processes hold the same result, bit for bit.

    Args:
        group: the processes; None: all.

    Attributes:
        bytes_sent: what this process sent to others so far: payload, without the headers of the network.
        calls: collectives so far.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.bytes_sent = self.calls = 0
        self._room = 0  # bytes that gather_messages expects of each process; the same in all

    def __deepcopy__(self, memo: Any) -> Channel:
        return Channel(self.group)

    def _count(self, sent: float) -> None:
        self.bytes_sent += int(sent)
        self.calls += 1

    def gather(self, tensor: Tensor) -> Tensor:
        """``tensor`` of every process: ``[size, ...]``; its shape and dtype are the same in all."""
        return self.gather_lengths(tensor.unsqueeze(0), [1] * self.size)

    def gather_lengths(self, tensor: Tensor, lengths: list[int]) -> Tensor:
        """``tensor`` of every process, one after the other; the first dimension of that of ``r`` is ``lengths[r]``."""
        shape = tensor.shape[1:]
        if max(lengths) * math.prod(shape) * tensor.element_size() > _COPIED:
            came = tensor.new_empty(sum(lengths), *shape)
            self.gather_into([tensor.contiguous()], [came.split(lengths)])
            return came
        # All messages go at once; those of gloo's all-gather go around in a ring, one after the other.
        copies = tensor.expand(self.size, *tensor.shape).contiguous().flatten(0, 1)
        return self.exchange(copies, [len(tensor)] * self.size, lengths)

    def gather_messages(self, numbers: list[int], parts: list[Tensor]) -> tuple[list[list[int]], Tensor]:
        """Numbers, as many in each process, and bytes of any length, of every process.

        Takes one collective where no process has more bytes than earlier calls let the others expect; otherwise two.

        Args:
            numbers: int64.
            parts: ``[n]`` uint8, which are sent as one message.

        Returns:
            Numbers of each process, and ``[size, longest]`` uint8: the messages, with anything behind their ends. A
            message starts where any dtype is aligned.
        """
        length, room = sum([len(part) for part in parts]), self._room
        head = torch.tensor([length, *numbers], device="cpu").view(torch.uint8)
        start = len(head)
        whole = torch.cat([head, *parts, head.new_zeros(max(0, room - length))])
        came = self.gather(whole[: start + room])
        heads: list[list[int]] = came.view(torch.int64)[:, : start // _ALIGNMENT].tolist()
        longest = _aligned(max([numbers_of.pop(0) for numbers_of in heads]))
        messages = came[:, start:]
        if longest > room:
            rest = head.new_zeros(longest - room)
            rest[: max(0, length - room)] = whole[start + room :]
            messages = torch.cat([messages, self.gather(rest)], 1)
        if not room // 2 <= longest <= room:
            self._room = longest
        return heads, messages

    def gather_into(self, tensors: list[Tensor], places: list[Sequence[Tensor]]) -> None:
        """Copies ``tensors[i]`` of every process ``r`` into ``places[i][r]``; all are contiguous.

        Nothing else is copied, and nothing is padded.
        """
        works: list[Any] = []
        for tag, (tensor, places_of) in enumerate(zip(tensors, places)):
            for other in range(self.size):
                if other != self.rank and places_of[other].numel() > 0:
                    works.append(dist.irecv(places_of[other], group=self.group, group_src=other, tag=tag))
                if other != self.rank and tensor.numel() > 0:
                    works.append(dist.isend(tensor, group=self.group, group_dst=other, tag=tag))
            self._count((self.size - 1) * tensor.nbytes)
        for tensor, places_of in zip(tensors, places):
            places_of[self.rank].copy_(tensor)
        for work in works:
            work.wait()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums contiguous ``tensor`` over the processes, in place."""
        dist.all_reduce(tensor, group=self.group)
        self._count(2 * (self.size - 1) / self.size * tensor.nbytes)
        return tensor

    def exchange(self, sent: Tensor, counts: list[int], lengths: list[int]) -> Tensor:
        """Sends parts of contiguous ``sent`` to all processes; returns what comes from them, one after the other.

        Args:
            sent: the part for process ``r`` has ``counts[r]`` elements of the first dimension.
            counts: sizes of the parts.
            lengths: sizes of what comes.
        """
        came = sent.new_empty(sum(lengths), *sent.shape[1:])
        dist.all_to_all_single(came, sent, lengths, counts, group=self.group)
        others = len(sent) - counts[self.rank]
        self._count(others * sent.element_size() * math.prod(sent.shape[1:]))
        return came

    def broadcast_(self, tensor: Tensor, source: int) -> None:
        """Copies contiguous ``tensor`` of process ``source`` of the group to all, in place."""
        dist.broadcast(tensor, group=self.group, group_src=source)
        self._count(tensor.nbytes if self.rank == source else 0)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT
