"""Evaluation of a text classifier."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.filters import filter_lines
from ..models.evaluation import Propensities, Rankings, propensities_for
from ..models.rows import batch_of, num_rows
from .files import TextFile
from .fitted import FittedText
from .quality import Quality
from .sources import Texts
from .training_data import Labels, hashed

Excluded = Iterable[tuple[int, Any]] | str | os.PathLike[str]


@torch.inference_mode()
def evaluate_texts(
    fitted: FittedText,
    source: Texts | TextFile,
    metrics: Sequence[str],
    ks: Sequence[int],
    propensities: Propensities,
    excluded: Excluded | None,
) -> dict[str, float]:
    """Measures quality on texts and labels; see :meth:`torch_lsh.text.TextClassifier.evaluate`."""
    network, known = fitted.network, len(fitted.classes)
    labels = Labels(fitted.classes, others="count")
    metric = Quality(fitted.multilabel, network, fitted.threshold)
    likely = propensities_for(metrics, propensities, network)
    pairs = None if excluded is None else _excluded_pairs(fitted, excluded)
    rankings = Rankings(metrics, ks, likely, pairs, known) if metrics else None
    begin = unknown = 0
    for chunk in hashed(source, fitted.features, labels):
        for some in torch.arange(num_rows(chunk)).split(network.rows_at_a_time):
            features, true, _ = batch_of(fitted.columns.rows(chunk.take(some)))
            logits = network.scores(features) / fitted.temperature
            metric.update(logits, true)
            if rankings is not None:
                best = logits.topk(rankings.depth(begin, begin + len(some))).indices
                rankings.update(best, true, begin)
            unknown += int((true >= known).sum())
            begin += len(some)
    result = {**metric.compute(), "rows": metric.rows, **({} if rankings is None else rankings.compute())}
    return {**result, **({"labels_unknown": unknown} if unknown else {})}


def _excluded_pairs(fitted: FittedText, excluded: Excluded) -> Tensor:
    """Pairs ``[E, 2]`` of row and number of the label, those of labels that are not known left out."""
    labels = Labels(fitted.classes, others="count")
    if isinstance(excluded, (str, os.PathLike)):
        pairs = [(row, labels.number(label, place)) for row, label, place in filter_lines(excluded)]
    else:
        pairs = [(int(row), labels.number(label, "excluded")) for row, label in excluded]
    found = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return found[found[:, 1] < len(fitted.classes)]
