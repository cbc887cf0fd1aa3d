"""One training run: steps in an order that the seed decides, an optimizer, and checkpoints that it resumes from."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import optim
from ..io import FilePath, check_can_write, load_archive, save_archive, sole_writer
from ..progress import progress_bar
from .network import Network
from .rows import Batch, Source, checksum, epoch_batches
from .schedule import Schedule

FORMAT = "torch_lsh.fit/2"
_MOST_LABELS = 64  # of a row in one step, drawn at random
_MOST_LOSS = 1e6  # far beyond what training comes back from


class TrainingRun:
    """The state of a training run: everything that a checkpoint holds.

    Args:
        model: What is trained.
        source: Rows to train on.
        schedule: Learning rate and end of the training.
        batch_size: Rows per step.
        seed: Seed of the order of the rows.
        configuration: What the model was made with; a checkpoint of another model is refused.

    Raises:
        ValueError: An argument does not fit.
        RuntimeError: The model was made in inference mode.
    """

    def __init__(
        self,
        model: Network,
        source: Source,
        schedule: Schedule,
        batch_size: int,
        seed: int,
        configuration: dict[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; wanted at least 1")
        if source.size == 0:
            raise ValueError("the training data has no rows")
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise RuntimeError("the model was made in torch.inference_mode(); wanted one made outside")
        if not bool((source.label_counts > 0).any()):
            warnings.warn("torch_lsh: no row of the training data has a label, so nothing is learned", stacklevel=4)
        self.model, self.source, self.schedule = model, source, schedule
        self.batch_size, self.seed, self.configuration = batch_size, seed, configuration
        self.optimizer = optim.Adam(model.parameters(), lr=schedule.lr)
        self.epoch = self.position = self.rows_done = self.steps_done = 0
        self.loss_sum = self.seconds = self.seconds_before = 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}  # the parameters after the best epoch, empty if that is the last one

    # --- steps ---

    @property
    def at_end_of_epoch(self) -> bool:
        return self.rows_done == self.source.size

    @property
    def out_of_time(self) -> bool:
        return self.schedule.is_out_of_time(self.all_seconds)

    @property
    def all_seconds(self) -> float:
        """Seconds of training since the first epoch began."""
        return self.seconds_before + self.seconds

    def steps(self, num_workers: int, callbacks: Sequence[Callable[[], object]]) -> Iterator[None]:
        """Trains on the batches that are left of the epoch, and times that; yields after every step."""
        for batch in epoch_batches(self.source, self.batch_size, self.seed, self.epoch, self.position, num_workers):
            start = time.perf_counter()
            self._step(batch)
            for callback in callbacks:
                callback()
            self.seconds += time.perf_counter() - start
            yield

    @torch.enable_grad()  # whoever calls fit may have disabled them
    def _step(self, batch: Batch) -> None:
        features, labels, weights = batch
        self.model.train()
        progress = self.epoch + self.rows_done / self.source.size
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(progress, self.all_seconds)
        self.position += 1
        self.steps_done += 1
        self.rows_done += len(labels)
        if labels.shape[1] == 0 or bool((labels < 0).all()):
            return  # no row of the batch has a label
        if labels.shape[1] > _MOST_LABELS:
            labels = _some_of_each_row(labels, self.seed + self.steps_done)
        loss = self.model.loss(features, labels, *(() if weights is None else (weights,)))
        value = float(loss.detach())
        if not value < _MOST_LOSS:  # NaN, too
            raise ValueError(
                f"the loss of step {self.steps_done} is {value:.3g}; wanted rows of features of about unit length "
                f"(normalize='l2' scales them), or a smaller lr than {self.schedule.lr:g}"
            )
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += value * len(labels)

    def end_epoch(self, measured: dict[str, float], qualities: Sequence[float]) -> None:
        """Adds the epoch to the history, and keeps the parameters if they are the best so far.

        Args:
            measured: What else was measured after it.
            qualities: On held-out rows, see :meth:`Schedule.report`; empty if there are none.
        """
        entry = {
            "epoch": self.epoch + 1,
            "loss": self.loss_sum / self.rows_done,
            "seconds": self.seconds,
            "samples_per_second": self.rows_done / max(self.seconds, 1e-9),
        }
        self.history.append({**entry, **measured})
        self.seconds_before, self.seconds, self.loss_sum = self.all_seconds, 0.0, 0.0
        self.epoch, self.position, self.rows_done = self.epoch + 1, 0, 0
        if qualities and self.schedule.report(self.epoch, qualities):
            self.best = {name: value.detach().clone() for name, value in self.model.named_parameters()}

    @property
    def is_over(self) -> bool:
        return self.schedule.is_over(self.epoch, self.all_seconds)

    @torch.no_grad()
    def go_back_to_best(self) -> None:
        """Gives the parameters the values after the best epoch, where held-out rows say which one that is."""
        for name, value in self.model.named_parameters():
            if name in self.best:
                value.copy_(self.best[name])

    # --- checkpoints ---

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        settings = {"batch_size": self.batch_size, "lr": self.schedule.lr, "seed": self.seed}
        class_weight = checksum(self.model.class_weight)
        return {**settings, "checksum of class_weight": class_weight, **self.source.identity()}

    def save(self, path: FilePath) -> None:
        """Writes a checkpoint."""
        content = {
            "format": FORMAT,
            "schedule": self._identity,
            "configuration": self.configuration,
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {name: getattr(self, name) for name in _PROGRESS},
            "end": self.schedule.state(),
        }
        save_archive(content, path)

    def load(self, path: FilePath) -> None:
        """Resumes from a checkpoint.

        Raises:
            ValueError: The file is damaged or belongs to another run; nothing has changed then.
        """
        content = load_archive(path, FORMAT)
        before = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict(), self.schedule.state()))
        try:
            for name, here in (("schedule", self._identity), ("configuration", self.configuration)):
                if content[name] != here:
                    theirs, ours = _differences(content[name], here)
                    raise ValueError(f"{path} belongs to a run with {name} {theirs}; this one has {ours}")
            progress = _checked(content["progress"], {name: getattr(self, name) for name in _PROGRESS})
            shapes = {name: value.shape for name, value in self.model.named_parameters()}
            if progress["best"] and {name: value.shape for name, value in progress["best"].items()} != shapes:
                raise ValueError("best holds other parameters than the model has")
            self.model.load_state_dict(content["weights"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load(content["end"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
            self.model.load_state_dict(before[0])
            self.optimizer.load_state_dict(before[1])
            self.schedule.load(before[2])
            if str(path) in str(error):
                raise
            raise ValueError(f"{path} does not hold a training run that this version knows: {error}") from error
        vars(self).update(progress)


def _differences(*both: Any) -> Sequence[Any]:
    """Two unequal dicts without what is equal in them, other values as they are."""
    if not all(isinstance(some, dict) for some in both):
        return both
    absent = object()
    names = [name for name in {**both[0], **both[1]} if both[0].get(name, absent) != both[1].get(name, absent)]
    return [{name: some[name] for name in names if name in some} for some in both]


def _checked(progress: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """Progress from a file, if it could be that of a run.

    Raises:
        ValueError: It could not.
    """
    if progress.keys() != present.keys():
        raise ValueError(f"progress has {', '.join(map(str, progress))}; wanted {', '.join(present)}")
    for name, value in progress.items():
        kind = type(present[name])
        if not isinstance(value, kind) or (kind in (int, float) and value < 0):
            raise ValueError(f"{name} is {value!r:.50}; wanted {kind.__name__}")
    return progress


_PROGRESS = (
    "epoch",
    "position",
    "rows_done",
    "steps_done",
    "loss_sum",
    "seconds",
    "seconds_before",
    "history",
    "best",
)


class RunOptions(NamedTuple):
    """How a run is carried out; what it ends in does not depend on them.

    Attributes:
        checkpoint: File of the run's state; None means none.
        checkpoint_every: Steps between checkpoints within an epoch; None means none within an epoch.
        resume: Whether to resume from the checkpoint if it exists.
        max_steps: Stop after so many steps.
        num_workers: Worker processes that make batches.
        progress: Show a progress bar.
        callbacks: Functions to call after every step.
    """

    checkpoint: Path | None = None
    checkpoint_every: int | None = None
    resume: bool = True
    max_steps: int | None = None
    num_workers: int = 0
    progress: bool = False
    callbacks: Sequence[Callable[[], object]] = ()

    def check(self) -> None:
        """Raises the error that the run would end in, as far as the options tell."""
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every is {self.checkpoint_every}; wanted at least 1")
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; wanted at least 0")
        if self.checkpoint is not None:
            check_can_write(self.checkpoint)


Measure = Callable[[], tuple[dict[str, float], Sequence[float]]]


def carry_out(
    run: TrainingRun, measure: Measure, options: RunOptions, begin: Callable[[], object] = lambda: None
) -> bool:
    """Trains until the schedule says that it is over, and goes back to the best epoch.

    Args:
        run: The run.
        measure: Measures the model after every epoch: what to add to the history, and the qualities on held-out rows.
        options: How.
        begin: Called before the first step, unless the run resumes.

    Returns:
        False if ``max_steps`` stopped the run before.

    Raises:
        OSError: The checkpoint cannot be written, or another run writes it.
    """
    with contextlib.nullcontext() if options.checkpoint is None else sole_writer(options.checkpoint):
        if options.checkpoint is not None and options.resume and options.checkpoint.exists():
            run.load(options.checkpoint)
        else:
            begin()
        last_step = math.inf if options.max_steps is None else run.steps_done + options.max_steps
        while not run.is_over:
            if run.steps_done >= last_step or not _epoch(run, options, last_step):
                return False
            run.end_epoch(*measure())
            if options.checkpoint is not None:
                run.save(options.checkpoint)
    run.go_back_to_best()
    return True


def _epoch(run: TrainingRun, options: RunOptions, last_step: float) -> bool:
    """Trains until the epoch or the time ends; False if the last step came before."""
    path, every = options.checkpoint, options.checkpoint_every
    for _ in with_progress_bar(run, run.steps(options.num_workers, options.callbacks), options.progress):
        if run.at_end_of_epoch or run.out_of_time:
            break
        if path is not None and every and run.position % every == 0:
            run.save(path)
        if run.steps_done >= last_step:
            return False
    return True


def with_progress_bar(run: TrainingRun, steps: Iterator[None], show: bool) -> Iterator[None]:
    """Goes through the ``steps`` of an epoch, and shows how far it is."""
    with progress_bar(
        show,
        total=run.source.size,
        initial=run.rows_done,
        desc=f"epoch {run.epoch + 1}",
        unit="row",
        unit_scale=True,
        postfix=f"batches of {run.batch_size}",
    ) as bar:
        shown = run.rows_done
        for _ in steps:
            if run.position % 10 == 0:
                bar.set_postfix_str(f"loss {run.loss_sum / run.rows_done:.3f}")
            bar.update(run.rows_done - shown)
            shown = run.rows_done
            yield


def _some_of_each_row(labels: Tensor, seed: int) -> Tensor:
    """A random choice of the labels ``[B, P]`` of each row, padded with -100."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    order = torch.rand(labels.shape, generator=generator).masked_fill_(labels < 0, -1)
    return labels.gather(1, order.topk(_MOST_LABELS).indices)
