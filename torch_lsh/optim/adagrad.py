"""Adagrad."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .base import Dense, RowSparseOptimizer
from .gradients import as_matrix


class Adagrad(RowSparseOptimizer, torch.optim.Adagrad):
    """:class:`torch.optim.Adagrad` (Duchi et al. 2011) that also takes row-sparse gradients.

    The sums of squares do not decay, so without weight decay a row-sparse step is exactly the dense one. Weight decay
    acts on touched rows.

    Args:
        params, lr, lr_decay, ...: as in :class:`torch.optim.Adagrad`; dense steps are fused by default.
        stochastic_rounding, moment_dtype, in_backward: see :mod:`torch_lsh.optim`.

    >>> weight = torch.nn.Parameter(torch.zeros(3, 1))
    >>> optimizer = Adagrad([weight], lr=0.5)
    >>> weight.grad = torch.sparse_coo_tensor([[1]], [[4.0]], (3, 1))
    >>> optimizer.step()
    >>> weight.detach().T
    tensor([[ 0.0000, -0.5000,  0.0000]])
    """

    _moments = ("sum",)

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(params, *args, **kwargs)
        self.state.clear()  # allocated at the first step, as by the other optimizers

    def share_memory(self) -> None:
        """Allocates the state and moves it to shared memory."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._allocate(group, parameter)
        super().share_memory()

    def _dense_step(self, dense: Dense, hidden: list[Tensor]) -> None:
        for group, members in dense:  # the step of PyTorch before 2.12 expects the state that was cleared above
            for parameter in members:
                self._allocate(group, parameter)
        super()._dense_step(dense, hidden)

    def _allocate(self, group: dict[str, Any], parameter: Tensor) -> None:
        self.state[parameter].setdefault("step", torch.zeros((), dtype=torch.float32, device="cpu"))
        self._sum(group, parameter)

    def _sum(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        return self._moment(group, parameter, self.state[parameter], "sum", self.defaults["initial_accumulator_value"])

    def _step_rows(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None
    ) -> None:
        step = self._count_step(self.state[parameter])
        ops.row_sparse_adagrad_(
            as_matrix(parameter),
            self._sum(group, parameter),
            rows,
            values,
            float(group["lr"]) / (1 + (step - 1) * float(group["lr_decay"])),
            float(group["eps"]),
            float(group["weight_decay"]),
            bool(group["maximize"]),
            factor,
            step if self._rounds(group, parameter) else -1,
        )
