"""Settings of a text classifier: what users choose, and what follows from the data where they do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..config import LSHConfig
from ..models.held_out import TO_RANK_ALONE
from ..models.neighbours import MOST_NEIGHBOURS
from ..models.network import Network, WideNetwork
from ..models.settings import WIDE, Settings
from .files import TextFile
from .hashed_text import HashedText, share_of_letters
from .linear import LinearNetwork
from .sources import Texts

_LINEAR_CLASSES = 64  # with at most so many, the linear model is small, and as good given enough texts
_RANKED_CLASSES, _FEW_TEXTS = 8, 10_000  # with at least as many classes, fewer texts are better ranked
_ENOUGH_FOR_TRIGRAMS = 8 << 20  # bytes of text
_CHARACTERS = (2, 4)  # of an n-gram, marks of its beginning and end included
_MOSTLY = 0.5  # share of words that are single letters
_MOST_BITS = 22  # four million columns; twice as many for two classes


class Chosen(Protocol):
    """The arguments of :class:`torch_lsh.text.TextClassifier`."""

    features: HashedText | None
    hidden: int | None
    neighbours: int | None
    epochs: int | None
    batch_size: int | None
    lr: float | None
    label_smoothing: float | None
    validation_fraction: float
    patience: int
    memory: int
    config: LSHConfig | None
    seed: int


def check_settings(chosen: Chosen) -> None:
    """Raises a ValueError that names the setting that does not fit."""
    if chosen.features is not None and not isinstance(chosen.features, HashedText):
        raise ValueError(f"features is {chosen.features!r}; wanted a HashedText or None")
    for name, least in (
        ("hidden", 0),
        ("neighbours", 0),
        ("epochs", 1),
        ("batch_size", 1),
        ("patience", 1),
        ("memory", 0),
    ):
        value = getattr(chosen, name)
        optional = value is None and name in ("hidden", "neighbours", "epochs", "batch_size")
        if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name} is {value!r}; wanted a whole number of at least {least}")
    if chosen.neighbours is not None and chosen.neighbours > MOST_NEIGHBOURS:
        raise ValueError(f"neighbours is {chosen.neighbours}; wanted at most {MOST_NEIGHBOURS}")
    if chosen.lr is not None and not (isinstance(chosen.lr, (int, float)) and 0 < chosen.lr < math.inf):
        raise ValueError(f"lr is {chosen.lr!r}; wanted a positive number")
    for name in ("label_smoothing", "validation_fraction"):
        share = getattr(chosen, name)
        if share is not None and not (isinstance(share, (int, float)) and 0 <= share < 1):
            raise ValueError(f"{name} is {share!r}; wanted a number from 0 to below 1")


def ranks_few(chosen: Chosen, weighted: bool, validation: Any) -> bool:
    """Whether few texts of 8 to 64 classes are ranked, as texts of more classes are: where no setting says otherwise.

    A ranker is better on them than the linear model, in a tenth of its time. From 10,000 texts on the linear model is
    about as accurate, is smaller, and predicts faster.
    """
    others = chosen.hidden, chosen.neighbours, chosen.epochs, chosen.batch_size, chosen.lr, chosen.label_smoothing
    return chosen.validation_fraction > 0 and not weighted and validation is None and others == (None,) * len(others)


def are_few_to_rank(classes: int, rows: float) -> bool:
    """Whether so many texts of so many classes are ranked where :func:`ranks_few`."""
    return _RANKED_CLASSES <= classes <= _LINEAR_CLASSES and TO_RANK_ALONE.least <= rows < _FEW_TEXTS


def hashing(chosen: Chosen, source: Texts | TextFile, ranked: bool) -> Callable[[int, float], HashedText]:
    """How texts are hashed, given the numbers of classes and of texts to learn from.

    Where texts are ranked (over more than 64 classes, and few texts of fewer, ``ranked``), words alone are features:
    pairs of them take two thirds of the time of a ranker, and its neighbours and classifiers are better with them on
    some data, worse on other.

    Where most words are letters of scripts without blanks, a word is a run of some characters, and nothing but marks
    separates sentences: n-grams of characters and marks are features, too; where texts are ranked, runs of letters and
    pairs of characters in them. There are about twice as many n-grams a byte.
    """
    if chosen.features is not None:
        given = chosen.features
        return lambda classes, rows: given
    text_bytes, in_letters = source.bytes(), share_of_letters(source) > _MOSTLY
    longest = 3 if text_bytes >= _ENOUGH_FOR_TRIGRAMS else 2
    bits = _bits(text_bytes * (1 + in_letters))

    def of_few(most_bits: int) -> HashedText:
        if in_letters:
            return HashedText(min(bits, most_bits), 2, _CHARACTERS, norm=None, symbols=True)
        return HashedText(min(bits, most_bits), longest, norm=None)

    of_many = HashedText(min(bits, _MOST_BITS), 1, norm=None)
    if in_letters:
        of_many = HashedText(of_many.bits, 1, (2, 2), norm=None, split_characters=False)
    of_two, few = of_few(_MOST_BITS + 1), of_few(_MOST_BITS)  # of two: few weights a column

    def features(classes: int, rows: float) -> HashedText:
        if classes > _LINEAR_CLASSES or (ranked and are_few_to_rank(classes, rows)):
            return of_many
        return few if classes > 2 else of_two

    return features


def _bits(text_bytes: int) -> int:
    """Chooses about one column per 2 bytes of text, so that few n-grams collide."""
    return max(16, math.ceil(math.log2(text_bytes / 2 + 1)))


def settings_for(chosen: Chosen, ranked: bool) -> Settings:
    """The settings of a fit, as far as they do not follow from the texts; ``ranked``: see :func:`hashing`."""
    settings = Settings(
        chosen.epochs, chosen.batch_size, chosen.lr, chosen.patience, None, chosen.neighbours, chosen.seed
    )
    return settings._replace(ranked_from=_RANKED_CLASSES) if ranked else settings


def network_for(
    chosen: Chosen, features: int, classes: int, rows: int, multilabel: bool, ranked: bool = False
) -> tuple[Network, Settings]:
    """Makes a network for so many features, classes and rows, and the settings of its training.

    Args:
        chosen: The settings of the classifier.
        features, classes, rows: How many there are.
        multilabel: Whether a text may have several labels.
        ranked: Whether few texts are ranked.

    Raises:
        ValueError: The settings do not fit the data.
    """
    hidden = chosen.hidden
    if hidden is None:
        hidden = 0 if classes <= _LINEAR_CLASSES and not ranked else 128 if classes > WIDE else 256
    neighbours, smoothing = chosen.neighbours, chosen.label_smoothing
    settings = settings_for(chosen, ranked)
    if hidden > 0:
        with torch.device("meta"):  # it is completed if it is trained
            wide = WideNetwork(
                features,
                classes,
                hidden,
                sampled=classes > WIDE,
                config=chosen.config,
                activation="none",
                label_smoothing=smoothing or 0.0,
            )
        return wide, settings
    if neighbours and multilabel:
        raise ValueError(
            f"neighbours is {neighbours}; wanted 0 for a multi-label task without a hidden layer, where every "
            "class is a decision of its own"
        )
    if smoothing is None:
        smoothing = 0.1 if classes > 2 else 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen.seed)
        network = LinearNetwork(features, classes, multilabel, smoothing)
    if multilabel:
        epochs, lr = max(8, 20_000 // rows), 0.02
    else:  # features weighed by their classes need few passes, and overfit with many
        epochs, lr = max(2, round(200 * (classes / rows) ** 0.5)), 0.06 if chosen.epochs == 1 else 0.03
    epochs, lr = chosen.epochs or min(40, epochs), chosen.lr or lr
    return network, settings._replace(epochs=epochs, lr=lr, decay=1.0)
