"""Twin of linear_softmax_adam_."""

from __future__ import annotations

from torch import Tensor

from .count_touches import count_touches_
from .linear_softmax import linear_softmax_loss_backward
from .optimizer import row_sparse_adam_


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
    grad_x, of_rows, of_bias, hardest_rows, _ = linear_softmax_loss_backward(
        slopes, factors, x, weight, rows, True, grad, hardest, log_weights
    )
    for parameter, moments, count, gradient in (
        (weight, (first, second), step, of_rows),
        (bias, (bias_first, bias_second), bias_step, of_bias),
    ):
        if parameter is not None:
            count += 1
            number = float(count)
            corrections = 1 - beta1**number, 1 - beta2**number
            row_sparse_adam_(
                parameter,
                *moments,
                rows,
                gradient,
                None,
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                *corrections,
                decoupled,
                maximize,
                None,
                int(number) if stochastic_rounding else -1,
            )
    if touches is not None:
        count_touches_(touches, rows)
    return grad_x, hardest_rows
