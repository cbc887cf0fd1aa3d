"""Optimizers that take dense and row-sparse parameters in one list.

Subclasses of those in :mod:`torch.optim`, with the same arguments and state, so a ``state_dict`` goes either way. Being
given to one of them marks a parameter (:mod:`torch_lsh.row_sparse`): layers of this library then produce row-sparse
gradients for it, and a step reads and writes only the rows of the gradient. Dense gradients go to PyTorch's own step,
fused where the caller left the choice and it can run. A parameter may change between the two from step to step.

Lazy semantics: a row without a gradient does not move and its moments do not decay, as in
:class:`torch.optim.SparseAdam`; bias corrections use the parameter's step count, and weight decay acts on a row when it
is touched. With ``catch_up=True`` (:class:`Adam`, :class:`AdamW`) a row that is touched again first gets the decay that
the missed steps would have applied: its moments times ``beta ** missed``, and under AdamW its weights times
``(1 - lr * weight_decay) ** missed`` (with the present learning rate). What catch-up does not do is move the weights by
the momentum of the missed steps, as a dense step would have, or apply the L2 penalty of those steps.

Heads of language models: rows of rare words step in few batches, where a dense optimizer steps in all, so the learning
rate of a dense Adam is not that of a lazy one. On a tenth of wikitext-2 the lazy one did better at 3e-2 than at 1e-2,
and there with ``catch_up=True``; :class:`Adagrad` did as well at 0.05 as at 0.1. (``benchmarks/language_model.py``)

bfloat16 parameters have float32 state by default, for dense gradients too, and arithmetic in float32. Numbers are
rounded to bfloat16 at random, up or down with the probabilities that make the result right on average: rounded to
nearest, a weight would not notice steps smaller than 1/256 of itself. (``stochastic_rounding=False`` does that, as
PyTorch does; the random numbers are a function of step, row and column, so results repeat.) With
``moment_dtype=torch.bfloat16`` the state of bfloat16 and float32 parameters takes 2 bytes, and is rounded likewise.

With ``in_backward=True`` the rows of a row-sparse gradient are updated as soon as the backward pass knows it: no
gradient is stored, and for the rows of an :class:`torch_lsh.LSHLinear` it is not even made as a whole. ``step()`` then
updates what has a dense gradient, and ends the step: a second gradient for the same parameter before it is an error,
because there is nothing left that it could be added to. Gradients cannot be clipped or looked at in this mode.

Gradients that repeat rows (accumulated over several backward passes) are summed first. What has no row-sparse form
(``amsgrad``, ``capturable``, ``differentiable``, parameters that are not contiguous CPU tensors of a supported dtype)
is not marked, so it gets dense gradients and works as in PyTorch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..row_sparse import parameters as row_sparse

if TYPE_CHECKING:
    _Base = torch.optim.Optimizer
else:
    _Base = object

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def row_sparse_gradient(gradient: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The strictly increasing rows and the values of a row-sparse gradient; repeated rows are summed.

    Args:
        gradient: sparse COO with one sparse dimension.
        known: rows that this has returned for another gradient, which may be of the same rows.

    Raises:
        RuntimeError: ``gradient`` is not of that form, or a row is out of range (of a coalesced gradient, the operators
            check that).
    """
    if gradient.layout is not torch.sparse_coo or gradient.sparse_dim() != 1:
        form = f"{gradient.sparse_dim()} sparse dimensions" if gradient.layout is torch.sparse_coo else "no rows"
        raise RuntimeError(
            f"a gradient has layout {gradient.layout} with {form}; "
            "wanted a dense tensor or a sparse COO tensor with one sparse dimension"
        )
    rows, values = gradient._indices()[0].contiguous(), gradient._values().contiguous()
    if gradient.is_coalesced():
        return rows, values
    if known is not None and known.data_ptr() == rows.data_ptr() and known.shape == rows.shape:
        return known, values
    if ops.is_increasing(rows, below=gradient.shape[0]):
        return rows, values
    if not ops.is_increasing(rows):
        width = values.shape[1:]
        rows, values = ops.coalesce_rows(rows, values.flatten(1) if len(width) > 1 else values)
        values = values.unflatten(1, width) if len(width) > 1 else values
    if not 0 <= int(rows[0]) <= int(rows[-1]) < gradient.shape[0]:
        raise RuntimeError(
            f"a row-sparse gradient has rows {int(rows[0])} to {int(rows[-1])}; wanted 0 to {gradient.shape[0] - 1}"
        )
    return rows, values


