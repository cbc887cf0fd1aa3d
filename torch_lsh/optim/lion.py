"""Lion."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import ops
from .base import Dense, RowSparseOptimizer
from .gradients import as_matrix


class Lion(RowSparseOptimizer):
    """Lion (Chen et al. 2023), which steps by the sign of an average of gradients, dense or row-sparse.

    Args:
        params: parameters or groups: contiguous float32, float64 or bfloat16 tensors on the CPU.
        lr: the size of every step.
        betas: what remains of the average: in the step, and in the state.
        weight_decay: decoupled, as in :class:`torch.optim.AdamW`; acts on touched rows.
        maximize: ascends instead.
        stochastic_rounding, moment_dtype, in_backward: see :mod:`torch_lsh.optim`.

    Raises:
        ValueError: an option is out of range.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimizer = Lion([weight], lr=0.5)
    >>> weight.grad = torch.sparse_coo_tensor([[1]], [4.0], (3,))
    >>> optimizer.step()
    >>> weight.detach()
    tensor([ 0.0000, -0.5000,  0.0000])

    Chen et al., *Symbolic Discovery of Optimization Algorithms*, NeurIPS 2023.
    """

    _moments = ("exp_avg",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **kwargs: Any,
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"lr is {lr}; wanted 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas is {betas}; wanted two numbers from 0 to below 1")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}; wanted 0 or more")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, **kwargs)

    def _takes_all_rows(self, group: dict[str, Any], parameter: Tensor) -> bool:
        return self._takes_rows(group, parameter)  # PyTorch has no Lion to take dense gradients

    def _dense_step(self, dense: Dense, hidden: list[Tensor]) -> None:
        parameter = dense[0][1][0]
        raise RuntimeError(
            f"Lion: a parameter is {parameter.dtype} of shape {tuple(parameter.shape)} and strides "
            f"{parameter.stride()} on {parameter.device}; wanted a contiguous float32, float64 or bfloat16 tensor of "
            "one dimension or more on the CPU"
        )

    def _step_rows(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None
    ) -> None:
        state = self.state[parameter]
        beta1, beta2 = map(float, group["betas"])
        ops.row_sparse_lion_(
            as_matrix(parameter),
            self._moment(group, parameter, state, "exp_avg"),
            rows,
            values,
            float(group["lr"]),
            beta1,
            beta2,
            float(group["weight_decay"]),
            bool(group["maximize"]),
            factor,
            self._count_step(state) if self._rounds(group, parameter) else -1,  # steps are counted for this alone
        )
