"""Fitting of a text classifier: from texts and labels to a trained network."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import XMCRows
from ..data.xmc import join_rows
from ..models.fitting import Fitted, fit, fit_more
from ..models.held_out import MOST_HELD_OUT, TO_STOP, Purpose, are_crossed
from ..models.network import Network
from ..models.rows import InMemory, batch_of, num_rows
from ..models.settings import Settings
from ..models.training import RunOptions
from ..models.weights import label_weights, row_weights
from . import model_file
from .calibration import temperature_of
from .columns import Columns
from .files import TextFile
from .fitted import FittedText
from .hashed_text import HashedText
from .linear import LinearNetwork
from .margins import margin_network, share_of
from .naive_bayes import log_count_ratios
from .quality import THRESHOLD, Quality
from .settings import Chosen, are_few_to_rank, hashing, network_for, ranks_few, settings_for
from .sources import FileColumns, Texts, is_multi_hot, plain_labels, source_of
from .training_data import FeatureSource, Labels, Statistics, TrainingData, Weighted, hashed

_MOST_COUNTS = 1 << 26  # of features by classes, to weigh features by
_PARTS = 5  # of the training texts, for a temperature where none are held out
_ENOUGH = 500  # texts for a temperature
_LEAST = 200


def fit_texts(
    chosen: Chosen,
    X: Any,
    y: Any,
    file_columns: FileColumns,
    options: RunOptions,
    *,
    validation: Any,
    sample_weight: Any,
    class_weight: Any,
    budget: float | None,
) -> FittedText:
    """Trains a network on texts and labels; see :meth:`torch_lsh.text.TextClassifier.fit`.

    Args:
        chosen: The settings of the classifier.
        X, y, validation, sample_weight, class_weight: As in ``fit``.
        file_columns: How files are read.
        options: How the run is carried out.
        budget: Seconds of training.
    """
    y = plain_labels(y)
    source, multi_hot = source_of(X, y, file_columns), is_multi_hot(y)
    weighted = sample_weight is not None or class_weight is not None
    ranked = ranks_few(chosen, weighted, validation)

    def purpose(classes: int, texts: int) -> Purpose:
        few = ranked and are_few_to_rank(classes, texts)
        return settings_for(chosen, few).purpose(classes, weighted)

    data = TrainingData(
        source,
        hashing(chosen, source, ranked),
        chosen.validation_fraction if validation is None else 0.0,
        MOST_HELD_OUT,
        chosen.memory,
        chosen.seed,
        range(y.shape[1]) if multi_hot else None,  # all, whether in use or not
        None if sample_weight is None else row_weights(sample_weight, len(sample_weight)),
        purpose,
    )
    found = data.statistics
    multilabel = found.several or _asks_for_several(source)
    _check_found(found, multilabel)
    held_out = found.held_out
    if validation is not None:
        held_out = _validation_rows(validation, file_columns, data.features, Labels(found.classes))
    classes, texts = len(found.classes), found.rows + (0 if found.held_out is None else num_rows(found.held_out))
    few = ranked and found.cached is not None and are_few_to_rank(classes, texts)
    network, settings = network_for(chosen, len(found.columns), classes, found.rows, multilabel, few)
    settings = settings._replace(crossed=are_crossed(found.rows, found.held_out, purpose(classes, texts)))
    columns = _weighted_columns(data.blocks(), found, network, data.features.num_features)
    parts = 0 if chosen.validation_fraction == 0 else _parts_to_calibrate(network, held_out, found)
    budget = None if budget is None else budget / (1 + parts)
    held_out = None if held_out is None else columns.rows(held_out)
    network.class_weight = label_weights(_by_number(class_weight, found.classes), found.label_counts)
    fitted = fit(
        network,
        FeatureSource(data, columns, chosen.memory),
        held_out,
        settings._replace(budget=budget),
        options,
        metric=functools.partial(Quality, multilabel, network),
        configuration=None if options.checkpoint is None else model_file.describe_run(network, data.features),
    )
    network.eval()
    temperature, threshold = _calibrated(network, held_out, fitted, multilabel)
    if parts > 0:
        crossed = _cross_fitted(chosen, data, network, settings._replace(budget=budget), parts)
        temperature, threshold = crossed.temperature, crossed.threshold
        if crossed.share > 0:
            assert isinstance(network, LinearNetwork)
            assert found.cached is not None
            network.mix_(margin_network(columns.rows(found.cached.rows), chosen.seed), crossed.share)
    network.class_weight = None
    return FittedText(
        data.features,
        columns,
        network,
        found.classes,
        multilabel,
        multi_hot,
        threshold,
        temperature,
        _of_texts(fitted.history),
    )


def fit_more_texts(
    fitted: FittedText,
    source: Texts | TextFile,
    labels: Labels,
    settings: Settings,
    sample_weight: Any,
    grown: Callable[[FittedText], object],
) -> FittedText:
    """Trains a network further, on texts that may have new labels and new words.

    Args:
        fitted: The network, which is changed in place.
        source: Texts and labels.
        labels: Those of the network, in their order; gets the new ones.
        settings: What to do; ``lr`` None means 0.001, without a hidden layer 0.005.
        sample_weight: Weight of each text.
        grown: Gets the network when it has room for the texts, before it is trained.
    """
    chunks = list(hashed(source, fitted.features, labels))
    if not chunks:
        return make_room(fitted, labels)
    rows = join_rows(chunks)._replace(num_labels=len(labels.numbers))  # known ones included
    if not fitted.multilabel and bool((rows.label_start.diff() > 1).any()):
        raise ValueError("y has several labels of a text, and the classifier gives one")
    wider = fitted.columns.with_those_of(rows)
    rows = wider.rows(rows)
    weights = row_weights(sample_weight, num_rows(rows))
    lr = settings.lr or (0.005 if isinstance(fitted.network, LinearNetwork) else 0.001)
    source_of_rows = InMemory(rows, rows.num_labels, weights)
    wide = fitted._replace(columns=wider, classes=list(labels.numbers))
    history = fit_more(
        fitted.network, source_of_rows, settings._replace(lr=lr), RunOptions(), grown=lambda: grown(wide)
    )
    return wide._replace(history=[*fitted.history, *_of_texts(history)])


def labels_with(fitted: FittedText, classes: Iterable[Any] | None) -> Labels:
    """The labels of a network, then further ones."""
    labels = Labels(fitted.classes, others="add")
    for label in [] if classes is None else np.asarray(classes).tolist():
        labels.number(label, "classes")
    return labels


def make_room(fitted: FittedText, labels: Labels) -> FittedText:
    """Widens a network, in place, for labels that no text has had."""
    fitted.network.grow(len(fitted.columns), len(labels.numbers))
    if fitted.network.mixture is not None:
        fitted.network.mixture.make_room(len(labels.numbers))
    return fitted._replace(classes=list(labels.numbers))


def _asks_for_several(source: Texts | TextFile) -> bool:
    return source.several if isinstance(source, Texts) else source.label_separator is not None


def _check_found(found: Statistics, multilabel: bool) -> None:
    if found.rows == 0:
        raise ValueError("X holds no text with a label; wanted some")
    if len(found.classes) < 2 and not multilabel:
        raise ValueError(f"y holds one class only, {found.classes[0]!r}; wanted at least two")


def _validation_rows(validation: Any, columns: FileColumns, features: HashedText, labels: Labels) -> XMCRows | None:
    texts, y = validation if isinstance(validation, tuple) else (validation, None)
    rows = list(hashed(source_of(texts, y, columns), features, labels))
    return join_rows(rows)._replace(num_labels=len(labels.numbers)) if rows else None


def _weighted_columns(blocks: Iterable[Weighted], found: Statistics, network: Network, num_columns: int) -> Columns:
    """Weighted by how far they tell few classes apart, with more than two by rarity, too; by rarity alone otherwise."""
    few = isinstance(network, LinearNetwork) and not network.binary
    if not few or len(found.columns) * len(found.classes) >= _MOST_COUNTS:
        return Columns(found.columns, found.idf, num_columns)
    unweighted = Columns(found.columns, torch.ones(len(found.columns)), num_columns)
    weights = log_count_ratios((block.rows for block in blocks), unweighted, len(found.classes))
    if len(found.classes) > 2:  # the mean over classes is less sure than the one ratio of two
        weights = weights.sqrt_().mul_(found.idf)
    return Columns(found.columns, weights, num_columns)


@torch.no_grad()
def _calibrated(network: Network, held_out: XMCRows | None, fitted: Fitted, multilabel: bool) -> tuple[float, float]:
    """Temperature and threshold that held-out rows ask for.

    The temperature is that of a linear network; a ranker calibrates itself, before the rows become neighbours.
    """
    validated = fitted.validated
    threshold = validated.best_threshold() if isinstance(validated, Quality) and multilabel else THRESHOLD
    if held_out is None or not isinstance(network, LinearNetwork) or network.mixture is not None:
        return 1.0, threshold
    features, labels, _ = batch_of(held_out)
    return _of_scores(network, network.scores(features), labels)


def _of_scores(network: Network, logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Temperature and threshold that logits ``[B, C]`` of rows with labels ``[B, P]`` ask for."""
    if not network.binary:
        labelled = labels[:, 0] >= 0
        return temperature_of(logits[labelled], labels[labelled, 0]), THRESHOLD
    target = torch.zeros(len(labels), logits.shape[1] + 1, dtype=torch.int64)  # the last column takes the padding
    target.scatter_(1, labels.masked_fill(labels < 0, logits.shape[1]), 1)
    decisions = F.pad(logits.reshape(-1, 1), (1, 0))  # logits of no and of yes, for each class
    temperature = temperature_of(*_with_one_wrong(decisions, target[:, :-1].flatten()))
    metric = Quality(True, network)
    metric.update(logits / temperature, labels)
    return temperature, metric.best_threshold()


