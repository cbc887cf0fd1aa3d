"""XMCClassifier: the SLIDE model, sparse features -> hidden ReLU layer -> very many labels."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..config import LSHConfig
from ..data import XMCDataset, collate_xmc
from ..index.config import INDEX_CONFIGS
from ..io import assign_weights, check_can_write, load_archive, save_archive, sole_writer
from ..metrics import PrecisionAtK
from ..nn import EmbeddingBag, LSHLinear, QuantizedLinear
from ..nn.logits.targets import as_target
from ..rehash import Drift, ExponentialBackoff, FixedInterval
from .training import TrainingRun, with_progress_bar

FORMAT = "torch_lsh.XMCClassifier/1"
_POLICIES = {policy.__name__: policy for policy in (FixedInterval, ExponentialBackoff, Drift)}


class XMCClassifier(nn.Module):
    """A classifier of sparse rows: features -> ReLU units -> one logit per label.

    This is the model of SLIDE (Chen et al., MLSys 2020) and of BOLT on Amazon-670K. The loss is softmax cross entropy;
    the labels of a row share its target equally.

    Args:
        num_features: Number of features.
        num_labels: Number of labels.
        hidden: Width of the hidden layer.
        config: Settings of the output layer; None means ``LSHConfig()``.
        dense: Use an ``nn.Linear`` output layer, for comparison.

    Raises:
        ValueError: A size is not a positive int.

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
    ) -> None:
        super().__init__()
        for name, value in (("num_features", num_features), ("num_labels", num_labels), ("hidden", hidden)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; wanted a positive int")
        self.dense = dense
        self.input = EmbeddingBag(num_features, hidden, mode="sum")
        # Rows have unit length, so at this scale hidden vectors have about unit length, too.
        nn.init.normal_(self.input.weight, std=hidden**-0.5)
        self.input_bias = nn.Parameter(torch.zeros(hidden))
        self.output: nn.Linear | QuantizedLinear
        self.output = nn.Linear(hidden, num_labels) if dense else LSHLinear(hidden, num_labels, config=config)

    @property
    def num_features(self) -> int:
        return self.input.num_embeddings

    @property
    def num_labels(self) -> int:
        return self.output.out_features

    def hidden(self, features: Tensor) -> Tensor:
        """Computes the hidden activations ``[B, hidden]`` of a sparse CSR batch ``[B, num_features]``."""
        return F.relu(self.input(features) + self.input_bias)

    def forward(self, features: Tensor) -> Tensor:
        """Computes the logits ``[B, num_labels]`` of a sparse CSR batch; lazy unless the model is dense."""
        return self.output(self.hidden(features))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Computes the softmax cross entropy, the mean over the rows that have labels.

        Args:
            features: Sparse CSR batch ``[B, num_features]``.
            labels: ``[B, P]`` int64, padded with -100.
        """
        logits = self(features)
        if not self.dense:
            return F.cross_entropy(logits, labels)
        # A dense target would have the shape of the logits; this needs none.
        target = as_target(labels, logits.shape[:1], self.num_labels, -100, logits.dtype)
        assert target is not None
        log_p = logits.gather(1, target.labels.clamp(min=0)) - logits.logsumexp(1, keepdim=True)
        return -(target.shares * log_p).sum() / target.shares.sum()

    # --- training ---

    def fit(
        self,
        train_dataset: XMCDataset,
        *,
        epochs: int,
        batch_size: int = 256,
        lr: float = 1e-3,
        eval_dataset: XMCDataset | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume: bool = True,
        max_steps: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        progress: bool = True,
        callbacks: Sequence[Callable[[], object]] = (),
    ) -> list[dict[str, float]]:
        """Trains with Adam.

        With ``checkpoint``, the state of the run is written at the end of every epoch and every ``checkpoint_every``
        steps. A run that finds the file resumes from it and ends as an uninterrupted run with the same checkpoint
        schedule does, bit for bit.

        Args:
            train_dataset: Rows to train on. Rows without labels add nothing.
            epochs: Passes over the data.
            batch_size: Rows per step.
            lr: Adam's learning rate.
            eval_dataset: Rows to measure precision@1/3/5 on after every epoch.
            checkpoint: File of the run's state.
            checkpoint_every: Steps between checkpoints within an epoch; None writes none within an epoch.
            resume: Whether to resume from ``checkpoint`` if it exists.
            max_steps: Stop after so many steps of this call. The history then ends with the last whole epoch.
            num_workers: Worker processes of the DataLoader.
            seed: Seed of the order of the rows.
            progress: Show a progress bar (needs tqdm).
            callbacks: Functions to call after every step (:class:`torch_lsh.StatsWriter`, ``scheduler.step``, ...).
                Their time counts as training.

        Returns:
            A dict per epoch: epoch, loss, seconds (of training), samples_per_second, precision@k.

        Raises:
            ValueError: An argument does not fit, the data does not fit the model, or the checkpoint is damaged or
                belongs to another run (model, data or schedule). Nothing was trained then.
            OSError: The checkpoint cannot be written, or another run writes it.
        """
        # Errors that would end a run after hours come before it.
        self._check_dataset(train_dataset)
        evaluate = None
        if eval_dataset is not None:
            self._check_dataset(eval_dataset)
            evaluate = functools.partial(self.evaluate, eval_dataset)
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ValueError(f"checkpoint_every is {checkpoint_every}; wanted at least 1")
        path = None if checkpoint is None else Path(checkpoint)
        configuration: dict[str, Any] = {}
        if path is not None:
            check_can_write(path)
            configuration = self.configuration()
        run = TrainingRun(self, self.loss, configuration, train_dataset, batch_size, lr, seed)
        with contextlib.nullcontext() if path is None else sole_writer(path):
            if path is not None and resume and path.exists():
                run.load(path)
            last_step = math.inf if max_steps is None else run.steps_done + max_steps
            while run.epoch < epochs and run.steps_done < last_step:
                for _ in with_progress_bar(run, run.steps(num_workers, callbacks), progress):
                    if run.at_end_of_epoch:
                        break
                    if path is not None and checkpoint_every and run.position % checkpoint_every == 0:
                        run.save(path)
                    if run.steps_done >= last_step:
                        return run.history
                run.end_epoch(evaluate)
                if path is not None:
                    run.save(path)
        return run.history

    # --- inference ---

    @torch.no_grad()
    def predict(self, rows: XMCDataset | Tensor, k: int = 5, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Finds the labels of each row with the highest logits, exactly.

        Args:
            rows: A dataset, or a sparse CSR tensor ``[rows, num_features]``.
            k: Labels per row.
            batch_size: Rows per batch.

        Returns:
            Logits (float32) and label ids (int64), both ``[rows, k]``, best first.

        Raises:
            ValueError: ``k`` is out of range, or the rows do not fit the model.
        """
        if not 1 <= k <= self.num_labels:
            raise ValueError(f"k is {k}; wanted 1 to {self.num_labels}")
        results = [self(features).topk(k) for features, _ in self._inference_batches(rows, batch_size)]
        if not results:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        return torch.cat([result.values for result in results]), torch.cat([result.indices for result in results])

    @torch.no_grad()
    def evaluate(self, dataset: XMCDataset, ks: Sequence[int] = (1, 3, 5), batch_size: int = 256) -> dict[str, float]:
        """Measures exact precision@k over the rows that have labels.

        Args:
            dataset: Rows with labels.
            ks: The values of k.
            batch_size: Rows per batch.

        Returns:
            ``{"precision@1": ...}``; NaN if no row has a label.
        """
        metric = PrecisionAtK(ks)
        found = min(max(ks), self.num_labels)
        for features, labels in self._inference_batches(dataset, batch_size):
            best = self(features).topk(found).indices
            metric.update(F.pad(best, (0, max(ks) - found), value=-1), labels)
        return {f"precision@{k}": value for k, value in metric.compute().items()}

    def _inference_batches(self, rows: XMCDataset | Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        self._check_dataset(rows)
        if isinstance(rows, Tensor):
            yield rows, torch.empty(rows.shape[0], 0, dtype=torch.int64)
            return
        training = self.training
        self.eval()
        try:
            yield from DataLoader(rows, batch_size, collate_fn=collate_xmc)
        finally:
            self.train(training)

    def _check_dataset(self, rows: XMCDataset | Tensor) -> None:
        if isinstance(rows, Tensor):
            if rows.layout is not torch.sparse_csr or rows.dim() != 2 or rows.shape[1] != self.num_features:
                raise ValueError(f"rows has shape {tuple(rows.shape)}; wanted sparse CSR [B, {self.num_features}]")
        elif rows.num_features != self.num_features or rows.num_labels > self.num_labels:
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
        config = None
        if isinstance(self.output, LSHLinear):
            config = asdict(self.output.config)
            policy = self.output.config.rehash
            if type(policy).__name__ not in _POLICIES:
                raise ValueError(f"rehash is {policy!r}; wanted one of {', '.join(_POLICIES)}, which files can hold")
            config["index"] = {"kind": type(self.output.config.index).__name__, **config["index"]}
            config["rehash"] = {"policy": type(policy).__name__, **asdict(policy)}  # type: ignore[call-overload]
        return {
            "num_features": self.num_features,
            "num_labels": self.num_labels,
            "hidden": self.input.embedding_dim,
            "dense": self.dense,
            "config": config,
            "quantized": isinstance(self.output, QuantizedLinear),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes configuration and weights to one file, whole or not at all.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be written.
        """
        content = {"format": FORMAT, "configuration": self.configuration(), "weights": self.state_dict()}
        save_archive(content, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> XMCClassifier:
        """Reads what :meth:`save` wrote. Nothing in the file is executed.

        Args:
            path: The file.

        Raises:
            ValueError: The file is damaged or holds no model.
        """
        content = load_archive(path, FORMAT)
        try:
            configuration = dict(content["configuration"])
            config = configuration.pop("config")
            quantized = configuration.pop("quantized", False)
            if config is not None:
                policy = dict(config.pop("rehash"))
                index = dict(config.pop("index"))
                config = LSHConfig(
                    **config,
                    rehash=_POLICIES[policy.pop("policy")](**policy),
                    index=INDEX_CONFIGS[index.pop("kind")](**index),
                )
            with torch.device("meta"):
                model = cls(**configuration, config=config)
            if quantized:
                model.output = QuantizedLinear(model.input.embedding_dim, model.num_labels)
                model.eval()
            assign_weights(model, content["weights"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error
        return model
