"""Cross entropy over the active rows of a layer, with the layer's product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..eager import eager
from .declaration import operator
from .dispatch import multiplies_bfloat16
from .gradients import RowGradient, apply_function, check_first_order
from .largest_rows import HardestRows


@operator
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
    """:func:`sampled_softmax_loss` of the logits ``x @ weight[rows].T + bias[rows]``, and the gradient of the logits.

    Not differentiable; :func:`active_rows_loss` is. All arguments are contiguous. The logits are float32 for a bfloat16
    ``x``, else of its dtype.

    Args:
        x: ``[B, in]`` float32, float64 or bfloat16.
        weight: ``[N, in]`` of the same dtype; or float32 with a bfloat16 ``x``, which rounds the active rows if
            :func:`multiplies_bfloat16`.
        bias: ``[N]`` of the dtype of ``weight``, or None.
        rows: ``[A]`` int64.
        log_weights: ``[A]`` of the dtype of the logits, or None: as in :func:`sampled_softmax_loss`, except that a
            sample's own labels always have weight 1.
        positions: ``[B, P]`` int64: as in :func:`sampled_softmax_loss`.
        shares: ``[B, P]`` of the dtype of the logits: as in :func:`sampled_softmax_loss`.
        divisor: returns the sum of the losses over this rather than the loss of each sample.

    Returns:
        ``loss`` ``[B]``, or ``[]`` with a divisor; ``slopes`` ``[A, B]`` and ``scale`` ``[B]``: the gradient of the
        loss in sample ``b``'s logit of row ``a`` is ``slopes[a, b] * scale[b]``. All have the dtype of the logits, but
        for slopes in bfloat16 where ``x`` is and products take it (:func:`multiplies_bfloat16`).

    >>> x = torch.zeros(1, 3)
    >>> loss, slopes, scale = linear_softmax_loss(
    ...     x, torch.eye(3), None, torch.tensor([0, 2]), None, torch.tensor([[1]]), torch.ones(1, 1)
    ... )
    >>> loss.exp(), slopes.T * scale
    (tensor([2.]), tensor([[ 0.5000, -0.5000]]))
    """
    batch, count = x.shape[0], rows.shape[0]
    return (
        shares.new_empty(batch if divisor is None else ()),
        shares.new_empty(count, batch, dtype=_slopes_dtype(x)),
        shares.new_empty(batch),
    )


def _slopes_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype is torch.bfloat16 and not multiplies_bfloat16() else x.dtype


@operator
def linear_softmax_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, log_weights: Tensor | None, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What some rows contribute to :func:`linear_softmax_loss`, where others contribute more, in other processes.

    Not differentiable; :func:`active_rows_sums` is. All arguments are contiguous.

    Args:
        x, weight, bias, rows, log_weights, positions: as in :func:`linear_softmax_loss`.

    Returns:
        ``log_z`` ``[B]``: the log partition function over the rows, -inf without any; ``at_labels`` ``[B, P]``: the
        logits at ``positions``, 0 where there is no label; ``slopes`` ``[A, B]`` and ``scale`` ``[B]``: the softmax
        over the rows is ``slopes[a, b] * scale[b]``. Their dtypes are as in :func:`linear_softmax_loss`.

    >>> x = torch.zeros(1, 3)
    >>> log_z, at_labels, slopes, scale = linear_softmax_sums(
    ...     x, torch.eye(3), None, torch.tensor([0, 2]), None, torch.tensor([[1, -1]])
    ... )
    >>> log_z.exp(), at_labels, slopes.T * scale
    (tensor([2.]), tensor([[0., 0.]]), tensor([[0.5000, 0.5000]]))
    """
    batch, count, dtype = x.shape[0], rows.shape[0], torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(batch, dtype=dtype),
        x.new_empty(positions.shape, dtype=dtype),
        x.new_empty(count, batch, dtype=_slopes_dtype(x)),
        x.new_empty(batch, dtype=dtype),
    )


