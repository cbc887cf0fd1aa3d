"""Typed wrappers of the C++ operators: documentation, fake kernels, autograd and autocast.

The operators themselves are ``torch.ops.torch_lsh.*`` (schemas in ``csrc/library.cpp``); their plain-PyTorch twins are
in :mod:`tests/twins.py`. The wrappers check nothing: argument errors come from C++ and name the argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _library  # noqa: F401  (registers torch.ops.torch_lsh)
from ..row_sparse.parameters import updater, wants_row_sparse_and_updater

_ops = torch.ops.torch_lsh


def _fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers what an operator returns for tensors without data, where its arguments are on one device."""

    def register(function: Callable[..., Any]) -> None:
        def checked(*arguments: Any, **named: Any) -> Any:
            tensors = [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
            devices = sorted({str(tensor.device) for tensor in tensors})
            if len(devices) > 1:
                raise RuntimeError(f"torch_lsh::{name}: arguments are on {' and '.join(devices)}; wanted one device")
            return function(*arguments, **named)

        torch.library.register_fake(f"torch_lsh::{name}", checked)

    return register


# --- dispatch -------------------------------------------------------------------------------------------------------


def simd_level() -> str:
    """The instruction set that the kernels run on: ``"avx512_bf16"``, ``"avx512"``, ``"avx2"``, ``"neon"`` or
    ``"scalar"``.

    >>> simd_level() in {"avx512_bf16", "avx512", "avx2", "neon", "scalar"}
    True
    """
    return _ops.simd_level()


def use_simd_level(level: str) -> None:
    """Switches the kernels to another instruction set, for tests and benchmarks; ``""`` goes back to the best one.

    Raises:
        RuntimeError: this CPU does not run ``level``.
    """
    _ops.use_simd_level(level)


# --- rows -----------------------------------------------------------------------------------------------------------


def gather_rows(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``table[rows]`` with software prefetch, optionally converted on the way.

    Differentiable in ``table``: the gradient is row-sparse where :func:`wants_row_sparse` says so,
    else dense. Under CPU autocast the result has the autocast dtype; only the gathered rows are converted.

    Args:
        table: ``[N, width]`` or ``[N]``; float32, float64 or bfloat16, contiguous.
        rows: ``[A]`` int64, each in ``0 .. N - 1``.
        dtype: dtype of the result; default: that of ``table``. float32 and bfloat16 convert into each other.

    Returns:
        ``[A, width]`` or ``[A]``.

    >>> gather_rows(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0]))
    tensor([[3.],
            [1.]])
    """
    return _ops.gather_rows(table, rows, dtype)


@_fake("gather_rows")
def _(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return table.new_empty((rows.shape[0], *table.shape[1:]), dtype=dtype)


def prefer_huge_pages(tensor: Tensor, move: bool = False) -> bool:
    """Asks the system to keep a tensor of which rows are visited at random in huge pages.

    With pages of 4 KiB nearly every row costs a miss in the TLB: the steps of a layer of some hundred MB take a fifth
    longer. A hint: the values stay what they are. It is ignored by systems other than Linux, where
    ``/sys/kernel/mm/transparent_hugepage/enabled`` says ``never``, and for tensors that are smaller than 8 MiB, on
    other devices or not contiguous.

    Args:
        tensor: any.
        move: for memory that has been written: move it there now, which takes some 2 seconds per GB. (Moving in place
            needs Linux 6.1.)

    Returns:
        Whether the system took the hint.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return False
    taken: bool = _ops.prefer_huge_pages(tensor.detach(), move)
    return taken


_fake("prefer_huge_pages")(lambda tensor, move=False: False)


def _check_first_order() -> None:
    """In backward passes whose result would lack a part of the graph: it is to be differentiated no more."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True, but gradients that are computed from a sample of rows cannot be differentiated again; "
            "take the loss of logits.dense(), which can"
        )


class _Destination:
    """Where the gradient of some rows of a parameter goes."""

    def __init__(self, parameter: Tensor) -> None:
        self.shape, self.dtype = parameter.shape, parameter.dtype
        self.row_sparse, taker = wants_row_sparse_and_updater(parameter)
        self.updater = taker if parameter.requires_grad else None
        self.parameter = parameter if self.updater is not None else None

    def deliver(self, rows: Tensor, values: Tensor, unique: bool = False) -> Tensor | None:
        """The gradient of the parameter, or None where an optimizer took it.

        ``rows`` may repeat, unless ``unique`` says that they are strictly increasing.
        """
        if values.dtype is not self.dtype:
            values = values.to(self.dtype)
        if self.updater is not None and self.parameter is not None:
            self.updater.update_in_backward(self.parameter, rows, values)
            return None
        if self.row_sparse:
            return torch.sparse_coo_tensor(
                rows.unsqueeze(0), values, self.shape, is_coalesced=unique, check_invariants=False
            )
        return values.new_zeros(self.shape).index_add_(0, rows, values)


def _gather_rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, rows, _ = inputs
    ctx.save_for_backward(rows)
    ctx.destination = _Destination(table)


def _gather_rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
    (rows,) = ctx.saved_tensors
    return ctx.destination.deliver(rows, grad), None, None


torch.library.register_autograd("torch_lsh::gather_rows", _gather_rows_backward, setup_context=_gather_rows_setup)


def _autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast wants ``tensor`` in when that differs from its own, else None."""
    if tensor.dtype is torch.float32 and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return None


# Autocast is registered by hand because the ready-made rule would convert the whole table at every step.
_autocast = torch.library.Library("torch_lsh", "IMPL", "AutocastCPU")


