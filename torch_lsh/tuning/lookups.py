"""The settings whose steps find most of the best rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import SCOPES
from ..index.config import INDEX_NAMES, SignCodeConfig
from ..nn import LSHLinear
from ..nn.sampled_path import check_can_sample
from ..random_stream import same_random_stream
from .search import Search
from .trials import Tuning

logger = logging.getLogger("torch_lsh")

LEAST_INPUTS = 32


@torch.no_grad()
def tune_lookups(
    layer: LSHLinear,
    inputs: Tensor,
    target_recall: float = 0.9,
    *,
    k: int = 10,
    batch_size: int = 256,
    seconds: float = 18.0,
    hashes: Sequence[str] | None = None,
    scopes: Sequence[str] | None = None,
    apply: bool = False,
) -> Tuning:
    """Picks the fastest training step that finds ``target_recall`` of the best rows, by measurement.

    Half of the inputs build the indexes and warm up the steps. Recall of the exact ``k`` best rows is measured on the
    other half. The search has three stages:

    1. *families*: look-ups in every kind of index, hash tables with and without ``mips`` and ``balance``, with one
       probe and more, on a sample of the rows.
    2. *sizes*: for the best of these, on all rows: number and size of tables and buckets, sketches.
    3. *steps*: for the best indexes: carrying, active rows, the random share and the scopes. Active sets are drawn
       batch after batch as in training. The search walks up from few active rows until the target is reached or a step
       takes longer than the best one so far. Dense is a candidate, too.

    A setting reaches the target when its recall is above it by 1.645 standard errors. The time of a step adds up from
    choosing the active rows, measured on the layer, and everything else, measured on a smaller layer at two numbers of
    active rows and interpolated. When time runs out, the remaining settings are not tried. The layer and PyTorch's
    random stream stay as they are.

    Recall is not precision. A step also teaches a sample about rows that are not among its best: most of the softmax
    while that is flat, and the labels of the other samples in a shared set. Classifiers of many labels learn more from
    many cheap steps. So the defaults of :class:`LSHConfig` are cheaper than what reaches a high recall, and are as
    precise much sooner (``benchmarks/ablation.py --only autotune``). Tune where the best rows themselves matter, and
    compare.

    Args:
        layer: a layer with the weights to tune for, best some hundred steps into training.
        inputs: ``[*, in_features]``: some hundreds that the layer meets in training, in random order.
        target_recall: over 0, below 1.
        k: the number of best rows.
        batch_size: of training; at most half of the inputs is taken.
        seconds: to spend, about.
        hashes: what to try: hash families, ``"learned"``, ``"sign_codes"``. None: all but sign codes.
        scopes: to try; None: the layer's. A set per sample finds its best rows with the fewest rows, so it wins by
            recall where a set that the batch shares wins by precision.
        apply: give the layer the settings found.

    Returns:
        The settings, which equal ``layer.config`` in all that is not tuned, and a table of all trials. Where dense is
        best, ``active`` is 1.0: such a layer computes exactly, and :func:`torch_lsh.densify_` makes it faster.

    Raises:
        TypeError, ValueError: an argument does not fit.
        RuntimeError: the layer cannot be sampled.

    >>> layer = LSHLinear(16, 5_000)
    >>> config, table = tune_lookups(layer, torch.randn(128, 16), target_recall=0.5, seconds=1.0)
    >>> max(trial.recall.mean for trial in table if trial.config == config and trial.stage == "steps") >= 0.5
    True
    """
    if not isinstance(layer, LSHLinear):
        raise TypeError(f"layer is a {type(layer).__name__}; wanted LSHLinear")
    if hashes is None:
        hashes = [name for name in INDEX_NAMES if name != SignCodeConfig.name]
    if scopes is None:
        scopes = [layer.config.scope]
    _check_arguments(layer, target_recall, k, batch_size, seconds, hashes, scopes)
    x = _finite_samples(layer, inputs)
    with same_random_stream(), torch.inference_mode(False), torch.no_grad():
        search = Search(layer, x, target_recall, k, batch_size, seconds, scopes)
        search.run(list(dict.fromkeys(hashes)))
    best = search.best
    if not search.has_time():
        logger.warning(
            "autotune: time is up (%.3g s) after %d trials; more may find better", seconds, len(search.table)
        )
    logger.info("autotune: %s, recall %.3f, %.2f ms a step", best.describe(), best.recall.mean, best.milliseconds)
    if apply:
        layer.reconfigure(best.config)
    return Tuning(best.config, search.table)


def _check_arguments(
    layer: LSHLinear,
    target_recall: float,
    k: int,
    batch_size: int,
    seconds: float,
    hashes: Sequence[str],
    scopes: Sequence[str],
) -> None:
    if not 0 < target_recall < 1:
        raise ValueError(f"target_recall is {target_recall}; wanted more than 0 and less than 1")
    for name, number in (("k", k), ("batch_size", batch_size), ("seconds", seconds)):
        if not number > 0:
            raise ValueError(f"{name} is {number}; wanted more than 0")
    if k > layer.out_features:
        raise ValueError(f"k is {k}; wanted at most {layer.out_features}")
    for name, chosen, known in (("hashes", hashes, INDEX_NAMES), ("scopes", scopes, SCOPES)):
        if not chosen or not set(chosen) <= set(known):
            raise ValueError(f"{name} is {chosen!r}; wanted some of {', '.join(map(repr, known))}")


def _finite_samples(layer: LSHLinear, inputs: Tensor) -> Tensor:
    """The samples ``[n, in_features]`` of the inputs that the search can use."""
    check_can_sample(layer, inputs)
    x = inputs.detach().reshape(-1, layer.in_features)
    x = x[x.isfinite().all(1)]
    if len(x) < LEAST_INPUTS:
        raise ValueError(f"inputs has {len(x)} finite samples; wanted at least {LEAST_INPUTS}, best some hundreds")
    return x