@operator
def linear_softmax_loss_backward(
    slopes: Tensor,
    factors: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    needs_weight: bool = True,
    grad: Tensor | None = None,
    hardest: int = 0,
    log_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients that follow from ``slopes * factors * grad``, the gradient of the logits.

    Args:
        slopes: ``[A, B]``, from :func:`linear_softmax_loss`.
        factors: ``[B]``, its ``scale``.
        x, weight, rows: as in :func:`linear_softmax_loss`. Where a bfloat16 ``x`` rounds the active rows, it rounds
            ``x * factors * grad``, too.
        needs_weight: computes the gradient of the weight.
        grad: ``[B]`` or ``[]``, the gradient of the loss; None: 1.
        hardest, log_weights: finds as many of the hardest rows; see :class:`HardestRows`.

    Returns:
        The gradients of ``x`` ``[B, in]``, of the active rows of ``weight`` ``[A, in]`` (``[0, in]`` without
        ``needs_weight``) and of ``bias`` ``[A]``; the hardest rows ``[min(hardest, A)]`` int64; and
        ``x * factors * grad`` ``[B, in]`` (``[0, in]`` for a bfloat16 ``x``): the gradient of the active rows is the
        product of ``slopes`` and this. All but the rows have the dtype of ``factors``.
    """
    count, (batch, width) = rows.shape[0], x.shape
    of_weight = factors.new_empty(count * needs_weight, width)
    scaled = factors.new_empty(batch if x.dtype is factors.dtype else 0, width)
    hardest_rows = rows.new_empty(torch.sym_min(hardest, count))
    return factors.new_empty(x.shape), of_weight, factors.new_empty(count), hardest_rows, scaled


def active_rows_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    log_weights: Tensor | None,
    positions: Tensor,
    shares: Tensor,
    divisor: float | None = None,
    hardest: HardestRows | None = None,
    computed: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Cross entropy over the active rows of a layer, as most models need it in a training step.

    Equals :func:`gather_matmul` and :func:`sampled_softmax_loss` in turn, but takes each exponential once and keeps no
    gradient of the logits beside the logits. Differentiable (once) in ``x``, ``weight`` and ``bias`` (row-sparse as in
    :func:`gather_rows`).

    Args:
        x, weight, bias, log_weights, positions, shares, divisor: as in :func:`linear_softmax_loss`, but ``x`` may have
            any strides.
        rows: ``[A]`` int64, strictly increasing.
        hardest: asks for the hardest rows, found in the backward pass.
        computed: called in the forward pass with ``slopes`` and ``scale`` of :func:`linear_softmax_loss`, to read.

    Returns:
        ``[B]``, or ``[]`` with a divisor, of the dtype of ``shares``.
    """
    others = (rows, log_weights, positions, shares, divisor, hardest, computed)  # as one: apply() looks at each
    loss: Tensor = apply_function(_ActiveRowsLoss, x, weight, bias, others)
    return loss


def active_rows_sums(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    log_weights: Tensor | None,
    positions: Tensor,
    hardest: HardestRows | None = None,
) -> tuple[Tensor, Tensor]:
    """The parts of a loss over active rows that are joined with those of rows elsewhere.

    Differentiable (once) in ``x``, ``weight`` and ``bias``, as :func:`active_rows_loss` is, at the same cost.

    Args:
        x, weight, bias, rows, log_weights, positions, hardest: as in :func:`active_rows_loss`.

    Returns:
        ``log_z`` ``[B]`` and ``at_labels`` ``[B, P]`` of :func:`linear_softmax_sums`.
    """
    sums: tuple[Tensor, Tensor] = _ActiveRowsSums.apply(x, weight, bias, rows, log_weights, positions, hardest)
    return sums


# A compiled function that calls loss.backward() would compile the Python of the backward pass.
_EAGER = "the gradients of active rows are row-sparse"


class _ActiveRowsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        others: tuple[Any, ...],
    ) -> Tensor:
        x = x.contiguous()
        rows, log_weights, positions, shares, divisor, hardest, computed = others
        loss, slopes, scale = linear_softmax_loss(x, weight, bias, rows, log_weights, positions, shares, divisor)
        if computed is not None:
            computed(slopes, scale)
        ctx.save_for_backward(x, weight, rows, slopes, scale)
        ctx.gradients = _Gradients(weight, bias, hardest)
        return loss

    @staticmethod
    @eager(_EAGER)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_first_order()
        x, weight, rows, slopes, scale = ctx.saved_tensors
        of_operands = ctx.gradients.of(
            ctx, slopes, scale, x, weight, rows, *ctx.needs_input_grad[:3], grad=grads[0].contiguous()
        )
        return *of_operands, None


