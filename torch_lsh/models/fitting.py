"""Fitting of a wide model: the training run, the mixture, and the way of held-out rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..progress import note
from .held_out import FEW, HeldOut, Metric, Precision, parts_in_turn
from .mixture import Mixture
from .neighbours import neighbours_of
from .network import Network
from .ranker import LabelRanker, weighting_of
from .rows import InMemory, Rows, Source, join, label_counts, num_rows
from .settings import WIDE, Settings
from .training import RunOptions, TrainingRun, carry_out
from .weighting import FeatureWeighting, UnitLength

_FREQUENT = 100  # rows of a label; a network tells little of rarer ones that other sources of a ranker do not
_TOGETHER = 8  # labels of a row; of so many, a network tells which ones come together, however few there are in all
_RANKER_SHARE = 0.25  # of a budget, to make a ranker of the training rows; held-out rows join it later
_TIMED_ROWS = 1_000  # that tell how long that takes
_NOT_TRAINED = (
    f"the network is not trained: most labels of rows are labels of fewer than {_FREQUENT} rows, or rows have fewer "
    f"than {_TOGETHER} of at most {WIDE:,} labels, and other sources rank as well without it; pass epochs to train it"
)
_FEW_DENSE_ROWS = "the network is not trained: of so few dense rows other sources rank better; pass epochs to train it"
_log = logging.getLogger("torch_lsh")


class Fitted(NamedTuple):
    """What a fit ended in.

    Attributes:
        history: A dict per epoch.
        validated: The quality of the final model on held-out rows; None without them.
    """

    history: list[dict[str, float]]
    validated: Metric | None = None


def fit(
    network: Network,
    source: Source,
    held_out: Rows | None,
    settings: Settings,
    options: RunOptions,
    metric: Callable[[], Any] = Precision,
    evaluate: Callable[[], dict[str, float]] | None = None,
    configuration: dict[str, Any] | None = None,
) -> Fitted:
    """Trains a network and adds its mixture.

    Held-out rows say when to stop, or train a ranker; the network is never
    trained on them. In the end they become neighbours as all other rows do, so that nothing that is known is lost.
    Where its logits do not count for the ranker, the network is not trained.

    Args:
        network: The network.
        source: Rows to train on.
        held_out: Rows that decide; None means none.
        settings: What to do.
        options: How the run is carried out.
        metric: Makes a :class:`torch_lsh.models.held_out.Metric`.
        evaluate: Measures the model, mixture included, after every epoch.
        configuration: What the model was made with, for checkpoints.
    """
    if source.size == 0:
        raise ValueError("the training data has no rows")
    network.mixture = None
    start = time.perf_counter()
    mixture = _mixture(source, settings, network, held_out)
    spent = 2 * (time.perf_counter() - start)  # held-out rows join in the end, which takes at most as long
    ranker = mixture if isinstance(mixture, LabelRanker) else None
    judge = None if held_out is None else HeldOut(held_out, network, ranker, metric)
    if judge is not None and held_out is not None and ranker is not None and not ranker.uses_logits:
        if settings.crossed and (rows := source.sample()) is not None:
            for part, others in parts_in_turn(rows, held_out, settings.seed):
                judge.add(part, _ranker_of(others, ranker, settings.seed))
        judge.tune()
        if ranker.is_of_use:
            if options.checkpoint is not None and options.resume and options.checkpoint.exists():
                raise ValueError(
                    f"{options.checkpoint} belongs to a run that trains the network, and this one does not; "
                    "pass epochs to train it, or resume=False"
                )
            if settings.epochs is None:
                reason = _FEW_DENSE_ROWS if network.dense_input else _NOT_TRAINED
                note(options.progress, f"torch_lsh: {reason}")
                _log.info(reason)
            return _ranker_alone(network, ranker, judge, held_out, evaluate, source.size, start)
    stops = held_out is not None and ranker is None
    settings = settings.for_data(source.size, network.num_labels, stops, ranker is not None, network.dense_input)
    network.complete(settings.seed)
    run = TrainingRun(network, source, settings.schedule(spent), settings.batch_size or 1, settings.seed, configuration)
    measure, begin = (lambda: _measured(network, mixture, judge, evaluate)), (lambda: network.adapt_to(source))
    if not carry_out(run, measure, options, begin):
        return Fitted(run.history)
    network.eval()
    if judge is not None:
        judge.tune()
    if mixture is not None and mixture.is_of_use:
        network.mixture = mixture
    if judge is None or held_out is None:
        return Fitted(run.history)
    validated = judge.final()
    if network.mixture is not None:
        if run.history:
            run.history[-1].update(_named("validation_neighbours_", validated))
        network.mixture = _with_rows(network.mixture, held_out, network.num_labels, _are_few(source.size, held_out))
    return Fitted(run.history, validated)


def _measured(
    network: Network,
    mixture: Mixture | LabelRanker | None,
    judge: HeldOut | None,
    evaluate: Callable[[], dict[str, float]] | None,
) -> tuple[dict[str, float], tuple[float, ...]]:
    """What held-out and evaluation rows say after an epoch: by name, and as the numbers that decide when to stop."""
    entry: dict[str, float] = {}
    qualities: tuple[float, ...] = ()
    if judge is not None:
        found, qualities = judge.measure()
        entry = {f"validation_{name}": value for name, value in found.items()}
    if evaluate is not None:
        if judge is not None and isinstance(mixture, LabelRanker):
            judge.tune()
        network.mixture = mixture
        entry.update(evaluate())
        network.mixture = None
    return entry, qualities


def _ranker_alone(
    network: Network,
    ranker: LabelRanker,
    judge: HeldOut,
    held_out: Rows,
    evaluate: Callable[[], dict[str, float]] | None,
    rows: int,
    start: float,
) -> Fitted:
    """Ends a fit whose ranker, which is tuned, does without the network's logits."""
    network.eval()
    network.mixture = ranker
    validated = judge.final()
    measured = {} if evaluate is None else evaluate()
    measured.update(_named("validation_neighbours_", validated))
    network.mixture = _with_rows(ranker, held_out, network.num_labels, _are_few(rows, held_out))
    return Fitted([_without_epochs(rows, time.perf_counter() - start, measured)], validated)


