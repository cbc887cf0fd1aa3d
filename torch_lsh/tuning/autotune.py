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


def autotune(model: Any, data: Any, *arguments: Any, **options: Any) -> Any:
    """Picks settings by measurement: for the metric of a model (with ``held_out``), or for the look-ups of a layer.

    ``autotune(model, batches, held_out=...)`` trains the model with many settings and judges them after equal time, see
    :func:`torch_lsh.tuning.tune_training`. ``autotune(layer, inputs, target_recall)`` looks for the fastest step that
    finds the best rows, see :func:`torch_lsh.tuning.tune_lookups`. Recall is not precision: to train a model better,
    tune for its metric.

    Args:
        model: A model, or a function that makes one from an :class:`LSHConfig`; for look-ups, an :class:`LSHLinear`.
        data: Batches to train on; for look-ups, inputs of the layer.
        arguments, options: Of the function that is called.

    Returns:
        The settings, and a table of all trials.
    """
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
    """Picks the settings with the best metric on held-out rows after equal time of training, by successive halving.

    Learning rate, ``active``, ``correction`` and index are tuned, in three rounds of ever longer training from the
    start:

    1. the present settings, and about eleven others that differ in one thing;
    2. the present settings, the best four others, and the best changes combined;
    3. the present settings, and the best two others.

    Other settings are picked only if they are better in the last round by a standard error, so the pick is never worse
    than the present settings by what was measured.

    The last round trains for about a tenth of ``seconds``, and the pick is good for trainings of about that length: a
    higher learning rate and fewer active rows win short trainings and may lose long ones.

    Args:
        model: A module, which is copied for every trial and stays as it is; its widest :class:`LSHLinear` is tuned. Or
            a function that makes a new model from an :class:`LSHConfig`; "present" are then ``LSHConfig()``.
        batches: Batches to train on, such as a ``DataLoader``; iterated anew for every trial.
        held_out: Batches to judge on; of many, the first ones.
        seconds: To spend, about.
        lr: The present learning rate.
        optimizer: Called as ``optimizer(model.parameters(), lr=lr)``.
        forward: ``forward(model, batch) -> (logits, target)``. None means that the last item of a batch is the target
            and the others are the arguments of the model.
        loss: ``loss(logits, target) -> scalar``.
        metric: ``metric(logits, target)`` -> values of the rows ``[B]`` or their mean, in ``eval()`` mode; greater is
            better. None means whether the best class is a label. For a language model, for example, ``lambda logits, y:
            -F.cross_entropy(logits, y, reduction="none")``.
        clock: Measures training. ``time.process_time`` suits a machine that others use, with one thread.

    Returns:
        The settings of the layer, and the table of all trials; ``table.best`` is the trial to take, with its ``lr``.

    Raises:
        ValueError: An argument does not fit.

    References:
        Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), LSHLinear(16, 5_000))
    >>> batches = [(torch.randn(32, 8), torch.randint(5_000, (32,))) for _ in range(4)]
    >>> config, table = tune_training(model, batches, held_out=batches, seconds=0.2)
    >>> model[2].reconfigure(config)
    >>> optimizer = optim.Adam(model.parameters(), lr=table.best.lr)
    """
    for name, number in (("seconds", seconds), ("lr", lr)):
        if not 0 < number < math.inf:
            raise ValueError(f"{name} is {number}; wanted more than 0")
    layer = tuned_layer(model if isinstance(model, nn.Module) else model(LSHConfig()))
    present = Settings(layer.config, lr)
    task = TrainingTask(
        model, batches, held_out, optimizer, forward or _inputs_and_target, loss, metric or best_is_label, clock
    )
    task = task.judged_within(present.config, _TO_JUDGE * seconds / MOST_TRIALS)
    table = search(task, present, layer.out_features, (1 - _TO_JUDGE) * seconds)
    best = table.best
    logger.info("autotune: %s, metric %.4f after %.1f s", best.describe(), best.metric.mean, best.seconds)
    return TrainingTuning(best.config, table)


def _inputs_and_target(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    *inputs, target = batch
    return model(*inputs), target


def best_is_label(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the best class of each row is among its labels, ``[B]`` float32.

    Args:
        logits: ``[B, C]``.
        target: Class indices ``[B]``, or ``[B, P]`` padded with negative numbers, or a sparse CSR tensor ``[B, C]``.

    >>> best_is_label(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor([1., 0.])
    """
    best = logits.argmax(1)
    if target.layout is torch.sparse_csr:
        rows = torch.repeat_interleave(target.crow_indices().diff())
        hits = (target.col_indices() == best[rows]).float()
        return hits.new_zeros(len(best)).index_add_(0, rows, hits).clamp_(max=1)
    return (best[:, None] == target.view(len(best), -1)).any(1).float()
