"""Adam's step on weight and bias of a layer, with and without the backward pass of a loss before, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import operator


@operator
def linear_adam_(
    rows: Tensor,
    gradient: Tensor,
    bias_gradient: Tensor,
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    step: Tensor,
    bias: Tensor,
    bias_first: Tensor,
    bias_second: Tensor,
    bias_step: Tensor,
    touches: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    stochastic_rounding: bool,
) -> None:
    """:func:`row_sparse_adam_` on weight and bias, and :func:`count_touches_`, in place.

    Args:
        rows: ``[A]`` int64, strictly increasing.
        gradient, bias_gradient: ``[A, in]`` and ``[A]``, of the dtype of ``weight``.
        weight: ``[N, in]`` float32, float64 or bfloat16.
        bias: ``[N]`` of the same dtype.
        first, second, step, bias_first, bias_second, bias_step, touches: as in :func:`linear_softmax_adam_`.
        lr, beta1, beta2, eps, weight_decay, decoupled, maximize: as in :func:`row_sparse_adam_`.
        stochastic_rounding: of bfloat16 weights and moments; the seed is the number of the step.

    Raises:
        RuntimeError: an argument does not fit. Nothing was changed then.

    >>> import torch
    >>> weight, first, second, step = torch.ones(3, 1), torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(())
    >>> bias, bias_first, bias_second, bias_step = torch.ones(3), torch.zeros(3), torch.zeros(3), torch.zeros(())
    >>> state = weight, first, second, step, bias, bias_first, bias_second, bias_step
    >>> options = 0.1, 0.9, 0.999, 0.0, 0.0, False, False, False
    >>> linear_adam_(torch.tensor([1]), torch.ones(1, 1), torch.ones(1), *state, None, *options)
    >>> weight.flatten(), bias, step
    (tensor([1.0000, 0.9000, 1.0000]), tensor([1.0000, 0.9000, 1.0000]), tensor(1.))
    """


@operator
def linear_softmax_adam_(
    slopes: Tensor,
    factors: Tensor,
    x: Tensor,
    rows: Tensor,
    grad: Tensor | None,
    hardest: int,
    log_weights: Tensor | None,
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    step: Tensor,
    bias: Tensor | None,
    bias_first: Tensor | None,
    bias_second: Tensor | None,
    bias_step: Tensor | None,
    touches: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    stochastic_rounding: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`linear_softmax_loss_backward`, then :func:`row_sparse_adam_` on weight and bias, in place.

    For a small layer these take longer to call than to run.

    Args:
        slopes, factors, x, rows, grad, hardest, log_weights: as in :func:`linear_softmax_loss_backward`; ``rows`` are
            strictly increasing.
        weight: ``[N, in]`` of the dtype of ``factors``.
        first, second: the moments, as in :func:`row_sparse_adam_`.
        step: ``[]`` float32, the steps before this one. Counted up.
        bias, bias_first, bias_second, bias_step: the same of the bias ``[N]``; or all None.
        touches: ``[N]`` uint8, counted up as by :func:`count_touches_`; or None.
        lr, beta1, beta2, eps, weight_decay, decoupled, maximize: as in :func:`row_sparse_adam_`.
        stochastic_rounding: of bfloat16 moments; the seed is the number of the step.

    Returns:
        The gradient of ``x``, and the hardest rows.

    Raises:
        RuntimeError: an argument does not fit. Nothing was changed then.

    >>> import torch
    >>> slopes, one, x, rows = torch.tensor([[1.0]]), torch.ones(1), torch.ones(1, 1), torch.tensor([1])
    >>> weight, first, second, step = torch.ones(3, 1), torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(())
    >>> state = weight, first, second, step
    >>> options = 0.1, 0.9, 0.999, 0.0, 0.0, False, False, False
    >>> linear_softmax_adam_(slopes, one, x, rows, None, 1, None, *state, None, None, None, None, None, *options)
    (tensor([[1.]]), tensor([1]))
    >>> weight.flatten(), step
    (tensor([1.0000, 0.9000, 1.0000]), tensor(1.))
    """
    return factors.new_empty(x.shape), rows.new_empty(torch.sym_min(hardest, rows.shape[0]))
