"""Weights of rows and of labels in the loss."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .rows import as_tensor


def label_weights(weights: Any, counts: Tensor) -> Tensor | None:
    """Weights of labels ``[N]`` float32.

    Args:
        weights: ``[N]``, a dict of some labels (the others have weight 1), or ``"balanced"``: the inverse frequency,
            with a mean of 1 over the labels of the rows; None means none.
        counts: How many rows have each label.

    Raises:
        ValueError: They are of another form, negative or not finite.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        if weights != "balanced":
            raise ValueError(f"class_weight is {weights!r}; wanted 'balanced', weights or a dict of weights")
        present = (counts > 0).sum()
        return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), 1.0).float()
    if isinstance(weights, dict):
        tensor = torch.ones(len(counts))
        for label, weight in weights.items():
            if not isinstance(label, Integral) or not 0 <= int(label) < len(counts):
                raise ValueError(f"class_weight has the label {label!r}; wanted 0 to {len(counts) - 1}")
            tensor[int(label)] = weight
    else:
        tensor = as_tensor(weights).float()
    _check(tensor, "class_weight", len(counts))
    if not bool((tensor * counts).any()):
        raise ValueError("class_weight is 0 for every label of the rows; wanted a positive weight")
    return tensor


def row_weights(weights: Any, rows: int) -> Tensor | None:
    """Weights of rows ``[rows]`` float32.

    Raises:
        ValueError: There are not as many, or some are negative or not finite.
    """
    if weights is None:
        return None
    tensor = as_tensor(weights).float()
    _check(tensor, "sample_weight", rows)
    if not 0 < float(tensor.sum()) < math.inf:
        raise ValueError(f"sample_weight has the sum {float(tensor.sum())}; wanted a positive, finite one")
    return tensor


def _check(weights: Tensor, name: str, count: int) -> None:
    """Raises a ValueError unless these are so many weights, finite and not negative."""
    if weights.shape != (count,):
        raise ValueError(f"{name} has shape {tuple(weights.shape)}; wanted {(count,)}")
    bad = (~(weights.isfinite() & (weights >= 0))).nonzero()
    if len(bad) > 0:
        at = int(bad[0])
        raise ValueError(f"{name}[{at}] is {weights[at].item()}; wanted a finite number of at least 0")
