"""Fitting of a wide model: what follows from the data, the training run, the mixture, and the way of held-out rows."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import XMCRows
from ..progress import note
from .held_out import FEW, TO_RANK, TO_RANK_ALONE, TO_STOP, HeldOut, Metric, Precision, Purpose
from .mixture import Mixture
from .neighbours import MOST_NEIGHBOURS, neighbours_of
from .network import Network
from .ranker import LabelRanker
from .rows import InMemory, Rows, Source, check_weights, join, label_counts, num_rows
from .schedule import DECAY, Schedule
from .training import RunOptions, TrainingRun, carry_out
from .weighting import FeatureWeighting

WIDE = 4096  # with more labels, the output layer is sampled
MANY = 65  # with as many labels, held-out rows train a ranker
_MANY_ALONE = 512  # with as many labels, neighbours vote where there is no ranker
_NEIGHBOURS = 64  # that vote
_FREQUENT = 100  # rows of a label; a network tells little of rarer ones that other sources of a ranker do not
_TOGETHER = 8  # labels of a row; of so many, a network tells which ones come together, however few there are in all
_RANKED_ROWS = 75_000  # that a network beside a ranker is trained on, in one pass at least
_SAMPLED_ROWS = 20_000  # where its output is sampled, which takes longer for each row
_RANKER_SHARE = 0.25  # of a budget, to make a ranker of the training rows; held-out rows join it later
_TIMED_ROWS = 1_000  # that tell how long that takes
_NOT_TRAINED = (
    f"the network is not trained: most labels of rows are labels of fewer than {_FREQUENT} rows, or rows have fewer "
    f"than {_TOGETHER} of at most {WIDE:,} labels, and other sources rank as well without it; pass epochs to train it"
)
_log = logging.getLogger("torch_lsh")


class Settings(NamedTuple):
    """Settings of a fit; those that are None follow from the data.

    Attributes:
        epochs: Most passes over the data.
        batch_size: Rows per step.
        lr: Learning rate of Adam at the beginning.
        patience: Epochs without improvement on held-out rows before training stops.
        budget: Seconds of the fit.
        neighbours: How many of the nearest training rows vote.
        seed: Seed of the order of the rows.
        halves: Whether held-out rows are a random half of few rows, so that both halves tune the ranker.
        decay: Last part of the run, in which the learning rate falls, as a share.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    patience: int = 2
    budget: float | None = None
    neighbours: int | None = None
    seed: int = 0
    halves: bool = False
    decay: float = DECAY

    def check(self, validation_fraction: float) -> None:
        """Raises a ValueError that names the setting that does not fit."""
        for name, least in (("epochs", 0), ("batch_size", 1), ("patience", 1), ("neighbours", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} is {value!r}; wanted at least {least}")
        if self.neighbours is not None and self.neighbours > MOST_NEIGHBOURS:
            raise ValueError(f"neighbours is {self.neighbours}; wanted at most {MOST_NEIGHBOURS}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr!r}; wanted a positive number")
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction is {validation_fraction!r}; wanted a number from 0 to below 1")

    def for_data(self, rows: int, labels: int, held_out_decides: bool, ranker: LabelRanker | None = None) -> Settings:
        """The settings with nothing left to follow from the data, but for the epochs that held-out rows decide."""
        epochs, ranked = self.epochs, ranker is not None
        if epochs is None and ranked:
            # The network is one source of several, and adds little after the first passes.
            epochs = min(40, max(1, (_SAMPLED_ROWS if labels > WIDE else _RANKED_ROWS) // rows))
        elif epochs is None and not held_out_decides:
            # Small sets get small batches and many passes, so that there are some hundred steps in all.
            epochs = min(40, max(3 if labels > WIDE else 4, 20_000 // rows))
        return self._replace(
            epochs=epochs,
            batch_size=self.batch_size or (256 if ranked or rows >= 200_000 else min(64, max(8, rows // 32))),
            lr=self.lr or (0.01 if epochs == 1 else 0.004),
            neighbours=self.neighbours_for(labels, ranked),
        )

    def neighbours_for(self, labels: int, ranked: bool) -> int:
        """How many neighbours vote, given so many labels, with a ranker or without."""
        if self.neighbours is not None:
            return self.neighbours
        return _NEIGHBOURS if labels >= (MANY if ranked else _MANY_ALONE) else 0

    def purpose(self, labels: int, weighted: bool, sparse: bool = True) -> Purpose:
        """What rows are held out for, given so many labels; weights of rows or labels are for the network alone."""
        if not sparse or self.neighbours_for(labels, ranked=True) == 0 or labels < MANY:
            return TO_STOP
        trains = weighted if self.epochs is None else self.epochs > 0
        return TO_RANK if trains else TO_RANK_ALONE

    def schedule(self, spent: float = 0.0) -> Schedule:
        """The schedule of settings that :meth:`for_data` completed, after so many seconds of the budget."""
        assert self.lr is not None
        left = None if self.budget is None else max(self.budget - spent, 1e-3)
        return Schedule(self.lr, self.epochs, self.patience, left, self.decay)


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

    Held-out rows say when to stop and with which shares neighbours vote, or train a ranker; the network is never
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
    network.complete()
    start = time.perf_counter()
    mixture = _mixture(source, settings, network, held_out)
    ranker = mixture if isinstance(mixture, LabelRanker) else None
    by_rows = settings.epochs is None
    settings = settings.for_data(source.size, network.num_labels, held_out is not None and ranker is None, ranker)
    judge = None if held_out is None else HeldOut(held_out, network, mixture, metric)
    # Held-out rows join in the end, which takes at most as long as making the mixture.
    schedule = settings.schedule(spent=2 * (time.perf_counter() - start))
    run = TrainingRun(network, source, schedule, settings.batch_size or 1, settings.seed, configuration)
    if judge is not None and held_out is not None and ranker is not None and not ranker.uses_logits:
        if settings.halves and isinstance(rows := source.sample(), XMCRows):
            judge.add(rows, _ranker_of(held_out, ranker, settings.seed))
        judge.tune()
        if ranker.is_of_use:
            if by_rows:
                note(options.progress, f"torch_lsh: {_NOT_TRAINED}")
                _log.info(_NOT_TRAINED)
            return _ranker_alone(network, ranker, judge, held_out, evaluate, source.size, start)

    def measure() -> tuple[dict[str, float], tuple[float, ...]]:
        entry: dict[str, float] = {}
        qualities: tuple[float, ...] = ()
        if judge is not None:
            found, qualities = judge.measure()
            entry = {f"validation_{name}": value for name, value in found.items()}
        if evaluate is not None:
            if judge is not None and ranker is not None:
                judge.tune()
            network.mixture = mixture
            entry.update(evaluate())
            network.mixture = None
        return entry, qualities

    if not carry_out(run, measure, options):
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
            found = validated.compute()
            run.history[-1].update({f"validation_neighbours_{name}": value for name, value in found.items()})
        network.mixture = _with_rows(network.mixture, held_out, network.num_labels, _are_few(source.size, held_out))
    return Fitted(run.history, validated)


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
    measured.update({f"validation_neighbours_{name}": value for name, value in validated.compute().items()})
    network.mixture = _with_rows(ranker, held_out, network.num_labels, _are_few(rows, held_out))
    return Fitted([_without_epochs(rows, time.perf_counter() - start, measured)], validated)


def _are_few(rows: int, held_out: Rows) -> bool:
    """Whether classifiers of so many rows are worth training again with the held-out rows."""
    return rows + num_rows(held_out) < FEW


def _without_epochs(rows: int, seconds: float, measured: dict[str, float]) -> dict[str, float]:
    """The entry in the history of a fit that did not train the network."""
    return {"epoch": 0, "seconds": seconds, "samples_per_second": rows / max(seconds, 1e-9), **measured}


def fit_more(network: Network, source: InMemory, settings: Settings, options: RunOptions) -> list[dict[str, float]]:
    """Trains a network further, on rows that may have more features and labels than it has.

    Args:
        network: The network.
        source: Rows to train on; they become neighbours, where there are some.
        settings: What to do.
        options: How the run is carried out.

    Returns:
        A dict per epoch; a single one of epoch 0 where the network's logits do not count, so that it is not trained.
    """
    start = time.perf_counter()
    mixture, labels = network.mixture, max(network.num_labels, len(source.label_counts))
    trains = mixture is None or mixture.uses_logits
    if mixture is not None:
        refit = isinstance(mixture, LabelRanker) and mixture.lacks_classifiers(source.rows.labels)
        mixture = _with_rows(mixture, source.rows, labels, refit)
    network.grow(source.rows.num_features, labels)
    network.mixture = None
    try:
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
    """The sources of scores beside the network; a ranker of sparse rows needs held-out rows."""
    rows = source.sample() if settings.neighbours_for(network.num_labels, ranked=held_out is not None) > 0 else None
    if rows is None:
        return None
    rows = rows._replace(num_labels=network.num_labels)
    ranked = held_out is not None and isinstance(rows, XMCRows)
    neighbours = settings.neighbours_for(network.num_labels, ranked)
    if neighbours == 0:
        return None
    if ranked:
        assert isinstance(rows, XMCRows)
        everything = join([rows, held_out]) if settings.halves and held_out is not None else rows
        assert isinstance(everything, XMCRows)
        weighting = FeatureWeighting.choose(everything._replace(num_labels=rows.num_labels), settings.seed)
        if settings.budget is not None:
            rows = _affordable(rows, weighting, neighbours, _RANKER_SHARE * settings.budget, settings.seed)
        counts = _network_counts(source, settings, network, whole=num_rows(rows) == source.size)
        return LabelRanker.of(rows, neighbours, weighting, settings.seed, uses_logits=counts)
    return Mixture([neighbours_of(rows, neighbours)], source.label_counts)


def _ranker_of(rows: Rows, other: LabelRanker, seed: int) -> LabelRanker:
    """A ranker of these rows that is like another."""
    assert isinstance(rows, XMCRows)
    rows = rows._replace(num_labels=other.num_labels)
    return LabelRanker.of(rows, other.neighbours.k, other.weighting, seed, other.uses_logits)


def _network_counts(source: Source, settings: Settings, network: Network, whole: bool) -> bool:
    """Whether the network is trained beside a ranker.

    It is where ``epochs`` or weights, which nothing else knows, ask for it, where the ranker is of a part of the rows,
    and where labels are frequent and many, in all or of a row, unless the rows are few.
    """
    if settings.epochs is not None:
        return settings.epochs > 0
    weighted = source.is_weighted or network.class_weight is not None
    many = network.num_labels > WIDE or int(source.label_counts.sum()) >= _TOGETHER * source.size
    return weighted or not whole or (many and not settings.halves and _usual_frequency(source) >= _FREQUENT)


def _usual_frequency(source: Source) -> int:
    """The median, over all labels of the rows, of how many rows have that label."""
    counts = source.label_counts.sort(descending=True).values
    sums = counts.cumsum(0)
    return int(counts[int((2 * sums < sums[-1]).sum())])


def _affordable(rows: XMCRows, weighting: FeatureWeighting, neighbours: int, seconds: float, seed: int) -> XMCRows:
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
        assert isinstance(rows, XMCRows)
        return mixture.with_rows(rows, refit)
    return mixture.with_rows(rows, label_counts(rows, labels))


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
            if not isinstance(label, int) or not 0 <= label < len(counts):
                raise ValueError(f"class_weight has the label {label!r}; wanted 0 to {len(counts) - 1}")
            tensor[label] = weight
    else:
        tensor = torch.as_tensor(weights).float()
    check_weights(tensor, "class_weight", len(counts))
    if not bool((tensor * counts).any()):
        raise ValueError("class_weight is 0 for every label of the rows; wanted a positive weight")
    return tensor