def _zeros(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous zeros for the state of ``parameter``, aligned to cache lines.

    Unlike ``torch.zeros`` this writes nothing: memory of rows that are never touched is never given to the process.
    """
    size = parameter.numel() * dtype.itemsize
    memory = np.zeros(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    zeros = torch.from_numpy(memory[start : start + size]).view(dtype).view(parameter.shape)
    ops.prefer_huge_pages(zeros)
    return zeros


def _state_dtype(group: dict[str, Any], parameter: Tensor) -> torch.dtype:
    if parameter.dtype is torch.float64:
        return torch.float64
    dtype: torch.dtype | None = group.get("moment_dtype")
    return torch.float32 if dtype is None else dtype


def _by_rows(tensor: Tensor) -> Tensor:
    """``tensor`` as the one or two dimensions that the operators take; shares memory and version."""
    return tensor.flatten(1) if tensor.dim() > 2 else tensor


class _RowSparseMixin(_Base):
    """Splits a step into PyTorch's, for dense gradients, and our own, for row-sparse ones.

    Everything that has to survive ``pickle`` and ``state_dict`` is in the state and in the parameter groups.
    """

    _unsupported: tuple[str, ...] = ("differentiable",)
    _moments: tuple[str, ...]  # state of the parameter's shape

    def _takes_rows(self, group: dict[str, Any], parameter: Tensor) -> bool:
        return (
            parameter.dtype in _DTYPES
            and parameter.device.type == "cpu"
            and parameter.dim() > 0
            and parameter.is_contiguous()
            and not any(group.get(option) for option in self._unsupported)
        )

    def _mark(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if self._takes_rows(group, parameter):
                row_sparse.mark(parameter, self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _check_moment_dtype(param_group.get("moment_dtype"))
        super().add_param_group(param_group)
        self._mark(self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.pop("_on_huge_pages", None)  # the state is another now
        for group in self.param_groups:
            self._mark(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in PyTorch; takes the state of the :mod:`torch.optim` optimizer of the same name, too."""
        loaded: dict[str, Any] = {}
        options = [dict(group) for group in self.param_groups]
        # Runs after hooks of the caller's, so it sees what is really loaded.
        hook = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for group, saved, before in zip(self.param_groups, loaded["param_groups"], options):
            for option in before.keys() - group.keys():  # what a torch.optim optimizer does not know
                group[option] = before[option]
            for parameter, number in zip(group["params"], saved["params"]):
                # PyTorch has cast all state to the dtype of the parameter.
                for name, value in loaded["state"].get(number, {}).items():
                    if name == "last_step":
                        self.state[parameter][name] = value.to(torch.int32)
                    elif name in self._moments and value is not None and self._takes_rows(group, parameter):
                        self.state[parameter][name] = value.to(_state_dtype(group, parameter))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, if given, is called first and its result returned.

        Raises:
            RuntimeError: a row-sparse gradient came for a parameter that has no row-sparse update.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own, others = [], []
        known: Tensor | None = None
        for group in self.param_groups:
            dense = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                self._check_accumulates(parameter)
                if parameter.grad.layout is not torch.strided:
                    if not self._takes_rows(group, parameter):
                        self._refuse(group, parameter)
                    known, values = row_sparse_gradient(parameter.grad, known)
                    own.append((group, parameter, known, values))
                elif self._has_own_state(group, parameter) and self._takes_rows(group, parameter):
                    own.append((group, parameter, torch.arange(len(parameter)), parameter.grad.contiguous()))
                else:
                    dense.append(parameter)
            if dense:
                others.append((group, dense))
        if others:
            self._dense_step(others, [parameter for _, parameter, _, _ in own])
        with torch.no_grad():
            for group, parameter, rows, values in own:
                self._to_huge_pages(parameter)
                version = parameter._version
                self._step_rows(group, parameter, rows, _by_rows(values))
                row_sparse.record_update(parameter, rows, version)
        self._updated.clear()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in PyTorch, which takes longer to tell its profiler than to do it."""
        if set_to_none:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            super().zero_grad(set_to_none)

    def _to_huge_pages(self, parameter: Tensor) -> None:
        """Before this optimizer's first step on some rows of a parameter: moves it, and state that was loaded."""
        # Numbers, which keep no parameter alive that is taken from the groups. Not a part of pickles.
        moved: set[int] = self.__dict__.setdefault("_on_huge_pages", set())
        if id(parameter) not in moved:
            moved.add(id(parameter))
            for tensor in (parameter, *self.state[parameter].values()):
                if isinstance(tensor, Tensor):
                    ops.prefer_huge_pages(tensor, move=True)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """torch.amp.GradScaler would leave unscaling to a fused step; the row-sparse part wants unscaled gradients."""
        if any(group.get("in_backward") for group in self.param_groups):
            raise RuntimeError("in_backward=True updates rows with scaled gradients; leave it off to use a GradScaler")
        return False

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        pass  # set by PyTorch where fused=True

    # --- updates in the backward pass ---

    @property
    def _updated(self) -> set[Tensor]:
        """Parameters that were updated since the last step. Not a part of pickles, like gradients."""
        updated: set[Tensor] = self.__dict__.setdefault("_updated_in_backward", set())
        return updated

    def _check_accumulates(self, parameter: Tensor) -> None:
        if parameter in self._updated:
            raise RuntimeError(
                f"a parameter of shape {tuple(parameter.shape)} got a second gradient since the last step(), but "
                "its rows were updated with the first one; with in_backward=True call step() after every backward(), "
                "or leave it off"
            )

    def _group_of(self, parameter: Tensor) -> dict[str, Any] | None:
        return next((group for group in self.param_groups if any(parameter is one for one in group["params"])), None)

    def updates_in_backward(self, parameter: Tensor) -> bool:
        if not any(group.get("in_backward") for group in self.param_groups):
            return False
        group = self._group_of(parameter)
        return group is not None and bool(group.get("in_backward")) and self._takes_rows(group, parameter)

    @torch.no_grad()
    def update_in_backward(self, parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None = None) -> None:
        """One step on ``rows``; for the backward passes of layers.

        Args:
            parameter: one of this optimizer's.
            rows: ``[A]`` int64; may repeat unless there is a ``factor``.
            values: gradient of the rows ``[A, ...]``; or ``[A, K]``, the gradient being ``values @ factor``.
            factor: ``[K, width]`` or None.

        Raises:
            RuntimeError: the parameter was updated already and :meth:`step` was not called since.
        """
        self._check_accumulates(parameter)
        group = self._group_of(parameter)
        assert group is not None
        if factor is None:
            gradient = torch.sparse_coo_tensor(rows.unsqueeze(0), values, parameter.shape, check_invariants=False)
            rows, values = row_sparse_gradient(gradient)
            values = _by_rows(values)
        self._to_huge_pages(parameter)
        version = parameter._version
        self._step_rows(group, parameter, rows, values, factor)
        row_sparse.record_update(parameter, rows, version)
        self._updated.add(parameter)

    def _refuse(self, group: dict[str, Any], parameter: Tensor) -> None:
        for option in self._unsupported:
            if group.get(option):
                raise RuntimeError(
                    f"{type(self).__name__}: {option}=True does not work with row-sparse gradients; "
                    "leave it off, or have the layer produce dense ones"
                )
        raise RuntimeError(
            f"a parameter with a row-sparse gradient is {parameter.dtype} of strides {parameter.stride()} on "
            f"{parameter.device}; wanted a contiguous float32, float64 or bfloat16 tensor on the CPU"
        )

    def _dense_step(self, groups: list[tuple[dict[str, Any], list[Tensor]]], hidden: list[Tensor]) -> None:
        # PyTorch's step refuses sparse gradients and passes over parameters without one.
        gradients = [parameter.grad for parameter in hidden]
        fused = [group for group, dense in groups if self._can_fuse(group, dense)]
        # Without the wrapper that runs hooks: this step's own wrapper runs them.
        step = inspect.unwrap(super().step.__func__)  # type: ignore[attr-defined]
        try:
            for parameter in hidden:
                parameter.grad = None
            for group in fused:
                group["fused"] = True
            with torch.set_grad_enabled(self.defaults["differentiable"]):
                step(self)
            # PyTorch's fused steps on CPUs do not raise the versions of the parameters that they change.
            for group, dense in groups:
                if group.get("fused"):
                    torch.autograd.graph.increment_version(dense)
        finally:
            for group in fused:
                group["fused"] = None
            for parameter, gradient in zip(hidden, gradients):
                parameter.grad = gradient

    def _can_fuse(self, group: dict[str, Any], dense: list[Tensor]) -> bool:
        """Whether PyTorch's fused step may be chosen: it takes memory as flat, whatever the strides say."""
        return (
            group.get("fused") is None
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
                for parameter in dense
            )
        )

    def _has_own_state(self, group: dict[str, Any], parameter: Tensor) -> bool:
        """Whether the state has another dtype than PyTorch's steps want."""
        return parameter.dtype is torch.bfloat16 or _state_dtype(group, parameter) is not parameter.dtype

    def _moment(self, group: dict[str, Any], parameter: Tensor, name: str, fill: float = 0.0) -> Tensor:
        """State of the parameter's shape, allocated once, as the operators take it."""
        state, dtype = self.state[parameter], _state_dtype(group, parameter)
        moment = state.get(name)
        if moment is None:
            moment = _zeros(parameter, dtype)
            if fill != 0.0:
                moment.fill_(fill)
        elif moment.dtype is not dtype or not moment.is_contiguous():
            moment = moment.to(dtype).contiguous()
        state[name] = moment
        return _by_rows(moment)

    def _count_step(self, parameter: Tensor) -> int:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        step = int(state["step"]) + 1
        state["step"].fill_(step)
        return step

    def _rounding_seed(self, group: dict[str, Any], parameter: Tensor, step: int) -> int:
        return step if group.get("stochastic_rounding") and self._has_own_state(group, parameter) else -1

    def _step_rows(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None = None
    ) -> None:
        """Updates ``rows`` by the gradient ``values``, or ``values @ factor``."""
        raise NotImplementedError


