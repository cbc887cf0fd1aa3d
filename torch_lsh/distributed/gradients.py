"""Averages gradients over processes that each train on their own part of the data.

``DistributedDataParallel`` averages dense gradients, so under it every step costs the width of a layer. Here row-sparse
gradients stay row-sparse, and communication grows with the rows touched. The loop, in each process::

    torch.distributed.init_process_group("gloo")
    broadcast_parameters(model)
    for x, y in loader:  # with a DistributedSampler
        F.cross_entropy(model(x), y).backward()
        average_gradients(model.parameters())
        optimizer.step()
        optimizer.zero_grad()

All processes make the same updates, so their parameters stay equal to the bit, and they re-hash the same rows. Each
process chooses the active rows of its own batch; the random ones among them are the same in all processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..optim.gradients import row_sparse, rows_and_values, sum_repeated_rows
from ..row_sparse.parameters import updater

_ROW_SPARSE, _DENSE = 1, 2  # 0: no gradient. The mean is of the greatest kind among the processes.


@torch.no_grad()
def broadcast_parameters(module: nn.Module, source: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Copies parameters and buffers of process ``source`` to all processes of ``group`` (default: all)."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        dist.broadcast(tensor, source, group)
    torch.autograd.graph.increment_version(tensors)  # the broadcast does not, and hash tables rely on it


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Replaces gradients by their means over the processes; call it between ``backward()`` and ``step()``.

    A missing gradient counts as 0; a parameter without a gradient in any process gets none. The mean of row-sparse
    gradients holds the rows that any process touched. If one process has a dense gradient, the mean is dense.

    Args:
        parameters: the same, in the same order, in each process.
        group: the processes; default: all.

    Raises:
        RuntimeError: an optimizer with ``in_backward=True`` has updated the rows already; or the parameters differ
            between processes. All processes raise it, before any gradient changes.
    """
    parameters = list(parameters)
    for parameter in parameters:
        if updater(parameter) is not None:
            raise RuntimeError(
                f"a parameter of shape {tuple(parameter.shape)} is updated in the backward pass, before the "
                "gradients of other processes arrive; leave in_backward off"
            )
    kinds, counts = _announced(parameters, group)
    for parameter, kind, count in zip(parameters, kinds, counts):
        if kind == _DENSE:
            parameter.grad = _mean_of_dense(parameter, group)
        elif kind == _ROW_SPARSE:
            parameter.grad = _mean_of_rows(parameter, count, group)


def _announced(parameters: list[Tensor], group: dist.ProcessGroup | None) -> tuple[list[int], list[list[int]]]:
    """The kind of each mean, and the number of rows ``[parameters][processes]`` that the processes bring."""
    lengths = torch.cat(_gathered(torch.tensor([len(parameters)]), group)).tolist()
    if len(set(lengths)) > 1:
        raise RuntimeError(f"parameters holds {lengths} tensors in the processes; wanted the same in all")
    forms = [f"{tuple(parameter.shape)} {parameter.dtype}" for parameter in parameters]
    own = torch.zeros(len(parameters), 3, dtype=torch.int64)
    for number, parameter in enumerate(parameters):
        gradient = parameter.grad
        own[number, 2] = zlib.crc32(forms[number].encode())
        if gradient is not None and gradient.layout is torch.strided:
            own[number, 0] = _DENSE
        elif gradient is not None:
            rows, values = rows_and_values(gradient)
            parameter.grad = row_sparse(rows, values, parameter.shape)
            own[number, 0], own[number, 1] = _ROW_SPARSE, len(rows)
    all_kinds, all_counts, all_forms = torch.stack(_gathered(own, group)).unbind(2)
    differs = (all_forms != all_forms[0]).any(0)
    if differs.any():
        number = int(differs.nonzero()[0])
        raise RuntimeError(f"parameters[{number}] is {forms[number]} here and not in all processes; wanted the same")
    return all_kinds.amax(0).tolist(), all_counts.T.tolist()


def _gathered(tensor: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    """``tensor`` of every process; its shape is the same in all."""
    tensors = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(tensors, tensor, group)
    return tensors


def _mean_of_dense(parameter: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense().contiguous()
    dist.all_reduce(gradient, group=group)
    return gradient.div_(dist.get_world_size(group))


def _mean_of_rows(parameter: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    own_rows = torch.zeros(max(counts), dtype=torch.int64)  # padded to the longest
    own_values = torch.zeros(max(counts), *parameter.shape[1:], dtype=parameter.dtype)
    if parameter.grad is not None:
        rows, values = rows_and_values(parameter.grad)
        own_rows[: len(rows)], own_values[: len(rows)] = rows, values
    rows = torch.cat([part[:count] for part, count in zip(_gathered(own_rows, group), counts)])
    values = torch.cat([part[:count] for part, count in zip(_gathered(own_values, group), counts)])
    rows, sums = sum_repeated_rows(rows, values, len(parameter))
    return row_sparse(rows, sums.div_(len(counts)), parameter.shape)