def _named(prefix: str, metric: Metric) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in metric.compute().items()}


def _are_few(rows: int, held_out: Rows) -> bool:
    """Whether classifiers of so many rows are worth training again with the held-out rows."""
    return rows + num_rows(held_out) < FEW


def _without_epochs(rows: int, seconds: float, measured: dict[str, float]) -> dict[str, float]:
    """The entry in the history of a fit that did not train the network."""
    return {"epoch": 0, "seconds": seconds, "samples_per_second": rows / max(seconds, 1e-9), **measured}


def fit_more(
    network: Network,
    source: InMemory,
    settings: Settings,
    options: RunOptions,
    grown: Callable[[], object] = lambda: None,
) -> list[dict[str, float]]:
    """Trains a network further, on rows that may have more features and labels than it has.

    Args:
        network: The network.
        source: Rows to train on; they become neighbours, where there are some.
        settings: What to do.
        options: How the run is carried out.
        grown: Called when the network has room for the rows, before it is trained.

    Returns:
        A dict per epoch; a single one of epoch 0 where the network's logits do not count, so that it is not trained.
    """
    if source.size == 0:
        raise ValueError("the training data has no rows")
    start = time.perf_counter()
    mixture, labels = network.mixture, max(network.num_labels, len(source.label_counts))
    trains = mixture is None or mixture.uses_logits
    if mixture is not None:
        refit = isinstance(mixture, LabelRanker) and mixture.classifiers.lacks(source.rows.labels)
        mixture = _with_rows(mixture, source.rows, labels, refit)
    network.grow(source.rows.num_features, labels)
    network.mixture = None
    try:
        grown()
        settings = settings.for_data(source.size, network.num_labels, held_out_decides=False)
        run = TrainingRun(network, source, settings.schedule(), settings.batch_size or 1, settings.seed)
        if trains:
            carry_out(run, lambda: ({}, ()), options)
    finally:  # also after Ctrl-C
        network.eval()
        network.mixture = mixture
    return run.history if trains else [_without_epochs(source.size, time.perf_counter() - start, {})]


