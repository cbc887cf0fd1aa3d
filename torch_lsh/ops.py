"""Typed wrappers of the C++ operators: documentation, fake kernels, autograd and autocast.

The operators themselves are ``torch.ops.torch_lsh.*`` (schemas in ``csrc/library.cpp``); their plain-PyTorch twins are
in :mod:`torch_lsh.reference`. The wrappers check nothing: argument errors come from C++ and name the argument.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _library  # noqa: F401  (registers torch.ops.torch_lsh)
from .row_sparse import wants_row_sparse

_ops = torch.ops.torch_lsh


# --- dispatch -------------------------------------------------------------------------------------------------------


def simd_level() -> str:
    """The instruction set that the kernels run on: ``"avx512"``, ``"avx2"``, ``"neon"`` or ``"scalar"``.

    >>> simd_level() in {"avx512", "avx2", "neon", "scalar"}
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

    Differentiable in ``table``: the gradient is row-sparse where :func:`torch_lsh.row_sparse.wants_row_sparse` says so,
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


@torch.library.register_fake("torch_lsh::gather_rows")
def _(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return table.new_empty((rows.shape[0], *table.shape[1:]), dtype=dtype)


def _gather_rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, rows, _ = inputs
    ctx.save_for_backward(rows)
    ctx.shape, ctx.dtype = table.shape, table.dtype
    ctx.row_sparse = wants_row_sparse(table)


def _gather_rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (rows,) = ctx.saved_tensors
    return _row_gradient(rows, grad.to(ctx.dtype), ctx.shape, ctx.row_sparse), None, None


def _row_gradient(rows: Tensor, values: Tensor, shape: torch.Size, row_sparse: bool) -> Tensor:
    """The gradient of a ``shape`` parameter of which only ``rows`` have one; ``rows`` may repeat."""
    if row_sparse:
        return torch.sparse_coo_tensor(rows.unsqueeze(0), values, shape, check_invariants=False)
    return values.new_zeros(shape).index_add_(0, rows, values)


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

    The rows are copied next to each other once, then a BLAS product runs at full speed, forward and backward.

    Args:
        x: ``[B, in]``.
        weight: ``[N, in]``, of the dtype of ``x`` unless autocast is on.
        bias: ``[N]`` or None.
        rows: ``[A]`` int64.

    Returns:
        ``[B, A]``.
    """
    return F.linear(x, gather_rows(weight, rows), None if bias is None else gather_rows(bias, rows))


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


@torch.library.register_fake("torch_lsh::sampled_dot")
def _(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty(rows.shape)


def _sampled_dot_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, table, rows = inputs
    ctx.save_for_backward(x, table, rows)
    ctx.row_sparse = wants_row_sparse(table)


def _sampled_dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, table, rows = ctx.saved_tensors
    present = rows >= 0
    crow = F.pad(present.sum(1).cumsum(0), (1, 0))
    col, values = rows[present], grad[present]
    grad_x = _ops.embedding_bag(table, crow, col, values) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return grad_x, None, None
    touched, sums = _ops.embedding_bag_backward(x, crow, col, values)
    return grad_x, _row_gradient(touched, sums, table.shape, ctx.row_sparse), None


torch.library.register_autograd("torch_lsh::sampled_dot", _sampled_dot_backward, setup_context=_sampled_dot_setup)


def _sampled_dot_autocast(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    return _without_autocast(_ops.sampled_dot, x.to(table.dtype), table, rows)


_autocast.impl("sampled_dot", _sampled_dot_autocast)


# --- active sets ----------------------------------------------------------------------------------------------------


def select_rows(
    labels: Tensor, candidates: Tensor, num_rows: int, active: int, num_random: int, seed: int, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The active rows of a step: labels, then candidates, then uniform random rows, without repetition.

    Labels are always in. Candidates follow, the best of every sample before the second best of any, until
    ``active - num_random`` rows are in. Random rows (drawn without replacement from the rest) fill up to ``active``;
    at least ``num_random`` where labels took the room, and none at all where ``num_random`` is 0.

    Args:
        labels: ``[B, P]`` int64; negative: no label.
        candidates: ``[B, M]`` int64, best first; negative: no candidate.
        num_rows: rows of the layer.
        active: rows wanted, 1 to ``num_rows``.
        num_random: 0 to ``active``.
        seed: the draw is a function of it alone.
        per_sample: one set per sample rather than one for the batch.

    Returns:
        ``rows``: ``[A]`` or ``[B, A]`` int64, increasing, per-sample sets padded with -1;
        ``is_random``: bool of the same shape; ``positions``: ``[B, P]``, where in ``rows`` each label is, -1 for none.

    >>> rows, is_random, positions = select_rows(
    ...     torch.tensor([[7]]), torch.tensor([[3, 7, 5]]), 10, active=2, num_random=0, seed=0, per_sample=False
    ... )
    >>> rows, positions
    (tensor([3, 7]), tensor([[1]]))
    """
    return _ops.select_rows(labels, candidates, num_rows, active, num_random, seed, per_sample)


@torch.library.register_fake("torch_lsh::select_rows")
def _(
    labels: Tensor, candidates: Tensor, num_rows: int, active: int, num_random: int, seed: int, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    shape = (labels.shape[0], count) if per_sample else (count,)
    return labels.new_empty(shape), labels.new_empty(shape, dtype=torch.bool), torch.empty_like(labels)
