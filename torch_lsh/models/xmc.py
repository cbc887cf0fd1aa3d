"""XMCClassifier: a wide model of rows of features that exist already, sparse or dense."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import LSHConfig
from ..data import XMCDataset, XMCStream, read_filter
from ..io import is_safetensors, load_archive
from ..metrics import RankingMetrics
from ..sampling.inference_mode import outside_inference_mode
from . import model_file
from .evaluation import Propensities, Rankings, propensities_for, propensities_of
from .fitting import fit, fit_more
from .held_out import Purpose, are_crossed, split
from .network import WideNetwork
from .ranking import LabelFilter, best_labels
from .rows import (
    Batch,
    DenseRows,
    InMemory,
    Rows,
    Source,
    as_tensor,
    batch_of,
    is_sparse,
    label_counts,
    num_rows,
    rows_of,
    unlabelled,
    widened,
)
from .schedule import seconds_of
from .settings import Settings
from .streamed import Streamed
from .training import RunOptions
from .weights import label_weights, row_weights

FORMAT = "torch_lsh.XMCClassifier/2"
_PREVIOUS = "torch_lsh.XMCClassifier/1"  # an archive


class XMCClassifier(WideNetwork):
    """A classifier of rows of features: features -> ReLU units -> one logit per label, and votes of the nearest rows.

    The network is that of SLIDE (Chen et al., MLSys 2020) and of BOLT on Amazon-670K. The loss is softmax cross
    entropy; the labels of a row share its target equally. From 65 labels on, its logits are one of several kinds of
    evidence, beside the nearest training rows, centroids and linear classifiers of labels. Small networks trained on
    held-out rows rank the labels (:class:`torch_lsh.models.ranker.LabelRanker`). Where labels are rare (half of them of
    fewer than 100 rows), or of few kinds (up to 4,096, and fewer than eight a row), they do as well without the
    network, which is trained then only if :meth:`fit` gets ``epochs`` or weights. Of dense rows it is trained if there
    are 1,000. Sets too small to hold rows out have the votes of the nearest rows only, from 512 labels on
    (:class:`torch_lsh.models.mixture.Mixture`).

    Args:
        num_features: Number of features.
        num_labels: Number of labels.
        hidden: Width of the hidden layer.
        config: Settings of the output layer; None means ``LSHConfig()``.
        dense: Use an ``nn.Linear`` output layer, for comparison.
        dense_input: Rows are dense, ``[rows, num_features]``, as embeddings are.
        activation: Of the hidden layer, ``"relu"`` or ``"none"``.

    Raises:
        ValueError: A size is not a positive int, or ``activation`` is another one.

    >>> from torch_lsh.data import synthetic_xmc
    >>> train, test = synthetic_xmc(512, 64, num_features=2_000, num_labels=5_000)
    >>> model = XMCClassifier(2_000, 5_000, hidden=16)
    >>> history = model.fit(train, epochs=1, eval_dataset=test, progress=False)
    >>> sorted(history[0])
    ['epoch', 'loss', 'precision@1', 'precision@3', 'precision@5', 'samples_per_second', 'seconds']
    >>> scores, classes = model.predict(test, k=3)
    >>> classes.shape
    torch.Size([64, 3])
    """

    def __init__(
        self,
        num_features: int,
        num_labels: int,
        hidden: int = 128,
        config: LSHConfig | None = None,
        dense: bool = False,
        dense_input: bool = False,
        activation: str = "relu",
    ) -> None:
        for name, value in (("num_features", num_features), ("num_labels", num_labels), ("hidden", hidden)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; wanted a positive int")
        super().__init__(
            num_features,
            num_labels,
            hidden,
            sampled=not dense,
            config=config,
            dense_input=dense_input,
            activation=activation,
        )
        self.dense = dense

    # --- training ---

    @outside_inference_mode
    def fit(
        self,
        train_dataset: XMCDataset | XMCStream | tuple[Any, Any],
        *,
        epochs: int | None = None,
        batch_size: int = 256,
        lr: float | None = None,
        eval_dataset: XMCDataset | tuple[Any, Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume: bool = True,
        max_steps: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        progress: bool = True,
        callbacks: Sequence[Callable[[], object]] = (),
        neighbours: int | None = None,
        validation: XMCDataset | tuple[Any, Any] | None = None,
        validation_fraction: float = 0.05,
        patience: int = 2,
        budget: float | str | None = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        memory: int = 2 << 30,
        metrics: Sequence[str] = ("precision",),
        ks: Sequence[int] = (1, 3, 5),
    ) -> list[dict[str, float]]:
        """Trains with Adam, then adds other sources of scores (see the class).

        Some labelled rows are held out if there are 20,000, or 1,000 where a ranker can be trained (200 where it does
        without the network). They train the ranker, or else decide when to stop.
        The network is never trained on them, but all other sources are in the end, so that little that is known is
        lost. Of fewer than 2,000 rows, a ranker without the network learns from all: each quarter is held out once.

        With ``checkpoint``, the state of the run is written at the end of every epoch and every ``checkpoint_every``
        steps. A run that finds the file resumes from it and ends as an uninterrupted run with the same checkpoint
        schedule does, bit for bit.

        Args:
            train_dataset: Rows to train on: a dataset; a stream, which is read again at every epoch (and twice before),
                where rows need not fit in memory; or a pair of features ``[rows, num_features]``, sparse or dense as
                the model's input, and labels (see :func:`torch_lsh.models.rows.rows_of`). Rows without labels add
                nothing.
            epochs: Most passes over the data, over which the learning rate falls to 0. None means as many as
                held-out rows gain from; with a ranker or without held-out rows, as many as suit the number of rows;
                none with a ranker of labels of few rows (see the class), as a line on standard error says
                (``progress``) and the logger ``torch_lsh``.
            batch_size: Rows per step.
            lr: Adam's learning rate at the beginning; None means that it follows from the number of epochs.
            eval_dataset: Rows to measure ``metrics`` at ``ks`` on after every epoch. They decide nothing.
            checkpoint: File of the run's state.
            checkpoint_every: Steps between checkpoints within an epoch; None writes none within an epoch.
            resume: Whether to resume from ``checkpoint`` if it exists.
            max_steps: Stop after so many steps of this call. The history then ends with the last whole epoch, and there
                are no neighbours yet.
            num_workers: Worker processes that make batches.
            seed: Seed of the order of the rows, and of the choice of held-out rows.
            progress: Show a progress bar (needs tqdm).
            callbacks: Functions to call after every step (:class:`torch_lsh.StatsWriter`, ``scheduler.step``, ...).
                Their time counts as training.
            neighbours: How many of the nearest rows vote; 0 means none. None means 64 from 65 labels on (512 without a
                ranker), else 0.
            validation: Rows to decide with, in place of held-out ones; they become neighbours, too.
            validation_fraction: Share of the rows to hold out, at most 10,000.
            patience: Epochs without improvement on held-out rows before training stops, given ``epochs``.
            budget: Time of the fit once the data are read, in seconds or as text such as ``"60s"`` or ``"5m"``: no step
                begins after it, and the ranker is of as many rows as take a quarter of it, 1,000 at least. Held-out
                rows tune the ranker and join it however long that takes, so that no fit with a ranker ends within
                less than about a second.
            sample_weight: Weight of each row ``[rows]``.
            class_weight: Weight of each label: ``[num_labels]``, a dict of some labels, or ``"balanced"``.
            memory: Bytes of the rows of a stream to keep, for all that is not the network. Where they are more, that
                is made of a random choice of them.
            metrics, ks: What to measure, see :meth:`evaluate`.

        Returns:
            A dict per epoch: epoch, loss, seconds (of training), samples_per_second, precision@k. Where the network is
            not trained, one dict of epoch 0, without a loss, and with the seconds of the fit.

        Raises:
            ValueError: An argument does not fit, the data does not fit the model, or the checkpoint is damaged or
                belongs to another run (model, data or schedule). Nothing was trained then. Or the loss becomes NaN or
                beyond 1e6; the network has then taken the steps before.
            OSError: The checkpoint cannot be written.
        """
        # Errors that would end a run after hours come before it.
        path = None if checkpoint is None else Path(checkpoint)
        options = RunOptions(path, checkpoint_every, resume, max_steps, num_workers, progress, callbacks)
        options.check()
        settings = Settings(epochs, batch_size, lr, patience, seconds_of(budget), neighbours, seed)
        settings.check(validation_fraction)
        if eval_dataset is not None:
            self._rows(eval_dataset, for_training=False)
        given = None if validation is None else self._rows(validation)
        if given is not None and len(given.labels) == 0:
            raise ValueError("validation has no row with a label; wanted some, or None")
        weighted = sample_weight is not None or class_weight is not None
        purpose = settings.purpose(self.num_labels, weighted, self.dense_input)
        fraction = validation_fraction if given is None else 0.0
        source, held_out, likely = self._source(train_dataset, sample_weight, fraction, purpose, memory, seed)
        settings = settings._replace(crossed=are_crossed(source.size, held_out, purpose))
        held_out = held_out if given is None else given
        evaluate = None
        if eval_dataset is not None:
            RankingMetrics(metrics, ks, likely)
            evaluate = functools.partial(self.evaluate, eval_dataset, ks, metrics=metrics, propensities=likely)
        configuration = self.configuration() if path is not None else None
        self.class_weight = label_weights(class_weight, source.label_counts)
        mixture = self.mixture
        try:
            return fit(
                self, source, held_out, settings, options, evaluate=evaluate, configuration=configuration
            ).history
        except BaseException:
            self.mixture = mixture  # a ready model predicts as before where nothing was trained
            raise
        finally:
            self.class_weight = None

    def _source(
        self, data: Any, sample_weight: Any, fraction: float, purpose: Purpose, memory: int, seed: int
    ) -> tuple[Source, Rows | None, Tensor]:
        """The rows to train on, those held out, and the propensities of labels; see :meth:`fit`."""
        if isinstance(data, XMCStream):
            if self.dense_input:
                raise ValueError("train_dataset is an XMCStream; the model takes dense input")
            self._check_sizes(data, for_training=True)
            weights = None if sample_weight is None else row_weights(sample_weight, len(sample_weight))
            stream = Streamed(data, self.num_labels, weights, fraction, purpose, memory, seed)
            return stream, stream.held_out, propensities_of(stream.all_label_counts, stream.all_rows)
        rows = self._rows(data)
        likely = propensities_of(label_counts(rows, self.num_labels), num_rows(rows))
        source = InMemory(rows, self.num_labels, row_weights(sample_weight, num_rows(rows)))
        return *split(source, fraction, seed, purpose), likely

    @outside_inference_mode
    def partial_fit(
        self,
        dataset: XMCDataset | tuple[Any, Any],
        *,
        epochs: int = 1,
        batch_size: int = 256,
        lr: float = 1e-3,
        seed: int = 0,
        progress: bool = False,
        sample_weight: Any = None,
    ) -> list[dict[str, float]]:
        """Trains a ready model further, on rows that may have more labels and features than the model has.

        Rows are added to the output layer for new labels, and to the input layer for new features; all others keep
        their numbers. The rows become neighbours, where there are some. A network that :meth:`fit` left untrained stays
        so, and the rows become known to the other sources alone.

        Args:
            dataset: New rows; see :meth:`fit`.
            epochs: Passes over them, over which the learning rate falls to 0.
            batch_size, lr, seed, progress, sample_weight: See :meth:`fit`.

        Returns:
            A dict per epoch, as of :meth:`fit`.

        Raises:
            ValueError: An argument does not fit.
        """
        rows = rows_of(dataset)
        self._check_kind(rows)
        if self.dense_input and rows.num_features != self.num_features:
            raise ValueError(f"the data has {rows.num_features} features; the model takes {self.num_features}")
        rows = widened(rows, self.num_features, self.num_labels)
        source = InMemory(rows, rows.num_labels, row_weights(sample_weight, num_rows(rows)))
        settings = Settings(epochs, batch_size, lr, seed=seed)
        settings.check(0.0)
        return fit_more(self, source, settings, RunOptions(progress=progress))

    # --- inference ---

    @torch.no_grad()
    def predict(
        self,
        rows: XMCDataset | Tensor | Any,
        k: int = 5,
        batch_size: int = 256,
        *,
        allowed: Any = None,
        excluded: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Finds the labels of each row with the highest scores, exactly.

        Args:
            rows: A dataset; a sparse CSR tensor or matrix of ``scipy`` ``[rows, num_features]``, for dense input a
                tensor or array of that shape; or such a pair as :meth:`fit` takes.
            k: Labels per row.
            batch_size: Rows per batch.
            allowed: Labels that alone may be predicted: ``[A]`` for all rows, or a list for each row, or ``[rows, A]``
                padded with negative numbers.
            excluded: Labels that may not be predicted, in the same forms.

        Returns:
            Scores (float32) and label ids (int64), both ``[rows, k]``, best first. Scores are logits; with neighbours,
            logarithms of probabilities: of each label by itself where a ranker ranks labels of rows with several, else
            of all labels together. They are -inf, and ids -1, where fewer than ``k`` labels are allowed.

        Raises:
            ValueError: ``k`` is out of range, the rows do not fit the model, or labels do not exist.
        """
        if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= self.num_labels:
            raise ValueError(f"k is {k!r}; wanted 1 to {self.num_labels}")
        rows = self._rows(rows, for_training=False)
        labels = None
        if allowed is not None or excluded is not None:
            labels = LabelFilter(allowed, excluded, self.num_labels, num_rows(rows))
        parts = [
            best_labels(self, batch.features, int(k), labels, begin)
            for begin, batch in self._inference_batches(rows, batch_size)
        ]
        if not parts:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        return torch.cat([scores for scores, _ in parts]), torch.cat([found for _, found in parts])

    @torch.no_grad()
    def evaluate(
        self,
        dataset: XMCDataset | tuple[Any, Any],
        ks: Sequence[int] = (1, 3, 5),
        batch_size: int = 256,
        *,
        metrics: Sequence[str] = ("precision",),
        propensities: Propensities = None,
        excluded: Any = None,
    ) -> dict[str, float]:
        """Measures exact rankings of the rows that have labels.

        Args:
            dataset: Rows with labels, as :meth:`fit` takes them. Labels that the model does not know count as wrong.
            ks: The values of k.
            batch_size: Rows per batch.
            metrics: Names of :class:`torch_lsh.metrics.RankingMetrics`: ``"precision"``, ``"recall"``, ``"ndcg"``,
                ``"mrr"``, ``"coverage"``, ``"psp"``, ``"psrecall"``, ``"psndcg"``.
            propensities: For the propensity-scored metrics: ``[num_labels]``, of
                :func:`torch_lsh.metrics.propensities`; or ``"amazon"``, ``"wikipedia"`` or ``"other"``, whose constants
                are used with the label counts that a model with neighbours keeps. None means ``"other"``.
            excluded: Pairs of row and label ``[E, 2]`` that do not count as predicted, or the path of a filter file of
                lines ``row label``.

        Returns:
            ``{"precision@1": ...}``; NaN if no row has a label. ``"labels_unknown"`` is how many labels the model does
            not know, if there are any.

        Raises:
            ValueError: An argument does not fit, or a line of the filter file is malformed.
        """
        rows = self._rows(dataset, for_training=False)
        pairs = _excluded_pairs(excluded, num_rows(rows))
        likely = propensities_for(metrics, propensities, self)
        rankings = Rankings(metrics, ks, likely, pairs, self.num_labels)
        for begin, batch in self._inference_batches(rows, batch_size):
            _, best = best_labels(self, batch.features, rankings.depth(begin, begin + len(batch.labels)))
            rankings.update(best, batch.labels, begin)
        return rankings.compute()

    def _inference_batches(self, rows: Rows, batch_size: int) -> Iterator[tuple[int, Batch]]:
        """Yields the number of the first row of each batch, and the batch."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; wanted at least 1")
        training = self.training
        if training:
            self.eval()
        try:
            for some in torch.arange(num_rows(rows)).split(batch_size):
                if len(some) > 0:
                    yield int(some[0]), batch_of(rows.take(some))
        finally:
            if training:
                self.train()

    def _rows(self, data: Any, for_training: bool = True) -> Rows:
        """Reads rows in any form, and checks that they fit the model.

        Rows to train on are of the model's sizes; others may have fewer features, and any labels.
        """
        kind = "dense" if self.dense_input else "sparse CSR"
        is_array = self.dense_input or hasattr(data, "__array__")
        if is_array and not isinstance(data, (XMCDataset, tuple)) and not is_sparse(data):
            data = as_tensor(data)
        if isinstance(data, Tensor) or is_sparse(data):
            if is_sparse(data) == self.dense_input or data.ndim != 2 or data.shape[1] != self.num_features:
                raise ValueError(f"rows has shape {tuple(data.shape)}; wanted {kind} [B, {self.num_features}]")
            return unlabelled(data)
        rows = rows_of(data, self.num_labels if for_training else None)
        self._check_kind(rows)
        if not for_training:
            rows = widened(rows, self.num_features, self.num_labels)
        self._check_sizes(rows, for_training)
        return rows

    def _check_kind(self, rows: Rows) -> None:
        given, wanted = ("dense" if dense else "sparse" for dense in (isinstance(rows, DenseRows), self.dense_input))
        if given != wanted:
            raise ValueError(f"features are {given}; wanted {wanted}, as the model has dense_input={self.dense_input}")

    def _check_sizes(self, rows: Rows | XMCStream, for_training: bool) -> None:
        if rows.num_features != self.num_features or (for_training and rows.num_labels > self.num_labels):
            raise ValueError(
                f"the data has {rows.num_features} features and {rows.num_labels} labels; "
                f"the model takes {self.num_features} and {self.num_labels}"
            )

    # --- files ---

    def configuration(self) -> dict[str, Any]:
        """The arguments that make such a model, in types that files hold.

        Raises:
            ValueError: The re-hash policy is of a class that files do not hold.
        """
        return {**model_file.describe(self), "dense": self.dense}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to one file, whole or not at all: tensors as safetensors, settings as JSON in its header.

        A network that :meth:`fit` did not train is left out; a loaded model makes a new one when it is asked for one.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be written.
        """
        model_file.save(self, self.configuration(), path, FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str], mmap: bool = False) -> XMCClassifier:
        """Reads what :meth:`save` wrote. Nothing in the file is executed.

        Args:
            path: The file.
            mmap: Map the file to memory: start-up takes no time, and pages are read when they are used. The numbers
                are then not looked at before.

        Raises:
            ValueError: The file is damaged or holds no model.
        """
        if is_safetensors(path):
            tensors, content, _ = model_file.load(path, [FORMAT], mmap)
        else:
            tensors, content = _of_previous_format(load_archive(path, _PREVIOUS))
        try:
            sizes = content["num_features"], content["num_labels"], content["hidden"]
            chosen = model_file.arguments(content)
            del chosen["sampled"]
            with torch.device("meta"):
                model = cls(*sizes, dense=content["dense"], **chosen)
            model_file.restore(model, content, tensors, check=not mmap)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error
        return model


def _excluded_pairs(excluded: Any, rows: int) -> Tensor | None:
    """Pairs ``[E, 2]`` of row and label.

    Args:
        excluded: Such pairs, or the path of a file of them; None means none.
        rows: How many rows there are.

    Raises:
        ValueError: They are of another form, or of rows that do not exist.
    """
    if excluded is None:
        return None
    is_path = isinstance(excluded, (str, os.PathLike))
    pairs = read_filter(excluded) if is_path else as_tensor(excluded)
    if pairs.dim() == 2 and pairs.numel() > 0 and int(pairs[:, 0].max()) >= rows:
        name = os.fspath(excluded) if is_path else "excluded"
        raise ValueError(f"{name} has row {int(pairs[:, 0].max())}; wanted 0 to {rows - 1}")
    return pairs


def _of_previous_format(archive: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a file of the previous format as the present one has them."""
    configuration = archive.get("configuration") or {}
    added = {"dense_input": False, "activation": "relu", "mixture": None, "sampled": True, "quantized": False}
    return archive.get("weights", {}), {**added, **configuration}