def _mixture(
    source: Source, settings: Settings, network: Network, held_out: Rows | None
) -> Mixture | LabelRanker | None:
    """The sources of scores beside the network; a ranker needs held-out rows."""
    rows = source.sample() if settings.neighbours_for(network.num_labels, ranked=held_out is not None) > 0 else None
    if rows is None:
        return None
    rows = rows._replace(num_labels=network.num_labels)
    if held_out is not None:
        return _ranker(source, rows, held_out, settings, network)
    neighbours = settings.neighbours_for(network.num_labels, ranked=False)
    return Mixture([neighbours_of(rows, neighbours)], source.label_counts) if neighbours > 0 else None


def _ranker(source: Source, rows: Rows, held_out: Rows, settings: Settings, network: Network) -> LabelRanker:
    """A ranker of the rows of a source, or of as many as the budget affords."""
    everything = join([rows, held_out]) if settings.crossed else rows
    weighting = weighting_of(everything._replace(num_labels=rows.num_labels), settings.seed)
    neighbours = settings.neighbours_for(network.num_labels, ranked=True)
    if settings.budget is not None:
        rows = _affordable(rows, weighting, neighbours, _RANKER_SHARE * settings.budget, settings.seed)
    counts = _network_counts(source, settings, network, whole=num_rows(rows) == source.size)
    return LabelRanker.of(rows, neighbours, weighting, settings.seed, uses_logits=counts)


def _ranker_of(rows: Rows, other: LabelRanker, seed: int) -> LabelRanker:
    """A ranker of these rows that is like another."""
    rows = rows._replace(num_labels=other.num_labels)
    return LabelRanker.of(rows, other.neighbours.k, other.weighting, seed, other.uses_logits)


def _network_counts(source: Source, settings: Settings, network: Network, whole: bool) -> bool:
    """Whether the network is trained beside a ranker.

    It is where ``epochs`` or weights, which nothing else knows, ask for it, where the ranker is of a part of the rows,
    and, unless rows are few, where they are dense and where labels are frequent and many, in all or of a row.
    """
    if settings.epochs is not None:
        return settings.epochs > 0
    weighted = source.is_weighted or network.class_weight is not None
    many = network.num_labels > WIDE or int(source.label_counts.sum()) >= _TOGETHER * source.size
    suits = network.dense_input or (many and _usual_frequency(source) >= _FREQUENT)
    return weighted or not whole or (suits and not settings.crossed)


def _usual_frequency(source: Source) -> int:
    """The median, over all labels of the rows, of how many rows have that label."""
    counts = source.label_counts.sort(descending=True).values
    sums = counts.cumsum(0)
    return int(counts[int((2 * sums < sums[-1]).sum())])


def _affordable(
    rows: Rows, weighting: FeatureWeighting | UnitLength, neighbours: int, seconds: float, seed: int
) -> Rows:
    """As many of the rows as a ranker can be made of in so many seconds; all if they suffice."""
    order = torch.randperm(num_rows(rows), generator=torch.Generator().manual_seed(seed))
    start = time.perf_counter()
    LabelRanker.of(rows.take(order[:_TIMED_ROWS]), neighbours, weighting, seed)
    took = time.perf_counter() - start
    count = max(_TIMED_ROWS, int(_TIMED_ROWS * seconds / took))
    return rows if count >= len(order) else rows.take(order[:count].sort().values)


def _with_rows(mixture: Mixture | LabelRanker, rows: Rows, labels: int, refit: bool = False) -> Mixture | LabelRanker:
    """Makes rows neighbours, too, of a network with so many labels."""
    rows = rows._replace(num_labels=labels)
    if isinstance(mixture, LabelRanker):
        return mixture.with_rows(rows, refit)
    return mixture.with_rows(rows, label_counts(rows, labels))
