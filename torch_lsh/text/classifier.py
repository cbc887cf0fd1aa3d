"""TextClassifier: texts and labels in, labels out; the data decides the settings."""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import LSHConfig
from ..data import XMCRows
from ..data.xmc import join_rows
from ..models.fitting import WIDE, Settings, fit, fit_more, label_weights
from ..models.held_out import MOST_HELD_OUT
from ..models.neighbours import MOST_NEIGHBOURS
from ..models.network import Network, WideNetwork
from ..models.rows import InMemory, batch_of, num_rows, row_weights
from ..models.schedule import seconds_of
from ..models.training import RunOptions
from . import model_file
from .columns import Columns
from .explanation import without_each_word
from .hashed_text import HashedText
from .linear import LinearNetwork
from .naive_bayes import log_count_ratios
from .quality import Quality
from .sources import Texts, is_multi_hot, source_of
from .training_data import FeatureSource, Labels, TrainingData, hashed

_LINEAR_CLASSES = 64  # with at most so many, the linear model is the better one, and small
_LINEAR_ROWS = 60_000  # that its training sees in all, at least
_ENOUGH_FOR_TRIGRAMS = 8 << 20  # bytes of text
_MOST_COUNTS = 1 << 26  # of features by classes, to weigh features by

Source = Iterable[str] | str | os.PathLike[str]


