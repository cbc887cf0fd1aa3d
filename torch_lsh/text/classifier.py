"""TextClassifier: texts and labels in, labels out; the data decides the settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import LSHConfig
from ..models.evaluation import Propensities
from ..models.network import Network, WideNetwork
from ..models.ranker import LabelRanker
from ..models.ranking import LabelFilter, ranked_labels
from ..models.schedule import seconds_of
from ..models.settings import Settings
from ..models.training import RunOptions
from ..sampling.inference_mode import outside_inference_mode
from . import model_file
from .columns import Columns
from .estimator import Estimator
from .evaluation import evaluate_texts
from .explanation import without_each_word
from .fitted import FittedText
from .fitting import fit_more_texts, fit_texts, labels_with, make_room
from .hashed_text import HashedText
from .scorer import LinearScorer
from .settings import check_settings
from .sources import FileColumns, Texts, source_of
from .training_data import Labels

Source = Iterable[str] | str | os.PathLike[str]


class TextClassifier(Estimator):
    """Classifies texts with a network over hashed words and word n-grams.

    These are weighted by their rarity; with one label a text, over 3 to 64 classes also by how far they tell the
    classes apart, and over two by that alone. With 200 to 20,000 texts of up to 64 classes, support vector machines
    take over some or all of the network's work where parts of the texts, predicted by models of the others, say so.

    The number of classes decides the network: linear up to 64, a hidden layer above, an
    :class:`torch_lsh.LSHLinear` output above 4096. From 65 on, and from 8 on with 200 to 10,000 texts where no setting
    of the network, weights or validation texts are given, the nearest training texts count in every prediction, too:
    held-out texts train a :class:`torch_lsh.models.ranker.LabelRanker`; without them, from 512 on, a
    :class:`torch_lsh.models.mixture.Mixture` takes votes. Where labels are rare (half of them of fewer than 100 texts),
    or of few kinds (up to 4096, and fewer than eight a text), a ranker does as well without the network, which is
    trained then only if ``epochs`` or weights are given; else ``history_`` has one entry, of epoch 0 and without a
    loss. Settings that are None follow from the number of texts and classes.

    The class follows scikit-learn's conventions (``get_params``, ``clone``, pipelines, grid search). A label is text or
    a whole number. Labels in lists, or in cells with a separator, make the task multi-label.

    Args:
        features: How texts are hashed. None means words alone, where the network is linear also pairs of words (from 8
            MB of text on, triples, too; in scripts without blanks, n-grams of characters, and punctuation), in a number
            of columns that follows from the amount of text.
        hidden: Width of the hidden layer; 0 means the linear model.
        neighbours: How many of the nearest training texts vote; 0 means none. None means 64 from 65 classes (512
            where no texts are held out; 8 with few texts, see above), else 0.
            The model and its file then hold the features of all training texts. Not for a multi-label task without a
            hidden layer.
        epochs: Most passes over the data. None means as many as the class says.
        batch_size: Texts per step.
        lr: Adam's learning rate at the start; it falls linearly to 0.
        label_smoothing: Label smoothing of the softmax cross entropy.
        validation_fraction: Share of the texts to hold out (at most 10,000) for early stopping, given at least 20,000
            texts; 0 runs all epochs and leaves probabilities uncalibrated.
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
        threshold_: probability from which on :meth:`predict` gives a label (multi-label): the one with the highest
            micro F1 on held-out texts, or on parts of the texts as for ``temperature_``; 0.5 without any.
        temperature_: what logits are divided by before they become probabilities. Where the network is linear,
            held-out texts choose it; below 20,000 texts, parts of them that networks of the other parts predict. Else,
            below 200 texts, and with a ranker, which is calibrated by itself, it is 1.
        history_: a dict per epoch.
        network_: a :class:`torch_lsh.models.network.WideNetwork`, or a linear one.

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
    temperature_: float
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

    @outside_inference_mode
    def fit(
        self,
        X: Source,
        y: Iterable[Any] | None = None,
        *,
        text: str | int | Sequence[str | int] = "text",
        label: str | int = "label",
        label_separator: str | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        format: str | None = None,
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
            X: Texts; or the path of a CSV, TSV, JSONL, fastText or Parquet file (:class:`torch_lsh.text.TextFile`).
            y: A label for each text, a list of labels for each, or a multi-hot array ``[rows, C]``,
                dense or sparse. Tensors and data frames of one column serve, too.
            text: Column(s) of the text in the file.
            label: Column of the label in the file.
            label_separator: Separator of several labels in a cell of the file.
            delimiter: Of the fields of a CSV or TSV file; None means a comma or a tab.
            encoding: Of the file.
            format: The end of a name that says the format in place of the file's own, such as ``".csv"``.
            validation: Texts and labels, or a file of the same form, in place of held-out texts.
            sample_weight: Weight of each text.
            class_weight: A dict from labels to weights (the others have weight 1), or ``"balanced"``.
            budget: Time to train once the texts are read, in seconds or as text such as ``"60s"`` or ``"5m"``; see
                :meth:`torch_lsh.models.XMCClassifier.fit`.
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
        fitted = fit_texts(
            self,
            X,
            y,
            FileColumns(text, label, label_separator, delimiter, encoding, format),
            options,
            validation=validation,
            sample_weight=sample_weight,
            class_weight=class_weight,
            budget=seconds_of(budget),
        )
        return self._take(fitted)

    def _take(self, fitted: FittedText) -> TextClassifier:
        self.features_, self.columns_, self.network_ = fitted.features, fitted.columns, fitted.network
        self._scorer = LinearScorer.of(fitted.features, fitted.columns, fitted.network)
        self.classes_, self.multilabel_, self.multi_hot_ = np.array(fitted.classes), fitted.multilabel, fitted.multi_hot
        self.threshold_, self.temperature_, self.history_ = fitted.threshold, fitted.temperature, fitted.history
        return self

    def _fitted(self) -> FittedText:
        self._check_fitted()
        return FittedText(
            self.features_,
            self.columns_,
            self.network_,
            self.classes_.tolist(),
            self.multilabel_,
            self.multi_hot_,
            self.threshold_,
            self.temperature_,
            self.history_,
        )

    @outside_inference_mode
    def partial_fit(
        self,
        X: Source,
        y: Iterable[Any] | None = None,
        classes: Iterable[Any] | None = None,
        *,
        epochs: int = 1,
        lr: float | None = None,
        text: str | int | Sequence[str | int] = "text",
        label: str | int = "label",
        label_separator: str | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        format: str | None = None,
        sample_weight: Any = None,
    ) -> TextClassifier:
        """Trains a fitted classifier further, on texts that may have new labels and new words.

        New labels follow the others in ``classes_``, which keep their places. The texts become neighbours, where there
        are some; a network that :meth:`fit` did not train stays so. An unfitted classifier is fitted.

        Args:
            X, y, text, label, label_separator, delimiter, encoding, format, sample_weight: See :meth:`fit`.
            classes: Further labels to make room for, as scikit-learn's callers give them.
            epochs: Passes over the texts.
            lr: Learning rate of Adam at the beginning; None means 0.001, without a hidden layer 0.005.

        Raises:
            ValueError: A text or a label does not fit.
        """
        columns = FileColumns(text, label, label_separator, delimiter, encoding, format)
        if not hasattr(self, "network_"):
            self.fit(X, y, **columns._asdict(), sample_weight=sample_weight)
            fitted = self._fitted()
            return self._take(make_room(fitted, labels_with(fitted, classes)))
        fitted = self._fitted()
        settings = Settings(epochs, self.batch_size, lr, seed=self.seed)
        source, labels = source_of(X, y, columns), labels_with(fitted, classes)
        return self._take(fit_more_texts(fitted, source, labels, settings, sample_weight, grown=self._take))

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

    def _batches(self, texts: Sequence[str | bytes]) -> Iterator[Sequence[str | bytes]]:
        self._check_fitted()
        if type(texts) is not list and (
            isinstance(texts, (str, bytes)) or not hasattr(texts, "__getitem__") or hasattr(texts, "columns")
        ):
            texts = Texts(texts, None).texts
        size = self.network_.rows_at_a_time
        return (texts[start : start + size] for start in range(0, len(texts), size))

    @torch.inference_mode()
    def _scores(self, texts: Sequence[str | bytes]) -> Tensor:
        """Logits of all classes."""
        if self._scorer is not None:
            return self._scorer(texts)
        return self.network_.scores(self.columns_.csr(*self.features_.csr(texts)))

    def _logits(self, texts: Sequence[str | bytes]) -> Iterator[Tensor]:
        """Logits of all classes, in batches."""
        return map(self._scores, self._batches(texts))

    def predict(self, X: Sequence[str], *, allowed: Any = None, excluded: Any = None) -> Any:
        """Predicts the label of each text.

        Args:
            X: Texts.
            allowed: Labels that alone may be predicted: a list for all texts, or a list of lists, one for each text.
            excluded: Labels that may not be predicted, in the same forms.

        Returns:
            An array ``[rows]`` of labels. For a multi-label task, a list of labels for each text, or zeros and ones
            ``[rows, C]`` if :meth:`fit` got those.
        """
        self._check_fitted()
        if not self.multilabel_:
            if allowed is not None or excluded is not None:
                return self.top_k(X, 1, allowed=allowed, excluded=excluded)[0][:, 0]
            best = [logits.argmax(1) for logits in self._logits(X)]
            return self.classes_[torch.cat(best).numpy()] if best else self.classes_[:0]
        filtered = self._filtered(X, allowed, excluded)
        batches = [(probabilities >= self.threshold_) & (scores > -torch.inf) for scores, probabilities in filtered]
        given = torch.cat(batches).numpy() if batches else np.empty((0, len(self.classes_)), bool)
        return given.astype(np.int64) if self.multi_hot_ else [self.classes_[row].tolist() for row in given]

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        """Predicts probabilities ``[rows, C]`` float32, classes in the order of ``classes_``.

        They are calibrated where ``temperature_`` is (Guo et al., "On Calibration of Modern Neural Networks", ICML
        2017), and by a ranker: of texts with a probability near 0.8, about 80 % have the label. Of a multi-label task,
        every label has a probability of its own; else those of a text sum to 1.
        """
        batches = [self._probabilities(logits) for logits in self._logits(X)]
        return torch.cat(batches).numpy() if batches else np.empty((0, len(self.classes_)), np.float32)

    def top_k(
        self, X: Sequence[str], k: int = 5, *, allowed: Any = None, excluded: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predicts the ``k`` likeliest labels of each text and their probabilities, both ``[rows, k]``, best first.

        Args:
            X: Texts.
            k: Labels per text.
            allowed, excluded: See :meth:`predict`. The probabilities of labels do not depend on them.

        Raises:
            ValueError: ``k`` is out of range, or fewer labels are allowed for a text.
        """
        self._check_fitted()
        if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= len(self.classes_):
            raise ValueError(f"k is {k!r}; wanted 1 to {len(self.classes_)}")
        if allowed is None and excluded is None:
            best = [self._best(texts, int(k)) for texts in self._batches(X)]
        else:
            best = [_largest(*some, int(k)) for some in self._filtered(X, allowed, excluded)]
        if not best:
            return self.classes_[:0].reshape(0, k), np.empty((0, k), np.float32)
        values, numbers = (torch.cat(some) for some in zip(*best))
        if (short := (numbers < 0).any(1).nonzero()).numel() > 0:
            row = int(short[0])
            raise ValueError(f"k is {k}; but text {row} may have {int((numbers[row] >= 0).sum())} labels only")
        return self.classes_[numbers.numpy()], values.numpy()

    @torch.inference_mode()
    def _best(self, texts: Sequence[str | bytes], k: int) -> tuple[Tensor, Tensor]:
        """The probabilities and numbers of the ``k`` likeliest labels, both ``[B, k]``."""
        if isinstance(self.network_.mixture, LabelRanker) and self.temperature_ == 1:
            found = ranked_labels(self.network_, self.columns_.csr(*self.features_.csr(texts)), k)
            if found is not None:
                return found[0].exp(), found[1]
        scores = self._scores(texts)
        return _largest(scores, self._probabilities(scores), k)

    def _filtered(self, X: Sequence[str], allowed: Any, excluded: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits of all classes in batches, -inf where a label is not allowed, and probabilities."""
        labels, begin = None, 0
        if allowed is not None or excluded is not None:
            X = Texts(X, None).texts
            numbers = Labels(self.classes_.tolist())
            choices = (_numbered("allowed", allowed, numbers), _numbered("excluded", excluded, numbers))
            labels = LabelFilter(*choices, len(self.classes_), len(X))
        for logits in self._logits(X):
            probabilities = self._probabilities(logits)
            if labels is not None:
                logits = logits.masked_fill(~labels.mask(begin, begin + len(logits)), -torch.inf)
            begin += len(logits)
            yield logits, probabilities

    def _probabilities(self, logits: Tensor) -> Tensor:
        return self.network_.probabilities(logits / self.temperature_)

    def evaluate(
        self,
        X: Source,
        y: Iterable[Any] | None = None,
        *,
        text: str | int | Sequence[str | int] = "text",
        label: str | int = "label",
        label_separator: str | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        format: str | None = None,
        metrics: Sequence[str] = (),
        ks: Sequence[int] = (1, 3, 5),
        propensities: Propensities = None,
        excluded: Iterable[tuple[int, Any]] | str | os.PathLike[str] | None = None,
    ) -> dict[str, float]:
        """Measures accuracy and loss (multi-label: precision@k and micro F1) on texts and labels, or on a file.

        A label that did not occur in the training data counts as wrong, and has no loss.

        Args:
            X, y, text, label, label_separator, delimiter, encoding, format: See :meth:`fit`.
            metrics: Names of further metrics, see :class:`torch_lsh.metrics.RankingMetrics`.
            ks: The values of k of these.
            propensities: For the propensity-scored ones, see :meth:`torch_lsh.models.XMCClassifier.evaluate`; classes
                in the order of ``classes_``.
            excluded: Pairs of row (from 0) and label that the further metrics do not count as predicted, or the path of
                a file of lines ``row label``. Labels that the classifier does not know are left out.

        Returns:
            The metrics by name; ``"rows"``; and, if there are any, ``"labels_unknown"``: how many labels did not occur
            in the training data.

        Raises:
            ValueError: A text, a label or another argument does not fit.
        """
        fitted = self._fitted()
        source = source_of(X, y, FileColumns(text, label, label_separator, delimiter, encoding, format))
        return evaluate_texts(fitted, source, metrics, ks, propensities, excluded)

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
        if not self.network_.binary and self.network_.independent:
            logits = logits - torch.log(-torch.expm1(logits.clamp(max=-1e-7)))  # of logarithms of probabilities
        margins = logits[:, number]
        if not self.network_.independent:
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
        fitted = self._fitted()
        settings = {name: value for name, value in self.get_params().items() if name not in ("features", "config")}
        model_file.save(settings, fitted, path)

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
        settings, fitted = model_file.load(path, mmap)
        try:
            classifier = cls(**settings)
            check_settings(classifier)
            if np.array(fitted.classes).ndim != 1:
                raise ValueError(f"classes has {np.array(fitted.classes).ndim} dimensions; wanted 1")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error
        return classifier._take(fitted)


def _largest(scores: Tensor, probabilities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Probabilities and numbers of the largest scores, both ``[B, k]``; the number is -1 where the score is -inf.

    Probabilities themselves may be equal, 1 or 0 as rounded.
    """
    best = scores.topk(k)
    return probabilities.gather(1, best.indices), best.indices.masked_fill(best.values == -torch.inf, -1)


def _numbered(name: str, labels: Any, numbers: Labels) -> Any:
    """The numbers of labels, in a list or in a list of lists."""
    if labels is None:
        return None
    if isinstance(labels, (str, bytes)):
        raise ValueError(f"{name} is {labels!r}; wanted a list of labels, or one for each text")
    return [
        [numbers.number(label, name) for label in some]
        if isinstance(some, (list, tuple, set))
        else numbers.number(some, name)
        for some in labels
    ]
