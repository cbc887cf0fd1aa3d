"""TextClassifier: texts and labels in, labels out, without tuning."""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import io as safetensors
from .. import ops, optim
from ..config import LSHConfig
from ..data import XMCRows
from ..data.xmc import join_rows, padded_labels
from ..metrics import PrecisionAtK
from ..models.xmc import check_can_write
from .files import TextFile
from .hashed_text import HashedText, pack_texts
from .neighbours import TextNeighbours
from .network import TextNetwork, binary_loss, softmax_loss
from .training_data import WIDE, Labels, Texts, TrainingData, hashed

FORMAT = "torch_lsh.TextClassifier/2"
_LINEAR_CLASSES = 64  # up to so many the linear model is the better one, and small
_DENSE_CLASSES = WIDE  # up to so many a dense output layer is the faster one
_INFERENCE_BATCH = 256
_TUNING_ROWS = 2048  # on which the share of the neighbours is settled
_THRESHOLDS = torch.cat([torch.arange(0.01, 0.1, 0.01), torch.arange(0.1, 0.95, 0.05)])

Source = Iterable[str] | str | os.PathLike[str]


class TextClassifier:
    """Classifies texts: hashed words and word pairs, weighed by their rarity, under a network trained with Adam.

    With up to 64 classes the network is linear in the features, which on sets of thousands of texts is both better and
    faster than anything deeper; with more there is a hidden layer, and with more than 4096 an
    :class:`torch_lsh.LSHLinear` output. Over so many, the labels of the nearest training texts take part in every
    prediction (:class:`torch_lsh.models.text_neighbours.TextNeighbours`), as much as pays on the texts held out, or
    half where none are. Whatever is not given is chosen from the number of texts and classes.

    The conventions are scikit-learn's (``get_params``, ``clone``, pipelines, grid search). A label is text or a number;
    where labels are lists (or cells with a separator) the task is multi-label.

    Args:
        features: default: words and pairs of words (words alone with more than 4096 classes) in a number of columns
            that follows from the amount of text.
        hidden: units of the hidden layer; 0: the linear model.
        neighbours: how many of the nearest training texts take part; 0: none, which is the default with up to 4096
            classes, and 64 with more. The features of all training texts are then part of the model and its file. Not
            for a multi-label task without a hidden layer.
        epochs: passes over the data at most.
        batch_size: texts per step.
        lr: Adam's learning rate at the start; it falls linearly to 0.
        label_smoothing: of the softmax cross entropy.
        validation_fraction: share of the texts held out (at most 10,000) to find out when to stop, where there are at
            least 20,000 texts; 0: none, all epochs are run.
        patience: stop after so many epochs without a better one, and go back to the best.
        memory: bytes of hashed features kept in memory; if there are more, each epoch reads and hashes the texts again,
            and the neighbours are a random choice of the texts.
        config: of the LSHLinear output.
        seed: of initialisation, order and split.
        progress: show a progress bar (needs tqdm).

    Attributes:
        classes_: the labels, sorted, ``[C]``.
        multilabel_: whether a text may have several labels.
        multi_hot_: whether they were given as zeros and ones.
        threshold_: probability from which on :meth:`predict` gives a label (multi-label).
        history_: a dict per epoch.
        network_: the :class:`torch_lsh.models.text_network.TextNetwork`.

    >>> texts = ["a fine film", "good fun", "dull and long", "a bad film"] * 10
    >>> model = TextClassifier().fit(texts, ["pos", "pos", "neg", "neg"] * 10)
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
    network_: TextNetwork
    features_: HashedText

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
    ) -> TextClassifier:
        """Trains on texts and labels, or on a file, which is read as a stream.

        Args:
            X: texts; or the path of a CSV, TSV, JSONL or Parquet file (:class:`torch_lsh.data.TextFile`).
            y: a label for each text, or a list of labels for each, or a multi-hot array ``[rows, C]``.
            text, label, label_separator: where the file holds texts and labels.
            validation: texts and labels, or a file of the same form, instead of texts that are held out.

        Raises:
            ValueError: a setting, a text or a label does not fit (with its row); nothing is changed then.
        """
        self._check_settings()
        columns = {"text": text, "label": label, "label_separator": label_separator}
        source = _source(X, y, columns)
        bits = _bits(source.bytes())
        features, wide_features = self.features, None
        if features is None:
            # Over many classes pairs of words are rare, and are learnt by heart.
            features, wide_features = (HashedText(bits, n, norm=None) for n in (2, 1))
        hold_out = self.validation_fraction if validation is None else 0.0
        multi_hot = _is_multi_hot(y)
        columns_of_y = range(y.shape[1]) if multi_hot else None  # type: ignore[union-attr]  # all, whether in use or not
        data = TrainingData(source, features, wide_features, hold_out, 10_000, self.memory, self.seed, columns_of_y)
        features, found = data.features, data.statistics
        multilabel = found.several or (source.several if isinstance(source, Texts) else label_separator is not None)
        if found.rows == 0:
            raise ValueError("X holds no text with a label; wanted some")
        if len(found.classes) < 2 and not multilabel:
            raise ValueError(f"y holds one class only, {found.classes[0]!r}; wanted at least two")
        held_out = found.held_out
        if validation is not None:
            held_out = self._validation_rows(validation, columns, features, Labels(found.classes))
        trainer = _Trainer(self, data, held_out, multilabel)
        trainer.run()
        self.features_, self.network_ = features, trainer.network.eval()
        self.classes_, self.multilabel_, self.multi_hot_ = np.array(found.classes), multilabel, multi_hot
        self.threshold_ = 0.5 if held_out is None else trainer.best_threshold()
        self.history_ = trainer.history
        return self

    def _validation_rows(self, validation: Any, columns: Any, features: HashedText, labels: Labels) -> XMCRows | None:
        texts, y = validation if isinstance(validation, tuple) else (validation, None)
        source = _source(texts, y, columns)
        rows = list(hashed(source, features, labels))
        return join_rows(rows)._replace(num_labels=len(labels.numbers)) if rows else None

    def _check_settings(self) -> None:
        if self.features is not None and not isinstance(self.features, HashedText):
            raise ValueError(f"features is {self.features!r}; wanted a HashedText or None")
        for name, least in (
            ("hidden", 0),
            ("neighbours", 0),
            ("epochs", 1),
            ("batch_size", 1),
            ("patience", 1),
            ("memory", 0),
        ):
            value = getattr(self, name)
            optional = value is None and name in ("hidden", "neighbours", "epochs", "batch_size")
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} is {value!r}; wanted a whole number of at least {least}")
        if self.lr is not None and not (isinstance(self.lr, (int, float)) and 0 < self.lr < math.inf):
            raise ValueError(f"lr is {self.lr!r}; wanted a positive number")
        for name in ("label_smoothing", "validation_fraction"):
            share = getattr(self, name)
            if share is not None and not (isinstance(share, (int, float)) and 0 <= share < 1):
                raise ValueError(f"{name} is {share!r}; wanted a number from 0 to below 1")

    # --- inference ---

    def _logits(self, texts: Sequence[str]) -> Iterator[Tensor]:
        """Logits of all classes, in batches."""
        self._check_fitted()
        if isinstance(texts, (str, bytes)) or not hasattr(texts, "__getitem__"):
            texts = Texts(texts, None).texts
        network = self.network_
        with torch.inference_mode():
            for start in range(0, len(texts), _INFERENCE_BATCH):
                hashed_texts = self.features_.csr(texts[start : start + _INFERENCE_BATCH])
                yield network.dense_logits(*network.rows(*hashed_texts))

    def predict(self, X: Sequence[str]) -> Any:
        """The label of each text, an array ``[rows]``; for a multi-label task a list of labels for each, or zeros and
        ones ``[rows, C]`` if :meth:`fit` was given those."""
        if self._fitted_multilabel():
            probabilities = self.predict_proba(X)
            if self.multi_hot_:
                return (probabilities >= self.threshold_).astype(np.int64)
            return [self.classes_[row >= self.threshold_].tolist() for row in probabilities]
        best = [logits.argmax(1) for logits in self._logits(X)]
        return self.classes_[torch.cat(best).numpy()] if best else self.classes_[:0]

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        """Probabilities ``[rows, C]`` float32 of the classes in the order of ``classes_``."""
        batches = [self._probabilities(logits) for logits in self._logits(X)]
        return torch.cat(batches).numpy() if batches else np.empty((0, len(self.classes_)), np.float32)

    def top_k(self, X: Sequence[str], k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` likeliest labels of each text and their probabilities, both ``[rows, k]``, best first."""
        self._check_fitted()
        if not 1 <= k <= len(self.classes_):
            raise ValueError(f"k is {k}; wanted 1 to {len(self.classes_)}")
        best = [self._probabilities(logits).topk(k) for logits in self._logits(X)]
        if not best:
            return self.classes_[:0].reshape(0, k), np.empty((0, k), np.float32)
        numbers = torch.cat([some.indices for some in best]).numpy()
        return self.classes_[numbers], torch.cat([some.values for some in best]).numpy()

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if _is_binary(self.multilabel_, self.network_) else logits.softmax(1)

    def evaluate(
        self,
        X: Source,
        y: Iterable[Any] | None = None,
        *,
        text: str | int | Sequence[str | int] = "text",
        label: str | int = "label",
        label_separator: str | None = None,
    ) -> dict[str, float]:
        """Quality on texts and labels, or on a file: accuracy and loss; multi-label: precision@k and micro F1.

        Raises:
            ValueError: a label did not occur in the training data; the message gives its row.
        """
        self._check_fitted()
        source = _source(X, y, {"text": text, "label": label, "label_separator": label_separator})
        labels = Labels(self.classes_.tolist())
        metric = _Metric(self.network_, self.multilabel_, self.threshold_)
        for chunk in hashed(source, self.features_, labels):
            metric.update(chunk)
        return metric.compute()

    def score(self, X: Source, y: Iterable[Any] | None = None) -> float:
        """Accuracy, or precision@1 where a text may have several labels."""
        result = self.evaluate(X, y)
        return result["precision@1" if self.multilabel_ else "accuracy"]

    def explain(self, text: str, label: Any = None, max_words: int = 500) -> list[tuple[str, float]]:
        """How much each word carries the decision for a label: what its logit, less the mean of the others', loses
        when the word is taken out wherever it stands.

        Args:
            text: one text; of a longer one the first ``max_words`` words.
            label: default: the one that :meth:`predict` gives, or the likeliest.

        Returns:
            ``(word, loss)``, greatest first; words that speak against the label have a negative one.
        """
        self._check_fitted()
        number = None if label is None else Labels(self.classes_.tolist()).number(label, "explain")
        packed, _ = pack_texts([text])
        spans = ops.word_spans(packed)[:max_words].tolist()
        raw = bytes(packed.numpy())[: spans[-1][1] if spans else 0]
        places: dict[str, list[tuple[int, int]]] = {}
        for begin, end in spans:
            places.setdefault(raw[begin:end].decode("utf-8", "replace").lower(), []).append((begin, end))
        variants = [raw]
        for spots in places.values():
            kept, at = [], 0
            for begin, end in spots:
                kept.append(raw[at:begin])
                at = end
            variants.append(b"".join([*kept, raw[at:]]))
        logits = torch.cat(list(self._logits(variants)))  # type: ignore[arg-type]
        number = int(logits[0].argmax()) if number is None else number
        others = (logits.sum(1) - logits[:, number]) / max(1, logits.shape[1] - 1)
        margins = logits[:, number] - (0 if _is_binary(self.multilabel_, self.network_) else others)
        losses = (margins[0] - margins[1:]).tolist()
        return sorted(zip(places, losses), key=lambda item: -item[1])

    # --- files ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fitted model to one file: weights as safetensors, settings and labels as JSON in its header.

        The settings of the LSHLinear output, which matter in training only, are not written.
        """
        self._check_fitted()
        check_can_write(Path(path))
        settings = {name: value for name, value in self.get_params().items() if name not in ("features", "config")}
        network, neighbours = self.network_, self.network_.neighbours
        model = {
            "settings": settings,
            "features": self.features_.get_params(),
            "classes": self.classes_.tolist(),
            "columns": len(network.columns),
            "hidden": 0 if network.output is None else network.features.embedding_dim,
            "neighbours": None if neighbours is None else neighbours.settings(),
            "multilabel": self.multilabel_,
            "multi_hot": self.multi_hot_,
            "threshold": self.threshold_,
            "history": self.history_,
        }
        metadata = {"format": FORMAT, "model": json.dumps(model)}
        safetensors.save_file(network.state_dict(), path, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextClassifier:
        """Reads what :meth:`save` wrote. Nothing in the file is executed.

        Raises:
            ValueError: the file is cut off, damaged or not such a model.
        """
        tensors, metadata = safetensors.load_file(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is of the format {metadata.get('format')!r}; wanted {FORMAT!r}")
        try:
            model = json.loads(metadata["model"])
            classifier = cls(**model["settings"])
            classifier._check_settings()
            features = dict(model["features"])
            if features["char_ngrams"] is not None:
                features["char_ngrams"] = tuple(features["char_ngrams"])
            classifier.features_ = HashedText(**features)
            classifier.classes_ = np.array(model["classes"])
            classifier.multilabel_, classifier.threshold_ = bool(model["multilabel"]), float(model["threshold"])
            classifier.multi_hot_ = bool(model["multi_hot"])
            classifier.history_ = model["history"]
            with torch.device("meta"):
                classes = len(model["classes"])
                network = _network(classifier.features_, model["columns"], classes, model["hidden"])
                if model["neighbours"] is not None:
                    network.neighbours = TextNeighbours(model["columns"], classes, **model["neighbours"])
            network.load_state_dict(tensors, assign=True)
            network.index_columns()
            if network.neighbours is not None:
                network.neighbours.index_rows()
            classifier.network_ = network.eval()
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error
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


def _source(X: Any, y: Any, columns: dict[str, Any]) -> Texts | TextFile:
    if isinstance(X, (str, os.PathLike)):
        if y is not None:
            raise ValueError(f"X is the path {os.fspath(X)!r}, and y is given; wanted labels in the file alone")
        return TextFile(X, **columns)
    if y is None:
        raise ValueError("y is None; wanted a label for each text, or X as the path of a file")
    if _is_multi_hot(y):
        return Texts(X, _from_multi_hot(y))
    return Texts(X, y.reshape(-1) if isinstance(y, np.ndarray) else y)


def _is_multi_hot(y: Any) -> bool:
    """A single column holds labels."""
    return isinstance(y, np.ndarray) and y.ndim != 1 and y.shape[1:] != (1,)


def _from_multi_hot(y: np.ndarray) -> list[list[int]]:
    if y.ndim != 2 or not np.isin(y, (0, 1)).all():
        raise ValueError(f"y has shape {y.shape}; wanted labels [rows], or zeros and ones [rows, C]")
    return [np.flatnonzero(row).tolist() for row in y]


def _bits(text_bytes: int) -> int:
    """A column for about every 4 bytes, so that words and pairs share few; at most two million."""
    return min(21, max(16, math.ceil(math.log2(text_bytes / 4 + 1))))


def _network(
    features: HashedText, columns: int, classes: int, hidden: int, config: LSHConfig | None = None
) -> TextNetwork:
    return TextNetwork(features.num_features, columns, classes, hidden, classes > _DENSE_CLASSES, config)


def _is_binary(multilabel: bool, network: TextNetwork) -> bool:
    """Whether every class is a decision of its own; with many classes a softmax ranks them better."""
    return multilabel and network.output is None


def _batches(network: TextNetwork, rows: XMCRows) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Hashed rows as the network takes them, and their labels ``[B, P]`` padded with -100."""
    for some in torch.arange(len(rows.feature_start) - 1).split(_INFERENCE_BATCH):
        batch = rows.take(some)
        yield *network.rows(batch.feature_start, batch.features, batch.values), padded_labels(batch)


