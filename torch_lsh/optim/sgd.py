"""SGD, with and without momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .base import RowSparseOptimizer
from .gradients import as_matrix


class SGD(RowSparseOptimizer, torch.optim.SGD):
    """:class:`torch.optim.SGD` that also takes row-sparse gradients; momentum and weight decay act on touched rows.

    Args:
        params, lr, momentum, ...: as in :class:`torch.optim.SGD`; dense steps are fused by default.
        stochastic_rounding, moment_dtype, in_backward: see :mod:`torch_lsh.optim`.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimizer = SGD([weight], lr=0.5)
    >>> weight.grad = torch.sparse_coo_tensor([[1, 1]], [1.0, 1.0], (3,))
    >>> optimizer.step()
    >>> weight.detach()
    tensor([ 0., -1.,  0.])
    """

    _moments = ("momentum_buffer",)

    def _can_fuse(self, group: dict[str, Any], dense: list[Tensor]) -> bool:
        # PyTorch's fused step wants momentum buffers for all parameters of a group or for none.
        missing = [self.state.get(parameter, {}).get("momentum_buffer") is None for parameter in dense]
        return super()._can_fuse(group, dense) and (group["momentum"] == 0 or all(missing) or not any(missing))

    def _step_rows(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None
    ) -> None:
        state, buffer, dampening = self.state[parameter], None, float(group["dampening"])
        if group["momentum"] != 0:
            if state.get("momentum_buffer") is None:
                dampening = 0.0  # as in PyTorch, the first gradient enters whole
            buffer = self._moment(group, parameter, state, "momentum_buffer")
        ops.row_sparse_sgd_(
            as_matrix(parameter),
            buffer,
            rows,
            values,
            float(group["lr"]),
            float(group["momentum"]),
            dampening,
            float(group["weight_decay"]),
            bool(group["nesterov"]),
            bool(group["maximize"]),
            factor,
            # Steps are counted for this alone: the state of torch.optim.SGD holds no count.
            self._count_step(state) if self._rounds(group, parameter) else -1,
        )
