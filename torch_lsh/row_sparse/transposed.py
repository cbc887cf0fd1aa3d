"""Parameters that are transposed in place, so that what a step touches of them are rows.

The Parameter stays the very same object, and whoever refers to it keeps it: optimizers that were made before, too,
whose state follows at their next step, wherever it came from (earlier steps, a checkpoint).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

_transposed: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameters that were ever transposed


@torch.no_grad()
def transpose_(parameter: nn.Parameter) -> None:
    """Transposes a matrix and its gradient in place; both are contiguous afterwards, in memory of their own.

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
    # A graph of an earlier step that is still referred to holds the node that takes gradients of the old shape. A
    # change of dtype makes PyTorch forget that node, a change of shape does not.
    other = torch.float32 if data.dtype is torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data
    torch.autograd.graph.increment_version(parameter)
    if gradient is not None:
        parameter.grad = gradient.t().contiguous()
    _transposed[parameter] = True


def _transpose_state(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Brings the state of transposed parameters into the parameters' shape. (A square one's has no other shape.)"""
    if len(_transposed) == 0:
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


register_optimizer_step_pre_hook(_transpose_state)
