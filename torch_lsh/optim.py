"""Optimizers that take dense and row-sparse parameters in one list.

Subclasses of those in :mod:`torch.optim`, with the same arguments and state, so a ``state_dict`` goes either way. Being
given to one of them marks a parameter (:mod:`torch_lsh.row_sparse`): layers of this library then produce row-sparse
gradients for it, and a step reads and writes only the rows of the gradient. Dense gradients go to PyTorch's own step.

Lazy semantics: a row without a gradient does not move and its moments do not decay, as in
:class:`torch.optim.SparseAdam`; bias corrections use the parameter's step count, and weight decay acts on a row when it
is touched. With ``catch_up=True`` (:class:`Adam`, :class:`AdamW`) a row that is touched again first gets the decay that
the missed steps would have applied: its moments times ``beta ** missed``, and under AdamW its weights times
``(1 - lr * weight_decay) ** missed`` (with the present learning rate). What catch-up does not do is move the weights by
the momentum of the missed steps, as a dense step would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import ops, row_sparse


def row_sparse_gradient(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The strictly increasing rows and the values of a row-sparse gradient; repeated rows are summed.

    Args:
        gradient: sparse COO with one sparse dimension.
    """
    if gradient.layout is not torch.sparse_coo or gradient.sparse_dim() != 1:
        raise RuntimeError(
            f"a gradient has layout {gradient.layout} with {gradient.sparse_dim()} sparse dimensions; "
            "wanted a dense tensor or a sparse COO tensor with one sparse dimension"
        )
    rows, values = gradient._indices()[0].contiguous(), gradient._values().contiguous()
    if len(rows) > 1 and not bool((rows[1:] > rows[:-1]).all()):
        rows, values = ops.coalesce_rows(rows, values)
    return rows, values