class _AdamRows(_RowSparseMixin):
    _unsupported = ("amsgrad", "capturable", "differentiable")
    _moments = ("exp_avg", "exp_avg_sq")

    def _dense_step(self, groups: list[tuple[dict[str, Any], list[Tensor]]], hidden: list[Tensor]) -> None:
        caught_up = [parameter for _, dense in groups for parameter in dense if "last_step" in self.state[parameter]]
        self._flush(caught_up)
        super()._dense_step(groups, hidden)
        for parameter in caught_up:
            self.state[parameter]["last_step"].fill_(int(self.state[parameter]["step"]))

    def flush(self) -> None:
        """Applies the decay that rows have outstanding under ``catch_up=True``; changes all rows, so it is not cheap.

        For instance before an evaluation, or before the state goes to an optimizer without catch-up.
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
                row_sparse.record_update(parameter, behind, version)

    @staticmethod
    def _decays(group: dict[str, Any], last_step: Tensor, rows: Tensor, step: int) -> Tensor:
        """What the steps up to ``step`` would have decayed in rows without a gradient: ``[A, 3]`` float64."""
        shrink = 1 - float(group["lr"]) * float(group["weight_decay"]) if group["decoupled_weight_decay"] else 1.0
        missed = (step - last_step[rows]).double()
        return torch.stack([factor**missed for factor in (*map(float, group["betas"]), shrink)], 1)

    def _step_rows(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None = None
    ) -> None:
        step = self._count_step(parameter)
        first, second = (self._moment(group, parameter, name) for name in self._moments)
        state = self.state[parameter]
        beta1, beta2 = map(float, group["betas"])
        decays = None
        if group.get("catch_up"):
            if "last_step" not in state:
                state["last_step"] = torch.full((len(parameter),), step - 1, dtype=torch.int32)
            decays = self._decays(group, state["last_step"], rows, step - 1)
        ops.row_sparse_adam_(
            _by_rows(parameter),
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
            self._rounding_seed(group, parameter, step),
        )
        if decays is not None:
            state["last_step"][rows] = step


class Adam(_AdamRows, torch.optim.Adam):
    """:class:`torch.optim.Adam` that also takes row-sparse gradients (lazily, see the module's text).

    Adam: Kingma & Ba 2015.

    Args:
        params, lr, betas, eps, weight_decay, ...: as in :class:`torch.optim.Adam`; dense steps are fused by default.
        catch_up: decay the moments of a row for the steps that it missed when it is touched again. Keeps an int32
            per row.
        stochastic_rounding, moment_dtype, in_backward: see the module's text. All four may be set per group.

    >>> layer = torch.nn.Linear(4, 3)
    >>> optimizer = Adam(layer.parameters(), lr=1e-3)
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *args: Any,
        catch_up: bool = False,
        stochastic_rounding: bool = True,
        moment_dtype: torch.dtype | None = None,
        in_backward: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr, *args, **kwargs)
        _finish(self, stochastic_rounding, moment_dtype, in_backward, catch_up=catch_up)


