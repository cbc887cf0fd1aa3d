from __future__ import annotations

import torch
from torch import Tensor

from .random_numbers import MASK


def _random_words(seed: int, rows: Tensor, width: int) -> Tensor:
    """``[A, width]`` 32-bit numbers: the rounding of a row is a function of seed, row and column."""
    words = torch.empty(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows.tolist()):
        mixed = (seed * 0x9E3779B97F4A7C15 & MASK) ^ (row * 0xBF58476D1CE4E5B9 & MASK)
        key = (mixed ^ (mixed >> 32)) & 0xFFFFFFFF
        for j in range(width):
            x = key ^ (j * 0x9E3779B1 & 0xFFFFFFFF)
            x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
            x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
            words[i, j] = x ^ (x >> 16)
    return words


def _rounded(values: Tensor, dtype: torch.dtype, random: Tensor | None) -> Tensor:
    """``values`` in ``dtype``: in bfloat16 up or down by 16 random bits, or to nearest where ``random`` is None."""
    if dtype is not torch.bfloat16 or random is None:
        return values.to(dtype)
    raised = (values.contiguous().view(torch.int32) + (random & 0xFFFF).int()) & ~0xFFFF
    return torch.where(values.isfinite(), raised.view(torch.float32), values).to(torch.bfloat16)


def _rounding_words(seed: int, rows: Tensor, like: Tensor) -> Tensor | None:
    return None if seed < 0 else _random_words(seed, rows, like[0].numel()).view(len(rows), *like.shape[1:])


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
    exact = torch.promote_types(parameter.dtype, torch.float32)
    p, m, v = (x[rows].to(exact) for x in (parameter, first, second))
    if decays is not None:
        shape = (-1,) + (1,) * (parameter.dim() - 1)
        m, v, p = (x * decays[:, i].to(x.dtype).view(shape) for i, x in enumerate((m, v, p)))
    g = (gradient if factor is None else gradient @ factor).to(exact) * (-1 if maximize else 1)
    if decoupled:
        p = p * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    p = p - lr / bias_correction1 * m / (v.sqrt() / bias_correction2**0.5 + eps)
    words = _rounding_words(seed, rows, parameter)
    parameter[rows] = _rounded(p, parameter.dtype, words)
    first[rows] = _rounded(m, first.dtype, None if words is None else words >> 16)
    second[rows] = _rounded(
        v, second.dtype, None if words is None else (words >> 8) ^ (words * 0x85EBCA6B & 0xFFFFFFFF) >> 16
    )


def _weights_and_slope(
    parameter: Tensor, rows: Tensor, gradient: Tensor, factor: Tensor | None, weight_decay: float, maximize: bool
) -> tuple[Tensor, Tensor]:
    p = parameter[rows].to(torch.promote_types(parameter.dtype, torch.float32))
    g = (gradient if factor is None else gradient @ factor).to(p.dtype)
    return p, (-g if maximize else g) + weight_decay * p


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
    p, g = _weights_and_slope(parameter, rows, gradient, factor, weight_decay, maximize)
    words = _rounding_words(seed, rows, parameter)
    step = g
    if momentum_buffer is not None:
        velocity = momentum * momentum_buffer[rows].to(p.dtype) + (1 - dampening) * g
        momentum_buffer[rows] = _rounded(velocity, momentum_buffer.dtype, None if words is None else words >> 16)
        step = g + momentum * velocity if nesterov else velocity
    parameter[rows] = _rounded(p - lr * step, parameter.dtype, words)


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
    p, g = _weights_and_slope(parameter, rows, gradient, factor, weight_decay, maximize)
    words = _rounding_words(seed, rows, parameter)
    total = squares[rows].to(p.dtype) + g * g
    squares[rows] = _rounded(total, squares.dtype, None if words is None else words >> 16)
    parameter[rows] = _rounded(p - lr * g / (total.sqrt() + eps), parameter.dtype, words)


def row_sparse_lion_(
    parameter: Tensor,
    average: Tensor,
    rows: Tensor,
    gradient: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    p, g = _weights_and_slope(parameter, rows, gradient, factor, 0.0, maximize)
    words = _rounding_words(seed, rows, parameter)
    m = average[rows].to(p.dtype)
    step = (beta1 * m + (1 - beta1) * g).sign()
    average[rows] = _rounded(beta2 * m + (1 - beta2) * g, average.dtype, None if words is None else words >> 16)
    parameter[rows] = _rounded((1 - lr * weight_decay) * p - lr * step, parameter.dtype, words)
