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
from .channel import Channel

_ROW_SPARSE, _DENSE = 1, 2  # 0: no gradient. The mean is of the greatest kind among the processes.


@torch.no_grad()
def broadcast_parameters(module: nn.Module, source: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Copies parameters and buffers of process ``source`` to all processes of ``group`` (default: all)."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        dist.broadcast(tensor, source, group)
    torch.autograd.graph.increment_version(tensors)  # the broadcast does not, and hash tables rely on it


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
    parameters, channel = list(parameters), Channel(group)
    refuse_updated(parameters)
    check_same(parameters, channel)
    average(parameters, channel)


def refuse_updated(parameters: list[Tensor]) -> None:
    """Raises a RuntimeError if an optimizer updates one of the parameters before the exchange."""
    for parameter in parameters:
        if updater(parameter) is not None:
            raise RuntimeError(
                f"a parameter of shape {tuple(parameter.shape)} is updated in the backward pass, before the "
                "gradients of other processes arrive; leave in_backward off"
            )


def check_same(parameters: list[Tensor], channel: Channel) -> None:
    """Raises a RuntimeError, in all processes, if number, shapes or dtypes of the parameters differ between them."""
    lengths = channel.gather(torch.tensor(len(parameters), device="cpu")).tolist()
    if len(set(lengths)) > 1:
        raise RuntimeError(f"parameters holds {lengths} tensors in the processes; wanted the same in all")
    forms = [f"{tuple(parameter.shape)} {parameter.dtype}" for parameter in parameters]
    all_forms = channel.gather(torch.tensor([zlib.crc32(form.encode()) for form in forms], device="cpu"))
    differs = (all_forms != all_forms[0]).any(0)
    if differs.any():
        number = int(differs.nonzero()[0])
        raise RuntimeError(f"parameters[{number}] is {forms[number]} here and not in all processes; wanted the same")


@torch.no_grad()
def average(
    parameters: list[Tensor],
    channel: Channel,
    takes_part: bool = True,
    of_all: bool = True,
    note: Tensor | None = None,
) -> list[Tensor]:
    """:func:`average_gradients` of parameters that are known to be the same in all processes.

    Args:
        parameters, channel: see there.
        takes_part: False: this process has no gradients, and gets none; the others need it to communicate.
        of_all: divide by the number of processes; otherwise by the number of those that take part.
        note: int64 numbers, as many in each process, for all others.

    Returns:
        The notes of all processes.
    """
    # Kind and number of rows of each, and whether this process takes part.
    own = torch.zeros(len(parameters) + 1, 2, dtype=torch.int64, device="cpu")
    own[-1, 0] = takes_part
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    for number, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is None or not takes_part:
            continue
        if gradient.layout is torch.strided:
            own[number, 0] = _DENSE
        else:
            rows, values = parts[number] = rows_and_values(gradient)
            own[number] = torch.tensor([_ROW_SPARSE, len(rows)], device="cpu")
    messages = channel.gather(own.flatten() if note is None else torch.cat([own.flatten(), note]))
    kinds, counts = messages[:, : own.numel()].unflatten(1, own.shape).unbind(2)
    divisor = channel.size if of_all else int(kinds[:, -1].sum())
    means: dict[int, Tensor] = {}
    by_rows = []
    for number, kind in enumerate(kinds[:, :-1].amax(0).tolist()):
        if kind == _DENSE:
            means[number] = _dense_mean(parameters[number], channel, takes_part, divisor)
        elif kind == _ROW_SPARSE:
            by_rows.append(number)
    gathered = _gather_rows(
        [parameters[i] for i in by_rows], [parts.get(i) for i in by_rows], counts[:, by_rows], channel
    )
    if takes_part:
        for number, (rows, values) in zip(by_rows, gathered):
            parameter = parameters[number]
            rows, values = sum_repeated_rows(rows, values, len(parameter))
            means[number] = row_sparse(rows, values.div_(divisor), parameter.shape)
        for number, mean in means.items():
            parameters[number].grad = mean
    return list(messages[:, own.numel() :])


def _dense_mean(parameter: Tensor, channel: Channel, takes_part: bool, divisor: int) -> Tensor:
    gradient = parameter.grad if takes_part else None
    dense = torch.zeros_like(parameter) if gradient is None else gradient.to_dense().contiguous()
    return channel.sum_(dense).div_(divisor)


def _gather_rows(
    parameters: list[Tensor], parts: list[tuple[Tensor, Tensor] | None], counts: Tensor, channel: Channel
) -> list[tuple[Tensor, Tensor]]:
    """The rows of all processes and their values, one process after the other, for each parameter.

    Args:
        parameters: they give shapes and dtypes.
        parts: rows and values of this process.
        counts: ``[processes, parameters]``: how many rows each process brings.
        channel: the processes.
    """
    own: list[Tensor] = []
    wholes: list[Tensor] = []
    for parameter, part, total in zip(parameters, parts, counts.sum(0).tolist()):
        none = parameter.new_empty(0, dtype=torch.int64), parameter.new_empty(0, *parameter.shape[1:])
        for tensor in none if part is None else part:
            own.append(tensor.contiguous())
            wholes.append(tensor.new_empty(total, *tensor.shape[1:]))
    lengths = counts.repeat_interleave(2, dim=1).tolist()
    channel.gather_into(own, [whole.split(list(sizes)) for whole, sizes in zip(wholes, zip(*lengths))])
    return list(zip(wholes[::2], wholes[1::2]))
