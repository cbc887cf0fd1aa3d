"""Twins of linear_adam_ and linear_softmax_adam_."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .count_touches import count_touches_
from .linear_softmax import linear_softmax_loss_backward
from .optimizer import row_sparse_adam_


def linear_adam_(
    rows: Tensor,
    gradient: Tensor,
    bias_gradient: Tensor,
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
) -> None:
    for parameter, moments, count, of_parameter in (
        (weight, (first, second), step, gradient),
        (bias, (bias_first, bias_second), bias_step, bias_gradient),
    ):
        if parameter is not None:
            count += 1
            number = float(count)
            options = lr, beta1, beta2, eps, weight_decay, 1 - beta1**number, 1 - beta2**number, decoupled, maximize
            seed = int(number) if stochastic_rounding else -1
            row_sparse_adam_(parameter, *moments, rows, of_parameter, None, *options, None, seed)
    if touches is not None:
        count_touches_(touches, rows)


def linear_softmax_adam_(
    slopes: Tensor,
    factors: Tensor,
    x: Tensor,
    rows: Tensor,
    grad: Tensor | None,
    hardest: int,
    log_weights: Tensor | None,
    weight: Tensor,
    *state_and_options: Any,
) -> tuple[Tensor, Tensor]:
    grad_x, of_rows, of_bias, hardest_rows, _ = linear_softmax_loss_backward(
        slopes, factors, x, weight, rows, True, grad, hardest, log_weights
    )
    linear_adam_(rows, of_rows, of_bias, weight, *state_and_options)
    return grad_x, hardest_rows
