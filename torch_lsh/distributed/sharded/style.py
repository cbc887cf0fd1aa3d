"""ShardedRows: the sharded layer as a style of ``torch.distributed.tensor.parallel``."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle

from .layer import ShardedLSHLinear


class ShardedRows(ParallelStyle):
    """Spreads the rows of a wide head over the processes of a mesh, where ``ColwiseParallel`` has no sampled path.

    Args:
        same_inputs: whether all processes have the same samples, as in tensor parallelism; see
            :class:`ShardedLSHLinear`.

    ::

        parallelize_module(model, mesh, {"head": ShardedRows()})
    """

    def __init__(self, *, same_inputs: bool = True) -> None:
        super().__init__()
        self.same_inputs = same_inputs

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, nn.Linear):
            raise TypeError(f"module is a {type(module).__name__}; wanted torch_lsh.LSHLinear")
        return ShardedLSHLinear.shard_(module, device_mesh, self.same_inputs, self.src_data_rank)