class AdamW(_AdamRows, torch.optim.AdamW):
    """:class:`torch.optim.AdamW` that also takes row-sparse gradients (lazily, see the module's text).

    AdamW: Loshchilov & Hutter 2019.

    Args:
        params, lr, betas, eps, weight_decay, ...: as in :class:`torch.optim.AdamW`; dense steps are fused by default.
        catch_up: decay the moments and weights of a row for the steps that it missed when it is touched again. Keeps
            an int32 per row.
        stochastic_rounding, moment_dtype, in_backward: see the module's text. All four may be set per group.

    >>> weight = torch.nn.Parameter(torch.zeros(5, 2))
    >>> optimizer = AdamW([weight], lr=0.1)
    >>> weight.grad = torch.sparse_coo_tensor([[3]], torch.ones(1, 2), (5, 2))
    >>> optimizer.step()
    >>> weight.detach()[2:4]
    tensor([[ 0.0000,  0.0000],
            [-0.1000, -0.1000]])
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *args: Any,
        catch_up: bool = False,
        stochastic_rounding: bool = True,
        moment_dtype: torch.dtype | None = None,
        in_backward: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr, *args, **kwargs)
        _finish(self, stochastic_rounding, moment_dtype, in_backward, catch_up=catch_up)


def _check_moment_dtype(moment_dtype: torch.dtype | None) -> None:
    if moment_dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"moment_dtype is {moment_dtype}; wanted torch.float32, torch.bfloat16 or None")


def _finish(
    optimizer: torch.optim.Optimizer,
    stochastic_rounding: bool,
    moment_dtype: torch.dtype | None,
    in_backward: bool,
    **options: Any,
) -> None:
    """What a constructor does after PyTorch's own."""
    _check_moment_dtype(moment_dtype)
    options.update(stochastic_rounding=stochastic_rounding, moment_dtype=moment_dtype, in_backward=in_backward)
    optimizer.defaults.update(options)
    for group in optimizer.param_groups:
        for name, value in options.items():
            group.setdefault(name, value)


