"""Transposes parameters in place, so that what a step touches are rows.

The Parameter object stays the same, so references to it stay valid. Optimizers made before the transposition bring
their state into the new shape at their next step, wherever the state came from (earlier steps or a checkpoint).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

_transposed: WeakIdKeyDictionary = WeakIdKeyDictionary()  # all parameters that were ever transposed


@torch.no_grad()
def transpose_(parameter: nn.Parameter) -> None:
    """Transposes a matrix and its gradient in place; both are contiguous afterwards, in new memory.

    >>> weight = nn.Parameter(torch.zeros(2, 5))
    >>> transpose_(weight)
    >>> weight.shape
    torch.Size([5, 2])
    """
    gradient = parameter.grad
    if gradient is not None and gradient.layout is not torch.strided:
        gradient = gradient.to_dense()
    parameter.grad = None
    data = parameter.data.t().contiguous()
    # If the graph of an earlier step is still alive, so is the node that accumulates gradients of the old shape.
    # PyTorch drops that node when the dtype changes, but not when the shape does.
    other = torch.float32 if data.dtype is torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data
    torch.autograd.graph.increment_version(parameter)
    if gradient is not None:
        parameter.grad = gradient.t().contiguous()
    _transposed[parameter] = True


def transpose_state(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Brings state of transposed parameters into the parameters' shape; runs before every step of every optimizer.

    State of a square parameter cannot be told from its transpose, and stays as it is.
    """
    if not _transposed.data:  # its len() takes a microsecond
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in _transposed:
                continue
            for name, value in optimizer.state.get(parameter, {}).items():
                if (
                    isinstance(value, Tensor)
                    and value.shape != parameter.shape
                    and value.shape == parameter.shape[::-1]
                ):
                    optimizer.state[parameter][name] = value.t().contiguous()