class _Metric:
    """Quality over rows; exact, in batches."""

    def __init__(self, network: TextNetwork, multilabel: bool, threshold: float | None = None) -> None:
        self.network, self.multilabel = network, multilabel
        self.thresholds = _THRESHOLDS if threshold is None else torch.tensor([threshold])
        self.precision: PrecisionAtK | None = None
        self.loss = self.rows = 0.0
        self.counts = torch.zeros(3, len(self.thresholds), dtype=torch.int64)  # given and right, given, right

    @torch.inference_mode()
    def update(self, rows: XMCRows) -> None:
        for crow, col, values, labels in _batches(self.network, rows):
            logits = self.network.dense_logits(crow, col, values)
            classes = logits.shape[1]
            if self.precision is None:
                self.precision = PrecisionAtK([k for k in (1, 3, 5) if k <= classes])
            best = logits.topk(min(classes, 50))
            self.precision.update(best.indices, labels)
            if self.multilabel:
                binary = _is_binary(True, self.network)
                probabilities = best.values.sigmoid() if binary else (best.values - logits.logsumexp(1, True)).exp()
                given = probabilities.unsqueeze(0) >= self.thresholds.view(-1, 1, 1)
                right = (best.indices.unsqueeze(2) == labels.unsqueeze(1)).any(2)
                self.counts[0] += (given & right).sum((1, 2))
                self.counts[1] += given.sum((1, 2))
                self.counts[2] += (labels >= 0).sum()
            else:
                self.loss += float(torch.nn.functional.cross_entropy(logits, labels[:, 0], reduction="sum"))
            self.rows += len(labels)

    def f1(self) -> Tensor:
        """Micro F1 by threshold."""
        return 2 * self.counts[0] / (self.counts[1] + self.counts[2]).clamp(min=1)

    def compute(self) -> dict[str, float]:
        if self.precision is None:
            raise ValueError("there are no rows to evaluate on")
        precision = self.precision.compute()
        if not self.multilabel:
            return {"accuracy": precision[1], "loss": self.loss / self.rows, "rows": self.rows}
        at_k = {f"precision@{k}": value for k, value in precision.items()}
        return {**at_k, "micro_f1": float(self.f1().max()), "rows": self.rows}


