"""Shards: which rows each process owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True)
class Shards:
    """The rows ``0 .. num_rows - 1`` in equal parts, the last of which may be smaller, as ``torch.chunk`` makes them.

    Attributes:
        num_rows: of all processes.
        mesh: the processes, of one dimension.

    Raises:
        ValueError: a process would own no row, or ``mesh`` has several dimensions.
    """

    num_rows: int
    mesh: DeviceMesh

    def __post_init__(self) -> None:
        if self.mesh.ndim != 1:
            raise ValueError(f"mesh has {self.mesh.ndim} dimensions; wanted 1, such as mesh['tensor']")
        if len(self.bounds) < self.mesh.size():
            raise ValueError(f"out_features is {self.num_rows}, which gives some of {self.mesh.size()} processes none")

    def __deepcopy__(self, memo: Any) -> Shards:
        return self  # copies of a layer have the same processes

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First row and end of the rows of each process that owns any."""
        size = -(-self.num_rows // self.mesh.size())
        return [(start, min(start + size, self.num_rows)) for start in range(0, self.num_rows, size)]

    @property
    def sizes(self) -> list[int]:
        """The number of rows of each process."""
        return [stop - start for start, stop in self.bounds]

    @property
    def own(self) -> slice:
        """The rows of this process."""
        return slice(*self.bounds[self.mesh.get_local_rank()])

    def place(self, local: Tensor) -> DTensor:
        """The tensor ``[num_rows, ...]`` of which each process has its rows, as ``local``."""
        shape = torch.Size((self.num_rows, *local.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def local(self, tensor: Tensor) -> Tensor:
        """This process's rows of ``tensor``, which is sharded, or whole in every process.

        Raises:
            ValueError: it does not have ``num_rows`` rows, or is sharded in another way.
        """
        if isinstance(tensor, DTensor):
            if tensor.placements != (Shard(0),) or tensor.device_mesh != self.mesh:
                tensor = tensor.redistribute(self.mesh, [Shard(0)])
            return tensor.to_local()
        if len(tensor) != self.num_rows:
            raise ValueError(f"a tensor has {len(tensor)} rows; wanted {self.num_rows}")
        return tensor[self.own]