class TextClassifier:
    """Classifies texts with a network over hashed words and word pairs, weighted by their rarity.

    The number of classes decides the network: linear up to 64, a hidden layer above, an
    :class:`torch_lsh.LSHLinear` output above 4096. Above 4096 the nearest training texts vote in every prediction, too
    (:class:`torch_lsh.models.neighbours.Neighbours`); the held-out texts decide their share, which is one half
    without held-out texts. Settings that are None follow from the number of texts and classes.

    The class follows scikit-learn's conventions (``get_params``, ``clone``, pipelines, grid search). A label is text or
    a whole number. Labels in lists, or in cells with a separator, make the task multi-label.

    Args:
        features: How texts are hashed. None means words and pairs of words (words alone above 4096 classes), in a
            number of columns that follows from the amount of text.
        hidden: Width of the hidden layer; 0 means the linear model.
        neighbours: How many of the nearest training texts vote; 0 means none. None means 64 above 4096 classes, else 0.
            The model and its file then hold the features of all training texts. Not for a multi-label task without a
            hidden layer.
        epochs: Most passes over the data.
        batch_size: Texts per step.
        lr: Adam's learning rate at the start; it falls linearly to 0.
        label_smoothing: Label smoothing of the softmax cross entropy.
        validation_fraction: Share of the texts to hold out (at most 10,000) for early stopping, given at least 20,000
            texts; 0 runs all epochs.
        patience: Epochs without improvement before training stops and goes back to the best epoch.
        memory: Bytes of hashed features to keep in memory. Above that, each epoch reads and hashes the texts again, and
            the neighbours are a random choice of the texts.
        config: Settings of the LSHLinear output.
        seed: Seed of weights, order of the texts and split.
        progress: Show a progress bar (needs tqdm).

    Attributes:
        classes_: the labels, sorted, ``[C]``.
        multilabel_: whether a text may have several labels.
        multi_hot_: whether they were given as zeros and ones.
        threshold_: probability from which on :meth:`predict` gives a label (multi-label).
        history_: a dict per epoch.
        network_: a :class:`torch_lsh.models.network.WideNetwork`, or up to 64 classes a linear one.

    >>> texts = ["a fine film", "good fun", "dull and long", "a bad film"] * 10
    >>> model = TextClassifier(epochs=5).fit(texts, ["pos", "pos", "neg", "neg"] * 10)
    >>> model.predict(["good film", "long, bad"]).tolist()
    ['pos', 'neg']
    >>> [word for word, _ in model.explain("what a fine day")][:1]
    ['fine']
    """

    classes_: np.ndarray
    multilabel_: bool
    multi_hot_: bool
    threshold_: float
    history_: list[dict[str, float]]
    network_: Network
    features_: HashedText
    columns_: Columns

    def __init__(
        self,
        features: HashedText | None = None,
        hidden: int | None = None,
        neighbours: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        label_smoothing: float | None = None,
        validation_fraction: float = 0.05,
        patience: int = 2,
        memory: int = 2 << 30,
        config: LSHConfig | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.features = features
        self.hidden = hidden
        self.neighbours = neighbours
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.label_smoothing = label_smoothing
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.memory = memory
        self.config = config
        self.seed = seed
        self.progress = progress

    # --- training ---

    def fit(
        self,
        X: Source,
        y: Iterable[Any] | None = None,
        *,
        text: str | int | Sequence[str | int] = "text",
        label: str | int = "label",
        label_separator: str | None = None,
        validation: tuple[Iterable[str], Iterable[Any]] | str | os.PathLike[str] | None = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        budget: float | str | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume: bool = True,
    ) -> TextClassifier:
        """Trains on texts and labels, or on a file, which is read as a stream.

        Held-out texts decide when to stop and the share of the neighbours. They are never trained on, but become
        neighbours as all other texts do. With ``checkpoint``, an interrupted run that is begun again resumes, and ends
        as it would have ended.

        Args:
            X: Texts; or the path of a CSV, TSV, JSONL or Parquet file (:class:`torch_lsh.text.TextFile`).
            y: A label for each text, a list of labels for each, or a multi-hot array ``[rows, C]``.
            text: Column(s) of the text in the file.
            label: Column of the label in the file.
            label_separator: Separator of several labels in a cell of the file.
            validation: Texts and labels, or a file of the same form, in place of held-out texts.
            sample_weight: Weight of each text.
            class_weight: A dict from labels to weights (the others have weight 1), or ``"balanced"``.
            budget: Time to train, in seconds or as text such as ``"60s"`` or ``"5m"``.
            checkpoint: File of the run's state, written after every epoch.
            checkpoint_every: Steps between checkpoints within an epoch; None writes none within an epoch.
            resume: Whether to resume from ``checkpoint`` if it exists.

        Raises:
            ValueError: A setting, a text or a label (named by its row) does not fit. The classifier is unchanged then.
        """
        check_settings(self)
        options = RunOptions(
            None if checkpoint is None else Path(checkpoint), checkpoint_every, resume, progress=self.progress
        )
        options.check()
        seconds = seconds_of(budget)
        file_columns = {"text": text, "label": label, "label_separator": label_separator}
        source = source_of(X, y, file_columns)
        multi_hot = is_multi_hot(y)
        data = TrainingData(
            source,
            self._hashing(source.bytes()),
            self.validation_fraction if validation is None else 0.0,
            MOST_HELD_OUT,
            self.memory,
            self.seed,
            range(y.shape[1]) if multi_hot else None,  # type: ignore[union-attr]  # all, whether in use or not
            None if sample_weight is None else row_weights(sample_weight, len(sample_weight)),
        )
        found = data.statistics
        multilabel = found.several or (source.several if isinstance(source, Texts) else label_separator is not None)
        if found.rows == 0:
            raise ValueError("X holds no text with a label; wanted some")
        if len(found.classes) < 2 and not multilabel:
            raise ValueError(f"y holds one class only, {found.classes[0]!r}; wanted at least two")
        columns = Columns(found.columns, found.idf, data.features.num_features)
        held_out = found.held_out
        if validation is not None:
            held_out = self._validation_rows(validation, file_columns, data.features, Labels(found.classes))
        network, settings = self._network(len(columns), len(found.classes), found.rows, multilabel)
        if isinstance(network, LinearNetwork) and not multilabel and len(columns) * len(found.classes) < _MOST_COUNTS:
            unweighted = Columns(found.columns, torch.ones(len(columns)), data.features.num_features)
            ratios = log_count_ratios((unweighted.rows(block.rows) for block in data.blocks()), len(found.classes))
            columns = Columns(found.columns, ratios, data.features.num_features)
        held_out = None if held_out is None else columns.rows(held_out)
        network.class_weight = label_weights(_by_number(class_weight, found.classes), found.label_counts)
        fitted = fit(
            network,
            FeatureSource(data, columns, self.memory),
            held_out,
            settings._replace(budget=seconds),
            options,
            metric=functools.partial(Quality, multilabel, network.binary),
            configuration=None if checkpoint is None else model_file.describe_run(network, data.features),
        )
        network.class_weight = None
        self.features_, self.columns_, self.network_ = data.features, columns, network.eval()
        self.classes_, self.multilabel_, self.multi_hot_ = np.array(found.classes), multilabel, multi_hot
        validated = fitted.validated
        self.threshold_ = validated.best_threshold() if isinstance(validated, Quality) and multilabel else 0.5
        self.history_ = _of_texts(fitted.history)
        return self

    def _hashing(self, text_bytes: int) -> HashedText | list[tuple[float, HashedText]]:
        """How texts are hashed; over many classes, n-grams of words are rare and get memorised."""
        if self.features is not None:
            return self.features
        bits = _bits(text_bytes)
        few = HashedText(bits, 3, norm=None) if text_bytes >= _ENOUGH_FOR_TRIGRAMS else HashedText(bits, 2, norm=None)
        return [
            (_LINEAR_CLASSES, few),
            (WIDE, HashedText(bits, 2, norm=None)),
            (math.inf, HashedText(bits, 1, norm=None)),
        ]

    def _network(self, features: int, classes: int, rows: int, multilabel: bool) -> tuple[Network, Settings]:
        """A new network, and the settings of its training."""
        hidden = self.hidden
        if hidden is None:
            hidden = 0 if classes <= _LINEAR_CLASSES else 128 if classes > WIDE else 256
        neighbours, smoothing = self.neighbours, self.label_smoothing
        settings = Settings(self.epochs, self.batch_size, self.lr, self.patience, None, neighbours, self.seed)
        network: Network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if hidden > 0:
                network = WideNetwork(
                    features,
                    classes,
                    hidden,
                    sampled=classes > WIDE,
                    config=self.config,
                    activation="none",
                    label_smoothing=smoothing or 0.0,
                )
                return network, settings
            if neighbours and multilabel:
                raise ValueError(
                    f"neighbours is {neighbours}; wanted 0 for a multi-label task without a hidden layer, where every "
                    "class is a decision of its own"
                )
            if smoothing is None:
                smoothing = 0.1 if classes > 2 else 0.0
            network = LinearNetwork(features, classes, multilabel, smoothing)
        epochs = self.epochs or min(40, max(8, 20_000 // rows) if multilabel else max(2, round(400 * rows**-0.5)))
        lr = self.lr or (0.02 if multilabel else 0.04)
        return network, settings._replace(epochs=epochs, lr=lr, decay=1.0)

    def _validation_rows(self, validation: Any, columns: Any, features: HashedText, labels: Labels) -> XMCRows | None:
        texts, y = validation if isinstance(validation, tuple) else (validation, None)
        source = source_of(texts, y, columns)
        rows = list(hashed(source, features, labels))
        return join_rows(rows)._replace(num_labels=len(labels.numbers)) if rows else None

    def partial_fit(
        self,
        X: Source,
        y: Iterable[Any] | None = None,
        *,
        epochs: int = 1,
        lr: float | None = None,
        text: str | int | Sequence[str | int] = "text",
        label: str | int = "label",
        label_separator: str | None = None,
        sample_weight: Any = None,
    ) -> TextClassifier:
        """Trains a fitted classifier further, on texts that may have new labels and new words.

        New labels follow the others in ``classes_``, which keep their places. The texts become neighbours, where there
        are some. An unfitted classifier is fitted.

        Args:
            X, y, text, label, label_separator, sample_weight: See :meth:`fit`.
            epochs: Passes over the texts.
            lr: Learning rate of Adam at the beginning; None means a quarter of that of :meth:`fit`.

        Raises:
            ValueError: A text or a label does not fit.
        """
        columns: dict[str, Any] = {"text": text, "label": label, "label_separator": label_separator}
        if not hasattr(self, "network_"):
            return self.fit(X, y, **columns, sample_weight=sample_weight)
        source = source_of(X, y, columns)
        labels = Labels(self.classes_.tolist(), open_ended=True)
        chunks = list(hashed(source, self.features_, labels))
        if not chunks:
            return self
        rows = join_rows(chunks)._replace(num_labels=len(labels.numbers))
        if not self.multilabel_ and bool((rows.label_start.diff() > 1).any()):
            raise ValueError("y has several labels of a text, and the classifier gives one")
        wider = self.columns_.with_those_of(rows)
        rows = wider.rows(rows)
        weights = row_weights(sample_weight, num_rows(rows))
        linear = isinstance(self.network_, LinearNetwork)
        settings = Settings(epochs, self.batch_size, lr or (0.005 if linear else 0.001), seed=self.seed)
        history = fit_more(self.network_, InMemory(rows, rows.num_labels, weights), settings, RunOptions(), rows)
        self.columns_, self.classes_ = wider, np.array(list(labels.numbers))
        self.history_ = [*self.history_, *_of_texts(history)]
        return self

    # --- inference ---

    def hidden_activations(self, texts: Sequence[str | bytes]) -> Tensor:
        """Computes the input of the output layer ``[rows, hidden]``.

        Raises:
            ValueError: The network has no hidden layer.
        """
        self._check_fitted()
        if not isinstance(self.network_, WideNetwork):
            raise ValueError("the network is linear; wanted one with a hidden layer")
        return self.network_.hidden(self.columns_.csr(*self.features_.csr(texts)))

    def _logits(self, texts: Sequence[str | bytes]) -> Iterator[Tensor]:
        """Logits of all classes, in batches."""
        self._check_fitted()
        if isinstance(texts, (str, bytes)) or not hasattr(texts, "__getitem__"):
            texts = Texts(texts, None).texts
        size = self.network_.rows_at_a_time
        with torch.inference_mode():
            for start in range(0, len(texts), size):
                yield self.network_.scores(self.columns_.csr(*self.features_.csr(texts[start : start + size])))

    def predict(self, X: Sequence[str]) -> Any:
        """Predicts the label of each text.

        Args:
            X: Texts.

        Returns:
            An array ``[rows]`` of labels. For a multi-label task, a list of labels for each text, or zeros and ones
            ``[rows, C]`` if :meth:`fit` got those.
        """
        if self._fitted_multilabel():
            probabilities = self.predict_proba(X)
            if self.multi_hot_:
                return (probabilities >= self.threshold_).astype(np.int64)
            return [self.classes_[row >= self.threshold_].tolist() for row in probabilities]
        best = [logits.argmax(1) for logits in self._logits(X)]
        return self.classes_[torch.cat(best).numpy()] if best else self.classes_[:0]

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        """Predicts probabilities ``[rows, C]`` float32, classes in the order of ``classes_``."""
        batches = [self._probabilities(logits) for logits in self._logits(X)]
        return torch.cat(batches).numpy() if batches else np.empty((0, len(self.classes_)), np.float32)

    def top_k(self, X: Sequence[str], k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Predicts the ``k`` likeliest labels of each text and their probabilities, both ``[rows, k]``, best first."""
        self._check_fitted()
        if not 1 <= k <= len(self.classes_):
            raise ValueError(f"k is {k}; wanted 1 to {len(self.classes_)}")
        best = [self._probabilities(logits).topk(k) for logits in self._logits(X)]
        if not best:
            return self.classes_[:0].reshape(0, k), np.empty((0, k), np.float32)
        numbers = torch.cat([some.indices for some in best]).numpy()
        return self.classes_[numbers], torch.cat([some.values for some in best]).numpy()

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.network_.binary else logits.softmax(1)

    def evaluate(
        self,
        X: Source,
        y: Iterable[Any] | None = None,
        *,
        text: str | int | Sequence[str | int] = "text",
        label: str | int = "label",
        label_separator: str | None = None,
    ) -> dict[str, float]:
        """Measures accuracy and loss (multi-label: precision@k and micro F1) on texts and labels, or on a file.

        Raises:
            ValueError: a label did not occur in the training data; the message gives its row.
        """
        self._check_fitted()
        source = source_of(X, y, {"text": text, "label": label, "label_separator": label_separator})
        labels = Labels(self.classes_.tolist())
        metric = Quality(self.multilabel_, self.network_.binary, self.threshold_)
        size = self.network_.rows_at_a_time
        with torch.inference_mode():
            for chunk in hashed(source, self.features_, labels):
                for some in torch.arange(num_rows(chunk)).split(size):
                    features, true, _ = batch_of(self.columns_.rows(chunk.take(some)))
                    metric.update(self.network_.scores(features), true)
        return {**metric.compute(), "rows": metric.rows}

    def score(self, X: Source, y: Iterable[Any] | None = None) -> float:
        """Measures accuracy, or precision@1 where a text may have several labels."""
        result = self.evaluate(X, y)
        return result["precision@1" if self.multilabel_ else "accuracy"]

    def explain(self, text: str, label: Any = None, max_words: int = 500) -> list[tuple[str, float]]:
        """Measures how much each word supports a label.

        The measure is a loss of margin: the label's logit, less the mean of the other logits, falls by so much when
        every occurrence of the word is removed.

        Args:
            text: A text.
            label: The label; None means the likeliest one.
            max_words: Words that are looked at, from the beginning of the text.

        Returns:
            Pairs of word and loss, greatest first. Words against the label have a negative loss.
        """
        self._check_fitted()
        number = None if label is None else Labels(self.classes_.tolist()).number(label, "explain")
        words, variants = without_each_word(text, max_words, self.features_.split_characters)
        logits = torch.cat(list(self._logits(variants)))
        number = int(logits[0].argmax()) if number is None else number
        margins = logits[:, number]
        if not self.network_.binary:
            margins = margins - (logits.sum(1) - logits[:, number]) / max(1, logits.shape[1] - 1)
        losses = (margins[0] - margins[1:]).tolist()
        return sorted(zip(words, losses), key=lambda item: -item[1])

    # --- files ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fitted model to one file: weights as safetensors, settings and labels as JSON in its header.

        Args:
            path: The file.

        Raises:
            ValueError: The classifier is not fitted.
            OSError: The file cannot be written.
        """
        self._check_fitted()
        settings = {name: value for name, value in self.get_params().items() if name not in ("features", "config")}
        model = model_file.SavedModel(
            settings,
            self.features_,
            self.columns_,
            self.network_,
            self.classes_.tolist(),
            self.multilabel_,
            self.multi_hot_,
            self.threshold_,
            self.history_,
        )
        model_file.save(model, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], mmap: bool = False) -> TextClassifier:
        """Reads what :meth:`save` wrote. Nothing in the file is executed.

        Args:
            path: The file.
            mmap: Map the file to memory: start-up takes no time, and pages are read when they are used. The numbers
                are then not looked at before.

        Raises:
            ValueError: The file is cut off, damaged or holds no such model.
        """
        model = model_file.load(path, mmap)
        try:
            classifier = cls(**model.settings)
            check_settings(classifier)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error
        classifier.features_, classifier.columns_, classifier.network_ = model.features, model.columns, model.network
        classifier.classes_, classifier.history_ = np.array(model.classes), model.history
        classifier.multilabel_, classifier.multi_hot_ = model.multilabel, model.multi_hot
        classifier.threshold_ = model.threshold
        return classifier

    # --- scikit-learn's conventions ---

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> TextClassifier:
        known = self.get_params()
        unknown = params.keys() - known.keys()
        if unknown:
            raise ValueError(f"TextClassifier has no {', '.join(sorted(unknown))}; it has {', '.join(known)}")
        vars(self).update(params)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True, multi_output=True),
            classifier_tags=ClassifierTags(multi_label=True),
            input_tags=InputTags(string=True, two_d_array=False),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _check_fitted(self) -> None:
        if not hasattr(self, "network_"):
            # scikit-learn's own class where it is in use; it is a ValueError, too.
            exceptions = sys.modules.get("sklearn.exceptions")
            kind: type[Exception] = ValueError if exceptions is None else exceptions.NotFittedError
            raise kind("this TextClassifier is not fitted; call fit first, or load a saved one")

    def _fitted_multilabel(self) -> bool:
        self._check_fitted()
        return self.multilabel_

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name].default]
        return f"TextClassifier({', '.join(changed)})"