class _Trainer:
    """One run of training: network, optimizer, schedule, and the best state so far."""

    def __init__(
        self, settings: TextClassifier, data: TrainingData, held_out: XMCRows | None, multilabel: bool
    ) -> None:
        self.settings, self.data, self.held_out, self.multilabel = settings, data, held_out, multilabel
        found = data.statistics
        classes, rows = len(found.classes), found.rows
        linear = classes <= _LINEAR_CLASSES
        wide = classes > _DENSE_CLASSES
        hidden = settings.hidden if settings.hidden is not None else (0 if linear else 128 if wide else 256)
        self.neighbours = settings.neighbours if settings.neighbours is not None else (64 if wide else 0)
        if self.neighbours > 0 and multilabel and hidden == 0:
            raise ValueError(
                f"neighbours is {self.neighbours}; wanted 0 for a multi-label task without a hidden layer, where every "
                "class is a decision of its own"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = _network(data.features, len(found.columns), classes, hidden, settings.config)
        self.network.columns, self.network.idf = found.columns, found.idf
        # Small sets want small batches and many passes, so that there are some hundred steps in all.
        self.epochs = settings.epochs or min(40, max(8 if hidden == 0 else 3 if wide else 4, 20_000 // rows))
        self.batch_size = settings.batch_size or (256 if rows >= 200_000 else min(64, max(8, rows // 32)))
        default_lr = (0.01 if self.epochs == 1 else 0.004) if hidden > 0 else (0.05 if self.epochs == 1 else 0.02)
        self.lr = settings.lr or default_lr
        # A smooth target keeps the linear model from growing ever surer of what it has learnt by heart.
        smoothing = 0.1 if hidden == 0 and classes > 2 else 0.0
        self.smoothing = settings.label_smoothing if settings.label_smoothing is not None else smoothing
        self.optimizer = optim.Adam(self.network.parameters(), lr=self.lr)
        self.history: list[dict[str, float]] = []

    def run(self) -> None:
        best: float | None = None
        state: dict[str, Tensor] = {}
        since = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            with _progress_bar(self.epochs * self.data.statistics.rows, self.settings.progress) as bar:
                for epoch in range(self.epochs):
                    entry = self._epoch(epoch, bar)
                    self.history.append(entry)
                    if self.held_out is None:
                        continue
                    result = self._evaluate()
                    entry.update({f"validation_{name}": value for name, value in result.items() if name != "rows"})
                    # The loss, where there is one, is less at the mercy of a few texts than accuracy.
                    quality = result["precision@1"] if self.multilabel else -result["loss"]
                    if best is None or quality > best:
                        best, since = quality, 0
                        state = copy.deepcopy(self.network.state_dict()) if epoch + 1 < self.epochs else {}
                    else:
                        since += 1
                    if since >= self.settings.patience:
                        break
        if state:
            self.network.load_state_dict(state)
        if self.neighbours > 0:
            self._add_neighbours()

    def _weighed(self, block: XMCRows) -> XMCRows:
        start, features, values = self.network.rows(block.feature_start, block.features, block.values)
        return block._replace(
            feature_start=start, features=features.int(), values=values, num_features=len(self.network.columns)
        )

    @torch.no_grad()
    def _add_neighbours(self) -> None:
        rows = self.data.sample(self.settings.memory)
        if rows is None:
            return
        self.network.eval()
        neighbours = TextNeighbours.from_rows(self._weighed(rows), self.neighbours)
        if self.held_out is not None:
            few = self.held_out.take(torch.arange(min(_TUNING_ROWS, len(self.held_out.feature_start) - 1)))
            neighbours.tune(
                (self.network.dense_logits(crow, col, values), crow, col, values, labels)
                for crow, col, values, labels in _batches(self.network, few)
            )
        if neighbours.share == 0:
            return
        self.network.neighbours = neighbours
        if self.held_out is not None:
            result = self._evaluate()
            self.history[-1].update(
                {f"validation_neighbours_{name}": result[name] for name in result if name != "rows"}
            )

    def _epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        self.network.train()
        start = time.perf_counter()
        rows, done, total = self.data.statistics.rows, 0, 0.0
        for block in self.data.blocks():
            block = self._weighed(block)
            for some in torch.randperm(len(block.feature_start) - 1).split(self.batch_size):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.lr * (1 - (epoch + done / rows) / self.epochs)
                batch = block.take(some)
                loss = self._loss(batch)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                done += len(some)
                total += float(loss.detach()) * len(some)
                bar.update(len(some))
        seconds = time.perf_counter() - start
        return {"epoch": epoch + 1, "loss": total / done, "seconds": seconds, "texts_per_second": done / seconds}

    def _loss(self, batch: XMCRows) -> Tensor:
        logits = self.network(batch.feature_start, batch.features.long(), batch.values)
        labels = padded_labels(batch)
        if _is_binary(self.multilabel, self.network):
            return binary_loss(logits, labels)
        return softmax_loss(logits, labels, self.smoothing)

    def _evaluate(self) -> dict[str, float]:
        self.network.eval()
        metric = _Metric(self.network, self.multilabel)
        assert self.held_out is not None
        metric.update(self.held_out)
        return metric.compute()

    def best_threshold(self) -> float:
        """The probability that gives the best micro F1 on the rows held out."""
        if not self.multilabel or self.held_out is None:
            return 0.5
        self.network.eval()
        metric = _Metric(self.network, True)
        metric.update(self.held_out)
        return float(metric.thresholds[metric.f1().argmax()])


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        pass


def _progress_bar(rows: int, wanted: bool) -> Any:
    if not wanted:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass progress=False") from error
    return tqdm(total=rows, desc="training", unit="text", unit_scale=True, mininterval=0.5)
