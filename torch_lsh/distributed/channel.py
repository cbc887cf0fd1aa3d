"""Channel: the collectives that this package uses, on one process group, with a count of what they send."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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

    def __deepcopy__(self, memo: Any) -> Channel:
        return Channel(self.group)

    def _count(self, sent: float) -> None:
        self.bytes_sent += int(sent)
        self.calls += 1

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """``tensor`` of every process; its shape and dtype are the same in all."""
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(tensors, tensor, self.group)
        self._count((self.size - 1) * tensor.nbytes)
        return tensors

    def gather_lengths(self, tensor: Tensor, lengths: list[int]) -> list[Tensor]:
        """``tensor`` of every process, where the first dimension of that of process ``r`` is ``lengths[r]``."""
        if len(set(lengths)) == 1:
            return self.gather(tensor.contiguous())
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return [part[:length] for part, length in zip(self.gather(padded), lengths)]

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

    def exchange(self, parts: list[Tensor], lengths: list[int]) -> list[Tensor]:
        """Sends ``parts[r]`` to process ``r``; returns what came, from process ``r`` a tensor of ``lengths[r]``.

        Args:
            parts: tensors that differ in their first dimension alone.
            lengths: sizes of the first dimension of what comes.
        """
        sent = torch.cat(parts)
        came = sent.new_empty(sum(lengths), *sent.shape[1:])
        dist.all_to_all_single(came, sent, lengths, [len(part) for part in parts], group=self.group)
        self._count(sent.nbytes - parts[self.rank].nbytes)
        return list(came.split(lengths))

    def broadcast_(self, tensor: Tensor, source: int) -> None:
        """Copies contiguous ``tensor`` of process ``source`` of the group to all, in place."""
        dist.broadcast(tensor, group=self.group, group_src=source)
        self._count(tensor.nbytes if self.rank == source else 0)
