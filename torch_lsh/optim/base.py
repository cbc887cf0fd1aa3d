"""What all optimizers of this library share; a subclass adds one update rule."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from .. import ops
from ..row_sparse.parameters import (
    Hardest,
    Placement,
    Reporter,
    in_data_parallel,
    mark,
    placement_of,
    record_update,
    reporters,
)
from .gradients import as_matrix, rows_and_values, sum_repeated_rows
from .state import check_moment_dtype, has_bfloat16, state_dtype, untouched_zeros

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

Dense = list[tuple[dict[str, Any], list[Tensor]]]  # groups, each with its parameters that have dense gradients
RowUpdate = tuple[dict[str, Any], Tensor, Tensor, Tensor]  # group, parameter, rows, values


class RowSparseOptimizer(torch.optim.Optimizer):
    """Splits a step: dense gradients go to PyTorch's step, row-sparse ones to :meth:`_step_rows`.

    A subclass derives from this class and from the optimizer of :mod:`torch.optim` that it extends, in this order. It
    implements :meth:`_step_rows` and names its state. Where PyTorch has no such optimizer, it overrides
    :meth:`_takes_all_rows` and :meth:`_dense_step` too. Everything that has to survive ``pickle`` and ``state_dict`` is
    in the state and in the parameter groups.

    Args:
        params, args, kwargs: as in the optimizer of :mod:`torch.optim`.
        stochastic_rounding, moment_dtype, in_backward: see :mod:`torch_lsh.optim`.
    """

    _unsupported: tuple[str, ...] = ("differentiable",)  # options that need dense gradients
    _moments: tuple[str, ...]  # names of state of the parameter's shape
    _counters: tuple[str, ...] = ()  # names of state with an int32 per row
    _fuses_shards = False  # whether PyTorch's fused step takes DTensors

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _joined_signature(cls)  # type: ignore[attr-defined]

    def __init__(
        self,
        params: Any,
        *args: Any,
        stochastic_rounding: bool = True,
        moment_dtype: torch.dtype | None = None,
        in_backward: bool = False,
        **kwargs: Any,
    ) -> None:
        check_moment_dtype(moment_dtype)
        self._updated: set[int] = set()  # ids of parameters, in the backward pass since the last step
        self._on_huge_pages: set[int] = set()  # ids, which keep no parameter alive
        super().__init__(params, *args, **kwargs)
        self._add_options(stochastic_rounding=stochastic_rounding, moment_dtype=moment_dtype, in_backward=in_backward)

    def _add_options(self, **options: Any) -> None:
        """Adds options that PyTorch's constructor does not know to the defaults and to all groups."""
        self.defaults.update(options)
        for group in self.param_groups:
            for name, value in options.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in PyTorch."""
        check_moment_dtype(param_group.get("moment_dtype"))
        super().add_param_group(param_group)
        self._mark(self.param_groups[-1])

    def _mark(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if self._takes_rows(group, parameter):
                mark(parameter, self)

    def _takes_rows(self, group: dict[str, Any], parameter: Tensor) -> bool:
        """Whether :meth:`_step_rows` can update ``parameter``."""
        if any(map(group.get, self._unsupported)):
            return False
        return parameter.dtype in _DTYPES and parameter.is_cpu and parameter.dim() > 0 and parameter.is_contiguous()

    def _chosen_unsupported(self, group: dict[str, Any]) -> str | None:
        """The first option in use that needs dense gradients."""
        return next(filter(group.get, self._unsupported), None)

    # --- state ---

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._on_huge_pages = set()  # the state is another now
        self.__dict__.setdefault("_updated", set())  # pickles hold neither, as they hold no gradients
        for group in self.param_groups:
            self._mark(group)

    def state_dict(self) -> dict[str, Any]:
        """As in PyTorch; a ``DTensor`` for each state of a parameter of which every process has some rows."""
        state_dict = super().state_dict()
        return {**state_dict, "state": self._placed(state_dict, lambda placement, value: placement.place(value))}

    def _placed(
        self, state_dict: dict[str, Any], convert: Callable[[Placement, Tensor], Tensor]
    ) -> dict[Any, dict[str, Any]]:
        """The ``"state"`` of a state_dict with all state of rows converted, where processes share the rows out."""
        states = dict(state_dict["state"])
        for group, saved in zip(self.param_groups, state_dict["param_groups"]):
            for parameter, number in zip(group["params"], saved["params"]):
                placement = placement_of(parameter)
                if placement is not None and number in states:
                    states[number] = {
                        name: convert(placement, value) if isinstance(value, Tensor) and value.dim() > 0 else value
                        for name, value in states[number].items()
                    }
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in PyTorch; also takes the state of the :mod:`torch.optim` optimizer of the same name."""
        state_dict = {**state_dict, "state": self._placed(state_dict, lambda rows, value: rows.local(value))}
        loaded: dict[str, Any] = {}
        options = [dict(group) for group in self.param_groups]
        # This hook runs after the caller's, so it sees what is really loaded.
        hook = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for group, saved, before in zip(self.param_groups, loaded["param_groups"], options):
            for option in before.keys() - group.keys():  # an optimizer of torch.optim does not know our options
                group[option] = before[option]
            for parameter, number in zip(group["params"], saved["params"]):
                # PyTorch casts all state to the dtype of the parameter.
                for name, value in loaded["state"].get(number, {}).items():
                    if name in self._counters:
                        self.state[parameter][name] = value.to(torch.int32)
                    elif name in self._moments and value is not None and self._takes_rows(group, parameter):
                        self.state[parameter][name] = value.to(state_dtype(group, parameter))

    def _moment(
        self, group: dict[str, Any], parameter: Tensor, state: dict[str, Any], name: str, fill: float = 0.0
    ) -> Tensor:
        """State of the parameter's shape as a matrix, allocated at its first use and filled with ``fill``."""
        dtype = state_dtype(group, parameter)
        moment = state.get(name)
        if moment is None:
            moment = untouched_zeros(parameter, dtype)
            if fill != 0.0:
                moment.fill_(fill)
            state[name] = moment
        elif moment.dtype is not dtype or not moment.is_contiguous():
            state[name] = moment = moment.to(dtype).contiguous()
        return as_matrix(moment) if moment.dim() > 2 else moment

    def _count_step(self, state: dict[str, Any]) -> int:
        """Counts a step of the parameter with this state; the first is 1."""
        count = state.get("step")
        if count is None:
            count = state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
        step = int(count.item()) + 1
        count.fill_(step)
        return step

    def _rounds(self, group: dict[str, Any], parameter: Tensor) -> bool:
        """Whether a step rounds stochastically, for which the operators take the number of the step; -1 to nearest."""
        return bool(group.get("stochastic_rounding")) and has_bfloat16(group, parameter)

    def _to_huge_pages(self, parameter: Tensor) -> None:
        """Moves a parameter, and state that was loaded, before this optimizer's first step on some of its rows."""
        self._on_huge_pages.add(id(parameter))
        for tensor in (parameter, *self.state[parameter].values()):
            if isinstance(tensor, Tensor):
                ops.prefer_huge_pages(tensor, move=True)

    # --- steps ---

    @staticmethod
    def profile_hook_step(step: Callable[..., Any]) -> Callable[..., Any]:
        """Runs the hooks of a ``step``, as in PyTorch, which wraps every ``step`` in this.

        PyTorch also labels the step for its profiler. That takes longer than the hooks, so it is done only while a
        profiler runs.
        """
        labelled = torch.optim.Optimizer.profile_hook_step(step)

        @functools.wraps(step)
        def hooked(self: RowSparseOptimizer, *arguments: Any, **named: Any) -> Any:
            if torch.compiler.is_dynamo_compiling():
                return outside_of_graphs(self, *arguments, **named)
            if torch.autograd._profiler_enabled():
                return labelled(self, *arguments, **named)
            passed: tuple[Any, ...] = (self, *arguments)
            for before in (*_global_optimizer_pre_hooks.values(), *self._optimizer_step_pre_hooks.values()):
                changed = before(self, passed, named)
                if isinstance(changed, tuple) and len(changed) == 2:
                    passed, named = changed
                elif changed is not None:
                    raise RuntimeError(f"a hook before step() returned {changed!r}; wanted None or (args, kwargs)")
            result = step(*passed, **named)
            for after in (*self._optimizer_step_post_hooks.values(), *_global_optimizer_post_hooks.values()):
                after(self, passed, named)
            return result

        outside_of_graphs = torch.compiler.disable(hooked, reason="a row-sparse step reads numbers of its state")
        return hooked

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; calls ``closure`` first, if given, and returns its result.

        Raises:
            RuntimeError: a parameter has a row-sparse gradient and no row-sparse update.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        dense, row_sparse = self._split()
        if dense:
            self._dense_step(dense, [parameter for _, parameter, _, _ in row_sparse])
        if row_sparse:
            with torch.no_grad():
                self._update_all(row_sparse)
        self._updated.clear()
        return loss

    def _split(self) -> tuple[Dense, list[RowUpdate]]:
        """The gradients of this step, by who takes them. Raises before anything moves."""
        dense: Dense = []
        row_sparse: list[RowUpdate] = []
        known: Tensor | None = None
        for group in self.param_groups:
            members = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if self._updated:
                    self._check_accumulates(parameter)
                if parameter.grad.layout is not torch.strided:
                    if not self._takes_rows(group, parameter):
                        self._refuse_rows(group, parameter)
                    known, values = rows_and_values(parameter.grad, known)
                    row_sparse.append((group, parameter, known, values))
                elif self._takes_all_rows(group, parameter):
                    row_sparse.append(
                        (group, parameter, torch.arange(len(parameter), device="cpu"), parameter.grad.contiguous())
                    )
                else:
                    members.append(parameter)
                    if group["lr"] != 0:  # with 0, torch.distributed.checkpoint makes state
                        for reporter in reporters(parameter):
                            self._report(reporter, group, parameter)
            if members:
                dense.append((group, members))
        return dense, row_sparse

    def _report(self, reporter: Reporter, group: dict[str, Any], parameter: Tensor) -> None:
        """Tells why the gradient of a layer that is trained by samples is dense."""
        chosen = self._chosen_unsupported(group)
        if chosen is not None:
            reporter.updated_densely("options", what=f"{type(self).__name__}({chosen}=True)")
        elif in_data_parallel(parameter):
            reporter.updated_densely("data_parallel")
        else:
            reporter.updated_densely("weight")

    def _takes_all_rows(self, group: dict[str, Any], parameter: Tensor) -> bool:
        """Whether :meth:`_step_rows` takes dense gradients: PyTorch's steps want state of the parameter's dtype."""
        return has_bfloat16(group, parameter) and self._takes_rows(group, parameter)

    def _refuse_rows(self, group: dict[str, Any], parameter: Tensor) -> None:
        option = self._chosen_unsupported(group)
        if option is not None:
            raise RuntimeError(
                f"{type(self).__name__}: {option}=True does not work with row-sparse gradients; "
                "leave it off, or have the layer produce dense ones"
            )
        raise RuntimeError(
            f"a parameter with a row-sparse gradient is {parameter.dtype} of strides {parameter.stride()} on "
            f"{parameter.device}; wanted a contiguous float32, float64 or bfloat16 tensor on the CPU"
        )

    def _update_all(self, row_sparse: list[RowUpdate]) -> None:
        for group, parameter, rows, values in row_sparse:
            self._update(group, parameter, rows, as_matrix(values))

    def _update(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None = None
    ) -> None:
        if id(parameter) not in self._on_huge_pages:
            self._to_huge_pages(parameter)
        version = parameter._version
        self._step_rows(group, parameter, rows, values, factor)
        record_update(rows, (parameter, version))

    def _step_rows(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None
    ) -> None:
        """The update rule of a subclass.

        Args:
            group: the options.
            parameter: what to update.
            rows: ``[A]`` int64, strictly increasing.
            values: gradient of the rows, ``[A]`` or ``[A, width]``; or, with ``factor``, ``[A, K]``.
            factor: ``[K, width]`` or None. The gradient is then ``values @ factor``.
        """
        raise NotImplementedError

    def _dense_step(self, dense: Dense, hidden: list[Tensor]) -> None:
        """PyTorch's step; it would refuse the sparse gradients of ``hidden`` and skips parameters without one."""
        gradients = [parameter.grad for parameter in hidden]
        fused = [group for group, members in dense if self._can_fuse(group, members)]
        # Unwrapped, because the wrapper runs the step's hooks, and that of our own step has run them.
        step = inspect.unwrap(super().step.__func__)  # type: ignore[attr-defined]
        try:
            for parameter in hidden:
                parameter.grad = None
            for group in fused:
                group["fused"] = True
            with torch.set_grad_enabled(self.defaults["differentiable"]):
                step(self)
        finally:
            # PyTorch's fused steps on CPUs leave the versions of the parameters as they are.
            for group, members in dense:
                if group.get("fused"):
                    torch.autograd.graph.increment_version(members)
            for group in fused:
                group["fused"] = None
            for parameter, gradient in zip(hidden, gradients):
                parameter.grad = gradient

    def _can_fuse(self, group: dict[str, Any], members: list[Tensor]) -> bool:
        """Whether PyTorch's fused step may be chosen; it ignores strides, so everything has to be contiguous."""
        return (
            group.get("fused") is None
            and (self._fuses_shards or not any(hasattr(parameter, "placements") for parameter in members))
            and group.get("foreach") is None
            and not group.get("capturable")
            and not group["differentiable"]
            and all(
                parameter.device.type == "cpu"
                and parameter.is_floating_point()
                and parameter.is_contiguous()
                and parameter.grad is not None
                and parameter.grad.is_contiguous()
                and parameter.grad.dtype is parameter.dtype
                and all(
                    value.is_contiguous() and value.dtype is parameter.dtype
                    for name, value in self.state.get(parameter, {}).items()
                    if name in self._moments and value is not None
                )
                for parameter in members
            )
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in PyTorch, without the call of the profiler, which takes longer than the rest."""
        if set_to_none:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            super().zero_grad(set_to_none)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """PyTorch's GradScaler leaves unscaling to a fused step; the row-sparse part needs unscaled gradients."""
        if any(group.get("in_backward") for group in self.param_groups):
            raise RuntimeError("in_backward=True updates rows with scaled gradients; leave it off to use a GradScaler")
        return False

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        pass  # PyTorch sets it where fused=True

    # --- updates in the backward pass ---

    def updates_in_backward(self, parameter: Tensor) -> bool:
        """Whether backward passes should call :meth:`update_in_backward` for ``parameter``."""
        for group in self.param_groups:  # every step asks, so this does not call _group_in_backward
            if group.get("in_backward"):
                for member in group["params"]:
                    if member is parameter:
                        return self._takes_rows(group, parameter)
        return False

    def update_in_backward(
        self, parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None = None, unique: bool = False
    ) -> None:
        """One step on ``rows``; backward passes of layers call this.

        Args:
            parameter: one of this optimizer's.
            rows: ``[A]`` int64. They may repeat, unless there is a ``factor``.
            values: gradient of the rows, ``[A, ...]``; or, with ``factor``, ``[A, K]``.
            factor: ``[K, width]`` or None. The gradient is then ``values @ factor``.
            unique: states that ``rows`` are strictly increasing.

        Raises:
            RuntimeError: the parameter was updated already since the last :meth:`step`.
        """
        if torch.is_grad_enabled():  # seldom; entering a context takes longer than asking
            with torch.no_grad():
                self.update_in_backward(parameter, rows, values, factor, unique)
            return
        self._check_accumulates(parameter)
        group = self._group_in_backward(parameter)
        assert group is not None
        if factor is None:
            if not unique:
                rows, values = sum_repeated_rows(rows.contiguous(), values.contiguous(), parameter.shape[0])
            values = as_matrix(values)
        self._update(group, parameter, rows, values, factor)
        self._updated.add(id(parameter))

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
        """One step on active rows in one operator with :func:`torch_lsh.ops.linear_softmax_loss_backward`.

        Args:
            weight, bias: parameters of this optimizer that :meth:`updates_in_backward` named.
            slopes, factors, x, rows, grad: as in that operator.
            hardest: asks for the hardest rows.

        Returns:
            The gradient of ``x``; None: this takes :meth:`update_in_backward`, and nothing was changed.

        Raises:
            RuntimeError: a parameter was updated already since the last :meth:`step`.
        """
        return None

    def _group_in_backward(self, *parameters: Tensor) -> dict[str, Any] | None:
        """The one group of parameters, if it is updated in the backward pass; plain loops, as every step calls this."""
        for group in self.param_groups:
            if group.get("in_backward"):
                missing = len(parameters)
                for member in group["params"]:
                    for parameter in parameters:
                        missing -= member is parameter
                if missing == 0:
                    return group
        return None

    def _check_accumulates(self, *parameters: Tensor) -> None:
        for parameter in parameters:
            if id(parameter) in self._updated:
                raise RuntimeError(
                    f"a parameter of shape {tuple(parameter.shape)} got a second gradient since the last step(), but "
                    "its rows were updated with the first one; call step() after every backward(), or leave "
                    "in_backward off where gradients accumulate or a model uses a weight twice, as a tied one"
                )


def _joined_signature(cls: type) -> inspect.Signature:
    """The arguments of all constructors of a class, each of which hands those that it does not know to the next."""
    found: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner) or owner in (torch.optim.Optimizer, object):
            continue
        _, *parameters = inspect.signature(vars(owner)["__init__"]).parameters.values()
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return inspect.Signature(sorted(found.values(), key=lambda parameter: parameter.kind))