class SGD(_RowSparseMixin, torch.optim.SGD):
    """:class:`torch.optim.SGD` that also takes row-sparse gradients: momentum and decay act on touched rows.

    Args:
        params, lr, momentum, ...: as in :class:`torch.optim.SGD`; dense steps are fused by default.
        stochastic_rounding, moment_dtype, in_backward: see the module's text.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimizer = SGD([weight], lr=0.5)
    >>> weight.grad = torch.sparse_coo_tensor([[1, 1]], [1.0, 1.0], (3,))
    >>> optimizer.step()
    >>> weight.detach()
    tensor([ 0., -1.,  0.])
    """

    _moments = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *args: Any,
        stochastic_rounding: bool = True,
        moment_dtype: torch.dtype | None = None,
        in_backward: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr, *args, **kwargs)
        _finish(self, stochastic_rounding, moment_dtype, in_backward)

    def _can_fuse(self, group: dict[str, Any], dense: list[Tensor]) -> bool:
        # PyTorch's fused step takes buffers for all of a group's parameters or for none.
        missing = [self.state.get(parameter, {}).get("momentum_buffer") is None for parameter in dense]
        return super()._can_fuse(group, dense) and (group["momentum"] == 0 or all(missing) or not any(missing))

    def _step_rows(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None = None
    ) -> None:
        buffer, dampening = None, float(group["dampening"])
        if group["momentum"] != 0:
            if self.state[parameter].get("momentum_buffer") is None:
                dampening = 0.0  # as in PyTorch, the first gradient enters whole
            buffer = self._moment(group, parameter, "momentum_buffer")
        ops.row_sparse_sgd_(
            _by_rows(parameter),
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
            -1 if self._rounding_seed(group, parameter, 0) < 0 else self._count_step(parameter),
        )


