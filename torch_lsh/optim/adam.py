"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..row_sparse.parameters import Hardest, record_update, touches_to_count
from .base import Dense, RowSparseOptimizer, RowUpdate
from .gradients import as_matrix
from .state import state_dtype

_NO_BIAS = (None,) * 8  # in the place of weight and bias and the state of both


class _AdamRows(RowSparseOptimizer):
    """The row-sparse step of Adam and AdamW, and catch-up."""

    _unsupported = ("amsgrad", "capturable", "differentiable")
    _moments = ("exp_avg", "exp_avg_sq")
    _fuses_shards = True
    _counters = ("last_step",)  # the step at which each row was last brought up to date; with catch_up alone

    def __init__(self, params: Any, *args: Any, catch_up: bool = False, **kwargs: Any) -> None:
        super().__init__(params, *args, **kwargs)
        self._add_options(catch_up=catch_up)

    def flush(self) -> None:
        """Applies the decay that rows are still owed under ``catch_up=True``. Costs a pass over all rows.

        Call it before an evaluation, for instance, or before the state goes to an optimizer without catch-up.
        """
        self._flush([parameter for parameter, state in self.state.items() if "last_step" in state])

    @torch.no_grad()
    def _flush(self, parameters: list[Tensor]) -> None:
        groups = {parameter: group for group in self.param_groups for parameter in group["params"]}
        for parameter in parameters:
            state, step = self.state[parameter], int(self.state[parameter]["step"])
            behind = (state["last_step"] < step).nonzero().squeeze(1)
            if len(behind) == 0:
                continue
            decays = self._decays(groups[parameter], state["last_step"], behind, step)
            version = parameter._version
            shape = (-1,) + (1,) * (parameter.dim() - 1)
            for tensor, factor in zip((state["exp_avg"], state["exp_avg_sq"], parameter), decays.unbind(1)):
                if bool((factor != 1).any()):
                    tensor[behind] = (tensor[behind] * factor.view(shape)).to(tensor.dtype)
            state["last_step"].fill_(step)
            if parameter._version != version:
                record_update(behind, (parameter, version))

    @staticmethod
    def _decays(group: dict[str, Any], last_step: Tensor, rows: Tensor, step: int) -> Tensor:
        """The decay that ``rows`` missed up to ``step``: ``[A, 3]`` float64 factors of both moments and the weights."""
        shrink = 1 - float(group["lr"]) * float(group["weight_decay"]) if group["decoupled_weight_decay"] else 1.0
        missed = (step - last_step[rows]).double()
        return torch.stack([factor**missed for factor in (*map(float, group["betas"]), shrink)], 1)

    def _dense_step(self, dense: Dense, hidden: list[Tensor]) -> None:
        caught_up = [parameter for _, members in dense for parameter in members if "last_step" in self.state[parameter]]
        self._flush(caught_up)
        super()._dense_step(dense, hidden)
        for parameter in caught_up:
            self.state[parameter]["last_step"].fill_(int(self.state[parameter]["step"]))

    def _step_rows(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None
    ) -> None:
        state = self.state[parameter]  # once, as it hashes a tensor in Python
        step = self._count_step(state)
        first = self._moment(group, parameter, state, "exp_avg")
        second = self._moment(group, parameter, state, "exp_avg_sq")
        beta1, beta2 = map(float, group["betas"])
        decays = None
        if group.get("catch_up"):
            if "last_step" not in state:
                state["last_step"] = torch.full((len(parameter),), step - 1, dtype=torch.int32, device="cpu")
            decays = self._decays(group, state["last_step"], rows, step - 1)
        ops.row_sparse_adam_(
            as_matrix(parameter),
            first,
            second,
            rows,
            values,
            decays,
            float(group["lr"]),
            beta1,
            beta2,
            float(group["eps"]),
            float(group["weight_decay"]),
            1 - beta1**step,
            1 - beta2**step,
            bool(group["decoupled_weight_decay"]),
            bool(group["maximize"]),
            factor,
            step if self._rounds(group, parameter) else -1,
        )
        if decays is not None:
            state["last_step"][rows] = step

    def _update_all(self, row_sparse: list[RowUpdate]) -> None:
        """Updates weight and bias of a layer, whose gradients come together, in one operator."""
        first = 0
        while first < len(row_sparse):
            pair = row_sparse[first : first + 2]
            together = len(pair) == 2 and self._update_linear(*pair)
            if not together:
                super()._update_all(pair[:1])
            first += 1 + together

    def _update_linear(self, of_weight: RowUpdate, of_bias: RowUpdate) -> bool:
        (group, weight, rows, gradient), (other, bias, same, bias_gradient) = of_weight, of_bias
        if group is not other or weight.dim() != 2 or bias.shape != weight.shape[:1] or bias.dtype is not weight.dtype:
            return False
        if rows.data_ptr() != same.data_ptr() or rows.shape != same.shape:
            return False
        touches, updated = touches_to_count(weight), [(weight, weight._version), (bias, bias._version)]
        arguments = self._arguments_of_linear(group, touches, weight, bias)
        if arguments is None:
            return False
        ops.linear_adam_(rows, gradient, bias_gradient, *arguments)
        record_update(rows, *updated, counted=touches)
        return True

    def update_linear_in_backward(
        self,
        weight: Tensor,
        bias: Tensor | None,
        slopes: Tensor,
        factors: Tensor,
        x: Tensor,
        rows: Tensor,
        grad: Tensor | None,
        hardest: Hardest | None,
    ) -> Tensor | None:
        parameters = (weight,) if bias is None else (weight, bias)
        group = self._group_in_backward(*parameters)
        if group is None or weight.dtype is torch.bfloat16 or torch.is_grad_enabled():
            return None
        touches, updated = touches_to_count(weight), [(parameter, parameter._version) for parameter in parameters]
        arguments = self._arguments_of_linear(group, touches, *parameters)
        if arguments is None:
            return None
        self._check_accumulates(*parameters)
        count, log_weights = (0, None) if hardest is None else (hardest.count, hardest.log_weights)
        of_x, hardest_rows = ops.linear_softmax_adam_(slopes, factors, x, rows, grad, count, log_weights, *arguments)
        record_update(rows, *updated, counted=touches)
        self._updated.update(map(id, parameters))
        if hardest is not None:
            hardest.keep(hardest_rows)
        return of_x

    def _arguments_of_linear(
        self, group: dict[str, Any], touches: Tensor | None, *parameters: Tensor
    ) -> list[Any] | None:
        """What the operators of weight and bias, if there is one, take after their gradients.

        None: they cannot take these parameters, or their state has yet to be made so.
        """
        if group.get("catch_up"):
            return None
        dtype = state_dtype(group, parameters[0])
        arguments: list[Any] = []
        for parameter in parameters:
            state = self._state_to_update(parameter, dtype)
            if state is None:
                return None
            arguments += parameter, *state
        beta1, beta2 = group["betas"]
        arguments += (
            *_NO_BIAS[len(arguments) :],
            touches,
            float(group["lr"]),
            float(beta1),
            float(beta2),
            float(group["eps"]),
            float(group["weight_decay"]),
            bool(group["decoupled_weight_decay"]),
            bool(group["maximize"]),
            self._rounds(group, parameters[0]),
        )
        return arguments

    def _state_to_update(self, parameter: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor] | None:
        """Both moments and the count of steps as the operator takes them; None: they have yet to be made so."""
        if id(parameter) not in self._on_huge_pages:  # no step so far
            return None
        state = self.state[parameter]
        step, first, second = state.get("step"), state.get("exp_avg"), state.get("exp_avg_sq")
        if first is None or first.dtype is not dtype or not first.is_contiguous():
            return None
        if second is None or second.dtype is not dtype or not second.is_contiguous():
            return None
        return (first, second, step) if step is not None and step.dtype is torch.float32 else None


