"""autotune: settings by measurement, for the metric of a model or for the look-ups of a layer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import optim
from ..config import LSHConfig
from ..nn import LSHLinear
from .halving import MOST_TRIALS, search
from .lookups import tune_lookups
from .training import Model, TrainingTask, tuned_layer
from .trials import Settings, TrainingTuning, Tuning

logger = logging.getLogger("torch_lsh")

_TO_JUDGE = 0.25  # of all the time


@overload
def autotune(
    model: LSHLinear,
    data: Tensor,
    target_recall: float = 0.9,
    *,
    k: int = 10,
    batch_size: int = 256,
    seconds: float = 18.0,
    hashes: Sequence[str] | None = None,
    scopes: Sequence[str] | None = None,
    apply: bool = False,
) -> Tuning: ...
@overload
def autotune(
    model: Model,
    data: Iterable[Any],
    *,
    held_out: Iterable[Any],
    seconds: float = 120.0,
    lr: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = optim.Adam,
    forward: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    metric: Callable[[Any, Any], Tensor] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainingTuning: ...
def autotune(model: Any, data: Any, *arguments: Any, **options: Any) -> Any:
    if "held_out" in options:
        return tune_training(model, data, *arguments, **options)
    return tune_lookups(model, data, *arguments, **options)


def tune_training(
    model: Model,
    batches: Iterable[Any],
    *,
    held_out: Iterable[Any],
    seconds: float = 120.0,
    lr: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = optim.Adam,
    forward: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    metric: Callable[[Any, Any], Tensor] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainingTuning:
    for name, number in (("seconds", seconds), ("lr", lr)):
        if not 0 < number < math.inf:
            raise ValueError(f"{name} is {number}; wanted more than 0")
    task = TrainingTask(
        model, batches, held_out, optimizer, forward or _inputs_and_target, loss, metric or precision_at_1, clock
    ).judged_within(_TO_JUDGE * seconds / MOST_TRIALS)
    made = model if isinstance(model, nn.Module) else model(LSHConfig())
    layer = tuned_layer(made)
    config = layer.config
    table = search(task, Settings(config, lr), layer.out_features, (1 - _TO_JUDGE) * seconds)
    return TrainingTuning(table.best.config, table)


def _inputs_and_target(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    *inputs, target = batch
    return model(*inputs), target


def precision_at_1(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the best class of each row is among its labels, ``[B]``; rows of class indices ``[B]`` or ``[B, P]``."""
    best = logits.argmax(1)
    return (best[:, None] == target.view(len(best), -1)).any(1).float()