def check_settings(classifier: TextClassifier) -> None:
    """Raises a ValueError that names the setting that does not fit."""
    if classifier.features is not None and not isinstance(classifier.features, HashedText):
        raise ValueError(f"features is {classifier.features!r}; wanted a HashedText or None")
    for name, least in (
        ("hidden", 0),
        ("neighbours", 0),
        ("epochs", 1),
        ("batch_size", 1),
        ("patience", 1),
        ("memory", 0),
    ):
        value = getattr(classifier, name)
        optional = value is None and name in ("hidden", "neighbours", "epochs", "batch_size")
        if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name} is {value!r}; wanted a whole number of at least {least}")
    if classifier.neighbours is not None and classifier.neighbours > MOST_NEIGHBOURS:
        raise ValueError(f"neighbours is {classifier.neighbours}; wanted at most {MOST_NEIGHBOURS}")
    if classifier.lr is not None and not (isinstance(classifier.lr, (int, float)) and 0 < classifier.lr < math.inf):
        raise ValueError(f"lr is {classifier.lr!r}; wanted a positive number")
    for name in ("label_smoothing", "validation_fraction"):
        share = getattr(classifier, name)
        if share is not None and not (isinstance(share, (int, float)) and 0 <= share < 1):
            raise ValueError(f"{name} is {share!r}; wanted a number from 0 to below 1")


def _bits(text_bytes: int) -> int:
    """Chooses about one column per 4 bytes of text, so that few words and pairs collide; at most two million."""
    return min(21, max(16, math.ceil(math.log2(text_bytes / 4 + 1))))


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
