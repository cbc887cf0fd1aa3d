"""InputRing: the latest inputs, in a tensor that is written in place."""

from __future__ import annotations

import torch
from torch import Tensor


def thinned(x: Tensor, count: int) -> Tensor:
    """At most ``count`` of the inputs ``[B, in]``, evenly spaced; a view, or ``x`` itself.

    >>> thinned(torch.arange(5), 3)
    tensor([0, 2, 4])
    """
    return x if len(x) <= count else x[:: -(-len(x) // count)]


class InputRing:
    """Keeps the latest ``room`` inputs; keeping some more costs a copy of these alone.

    >>> ring = InputRing(3)
    >>> ring.keep(torch.tensor([[1.0], [2.0]]))
    >>> ring.keep(torch.tensor([[3.0], [4.0]]))
    >>> ring.tensor().flatten(), len(ring)
    (tensor([2., 3., 4.]), 3)
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._inputs: Tensor | None = None
        self._kept = 0

    def __len__(self) -> int:
        return min(self._kept, self._room)

    @property
    def kept(self) -> int:
        """Inputs that were kept so far, those dropped since included."""
        return self._kept

    def keep(self, x: Tensor) -> None:
        """Takes inputs ``[B, in]`` of any floating dtype."""
        if self._inputs is None:
            self._inputs = torch.empty(self._room, x.shape[1], dtype=torch.float32, device="cpu")
        if len(x) > self._room:
            x = x[-self._room :]
        begin = self._kept % self._room
        first = self._room - begin
        if len(x) <= first:
            self._inputs[begin : begin + len(x)] = x
        else:
            self._inputs[begin:] = x[:first]
            self._inputs[: len(x) - first] = x[first:]
        self._kept += len(x)

    def tensor(self) -> Tensor:
        """The inputs ``[n, in]`` float32, the latest last; a copy."""
        if self._inputs is None:
            raise RuntimeError("no inputs were kept; wanted keep(x) first")
        if self._kept <= self._room:
            return self._inputs[: self._kept].clone()
        return self._inputs.roll(-(self._kept % self._room), 0)

    def clear(self) -> None:
        """Drops the inputs."""
        self._inputs, self._kept = None, 0