def _parts_to_calibrate(network: Network, held_out: XMCRows | None, found: Statistics) -> int:
    """How many fifths of the training texts to predict by networks of the others; 0 where that is not called for."""
    linear = isinstance(network, LinearNetwork)
    few = found.cached is not None and _LEAST <= found.rows < TO_STOP.least
    return min(_PARTS, math.ceil(_ENOUGH * _PARTS / found.rows)) if linear and few and held_out is None else 0


class Crossed(NamedTuple):
    """What training texts ask for, each predicted by networks that were trained on others.

    Attributes:
        share: Of support vector machines.
        temperature, threshold: See :class:`FittedText`.
    """

    share: float
    temperature: float
    threshold: float


def _cross_fitted(chosen: Chosen, data: TrainingData, network: Network, settings: Settings, parts: int) -> Crossed:
    """What training texts ask for, each predicted by networks that were trained on the other parts.

    Support vector machines know neither weights of texts and classes nor neighbours, and give one label; elsewhere,
    their share is 0.

    Args:
        chosen: The settings of the classifier.
        data: The training texts, in memory.
        network: The network of all texts.
        settings: Of its training.
        parts: How many of the parts to predict.
    """
    found = data.statistics
    assert found.cached is not None
    order = torch.randperm(found.rows, generator=torch.Generator().manual_seed(chosen.seed))
    weighted = found.cached.weights is not None or network.class_weight is not None
    logits, margins, labels = [], [], []
    for predicted in order.chunk(_PARTS)[:parts]:
        others = torch.ones(found.rows, dtype=torch.bool)
        others[predicted] = False
        cached, weights = found.cached.take(others.nonzero()[:, 0])
        other, _ = network_for(chosen, network.num_features, network.num_labels, len(cached), network.binary)
        other.class_weight = network.class_weight
        columns = _weighted_columns([Weighted(cached, weights)], found, other, data.features.num_features)
        columns = columns.only_those_of(cached)
        rows = columns.rows(cached)
        fit(other, InMemory(rows, network.num_labels, weights), None, settings, RunOptions())
        other.eval()
        features, of_rows, _ = batch_of(columns.rows(found.cached.rows.take(predicted)))
        logits.append(other.scores(features).detach())
        labels.append(of_rows)
        if not weighted and other.mixture is None and not network.binary:
            margins.append(margin_network(rows, chosen.seed).scores(features).detach())
    all_logits = torch.cat(logits)
    most = max(some.shape[1] for some in labels)
    all_labels = torch.cat([F.pad(some, (0, most - some.shape[1]), value=-100) for some in labels])
    if network.binary:
        return Crossed(0.0, *_of_scores(network, all_logits, all_labels))
    share, of_rows = 0.0, all_labels[:, 0]
    if margins:
        all_margins = torch.cat(margins)
        share = share_of(all_margins, all_logits, of_rows)
        all_logits = all_logits.lerp(all_margins, share)
    return Crossed(share, temperature_of(*_with_one_wrong(all_logits, of_rows)), THRESHOLD)


def _with_one_wrong(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and one more, of median margin and wrong (rule of succession), so that T is finite without errors."""
    best = logits.topk(2)
    row = best.values.diff().squeeze(1).median(0).indices
    return torch.cat([logits, logits[row][None]]), torch.cat([labels, best.indices[row, 1:]])


def _by_number(weights: Any, classes: list[Any]) -> Any:
    """A dict of weights by the number of a label, in place of the label."""
    if not isinstance(weights, dict):
        return weights
    numbers = {label: number for number, label in enumerate(classes)}
    unknown = [label for label in weights if label not in numbers]
    if unknown:
        raise ValueError(f"class_weight has the label {unknown[0]!r}, which no text has")
    return {numbers[label]: weight for label, weight in weights.items()}


def _of_texts(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The history with the speed in texts."""
    return [{name.replace("samples", "texts"): value for name, value in entry.items()} for entry in history]