def _without_autocast(op: Any, *arguments: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
        return op(*arguments)


def _gather_rows_autocast(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return _without_autocast(_ops.gather_rows, table, rows, dtype or _autocast_dtype(table))


_autocast.impl("gather_rows", _gather_rows_autocast)


def gather_matmul(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    """``x @ weight[rows].T + bias[rows]``: logits of an active set that the batch shares.

    The rows are copied next to each other once; then matrix products run at full speed, forward and backward: those of
    :func:`product` in float32 and float64, those of PyTorch in bfloat16.

    Args:
        x: ``[B, in]``.
        weight: ``[N, in]``, of the dtype of ``x`` unless autocast is on.
        bias: ``[N]`` or None.
        rows: ``[A]`` int64.

    Returns:
        ``[B, A]``, the transpose of a contiguous tensor.
    """
    offset = None if bias is None else gather_rows(bias, rows)
    if weight.requires_grad and torch.is_grad_enabled() and updater(weight) is not None:
        logits: Tensor = _ProductWithUpdate.apply(weight, x, offset, rows)
    else:
        logits = _product_with_rows(gather_rows(weight, rows), x, offset)
    return logits.T


def _product_with_rows(active: Tensor, x: Tensor, offset: Tensor | None) -> Tensor:
    x = x.to(active.dtype)
    if active.dtype is not torch.bfloat16:
        return product(active, x.T, offset)
    return active @ x.T if offset is None else torch.addmm(offset.unsqueeze(1), active, x.T)


class _ProductWithUpdate(torch.autograd.Function):
    """The product with rows of a weight whose optimizer updates them in the backward pass.

    The gradient of the rows is handed over as its two factors, so it is never stored.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, offset: Tensor | None, rows: Tensor) -> Tensor:
        active = gather_rows(weight, rows)
        ctx.destination, ctx.x_dtype = _Destination(weight), x.dtype
        x = x.to(active.dtype)
        ctx.save_for_backward(active, x, rows)
        return _product_with_rows(active, x, offset)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _check_first_order()
        (grad,) = grads
        active, x, rows = ctx.saved_tensors
        destination = ctx.destination
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = (grad.T @ active if active.dtype is torch.bfloat16 else product(grad.T, active)).to(ctx.x_dtype)
        grad_offset = grad.sum(1) if ctx.needs_input_grad[2] else None
        if active.dtype is torch.bfloat16 or active.dtype is not destination.dtype:
            destination.deliver(rows, grad @ x)
        else:
            destination.updater.update_in_backward(destination.parameter, rows, grad, x)
        return None, grad_x, grad_offset, None


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b + bias.unsqueeze(1)`` in float32 or float64, whatever the strides.

    Made for active sets: thousands of rows on the left, a batch on the right. Elements are summed in the same order for
    any number of threads. Differentiable.

    Args:
        a: ``[M, K]``.
        b: ``[K, N]`` of the same dtype.
        bias: ``[M]`` of the same dtype, contiguous, or None.

    Returns:
        ``[M, N]``, contiguous.

    >>> product(torch.eye(2), torch.tensor([[1.0], [2.0]]), torch.tensor([10.0, 20.0]))
    tensor([[11.],
            [22.]])
    """
    return _ops.product(a, b, bias)


@_fake("product")
def _(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _product_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    need_a, need_b, need_bias = ctx.needs_input_grad
    return (
        product(grad, b.T) if need_a else None,
        product(grad.T, a).T if need_b else None,  # the smaller side is packed
        grad.sum(1) if need_bias else None,
    )


torch.library.register_autograd("torch_lsh::product", _product_backward, setup_context=_product_setup)


def sampled_dot(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """``out[b, j] = x[b] · table[rows[b, j]]``: logits of one active set per sample, as in SLIDE.

    A sampled dense-dense matrix product. Differentiable in ``x`` and ``table`` (row-sparse as in :func:`gather_rows`).

    Args:
        x: ``[B, width]`` float32, float64 or bfloat16.
        table: ``[N, width]`` of the same dtype, contiguous. Under CPU autocast ``x`` is converted to it.
        rows: ``[B, A]`` int64, each in ``0 .. N - 1``; negative ones give 0.

    Returns:
        ``[B, A]``.

    >>> sampled_dot(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([[1, 0, -1]]))
    tensor([[2., 1., 0.]])
    """
    return _ops.sampled_dot(x, table, rows)


@_fake("sampled_dot")
def _(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty(rows.shape)


def _sampled_dot_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, table, rows = inputs
    ctx.save_for_backward(x, table, rows)
    ctx.destination = _Destination(table)


def _sampled_dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    _check_first_order()
    x, table, rows = ctx.saved_tensors
    present = rows >= 0
    crow = F.pad(present.sum(1).cumsum(0), (1, 0))
    col, values = rows[present], grad[present]
    grad_x = _ops.embedding_bag(table, crow, col, values) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return grad_x, None, None
    touched, sums = _ops.embedding_bag_backward(x, crow, col, values)
    return grad_x, ctx.destination.deliver(touched, sums, unique=True), None


torch.library.register_autograd("torch_lsh::sampled_dot", _sampled_dot_backward, setup_context=_sampled_dot_setup)


def _sampled_dot_autocast(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    return _without_autocast(_ops.sampled_dot, x.to(table.dtype), table, rows)


_autocast.impl("sampled_dot", _sampled_dot_autocast)


def is_increasing(rows: Tensor, below: int | None = None) -> bool:
    """Whether ``rows`` ``[A]`` int64 are strictly increasing, as those of :func:`coalesce_rows` are, and all of them in
    ``0 .. below - 1``, if that is given.

    >>> is_increasing(torch.tensor([2, 3, 5])), is_increasing(torch.tensor([2, 2]))
    (True, False)
    >>> is_increasing(torch.tensor([2, 3, 5]), below=5)
    False
    """
    increasing: bool = _ops.is_increasing(rows, below)
    return increasing


def extremes(numbers: Tensor) -> tuple[int, int]:
    """The least and the largest of int64 numbers of any shape; 0 and 0 where there are none.

    >>> extremes(torch.tensor([[3, -1], [7, 2]]))
    (-1, 7)
    """
    least_and_largest: tuple[int, int] = _ops.extremes(numbers.contiguous()) if numbers.numel() > 0 else (0, 0)
    return least_and_largest


def coalesce_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the values of equal rows: the same for any number of threads.

    Args:
        rows: ``[A]`` int64, not negative.
        values: ``[A, width]`` or ``[A]``.

    Returns:
        ``(unique rows, increasing; sums)``. Not differentiable.

    >>> coalesce_rows(torch.tensor([5, 2, 5]), torch.tensor([1.0, 2.0, 3.0]))
    (tensor([2, 5]), tensor([2., 4.]))
    """
    return _ops.coalesce_rows(rows, values)


@_fake("coalesce_rows")
def _(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return rows.new_empty(count), values.new_empty((count, *values.shape[1:]))


# --- embedding bag --------------------------------------------------------------------------------------------------


def embedding_bag(weight: Tensor, crow: Tensor, col: Tensor, values: Tensor | None = None) -> Tensor:
    """Weighted sums of a table's rows: the product of a sparse CSR batch ``[B, F]`` and the table.

    Differentiable in ``weight`` (row-sparse as in :func:`gather_rows`) and ``values``. Under CPU autocast the result
    has the autocast dtype; the sums are made in the table's.

    Args:
        weight: ``[F, width]`` float32, float64 or bfloat16, contiguous.
        crow: ``[B + 1]`` int64: sample b has the features ``crow[b]`` to ``crow[b + 1] - 1``.
        col: ``[nnz]`` int64 feature numbers, each in ``0 .. F - 1``.
        values: ``[nnz]`` of the dtype of ``weight``, or None, which stands for ones.

    Returns:
        ``[B, width]``; zeros for a sample without features.

    >>> embedding_bag(torch.eye(3), torch.tensor([0, 2, 2]), torch.tensor([0, 2]), torch.tensor([1.0, 5.0]))
    tensor([[1., 0., 5.],
            [0., 0., 0.]])
    """
    return _ops.embedding_bag(weight, crow, col, values)


@_fake("embedding_bag")
def _(weight: Tensor, crow: Tensor, col: Tensor, values: Tensor | None = None) -> Tensor:
    return weight.new_empty(crow.shape[0] - 1, weight.shape[1])


@_fake("embedding_bag_backward")
def _(grad: Tensor, crow: Tensor, col: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return col.new_empty(count), grad.new_empty(count, grad.shape[1])


@_fake("embedding_bag_values_backward")
def _(grad: Tensor, weight: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return grad.new_empty(col.shape)


def _embedding_bag_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    weight, crow, col, values = inputs
    ctx.save_for_backward(weight, crow, col, values)
    ctx.destination = _Destination(weight)


def _embedding_bag_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
    _check_first_order()
    weight, crow, col, values = ctx.saved_tensors
    grad = grad.contiguous()
    grad_weight = grad_values = None
    if ctx.needs_input_grad[3]:
        grad_values = _ops.embedding_bag_values_backward(grad, weight, crow, col)
    if ctx.needs_input_grad[0]:  # last: it may change the weight
        grad_weight = ctx.destination.deliver(*_ops.embedding_bag_backward(grad, crow, col, values), unique=True)
    return grad_weight, None, None, grad_values


torch.library.register_autograd("torch_lsh::embedding_bag", _embedding_bag_backward, setup_context=_embedding_bag_setup)


def _embedding_bag_autocast(weight: Tensor, crow: Tensor, col: Tensor, values: Tensor | None = None) -> Tensor:
    values = None if values is None else values.to(weight.dtype)
    bags = _without_autocast(_ops.embedding_bag, weight, crow, col, values)
    return bags.to(_autocast_dtype(weight) or weight.dtype)


_autocast.impl("embedding_bag", _embedding_bag_autocast)


# --- row-sparse optimizers ------------------------------------------------------------------------------------------


def _count_change(*tensors: Tensor | None) -> None:
    """Raises the tensors' versions, as PyTorch's own in-place operators do.

    So autograd notices that a tensor it saved was changed. Operators of a C++ library do not do it by themselves.
    """
    torch.autograd.graph.increment_version([tensor for tensor in tensors if tensor is not None])


def row_sparse_adam_(
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    rows: Tensor,
    gradient: Tensor,
    decays: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    bias_correction1: float,
    bias_correction2: float,
    decoupled: bool,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    """One Adam (Kingma & Ba 2015) or AdamW (``decoupled``) step on some rows of a parameter, in place.

    Args:
        parameter: ``[N, width]`` or ``[N]`` float32, float64 or bfloat16, contiguous.
        first, second: the moments, of the shape of ``parameter``; float64 where it is float64, else both float32 or
            both bfloat16.
        rows: ``[A]`` int64, strictly increasing.
        gradient: ``[A, width]`` or ``[A]``; or, with ``factor``, ``[A, K]`` of any strides.
        decays: ``[A, 3]`` float64, factors for first moment, second moment and weights that are applied before the
            step (what steps that the row missed would have decayed), or None.
        lr, beta1, beta2, eps, weight_decay, maximize: as in :class:`torch.optim.Adam`.
        bias_correction1, bias_correction2: ``1 - beta ** step``.
        decoupled: weight decay as in AdamW.
        factor: ``[K, width]`` or None: the gradient is ``gradient @ factor``, made some rows at a time and not stored;
            not for bfloat16 parameters.
        seed: of stochastic rounding to bfloat16, of weights and moments; negative: round to nearest.

    Raises:
        RuntimeError: an argument does not fit; then nothing was changed.
    """
    _ops.row_sparse_adam_(
        parameter,
        first,
        second,
        rows,
        gradient,
        decays,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        bias_correction1,
        bias_correction2,
        decoupled,
        maximize,
        factor,
        seed,
    )
    _count_change(parameter, first, second)


def row_sparse_sgd_(
    parameter: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    gradient: Tensor,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    """One SGD step on some rows of a parameter, in place; arguments as in :func:`row_sparse_adam_` and torch's SGD."""
    _ops.row_sparse_sgd_(
        parameter,
        momentum_buffer,
        rows,
        gradient,
        lr,
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        factor,
        seed,
    )
    _count_change(parameter, momentum_buffer)


def row_sparse_adagrad_(
    parameter: Tensor,
    squares: Tensor,
    rows: Tensor,
    gradient: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    """One Adagrad (Duchi et al. 2011) step on some rows of a parameter, in place; ``squares`` is the state sum."""
    _ops.row_sparse_adagrad_(parameter, squares, rows, gradient, lr, eps, weight_decay, maximize, factor, seed)
    _count_change(parameter, squares)


for _name in ("row_sparse_adam_", "row_sparse_sgd_", "row_sparse_adagrad_", "count_touches_"):
    _fake(_name)(lambda *arguments, **options: None)


# --- active sets ----------------------------------------------------------------------------------------------------


def select_rows(
    labels: Tensor,
    candidates: Tensor,
    num_rows: int,
    active: int,
    num_random: int,
    seed: int,
    per_sample: bool,
    carried: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The active rows of a step: labels, then candidates, then uniform random rows, without repetition.

    Labels are always in. Candidates follow, the best of every list before the second best of any, in turn with those
    carried over (one of these first), until ``active - num_random`` rows are in. Random rows (drawn without replacement
    from the rest) fill up to ``active``; at least ``num_random`` where labels took the room, and none at all where
    ``num_random`` is 0.

    Args:
        labels: ``[B, P]`` int64; negative: no label.
        candidates: ``[C, M]`` int64: C lists, best first; negative: no candidate. With ``per_sample`` C is B.
        num_rows: rows of the layer.
        active: rows wanted, 1 to ``num_rows``.
        num_random: 0 to ``active``.
        seed: the draw is a function of it alone.
        per_sample: one set per sample rather than one for the batch.
        carried: ``[n]`` int64: more candidates, best first; not with ``per_sample``.

    Returns:
        ``rows``: ``[A]`` or ``[B, A]`` int64, increasing, per-sample sets padded with -1;
        ``is_random``: bool of the same shape; ``positions``: ``[B, P]``, where in ``rows`` each label is, -1 for none;
        ``log_weights``: float32 of the shape of ``rows``, logarithms of what each row stands for: a random one for
        ``(num_rows - fixed) / random`` rows, any other for itself, padding for none.

    >>> rows, is_random, positions, log_weights = select_rows(
    ...     torch.tensor([[7]]), torch.tensor([[3, 7, 5]]), 10, active=2, num_random=0, seed=0, per_sample=False
    ... )
    >>> rows, positions
    (tensor([3, 7]), tensor([[1]]))
    """
    return _ops.select_rows(labels, candidates, num_rows, active, num_random, seed, per_sample, carried)


@_fake("select_rows")
def _(
    labels: Tensor,
    candidates: Tensor,
    num_rows: int,
    active: int,
    num_random: int,
    seed: int,
    per_sample: bool,
    carried: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    shape = (labels.shape[0], count) if per_sample else (count,)
    return (
        labels.new_empty(shape),
        labels.new_empty(shape, dtype=torch.bool),
        torch.empty_like(labels),
        labels.new_empty(shape, dtype=torch.float32),
    )


def draw_rows(
    labels: Tensor, order: Tensor | None, cumulative: Tensor, active: int, seed: int, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The active rows of a step: labels, and rows drawn with given weights, without repetition.

    As many rows are drawn as are missing to ``active``; labels that are drawn and rows that are drawn twice count once.
    The heaviest rows, where a draw in proportion to the weights would be due more than once, are taken for certain. The
    weights of all others are laid end to end and cut into strata of equal length, one draw in each (stratified sampling
    proportional to size, as in Cochran 1977), which makes the probability of every row known exactly.

    Args:
        labels: ``[B, P]`` int64; negative: no label.
        order: ``[N]`` int64, the rows in decreasing order of weight, or None: ``0 .. N - 1``.
        cumulative: ``[N + 1]`` float64, sums of the weights in that order, from 0 up.
        active: rows wanted, 1 to N.
        seed: the draw is a function of it alone.
        per_sample: one set per sample rather than one for the batch.

    Returns:
        ``rows``, ``is_random``, ``positions`` as from :func:`select_rows`; ``inclusion``: float32 of the shape of
        ``rows``: the probability that the row is in the set, 1 for labels and padding.

    >>> cumulative = torch.tensor([0.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    >>> rows, is_random, positions, inclusion = draw_rows(torch.tensor([[3]]), None, cumulative, 3, 0, False)
    >>> rows[0], inclusion[0]
    (tensor(0), tensor(1.))
    """
    return _ops.draw_rows(labels, order, cumulative, active, seed, per_sample)


@_fake("draw_rows")
def _(
    labels: Tensor, order: Tensor | None, cumulative: Tensor, active: int, seed: int, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    shape = (labels.shape[0], count) if per_sample else (count,)
    return (
        labels.new_empty(shape),
        labels.new_empty(shape, dtype=torch.bool),
        torch.empty_like(labels),
        labels.new_empty(shape, dtype=torch.float32),
    )


def largest_rows(values: Tensor, rows: Tensor, count: int, log_weights: Tensor | None = None) -> Tensor:
    """The ``count`` rows with the largest values, largest first; the first in ``rows`` among equals, NaN above all.

    Args:
        values: ``[A]`` float32.
        rows: ``[A]`` int64.
        count: rows wanted, 0 or more.
        log_weights: ``[A]`` float32: compare ``values / exp(log_weights)``.

    Returns:
        ``[min(count, A)]`` int64.

    >>> largest_rows(torch.tensor([0.5, 2.0, 1.0]), torch.tensor([10, 20, 30]), 2)
    tensor([20, 30])
    """
    return _ops.largest_rows(values, rows, count, log_weights)


@_fake("largest_rows")
def _(values: Tensor, rows: Tensor, count: int, log_weights: Tensor | None = None) -> Tensor:
    return rows.new_empty(torch.sym_min(count, rows.shape[0]))


# --- hashing --------------------------------------------------------------------------------------------------------


def simhash_codes(x: Tensor, projections: Tensor, hashes_per_table: int) -> Tensor:
    """SimHash codes (Charikar 2002): the signs of random projections, K of them packed into the code of a table.

    Bit ``k`` of ``codes[i, t]`` is ``x[i] · projections[:, t * K + k] > 0``: 0 where the product is zero or NaN.
    Products are taken in float32 and in the order of the features: a row has the same code in any batch.

    Args:
        x: ``[n, in]`` float32, float64 or bfloat16, contiguous.
        projections: ``[in, L * K]`` float32.
        hashes_per_table: K, 1 to 30.

    Returns:
        ``[n, L]`` int32, each in ``0 .. 2**K - 1``.

    >>> simhash_codes(torch.tensor([[1.0, -1.0]]), torch.eye(2), 2)
    tensor([[1]], dtype=torch.int32)
    """
    return _ops.simhash_codes(x, projections, hashes_per_table)


@_fake("simhash_codes")
def _(x: Tensor, projections: Tensor, hashes_per_table: int) -> Tensor:
    return x.new_empty((x.shape[0], projections.shape[1] // hashes_per_table), dtype=torch.int32)


def dwta_codes(x: Tensor, bins: Tensor, hashes_per_table: int, seed: int) -> Tensor:
    """Densified winner-take-all codes (Chen & Shrivastava 2018): which of 8 coordinates is the largest, K times.

    Zero and NaN coordinates do not take part, so a sparse row has the code of its dense form. A bin without any other
    coordinate borrows the winner of a bin drawn by hashing (seed, bin, attempt), in at most 100 attempts; then it
    is 0, as it is for a row of zeros. Among equals the first wins. Values are compared in float32.

    Args:
        x: ``[n, in]`` float32, float64 or bfloat16, contiguous.
        bins: ``[L * K, 8]`` int64: the coordinates that each hash looks at.
        hashes_per_table: K, 1 to 10.
        seed: of the borrowing.

    Returns:
        ``[n, L]`` int32, each in ``0 .. 8**K - 1``; hash ``k`` is in bits ``3 * k .. 3 * k + 2``.

    >>> dwta_codes(torch.tensor([[0.0, -2.0, 0, 0, 0, 7.0, 0, 0]]), torch.arange(8).view(1, 8), 1, seed=0)
    tensor([[5]], dtype=torch.int32)
    """
    return _ops.dwta_codes(x, bins, hashes_per_table, seed)


@_fake("dwta_codes")
def _(x: Tensor, bins: Tensor, hashes_per_table: int, seed: int) -> Tensor:
    return x.new_empty((x.shape[0], bins.shape[0] // hashes_per_table), dtype=torch.int32)


def simhash_products(x: Tensor, projections: Tensor) -> Tensor:
    """``x @ projections``, summed in the order of :func:`simhash_codes`: the codes are the signs of these products.

    The result depends neither on the batch nor on the number of threads.

    Args:
        x: ``[n, in]`` float32, contiguous.
        projections: ``[in, H]`` float32.

    Returns:
        ``[n, H]`` float32.

    >>> simhash_products(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    return _ops.simhash_products(x, projections)


@_fake("simhash_products")
def _(x: Tensor, projections: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], projections.shape[1]))


def hadamard_products(x: Tensor, signs: Tensor, rest: Tensor) -> Tensor:
    """Structured random projections ``H D3 H D2 H D1 x`` (Andoni et al. 2015), in O(d log d) per D of them.

    H is the Walsh-Hadamard matrix of size D, each ``D_i`` a diagonal of signs. The first D coordinates of ``x`` (padded
    with zeros where there are fewer) are projected so, with rows of length ``sqrt(D)``, those of a Gaussian
    matrix; further coordinates are projected by ``rest``.

    Args:
        x: ``[n, in]`` float32, contiguous.
        signs: ``[blocks, 3, D]`` float32 of 1 and -1, D a power of two; ``blocks * D >= H``.
        rest: ``[max(0, in - D), H]`` float32.

    Returns:
        ``[n, H]`` float32.

    >>> hadamard_products(torch.tensor([[1.0, 0.0]]), torch.ones(1, 3, 2), torch.empty(0, 2))
    tensor([[1., 1.]])
    """
    return _ops.hadamard_products(x, signs, rest)


@_fake("hadamard_products")
def _(x: Tensor, signs: Tensor, rest: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], rest.shape[1]))


def hadamard_codes(x: Tensor, signs: Tensor, rest: Tensor, hashes_per_table: int) -> Tensor:
    """The signs of :func:`hadamard_products`, packed as in :func:`simhash_codes`.

    Returns:
        ``[n, H / K]`` int32, each in ``0 .. 2**K - 1``.

    >>> hadamard_codes(torch.tensor([[1.0, 0.0]]), torch.ones(1, 3, 2), torch.empty(0, 2), 2)
    tensor([[3]], dtype=torch.int32)
    """
    return _ops.hadamard_codes(x, signs, rest, hashes_per_table)


@_fake("hadamard_codes")
def _(x: Tensor, signs: Tensor, rest: Tensor, hashes_per_table: int) -> Tensor:
    return x.new_empty((x.shape[0], rest.shape[1] // hashes_per_table), dtype=torch.int32)


def cross_polytope_codes(x: Tensor, signs: Tensor, rest: Tensor, dimension: int, hashes_per_table: int) -> Tensor:
    """Cross-polytope codes (Andoni et al. 2015): which of the vertices ``±e_i`` is the closest, K times.

    Each hash takes ``dimension`` of the :func:`hadamard_products` in turn and gives ``2 * i`` for the largest in size,
    plus one if it is negative. The first wins among equals; zeros and NaN give 0.

    Args:
        x, signs, rest: as in :func:`hadamard_products`.
        dimension: a power of two.
        hashes_per_table: K; ``K * log2(2 * dimension)`` is at most 30.

    Returns:
        ``[n, H / (K * dimension)]`` int32.

    >>> cross_polytope_codes(torch.tensor([[-3.0, 0.0]]), torch.ones(1, 3, 2), torch.empty(0, 2), 2, 1)
    tensor([[1]], dtype=torch.int32)
    """
    return _ops.cross_polytope_codes(x, signs, rest, dimension, hashes_per_table)


@_fake("cross_polytope_codes")
def _(x: Tensor, signs: Tensor, rest: Tensor, dimension: int, hashes_per_table: int) -> Tensor:
    return x.new_empty((x.shape[0], rest.shape[1] // (dimension * hashes_per_table)), dtype=torch.int32)


def probe_codes(codes: Tensor, flips: Tensor, costs: Tensor, probes: int) -> Tensor:
    """The codes to probe for each query, cheapest first (query-directed probing, Lv et al. 2007).

    The first is the query's own code. Each further one changes a set of its hashes, at most one change of each, in the
    order of the sum of their costs. -1 stands where there are fewer such sets.

    Args:
        codes: ``[n, L]`` int32.
        flips: ``[n, L, K, A]`` int32: the bits of the code that each of A changes of each hash flips; 0: no change.
        costs: ``[n, L, K, A]`` float32, not negative; a change of infinite cost is left out.
        probes: P, at least 1.

    Returns:
        ``[n, L, P]`` int32.

    >>> flips = torch.tensor([[1], [2]], dtype=torch.int32).view(1, 1, 2, 1)
    >>> costs = torch.tensor([3.0, 1.0]).view(1, 1, 2, 1)
    >>> probe_codes(torch.zeros(1, 1, dtype=torch.int32), flips, costs, 5)
    tensor([[[ 0,  2,  1,  3, -1]]], dtype=torch.int32)
    """
    return _ops.probe_codes(codes, flips, costs, probes)


@_fake("probe_codes")
def _(codes: Tensor, flips: Tensor, costs: Tensor, probes: int) -> Tensor:
    return codes.new_empty((*codes.shape, probes))


# --- hash tables ----------------------------------------------------------------------------------------------------


def build_tables(
    row_buckets: Tensor, bucket_bits: int, bucket_size: int, seed: int, fifo: bool = False
) -> tuple[Tensor, Tensor]:
    """L hash tables of row numbers, with ``2**bucket_bits`` buckets of fixed capacity each.

    A bucket that more than ``bucket_size`` rows belong to keeps a uniform sample of them, drawn by (seed, table, row).

    Args:
        row_buckets: ``[N, L]`` int32: the bucket of each row in each table.
        bucket_bits: 0 to 30.
        bucket_size: capacity of a bucket.
        seed: of the samples.
        fifo: keep the rows that were inserted last, rather than a sample; row numbers are inserted in turn, from
            one that is drawn for each table.

    Returns:
        ``ids``: ``[L, 2**bucket_bits, bucket_size]`` int32, -1 where unused; ``counts``: ``[L, 2**bucket_bits]`` int32.

    >>> build_tables(torch.tensor([[1], [0], [1]], dtype=torch.int32), 1, 2, seed=0)[1]
    tensor([[1, 2]], dtype=torch.int32)
    """
    return _ops.build_tables(row_buckets, bucket_bits, bucket_size, seed, fifo)


@_fake("build_tables")
def _(row_buckets: Tensor, bucket_bits: int, bucket_size: int, seed: int, fifo: bool = False) -> tuple[Tensor, Tensor]:
    shape = (row_buckets.shape[1], 1 << bucket_bits)
    return row_buckets.new_empty((*shape, bucket_size)), row_buckets.new_empty(shape)


def update_tables(
    ids: Tensor,
    counts: Tensor,
    row_buckets: Tensor,
    rows: Tensor,
    buckets: Tensor,
    seed: int,
    fifo: bool = False,
) -> Tensor:
    """Moves rows to other buckets, in the tables where their bucket changed. In place.

    The last id of the old bucket takes the place of the one that leaves (with ``fifo``, all later ones move up).
    Entries of ``ids`` beyond ``counts`` are left as they are. A full bucket keeps the rows that :func:`build_tables`
    would prefer.

    Args:
        ids, counts: as :func:`build_tables` made them.
        row_buckets: ``[N, L]`` int32, the present buckets of all rows.
        rows: ``[A]`` int64, unique.
        buckets: ``[A, L]`` int32, their new buckets.
        seed, fifo: those of :func:`build_tables`.

    Returns:
        How many (row, table) entries moved: a scalar int64 tensor.

    >>> row_buckets = torch.tensor([[1], [0], [1]], dtype=torch.int32)
    >>> ids, counts = build_tables(row_buckets, 1, 2, seed=0)
    >>> update_tables(ids, counts, row_buckets, torch.tensor([1]), torch.tensor([[1]], dtype=torch.int32), seed=0)
    tensor(1)
    >>> counts, row_buckets.T
    (tensor([[0, 2]], dtype=torch.int32), tensor([[1, 1, 1]], dtype=torch.int32))
    """
    return _ops.update_tables(ids, counts, row_buckets, rows, buckets, seed, fifo)


@_fake("update_tables")
def _(
    ids: Tensor,
    counts: Tensor,
    row_buckets: Tensor,
    rows: Tensor,
    buckets: Tensor,
    seed: int,
    fifo: bool = False,
) -> Tensor:
    return rows.new_empty(())


def insert_labels(
    ids: Tensor, counts: Tensor, buckets: Tensor, labels: Tensor, num_rows: int, seed: int, fifo: bool = False
) -> Tensor:
    """Puts the labels of queries that a look-up would miss into the buckets of the queries, in all tables. In place.

    As BOLT does while it trains: queries like this one will find the label, wherever its own code puts it. In a full
    bucket the label takes the place of the row that is the first to go. Which labels are missing is decided for all
    queries before any label is inserted.

    Args:
        ids, counts: as :func:`build_tables` made them.
        buckets: ``[B, L]`` int32, the buckets of the queries.
        labels: ``[B, P]`` int64, negative where there is none.
        num_rows: N.
        seed, fifo: those of :func:`build_tables`.

    Returns:
        How many (query, label) pairs were inserted: a scalar int64 tensor.

    >>> ids, counts = build_tables(torch.tensor([[1], [0], [1]], dtype=torch.int32), 1, 2, seed=0)
    >>> insert_labels(ids, counts, torch.tensor([[0]], dtype=torch.int32), torch.tensor([[1, 2]]), 3, seed=0)
    tensor(1)
    >>> sorted(ids[0, 0].tolist())
    [1, 2]
    """
    return _ops.insert_labels(ids, counts, buckets, labels, num_rows, seed, fifo)


@_fake("insert_labels")
def _(
    ids: Tensor, counts: Tensor, buckets: Tensor, labels: Tensor, num_rows: int, seed: int, fifo: bool = False
) -> Tensor:
    return labels.new_empty(())


def query_tables(
    ids: Tensor,
    counts: Tensor,
    row_codes: Tensor | None,
    buckets: Tensor,
    max_candidates: int,
    min_matches: int = 1,
    vanilla: bool = False,
    query_codes: Tensor | None = None,
) -> Tensor:
    """The rows in the same buckets as each sample, best first.

    The best are those that share most buckets with the sample. With ``row_codes`` the ``8 * M`` best of these are
    ranked again by the number of bits, over all tables, in which their codes differ from the sample's: this tells
    angles much finer. Among equals the first seen goes first; the table and the entry of each bucket to begin with are
    drawn by the sample's buckets.

    Args:
        ids, counts: as :func:`build_tables` made them.
        row_codes: ``[N, L]`` int32, the codes of all rows where bucket numbers are codes of one bit per hash, or None.
            Ids that are not in ``0 .. N - 1`` are left out.
        buckets: ``[B, L]`` int32, one bucket of each table per sample; or ``[B, L, P]``, P of them, the sample's own
            first, -1 where there are fewer.
        max_candidates: M, at least 1.
        min_matches: leave out rows that share fewer buckets with the sample.
        vanilla: visit buckets until M rows are found and take these as they come, no ranking.
        query_codes: ``[B, W]`` int32: codes of the samples to compare with ``row_codes`` ``[N, W]``, where those are
            not the bucket numbers.

    Returns:
        ``[B, M]`` int64, best first, padded with -1.

    >>> ids, counts = build_tables(torch.tensor([[0, 1], [0, 0]], dtype=torch.int32), 1, 2, seed=0)
    >>> query_tables(ids, counts, None, torch.tensor([[0, 1]], dtype=torch.int32), 3)
    tensor([[ 0,  1, -1]])
    """
    return _ops.query_tables(ids, counts, row_codes, buckets, max_candidates, min_matches, vanilla, query_codes)


@_fake("query_tables")
def _(
    ids: Tensor,
    counts: Tensor,
    row_codes: Tensor | None,
    buckets: Tensor,
    max_candidates: int,
    min_matches: int = 1,
    vanilla: bool = False,
    query_codes: Tensor | None = None,
) -> Tensor:
    return buckets.new_empty((buckets.shape[0], max_candidates), dtype=torch.int64)


# --- loss -----------------------------------------------------------------------------------------------------------


def sampled_softmax_loss(
    logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each sample over its active rows; differentiable in ``logits`` (once).

    Args:
        logits: ``[B, A]`` float32 or float64; contiguous, or the transpose of a contiguous tensor.
        log_weights: ``[A]`` or ``[B, A]`` of the same dtype, added to the logits in the partition function only:
            log importance weights, ``-inf`` for a row that does not count. None: zeros. With ``[B, A]`` logits must be
            contiguous.
        positions: ``[B, P]`` int64: where the labels' logits are; negative: no label.
        shares: ``[B, P]`` of the dtype of ``logits``: what each label counts.

    Returns:
        ``loss`` ``[B]``: ``sum over p of shares[p] * (log_z - logits[positions[p]])``, and ``log_z`` ``[B]``, the log
        partition function, which is not differentiable.
    """
    return _ops.sampled_softmax_loss(logits, log_weights, positions, shares)


@_fake("sampled_softmax_loss")
def _(logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0]), logits.new_empty(logits.shape[0])


@_fake("sampled_softmax_loss_backward")
def _(
    grad: Tensor, log_z: Tensor, logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor
) -> Tensor:
    return torch.empty_like(logits)


def _softmax_loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *inputs)


def _softmax_loss_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
    _check_first_order()
    return _ops.sampled_softmax_loss_backward(grad.contiguous(), *ctx.saved_tensors), None, None, None


torch.library.register_autograd(
    "torch_lsh::sampled_softmax_loss", _softmax_loss_backward, setup_context=_softmax_loss_setup
)


def linear_softmax_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    log_weights: Tensor | None,
    positions: Tensor,
    shares: Tensor,
    divisor: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`sampled_softmax_loss` of the logits ``x @ weight[rows].T + bias[rows]``, and their gradient.

    Not differentiable; :func:`active_rows_loss` is.

    Args:
        x: ``[B, in]`` float32, float64 or bfloat16, contiguous, as all arguments.
        weight: ``[N, in]`` of the same dtype; or float32 beside a bfloat16 ``x``: the active rows are rounded.
        bias: ``[N]`` of the dtype of ``weight``, or None.
        rows: ``[A]`` int64.
        log_weights: ``[A]`` or None: see :func:`sampled_softmax_loss`, but a sample's own labels weigh 1, whatever this
            says of their rows; as ``shares`` of the dtype of the logits, which are float32 where ``x`` is bfloat16.
        positions, shares: ``[B, P]``: see :func:`sampled_softmax_loss`.
        divisor: None: the loss of each sample; else their sum over this.

    Returns:
        ``loss`` ``[B]``, or ``[]`` with a divisor; ``slopes`` ``[A, B]`` and ``scale`` ``[B]``: the gradient of the
        loss by the b-th sample's logit of the a-th row is ``slopes[a, b] * scale[b]``. All have the dtype of the
        logits.
    """
    return _ops.linear_softmax_loss(x, weight, bias, rows, log_weights, positions, shares, divisor)


@_fake("linear_softmax_loss")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    log_weights: Tensor | None,
    positions: Tensor,
    shares: Tensor,
    divisor: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, count = x.shape[0], rows.shape[0]
    return (
        shares.new_empty(batch if divisor is None else ()),
        shares.new_empty(count, batch),
        shares.new_empty(batch),
    )


def linear_softmax_loss_backward(
    slopes: Tensor, factors: Tensor, x: Tensor, weight: Tensor, rows: Tensor, needs_weight: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients that follow from ``slopes * factors``, that of the logits of :func:`linear_softmax_loss`.

    Args:
        slopes: ``[A, B]``: see there; contiguous, as all arguments.
        factors: ``[B]``: the gradient of the loss times ``scale``.
        x, weight, rows: as there. Where ``x`` is bfloat16 the gradient of the logits is rounded, too.
        needs_weight: whether the gradient of the weight is wanted.

    Returns:
        The gradients of ``x`` ``[B, in]``, of ``weight`` ``[A, in]`` (``[0, in]`` where not wanted) and of ``bias``
        ``[A]``; and the sums of the positive gradients of each row's logits, ``[A]``. All have the dtype of ``slopes``.
    """
    return _ops.linear_softmax_loss_backward(slopes, factors, x, weight, rows, needs_weight)


@_fake("linear_softmax_loss_backward")
def _(
    slopes: Tensor, factors: Tensor, x: Tensor, weight: Tensor, rows: Tensor, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, width = rows.shape[0], weight.shape[1]
    of_weight = slopes.new_empty(count * needs_weight, width)
    return slopes.new_empty(x.shape), of_weight, slopes.new_empty(count), slopes.new_empty(count)


def active_rows_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    log_weights: Tensor | None,
    positions: Tensor,
    shares: Tensor,
    divisor: float | None = None,
    pushed_down: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Cross entropy over the active rows of a layer: what a training step of most models needs.

    The same as :func:`gather_matmul` and :func:`sampled_softmax_loss` in turn, with each exponential taken once and no
    gradient of the logits beside the logits. Differentiable (once) in ``x``, ``weight`` and ``bias`` (row-sparse as in
    :func:`gather_rows`).

    Args:
        x, weight, bias, log_weights, positions, shares, divisor: see :func:`linear_softmax_loss`; ``x`` of any strides.
        rows: ``[A]`` int64, strictly increasing.
        pushed_down: called in the backward pass with the sums of the positive gradients of the logits, ``[A]``.

    Returns:
        ``[B]``, or ``[]`` with a divisor, of the dtype of ``shares``.
    """
    loss: Tensor = _ActiveRowsLoss.apply(x, weight, bias, rows, log_weights, positions, shares, divisor, pushed_down)
    return loss


class _ActiveRowsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        log_weights: Tensor | None,
        positions: Tensor,
        shares: Tensor,
        divisor: float | None,
        pushed_down: Callable[[Tensor], None] | None,
    ) -> Tensor:
        x = x.contiguous()
        loss, slopes, scale = _ops.linear_softmax_loss(x, weight, bias, rows, log_weights, positions, shares, divisor)
        ctx.save_for_backward(x, weight, rows, slopes, scale)
        ctx.of_weight, ctx.of_bias = _Destination(weight), None if bias is None else _Destination(bias)
        ctx.pushed_down = pushed_down
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _check_first_order()
        x, weight, rows, slopes, scale = ctx.saved_tensors
        of_weight, of_bias = ctx.of_weight, ctx.of_bias
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        factors = grads[0] * scale
        # An updater takes the gradient as its two factors; but bfloat16 ones are multiplied faster here.
        in_factors = of_weight.updater is not None and x.dtype is slopes.dtype
        grad_x, of_rows, of_offset, positive = _ops.linear_softmax_loss_backward(
            slopes, factors, x, weight, rows, needs_weight and not in_factors
        )
        if ctx.pushed_down is not None:
            ctx.pushed_down(positive)
        grad_weight = grad_bias = None
        if needs_bias:
            grad_bias = of_bias.deliver(rows, of_offset, unique=True)
        if needs_weight and in_factors:
            of_weight.updater.update_in_backward(of_weight.parameter, rows, slopes, x * factors.unsqueeze(1))
        elif needs_weight:
            grad_weight = of_weight.deliver(rows, of_rows, unique=True)
        return grad_x.to(x.dtype) if needs_x else None, grad_weight, grad_bias, *(None,) * 6


def positive_sums(gradient: Tensor) -> Tensor:
    """The sum of the positive entries of every column.

    Args:
        gradient: ``[B, A]`` float32 or float64; contiguous, or the transpose of a contiguous tensor.

    Returns:
        ``[A]`` of the same dtype.

    >>> positive_sums(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    tensor([1.5000, 3.0000])
    """
    return _ops.positive_sums(gradient)


@_fake("positive_sums")
def _(gradient: Tensor) -> Tensor:
    return gradient.new_empty(gradient.shape[1])


# --- inference ------------------------------------------------------------------------------------------------------


def linear_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``F.linear(x, weight, bias).topk(k)`` without the ``[B, N]`` tensor. Not differentiable.

    Small batches take the time of reading the weights once, large ones that of the product: logits stay in the cache,
    where a vector comparison with each sample's k-th best value so far rules nearly all of them out.

    The order is total, so results do not depend on the number of threads: larger values first, NaN above all (as in
    ``torch.topk``), the lower class among equals. Sums are rounded in float32 (float64 for float64), in an order
    that may differ with the size of the batch.

    Args:
        x: ``[B, in]`` of the dtype of ``weight``; float32 where that is int8.
        weight: ``[N, in]`` float32, float64, bfloat16 or int8, contiguous; fewer than 2**31 rows.
        bias: ``[N]`` of the dtype of ``x``, or None.
        k: 1 to N.
        scale: ``[N]`` float32, with int8 weights and no others: row ``n`` stands for ``scale[n] * weight[n]``.

    Returns:
        values ``[B, k]`` in descending order, float32 (float64 for float64), and classes ``[B, k]`` int64.

    Raises:
        RuntimeError: an argument does not fit.

    >>> linear_topk(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), None, 2)
    (tensor([[3., 2.]]), tensor([[2, 1]]))
    """
    return _ops.linear_topk(x, weight, bias, k, scale)


def rows_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`linear_topk`, among candidates of each sample only.

    Args:
        x, weight, bias, scale: see :func:`linear_topk`.
        rows: ``[B, M]`` int64, each in ``0 .. N - 1``, or negative: no candidate. A row that is there twice counts
            twice.
        k: at least 1.

    Returns:
        As :func:`linear_topk`; -1 and ``-inf`` stand where there were fewer than ``k`` candidates.

    >>> rows_topk(torch.tensor([[1.0, 2.0]]), torch.eye(2), None, torch.tensor([[0, -1]]), 2)
    (tensor([[1., -inf]]), tensor([[ 0, -1]]))
    """
    return _ops.rows_topk(x, weight, bias, rows, k, scale)


def sketch_candidates(x: Tensor, codes: Tensor, factors: Tensor, num_rows: int, count: int) -> Tensor:
    """The rows with the largest estimates ``factor * (x · signs) + addend``; see :class:`RowSketch`.

    For each four dimensions the products of ``x`` with the 16 possible signs are rounded to at most 127 levels.

    Args:
        x: ``[B, width]`` float32, rotated queries; ``width`` is a multiple of 8.
        codes: ``[blocks, width / 8, 64]`` uint8: bit ``i`` of byte ``j`` is the sign (1: positive) of dimension
            ``8 * j + i``. In a block, row ``r`` is at place ``2 * (r % 32) + r // 32``.
        factors: ``[blocks, 2, 64]`` bfloat16: factors and addends of the rows of a block, in order.
        num_rows: N; the last block may be partly empty.
        count: M, 1 to N.

    Returns:
        ``[B, M]`` int64, increasing.
    """
    return _ops.sketch_candidates(x, codes, factors, num_rows, count)


@_fake("sketch_candidates")
def _(x: Tensor, codes: Tensor, factors: Tensor, num_rows: int, count: int) -> Tensor:
    return x.new_empty((x.shape[0], count), dtype=torch.int64)


def residual_codes(x: Tensor, centers: Tensor, buckets: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes of the differences ``v = x - centers[buckets]``; see :class:`LearnedIndex`.

    Each dimension becomes an odd number ``s``, ``1 - 2**bits`` to ``2**bits - 1``, at steps that are right for normally
    distributed numbers. It is the sum of ``2**(bits - 1 - plane) * sign``, and a plane holds these signs.

    Args:
        x: ``[n, width]`` float32; ``width`` is a multiple of 8.
        centers: ``[C, width]`` float32.
        buckets: ``[n]`` int32, each in ``0 .. C - 1``.
        bits: 1 to 4 per dimension.

    Returns:
        codes ``[n, bits * width / 8]`` uint8, plane by plane: bit ``i`` of byte ``j`` of a plane is 1 where the sign of
        dimension ``8 * j + i`` is positive; factors ``[n]`` float32: ``v · v / v · s``, by which the product of a query
        with ``s`` is to be multiplied.

    >>> x = torch.tensor([[1.0, -1.0, 1.0, 3.0, 1.0, -1.0, -1.0, -1.0]])
    >>> residual_codes(x, torch.zeros(1, 8), torch.tensor([0]).int(), 1)
    (tensor([[29]], dtype=torch.uint8), tensor([1.6000]))
    >>> residual_codes(x, torch.zeros(1, 8), torch.tensor([0]).int(), 2)
    (tensor([[ 29, 234]], dtype=torch.uint8), tensor([1.]))
    """
    return _ops.residual_codes(x, centers, buckets, bits)


@_fake("residual_codes")
def _(x: Tensor, centers: Tensor, buckets: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[0], bits * x.shape[1] // 8), dtype=torch.uint8), x.new_empty(x.shape[0])


def update_partition(
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    places: Tensor,
    row_buckets: Tensor,
    rows: Tensor,
    buckets: Tensor,
    row_codes: Tensor,
    row_factors: Tensor,
) -> Tensor:
    """Puts rows into buckets, or moves them to others, and writes their codes. In place.

    The rows of a bucket fill blocks of 64, which are a chain; all but the first block are full. The last row of the
    first block takes the place of one that leaves.

    Args:
        codes: ``[blocks, bits * width / 8, 64]`` uint8, rows placed as in :func:`sketch_candidates`; ``N // 64 + C``
            blocks are enough.
        factors: ``[blocks, 2, 64]`` bfloat16: 0 and -inf where there is no row.
        ids: ``[blocks, 64]`` int32: row numbers; -1: none.
        next: ``[blocks]`` int32: the next block of the chain; -1: none.
        heads: ``[C + 1, 2]`` int32: the first block of each bucket (-1: none) and how many rows are in it; the last is
            the chain of free blocks.
        places: ``[N]`` int32: 64 * block + position of each row; -1: it is in no bucket yet.
        row_buckets: ``[N]`` int32: the bucket of each row.
        rows: ``[A]`` int64, unique.
        buckets: ``[A]`` int32: where they belong.
        row_codes: ``[A, bits * width / 8]`` uint8, see :func:`residual_codes`.
        row_factors: ``[A, 2]`` bfloat16: what the product of a query with the code is multiplied with, and what is
            added.

    Returns:
        How many rows moved: a scalar int64 tensor.
    """
    return _ops.update_partition(
        codes, factors, ids, next, heads, places, row_buckets, rows, buckets, row_codes, row_factors
    )


@_fake("update_partition")
def _(
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    places: Tensor,
    row_buckets: Tensor,
    rows: Tensor,
    buckets: Tensor,
    row_codes: Tensor,
    row_factors: Tensor,
) -> Tensor:
    return rows.new_empty(())


def query_partition(
    x: Tensor,
    scores: Tensor,
    centers: Tensor,
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    max_candidates: int,
    examined: int,
) -> Tensor:
    """The rows with the largest estimates ``x · center + factor * (x · s) + addend`` in the best buckets.

    ``s`` is what the code of a row stands for, see :func:`residual_codes`.

    Products with signs are rounded as in :func:`sketch_candidates`.

    Args:
        x: ``[B, width]`` float32, in the coordinates of the codes.
        scores: ``[B, C]`` float32: buckets are visited in the order of these, largest first.
        centers: ``[C, width]`` float32.
        codes, factors, ids, next, heads: see :func:`update_partition`.
        max_candidates: M, at least 1.
        examined: no further bucket is visited once so many rows were compared.

    Returns:
        ``[B, M]`` int64, largest first (the lower row among equals), padded with -1.
    """
    return _ops.query_partition(x, scores, centers, codes, factors, ids, next, heads, max_candidates, examined)


@_fake("query_partition")
def _(
    x: Tensor,
    scores: Tensor,
    centers: Tensor,
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    max_candidates: int,
    examined: int,
) -> Tensor:
    return x.new_empty((x.shape[0], max_candidates), dtype=torch.int64)


def nearest_rows(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    row_start: Tensor,
    row_columns: Tensor,
    row_values: Tensor,
    column_start: Tensor,
    column_rows: Tensor,
    column_values: Tensor,
    k: int,
    candidates: int,
    max_postings: int,
) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of a sparse matrix that have the largest inner products with each of some sparse queries.

    The matrix is given by rows and by columns (an inverted index). Products are added up column by column, the one with
    the fewest rows first, until the next one would lead beyond ``max_postings`` entries; the first is read in any case.
    Of the ``candidates`` rows with the largest sums the whole products are computed. With ``max_postings`` as large as
    the matrix the result is exact; rows that have no column in common with the query are never part of it.

    Args:
        crow, col, values: queries ``[B, F]`` in CSR form, int64, int64 and float32; columns increase within a row.
        row_start, row_columns, row_values: the matrix ``[R, F]`` in CSR form, int64, int32 and float32; columns
            increase within a row.
        column_start, column_rows, column_values: the same in CSC form.
        k: rows wanted.
        candidates: at least ``k``.
        max_postings: entries of the matrix that are read to find the candidates.

    Returns:
        ``values`` ``[B, k]`` float32, largest first, and ``indices`` ``[B, k]`` int64, the lower one first among
        equals; padded with -inf and -1.

    Salton et al., *A Vector Space Model for Automatic Indexing*, CACM 1975; Persin et al., *Filtered Document Retrieval
    with Frequency-Sorted Indexes*, JASIS 1996.
    """
    return _ops.nearest_rows(
        crow,
        col,
        values,
        row_start,
        row_columns,
        row_values,
        column_start,
        column_rows,
        column_values,
        k,
        candidates,
        max_postings,
    )


@_fake("nearest_rows")
def _(crow: Tensor, col: Tensor, values: Tensor, *index: Any) -> tuple[Tensor, Tensor]:
    k = index[6]
    queries = crow.shape[0] - 1
    return values.new_empty((queries, k)), values.new_empty((queries, k), dtype=torch.int64)


def _topk_result(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values = x.new_empty((x.shape[0], k), dtype=torch.promote_types(x.dtype, torch.float32))
    return values, x.new_empty((x.shape[0], k), dtype=torch.int64)


@_fake("linear_topk")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, k: int, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _topk_result(x, k)


@_fake("rows_topk")
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _topk_result(x, k)


# --- data -----------------------------------------------------------------------------------------------------------


def parse_xmc(text: Tensor, num_features: int, num_labels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
    """Parses lines of the XMC repository's text format, ``label,label feature:value feature:value ...``.

    Args:
        text: ``[bytes]`` uint8: whole lines, without the header line.
        num_features, num_labels: ids must be below.

    Returns:
        Features per row (int64), features (int32), values (float32), labels per row (int64), labels (int32), and an
        error text. If that is not empty, it is about the line after the rows that are returned.

    >>> text = torch.frombuffer(bytearray(b"1,2 0:1.5 3:2\\n\\n"), dtype=torch.uint8)
    >>> parse_xmc(text, 4, 3)[:3]
    (tensor([2, 0]), tensor([0, 3], dtype=torch.int32), tensor([1.5000, 2.0000]))
    """
    return _ops.parse_xmc(text, num_features, num_labels)


def hash_text(
    text: Tensor,
    offsets: Tensor,
    bits: int,
    word_ngrams: int,
    char_min: int,
    char_max: int,
    is_signed: bool,
    tf: str,
    normalized: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Word n-grams and character n-grams of texts, hashed into the ``2**bits`` columns of a CSR matrix.

    A word is a maximal run of letters, marks and numbers, in lower case; bytes that are not UTF-8 separate words. What
    the settings mean is said in :class:`torch_lsh.data.HashedText`.

    Args:
        text: ``[bytes]`` uint8, the texts in UTF-8 one behind the other.
        offsets: ``[B + 1]`` int64, where texts begin and the last one ends.
        bits: 1 to 31.
        word_ngrams: up to so many words make a feature; 0: none.
        char_min, char_max: lengths of character n-grams; 0 and 0: none.
        is_signed: whether a bit of the hash gives a feature its sign.
        tf: ``"count"``, ``"log"`` (1 + ln count) or ``"binary"``.
        normalized: divide rows by their Euclidean norm.
        seed: of the hash.

    Returns:
        ``crow`` ``[B + 1]`` int64, ``col`` ``[nnz]`` int64, increasing within a row, and ``values`` ``[nnz]`` float32.

    >>> text = torch.frombuffer(bytearray(b"to be or not to be"), dtype=torch.uint8)
    >>> hash_text(text, torch.tensor([0, 18]), 20, 1, 0, 0, False, "count", False, 0)[2]
    tensor([1., 1., 2., 2.])
    """
    return _ops.hash_text(text, offsets, bits, word_ngrams, char_min, char_max, is_signed, tf, normalized, seed)


def word_spans(text: Tensor) -> Tensor:
    """Where the words that :func:`hash_text` sees begin and end.

    Args:
        text: ``[bytes]`` uint8.

    Returns:
        ``[words, 2]`` int64, offsets in bytes.

    >>> word_spans(torch.frombuffer(bytearray(b"to be!"), dtype=torch.uint8))
    tensor([[0, 2],
            [3, 5]])
    """
    return _ops.word_spans(text)