class _RowSparseMixin:
    """Splits a step into PyTorch's, for dense gradients, and our own, for row-sparse ones."""

    param_groups: list[dict[str, Any]]
    state: Any
    _unsupported: tuple[str, ...] = ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)  # type: ignore[misc]
        for parameter in self.param_groups[-1]["params"]:
            row_sparse.mark(parameter, self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        for group in self.param_groups:
            for parameter in group["params"]:
                row_sparse.mark(parameter, self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, if given, is called first and its result returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = [
            (group, parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.layout is not torch.strided
        ]
        self._check(sparse)
        # PyTorch's step refuses sparse gradients and passes over parameters without one.
        for _, parameter, _ in sparse:
            parameter.grad = None
        try:
            super().step()  # type: ignore[misc]
        finally:
            for _, parameter, gradient in sparse:
                parameter.grad = gradient
        for group, parameter, gradient in sparse:
            rows, values = row_sparse_gradient(gradient)
            version = parameter._version
            self._step_rows(group, parameter, rows, values)
            row_sparse.record_update(parameter, rows, version)
        return loss

    def _check(self, sparse: list[tuple[dict[str, Any], Tensor, Tensor]]) -> None:
        for group, parameter, _ in sparse:
            for option in self._unsupported:
                if group.get(option):
                    raise RuntimeError(
                        f"{type(self).__name__}: {option}=True does not work with row-sparse gradients; "
                        "leave it off or use the torch.optim optimizer, which gets dense gradients"
                    )
            if not parameter.is_contiguous():
                raise RuntimeError("a parameter with a row-sparse gradient is not contiguous; wanted a contiguous one")

    def _step_rows(self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor) -> None:
        raise NotImplementedError


def _flatten(parameters: Any) -> tuple[list[Any], Iterator[Tensor]]:
    """The parameters as a list that can be read again, and the tensors in it."""
    listed = list(parameters)
    tensors = (
        tensor[1] if isinstance(tensor, tuple) else tensor
        for entry in listed
        for tensor in (list(entry["params"]) if isinstance(entry, dict) else [entry])
        if not isinstance(entry, dict) or not isinstance(entry["params"], Iterator)
    )
    return listed, tensors


def _fused_by_default(parameters: Any, options: dict[str, Any]) -> Any:
    """Chooses PyTorch's fused dense step where the caller left the choice and it can run."""
    listed, tensors = _flatten(parameters)
    if all(options.get(name) is None for name in ("fused", "foreach")) and not options.get("differentiable"):
        # A group whose params are a one-shot iterator cannot be looked into without using it up.
        peekable = all(not isinstance(entry, dict) or not isinstance(entry["params"], Iterator) for entry in listed)
        if peekable and all(
            isinstance(t, Tensor) and t.device.type == "cpu" and t.is_floating_point() for t in tensors
        ):
            options["fused"] = True
    return listed


class _AdamRows(_RowSparseMixin):
    _unsupported = ("amsgrad", "capturable", "differentiable")
    _decoupled = False

    def _step_rows(self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor) -> None:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        if "exp_avg" not in state:
            # zeros: pages of rows that are never touched are never given to the process
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        state["step"] += 1
        step = int(state["step"])
        beta1, beta2 = (float(beta) for beta in group["betas"])
        lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
        decoupled = bool(group.get("decoupled_weight_decay", self._decoupled))
        decays = None
        if group.get("catch_up"):
            if "last_step" not in state:
                state["last_step"] = torch.full((len(parameter),), step - 1, dtype=torch.int32)
            missed = (step - 1 - state["last_step"][rows]).double()
            shrink = 1 - lr * weight_decay if decoupled else 1.0
            decays = torch.stack([factor**missed for factor in (beta1, beta2, shrink)], 1)
            state["last_step"][rows] = step
        ops.row_sparse_adam_(
            parameter,
            state["exp_avg"],
            state["exp_avg_sq"],
            rows,
            values,
            decays,
            lr,
            beta1,
            beta2,
            float(group["eps"]),
            weight_decay,
            1 - beta1**step,
            1 - beta2**step,
            decoupled,
            bool(group["maximize"]),
        )

    def _dense_step_done(self, parameter: Tensor) -> None:
        """A dense step leaves no row behind."""
        state = self.state[parameter]
        if "last_step" in state:
            state["last_step"].fill_(int(state["step"]))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            if group.get("catch_up"):
                for parameter in group["params"]:
                    if parameter.grad is not None and parameter.grad.layout is torch.strided:
                        self._dense_step_done(parameter)
        return loss


class Adam(_AdamRows, torch.optim.Adam):
    """:class:`torch.optim.Adam` that also takes row-sparse gradients (lazily, see the module's text).

    Args:
        params, lr, betas, eps, weight_decay, ...: as in :class:`torch.optim.Adam`; dense steps are fused by default.
        catch_up: decay the moments of a row for the steps that it missed when it is touched again.

    >>> layer = torch.nn.Linear(4, 3)
    >>> optimizer = Adam(layer.parameters(), lr=1e-3)
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, *args: Any, catch_up: bool = False, **kwargs: Any):
        params = _fused_by_default(params, kwargs)
        super().__init__(params, lr, *args, **kwargs)
        self.defaults["catch_up"] = catch_up
        for group in self.param_groups:
            group.setdefault("catch_up", catch_up)


class AdamW(_AdamRows, torch.optim.AdamW):
    """:class:`torch.optim.AdamW` that also takes row-sparse gradients (lazily, see the module's text).

    Args:
        params, lr, betas, eps, weight_decay, ...: as in :class:`torch.optim.AdamW`; dense steps are fused by default.
        catch_up: decay the moments and weights of a row for the steps that it missed when it is touched again.
    """

    _decoupled = True

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, *args: Any, catch_up: bool = False, **kwargs: Any):
        params = _fused_by_default(params, kwargs)
        super().__init__(params, lr, *args, **kwargs)
        self.defaults["catch_up"] = catch_up
        for group in self.param_groups:
            group.setdefault("catch_up", catch_up)


class SGD(_RowSparseMixin, torch.optim.SGD):
    """:class:`torch.optim.SGD` that also takes row-sparse gradients: momentum and decay act on touched rows.

    Args:
        params, lr, momentum, ...: as in :class:`torch.optim.SGD`; dense steps are fused by default.
    """

    _unsupported = ("differentiable",)

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, *args: Any, **kwargs: Any) -> None:
        params = _fused_by_default(params, kwargs)
        super().__init__(params, lr, *args, **kwargs)

    def _step_rows(self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor) -> None:
        state = self.state[parameter]
        buffer, dampening = state.get("momentum_buffer"), float(group["dampening"])
        if group["momentum"] != 0 and buffer is None:
            buffer = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["momentum_buffer"] = buffer
            dampening = 0.0  # as in PyTorch, the first gradient enters whole
        ops.row_sparse_sgd_(
            parameter,
            buffer,
            rows,
            values,
            float(group["lr"]),
            float(group["momentum"]),
            dampening,
            float(group["weight_decay"]),
            bool(group["nesterov"]),
            bool(group["maximize"]),
        )


class Adagrad(_RowSparseMixin, torch.optim.Adagrad):
    """:class:`torch.optim.Adagrad` that also takes row-sparse gradients, with ``weight_decay`` on touched rows.

    Args:
        params, lr, lr_decay, ...: as in :class:`torch.optim.Adagrad`; dense steps are fused by default.
    """

    _unsupported = ("differentiable",)

    def __init__(self, params: Any, lr: float | Tensor = 1e-2, *args: Any, **kwargs: Any) -> None:
        params = _fused_by_default(params, kwargs)
        super().__init__(params, lr, *args, **kwargs)

    def _step_rows(self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor) -> None:
        state = self.state[parameter]
        state["step"] += 1
        lr = float(group["lr"]) / (1 + (float(state["step"]) - 1) * float(group["lr_decay"]))
        ops.row_sparse_adagrad_(
            parameter,
            state["sum"],
            rows,
            values,
            lr,
            float(group["eps"]),
            float(group["weight_decay"]),
            bool(group["maximize"]),
        )
