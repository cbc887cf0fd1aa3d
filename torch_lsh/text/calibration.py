"""Calibration of probabilities by a temperature."""

from __future__ import annotations

import math

from torch import Tensor

_LIMIT = 10.0
_STEPS = 50


def temperature_of(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that makes ``softmax(logits / T)`` fit the labels best: the one of least cross entropy.

    The cross entropy is convex in 1 / T, so Newton's method finds it.

    Args:
        logits: ``[rows, C]``.
        labels: ``[rows]`` int64.

    Returns:
        T, from 0.1 to 10; 1 without rows.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Three of four rows are right, so the probability should be 3/4, whose logit is ln 3:

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0]] * 4)
    >>> temperature = temperature_of(logits, torch.tensor([0, 0, 0, 1]))
    >>> round(temperature, 4), round(2 / math.log(3), 4)
    (1.8205, 1.8205)
    """
    z = logits.double()
    z = z - z.gather(1, labels[:, None])
    inverse = 1.0
    for _ in range(_STEPS):
        weights = (inverse * z).softmax(1)
        means = (weights * z).sum(1, keepdim=True)
        slope, curvature = float(means.sum()), float((weights * (z - means).square()).sum())
        # A step by no more than a factor of two, for where the loss is almost a straight line.
        wanted = inverse - slope / curvature if curvature > 0 else inverse * (2.0 if slope < 0 else 1.0)
        moved = min(max(wanted, inverse / 2, 1 / _LIMIT), inverse * 2, _LIMIT)
        if math.isclose(moved, inverse, rel_tol=1e-9):
            break
        inverse = moved
    return 1 / inverse