class Adagrad(_RowSparseMixin, torch.optim.Adagrad):
    """:class:`torch.optim.Adagrad` that also takes row-sparse gradients, with ``weight_decay`` on touched rows.

    Adagrad: Duchi et al. 2011. Its sums do not decay, so without weight decay a row-sparse step is the dense one.

    Args:
        params, lr, lr_decay, ...: as in :class:`torch.optim.Adagrad`; dense steps are fused by default.
        stochastic_rounding, moment_dtype, in_backward: see the module's text.

    >>> weight = torch.nn.Parameter(torch.zeros(3, 1))
    >>> optimizer = Adagrad([weight], lr=0.5)
    >>> weight.grad = torch.sparse_coo_tensor([[1]], [[4.0]], (3, 1))
    >>> optimizer.step()
    >>> weight.detach().T
    tensor([[ 0.0000, -0.5000,  0.0000]])
    """

    _moments = ("sum",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        *args: Any,
        stochastic_rounding: bool = True,
        moment_dtype: torch.dtype | None = None,
        in_backward: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr, *args, **kwargs)
        _finish(self, stochastic_rounding, moment_dtype, in_backward)
        self.state.clear()  # allocated at the first step, as by the other optimizers

    def share_memory(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("step", torch.zeros((), dtype=torch.float32))
                self._sum(group, parameter)
        super().share_memory()

    def _sum(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        return self._moment(group, parameter, "sum", self.defaults["initial_accumulator_value"])

    def _step_rows(
        self, group: dict[str, Any], parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None = None
    ) -> None:
        step = self._count_step(parameter)
        ops.row_sparse_adagrad_(
            _by_rows(parameter),
            self._sum(group, parameter),
            rows,
            values,
            float(group["lr"]) / (1 + (step - 1) * float(group["lr_decay"])),
            float(group["eps"]),
            float(group["weight_decay"]),
            bool(group["maximize"]),
            factor,
            self._rounding_seed(group, parameter, step),
        )
