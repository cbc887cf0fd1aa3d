"""Training by several processes, each with its own part of the data: their gradients are averaged.

``DistributedDataParallel`` averages gradients as large as the parameters, so under it the layers of this library give
dense ones and every step costs their width. Here row-sparse gradients stay row-sparse, and what processes send each
other grows with the rows touched. The loop, in each process::

    torch.distributed.init_process_group("gloo")
    broadcast_parameters(model)
    for x, y in loader:  # with a DistributedSampler
        F.cross_entropy(model(x), y).backward()
        average_gradients(model.parameters())
        optimizer.step()
        optimizer.zero_grad()

All processes make the same updates, so parameters stay the same in all of them, to the bit, as do the rows that are
re-hashed. Every process chooses active rows for its own batch; random ones are the same in all.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..optim.optimizers import row_sparse_gradient
from ..row_sparse import parameters as row_sparse

_ROW_SPARSE, _DENSE = 1, 2  # 0: no gradient. The mean is of the greatest kind that a process has.


@torch.no_grad()
def broadcast_parameters(module: nn.Module, source: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Gives all processes the parameters and buffers that process ``source`` has."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        dist.broadcast(tensor, source, group)
    torch.autograd.graph.increment_version(tensors)  # hash tables follow it, and the broadcast leaves it


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Replaces gradients by their means over the processes: between ``backward()`` and the optimizer's ``step()``.

    A process without a gradient of a parameter counts as one whose gradient is 0, and nobody gets one where nobody has
    one. Row-sparse gradients become those of all rows that any process touched, unless a process has a dense one.

    Args:
        parameters: the same, in the same order, in each process.
        group: the processes; default: all.

    Raises:
        RuntimeError: an optimizer with ``in_backward=True`` has updated the rows already; or the processes do not have
            the same parameters, which all of them say before any gradient has changed.
    """
    parameters = list(parameters)
    for parameter in parameters:
        if row_sparse.updater(parameter) is not None:
            raise RuntimeError(
                f"a parameter of shape {tuple(parameter.shape)} is updated in the backward pass, before gradients of "
                "other processes are known; leave in_backward off"
            )
    kinds, counts = _announced(parameters, group)
    for parameter, kind, count in zip(parameters, kinds, counts):
        if kind == _DENSE:
            parameter.grad = _mean_of_dense(parameter, group)
        elif kind == _ROW_SPARSE:
            parameter.grad = _mean_of_rows(parameter, count, group)


def _announced(parameters: list[Tensor], group: dist.ProcessGroup | None) -> tuple[list[int], list[list[int]]]:
    """For each parameter the kind that its mean will have, and how many rows each process brings, if row-sparse."""
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
            rows, values = row_sparse_gradient(gradient)
            parameter.grad = _row_sparse(rows, values, parameter)
            own[number, 0], own[number, 1] = _ROW_SPARSE, len(rows)
    all_kinds, all_counts, all_forms = torch.stack(_gathered(own, group)).unbind(2)
    differs = (all_forms != all_forms[0]).any(0)
    if differs.any():
        number = int(differs.nonzero()[0])
        raise RuntimeError(f"parameters[{number}] is {forms[number]} here and not in all processes; wanted the same")
    return all_kinds.amax(0).tolist(), all_counts.T.tolist()


def _gathered(tensor: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    """The tensors, of one shape, of all processes."""
    tensors = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(tensors, tensor, group)
    return tensors


def _mean_of_dense(parameter: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense().contiguous()
    dist.all_reduce(gradient, group=group)
    return gradient.div_(dist.get_world_size(group))


def _mean_of_rows(parameter: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    own_rows = torch.zeros(max(counts), dtype=torch.int64)  # as long as the longest
    own_values = torch.zeros(max(counts), *parameter.shape[1:], dtype=parameter.dtype)
    if parameter.grad is not None:
        rows, values = row_sparse_gradient(parameter.grad)
        own_rows[: len(rows)], own_values[: len(rows)] = rows, values
    rows = torch.cat([part[:count] for part, count in zip(_gathered(own_rows, group), counts)])
    values = torch.cat([part[:count] for part, count in zip(_gathered(own_values, group), counts)])
    gradient = torch.sparse_coo_tensor(rows.unsqueeze(0), values, parameter.shape, check_invariants=False)
    rows, sums = row_sparse_gradient(gradient)
    return _row_sparse(rows, sums.div_(len(counts)), parameter)


def _row_sparse(rows: Tensor, values: Tensor, parameter: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), values, parameter.shape, is_coalesced=True, check_invariants=False
    )
