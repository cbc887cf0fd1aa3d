"""One training run of an XMC model: the order of its rows, its optimizer, and the checkpoints that it resumes from."""

from __future__ import annotations

import copy
import operator
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from .. import optim
from ..data import XMCDataset, collate_xmc
from ..interrupts import interrupts_wait
from ..io import load_archive, save_archive
from ..progress import progress_bar

FORMAT = "torch_lsh.XMCClassifier.fit/1"


class BatchOrder(Sampler[list[int]]):
    """The batches of an epoch from a position on; seed and epoch alone decide the order."""

    def __init__(self, rows: int, batch_size: int, seed: int, epoch: int, position: int) -> None:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        self._batches = torch.randperm(rows, generator=generator).split(batch_size)[position:]

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class TrainingRun:
    """The state of a training run: everything that a checkpoint holds.

    Args:
        model: The model.
        loss: Loss of a batch of features and labels.
        configuration: What the model was made with; a checkpoint of another model is refused.
        dataset: Rows to train on.
        batch_size: Rows per step.
        lr: Adam's learning rate.
        seed: Seed of the order of the rows.

    Raises:
        ValueError: An argument does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        configuration: dict[str, Any],
        dataset: XMCDataset,
        batch_size: int,
        lr: float,
        seed: int,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; wanted at least 1")
        if len(dataset) == 0:
            raise ValueError("the training data has no rows")
        self.model, self.loss, self.configuration, self.dataset = model, loss, configuration, dataset
        self.optimizer = optim.Adam(model.parameters(), lr=lr)
        rows = dataset.rows
        if len(rows.labels) == 0:
            warnings.warn("torch_lsh: no row of the training data has a label, so nothing is learned", stacklevel=3)
        self.schedule: dict[str, Any] = {
            "batch_size": batch_size,
            "lr": lr,
            "seed": seed,
            "rows": len(dataset),
            "features": len(rows.features),
            "labels": len(rows.labels),
        }
        self.steps_per_epoch = -(-len(dataset) // batch_size)
        self.epoch = self.position = 0
        self.loss_sum = self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    @property
    def at_end_of_epoch(self) -> bool:
        return self.position == self.steps_per_epoch

    @property
    def steps_done(self) -> int:
        """Steps since the first epoch began, those of the runs that it resumed included."""
        return self.epoch * self.steps_per_epoch + self.position

    def batches(self, num_workers: int) -> DataLoader[Any]:
        """The batches that are left of the epoch."""
        schedule = self.schedule
        order = BatchOrder(len(self.dataset), schedule["batch_size"], schedule["seed"], self.epoch, self.position)
        return DataLoader(self.dataset, batch_sampler=order, collate_fn=collate_xmc, num_workers=num_workers)

    def steps(self, num_workers: int, callbacks: Sequence[Callable[[], object]]) -> Iterator[None]:
        """Trains on the batches that are left of the epoch, and times that; yields after every step."""
        with interrupts_wait():  # workers inherit it: Ctrl-C is for this process, which ends them
            batches = iter(self.batches(num_workers))
        for features, labels in batches:
            start = time.perf_counter()
            self.step(features, labels)
            for callback in callbacks:
                callback()
            self.seconds += time.perf_counter() - start
            yield

    def step(self, features: Tensor, labels: Tensor) -> None:
        """Trains on a batch."""
        self.model.train()
        self.position += 1
        if labels.shape[1] == 0 or bool((labels < 0).all()):
            return  # no row of the batch has a label
        loss = self.loss(features, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += loss.item()

    def end_epoch(self, evaluate: Callable[[], dict[str, float]] | None) -> None:
        """Adds the epoch to the history, with what ``evaluate`` measures."""
        entry = {
            "epoch": self.epoch + 1,
            "loss": self.loss_sum / max(1, self.position),
            "seconds": self.seconds,
            "samples_per_second": self.schedule["rows"] / self.seconds,
        }
        if evaluate is not None:
            entry.update(evaluate())
        self.history.append(entry)
        self.epoch, self.position = self.epoch + 1, 0
        self.loss_sum = self.seconds = 0.0

    def save(self, path: Path) -> None:
        """Writes a checkpoint."""
        content = {
            "format": FORMAT,
            "schedule": self.schedule,
            "configuration": self.configuration,
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": [self.epoch, self.position, self.loss_sum, self.seconds],
            "history": self.history,
        }
        save_archive(content, path)

    def load(self, path: Path) -> None:
        """Resumes from a checkpoint.

        Raises:
            ValueError: The file is damaged or belongs to another run; nothing has changed then.
        """
        content = load_archive(path, FORMAT)
        before = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        try:
            for name, here in (("schedule", self.schedule), ("configuration", self.configuration)):
                if content[name] != here:
                    raise ValueError(f"{path} belongs to a run with {name} {content[name]}; this one has {here}")
            epoch, position, loss_sum, seconds = content["progress"]
            if operator.index(epoch) < 0 or not 0 <= operator.index(position) <= self.steps_per_epoch:
                raise ValueError(f"progress is {content['progress']}; wanted an epoch and one of its steps")
            history = [dict(entry) for entry in content["history"]]
            loss_sum, seconds = float(loss_sum), float(seconds)
            self.model.load_state_dict(content["weights"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
            self.model.load_state_dict(before[0])
            self.optimizer.load_state_dict(before[1])
            if str(path) in str(error):
                raise
            raise ValueError(f"{path} does not hold a training run that this version knows: {error}") from error
        self.epoch, self.position, self.loss_sum, self.seconds = epoch, position, loss_sum, seconds
        self.history = history


def with_progress_bar(run: TrainingRun, steps: Iterator[None], show: bool) -> Iterator[None]:
    """Goes through the ``steps`` of an epoch, and shows how far it is."""
    with progress_bar(
        show,
        total=run.steps_per_epoch,
        initial=run.position,
        desc=f"epoch {run.epoch + 1}",
        unit="batch",
        postfix=f"batches of {run.schedule['batch_size']}",
    ) as bar:
        for _ in steps:
            if run.position % 10 == 0:
                bar.set_postfix_str(f"loss {run.loss_sum / run.position:.3f}")
            bar.update()
            yield