class Adam(_AdamRows, torch.optim.Adam):
    """:class:`torch.optim.Adam` (Kingma & Ba 2015) that also takes row-sparse gradients, and applies them lazily.

    Args:
        params, lr, betas, eps, weight_decay, ...: as in :class:`torch.optim.Adam`; dense steps are fused by default.
        catch_up: when a row is touched, first decay its moments for the steps it missed. Keeps an int32 per row.
        stochastic_rounding, moment_dtype, in_backward: see :mod:`torch_lsh.optim`.

    >>> layer = torch.nn.Linear(4, 3)
    >>> optimizer = Adam(layer.parameters(), lr=1e-3)
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """


class AdamW(_AdamRows, torch.optim.AdamW):
    """:class:`torch.optim.AdamW` (Loshchilov & Hutter 2019) that also takes row-sparse gradients, applied lazily.

    Args:
        params, lr, betas, eps, weight_decay, ...: as in :class:`torch.optim.AdamW`; dense steps are fused by default.
        catch_up: when a row is touched, first decay its moments and weights for the steps it missed. Keeps an int32
            per row.
        stochastic_rounding, moment_dtype, in_backward: see :mod:`torch_lsh.optim`.

    >>> weight = torch.nn.Parameter(torch.zeros(5, 2))
    >>> optimizer = AdamW([weight], lr=0.1)
    >>> weight.grad = torch.sparse_coo_tensor([[3]], torch.ones(1, 2), (5, 2))
    >>> optimizer.step()
    >>> weight.detach()[2:4]
    tensor([[ 0.0000,  0.0000],
            [-0.1000, -0.1000]])
    """
