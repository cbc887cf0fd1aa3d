"""Training of a text network: settings that follow from the data, early stopping, neighbours."""

from __future__ import annotations

import copy
import time
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import optim
from ..config import LSHConfig
from ..data import XMCRows
from ..data.xmc import padded_labels
from ..progress import progress_bar
from .neighbours import TextNeighbours
from .network import DENSE_CLASSES, TextNetwork, binary_loss, softmax_loss
from .quality import Quality, batches_of, is_binary
from .training_data import TrainingData

_LINEAR_CLASSES = 64  # with at most so many, the linear model is the better one, and small
_TUNING_ROWS = 2048  # rows to tune the share of the neighbours on


class Settings(Protocol):
    """What a :class:`Trainer` asks of a classifier: the arguments of :class:`TextClassifier` of the same names."""

    hidden: int | None
    neighbours: int | None
    epochs: int | None
    batch_size: int | None
    lr: float | None
    label_smoothing: float | None
    patience: int
    memory: int
    config: LSHConfig | None
    seed: int
    progress: bool


class Trainer:
    """One training run: network, optimizer, schedule, and the best state so far.

    Args:
        settings: The settings; those that are None follow from the data.
        data: Rows to train on.
        held_out: Rows that decide when to stop; None runs all epochs.
        multilabel: Whether a row may have several labels.

    Raises:
        ValueError: The settings do not fit the data.
    """

    def __init__(self, settings: Settings, data: TrainingData, held_out: XMCRows | None, multilabel: bool) -> None:
        self.settings, self.data, self.held_out, self.multilabel = settings, data, held_out, multilabel
        found = data.statistics
        classes, rows = len(found.classes), found.rows
        linear = classes <= _LINEAR_CLASSES
        wide = classes > DENSE_CLASSES
        hidden = settings.hidden if settings.hidden is not None else (0 if linear else 128 if wide else 256)
        self.neighbours = settings.neighbours if settings.neighbours is not None else (64 if wide else 0)
        if self.neighbours > 0 and multilabel and hidden == 0:
            raise ValueError(
                f"neighbours is {self.neighbours}; wanted 0 for a multi-label task without a hidden layer, where every "
                "class is a decision of its own"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            sizes = data.features.num_features, len(found.columns), classes, hidden
            self.network = TextNetwork(*sizes, sampled=wide, config=settings.config)
        self.network.columns, self.network.idf = found.columns, found.idf
        # Small sets get small batches and many passes, so that there are some hundred steps in all.
        self.epochs = settings.epochs or min(40, max(8 if hidden == 0 else 3 if wide else 4, 20_000 // rows))
        self.batch_size = settings.batch_size or (256 if rows >= 200_000 else min(64, max(8, rows // 32)))
        default_lr = (0.01 if self.epochs == 1 else 0.004) if hidden > 0 else (0.05 if self.epochs == 1 else 0.02)
        self.lr = settings.lr or default_lr
        # A smooth target keeps the linear model from growing ever more confident on the training texts.
        smoothing = 0.1 if hidden == 0 and classes > 2 else 0.0
        self.smoothing = settings.label_smoothing if settings.label_smoothing is not None else smoothing
        self.optimizer = optim.Adam(self.network.parameters(), lr=self.lr)
        self.history: list[dict[str, float]] = []

    def run(self) -> None:
        """Trains the network, goes back to its best state, and adds the neighbours."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            total = self.epochs * self.data.statistics.rows
            wanted = self.settings.progress
            with progress_bar(wanted, total=total, desc="training", unit="text", unit_scale=True) as bar:
                state = self._train(bar)
        if state:
            self.network.load_state_dict(state)
        if self.neighbours > 0:
            self._add_neighbours()

    def _train(self, bar: Any) -> dict[str, Tensor]:
        """Runs the epochs; returns the best state, empty if that is the last one."""
        best: float | None = None
        state: dict[str, Tensor] = {}
        since = 0
        for epoch in range(self.epochs):
            entry = self._epoch(epoch, bar)
            self.history.append(entry)
            if self.held_out is None:
                continue
            result = self._evaluate(self.held_out)
            entry.update({f"validation_{name}": value for name, value in result.items() if name != "rows"})
            # The loss, where there is one, depends less on a few texts than accuracy does.
            quality = result["precision@1"] if self.multilabel else -result["loss"]
            if best is None or quality > best:
                best, since = quality, 0
                state = copy.deepcopy(self.network.state_dict()) if epoch + 1 < self.epochs else {}
            else:
                since += 1
            if since >= self.settings.patience:
                break
        return state

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
                for crow, col, values, labels in batches_of(self.network, few)
            )
        if neighbours.share == 0:
            return
        self.network.neighbours = neighbours
        if self.held_out is not None:
            result = self._evaluate(self.held_out)
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
        if is_binary(self.multilabel, self.network):
            return binary_loss(logits, labels)
        return softmax_loss(logits, labels, self.smoothing)

    def _evaluate(self, rows: XMCRows) -> dict[str, float]:
        self.network.eval()
        metric = Quality(self.network, self.multilabel)
        metric.update(rows)
        return metric.compute()

    def best_threshold(self) -> float:
        """Finds the probability with the best micro F1 on the rows held out."""
        if not self.multilabel or self.held_out is None:
            return 0.5
        self.network.eval()
        metric = Quality(self.network, True)
        metric.update(self.held_out)
        return metric.best_threshold()