class _ActiveRowsSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        log_weights: Tensor | None,
        positions: Tensor,
        hardest: HardestRows | None,
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        log_z, at_labels, slopes, scale = linear_softmax_sums(x, weight, bias, rows, log_weights, positions)
        ctx.save_for_backward(x, weight, rows, slopes, scale, positions)
        ctx.gradients = _Gradients(weight, bias, hardest)
        return log_z, at_labels

    @staticmethod
    @eager(_EAGER)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_first_order()
        x, weight, rows, slopes, scale, positions = ctx.saved_tensors
        of_log_z, of_labels = grads
        of_labels = of_labels.masked_fill(positions < 0, 0)
        factors = of_log_z * scale
        # A label's gradient goes into the slopes, divided by what multiplies them. That may be 0, where other rows
        # outweigh these by far; a factor that is as good as 0 takes its place.
        least = torch.finfo(factors.dtype).tiny ** 0.5
        factors = factors.masked_fill((factors.abs() < least) & (of_labels != 0).any(1), least)
        ratios = of_labels / factors.masked_fill(factors == 0, 1).unsqueeze(1)
        sample, label = (positions >= 0).nonzero(as_tuple=True)
        places = positions[sample, label], sample
        slopes = slopes.data  # changed and changed back: its version stays
        softmax = slopes[places]
        slopes.index_put_(places, ratios[sample, label].to(slopes.dtype), accumulate=True)
        of_operands = ctx.gradients.of(ctx, slopes, factors, x, weight, rows, *ctx.needs_input_grad[:3])
        slopes.index_put_(places, softmax)
        return *of_operands, *(None,) * 4


class _Gradients:
    """The way of the gradient of active rows' logits to input, weight and bias."""

    __slots__ = ("_hardest", "_of_bias", "_of_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, hardest: HardestRows | None) -> None:
        self._of_weight, self._of_bias = RowGradient(weight), None if bias is None else RowGradient(bias)
        self._hardest = hardest

    def of(
        self,
        ctx: Any,
        slopes: Tensor,
        factors: Tensor,
        x: Tensor,
        weight: Tensor,
        rows: Tensor,
        needs_x: bool,
        needs_weight: bool,
        needs_bias: bool,
        grad: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of ``x``, weight and bias, from that of the logits, ``slopes * factors * grad``."""
        of_weight, of_bias, hardest, updater = self._of_weight, self._of_bias, self._hardest, None
        if needs_weight:
            needs_weight, updater = of_weight.asked(ctx)
        parameter, bias = of_weight.parameter, None if of_bias is None else of_bias.parameter
        if (
            (updater is not None and parameter is not None and grad is not None and factors.dtype is parameter.dtype)
            # One optimizer may update weight and bias in one operator with the backward pass.
            and (of_bias is None or of_bias.asked(ctx)[1] is updater)
        ):
            of_x = updater.update_linear_in_backward(parameter, bias, slopes, factors, x, rows, grad, hardest)
            if of_x is not None:
                return of_x.to(x.dtype) if needs_x else None, None, None
        # An optimizer takes the gradient as its two factors, except in bfloat16, which is multiplied faster here.
        as_factors = updater is not None and x.dtype is factors.dtype
        count, log_weights = (0, None) if hardest is None else (hardest.count, hardest.log_weights)
        grad_x, of_rows, of_offset, hardest_rows, scaled = linear_softmax_loss_backward(
            slopes, factors, x, weight, rows, needs_weight and not as_factors, grad, count, log_weights
        )
        if hardest is not None:
            hardest.keep(hardest_rows)
        grad_weight = grad_bias = None
        if needs_bias and of_bias is not None:
            grad_bias = of_bias.deliver(ctx, rows, of_offset, unique=True)
        if as_factors and updater is not None and parameter is not None:
            updater.update_in_backward(parameter, rows, slopes, scaled)
        elif needs_weight:
            grad_weight = of_weight.deliver(ctx, rows, of_rows, unique=True)
        if grad_x.dtype is not x.dtype:
            grad_x = grad_x.to(x.dtype)
        return grad_x if needs_x else None, grad_weight, grad_bias
