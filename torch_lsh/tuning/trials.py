"""What autotune tried: a table of trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..config import LSHConfig
from ..sampling.stats import Estimate

TUNED_FIELDS = ("index", "scope", "active", "random_fraction", "carry", "sampler")
_SHOWN_FIELDS = (*TUNED_FIELDS, "correction")


@dataclass(frozen=True)
class Trial:
    """What one setting found and cost.

    Attributes:
        stage: ``"families"`` and ``"sizes"``: an index alone; ``"steps"``: active sets as training draws them.
        config: the settings.
        recall: of the ``k`` best rows. Of an index: among the rows that a look-up returns, the mean over 0.3, 1 and 3 %
            of all rows. Of steps: among the active rows.
        milliseconds: of looking up a batch; or of a training step: choosing rows, forward, backward, Adam, and its
            share of re-hashing.
        build_seconds: of the index; None: it was built for an earlier trial.
        reaches: the recall of a step is at least the target, with 95 % confidence.
        dense: the layer as ``nn.Linear``.
    """

    stage: str
    config: LSHConfig
    recall: Estimate
    milliseconds: float
    build_seconds: float | None = None
    reaches: bool = False
    dense: bool = False

    def describe(self) -> str:
        """The settings that are not the default ones."""
        if self.dense:
            return "dense"
        return described(self.config, TUNED_FIELDS)


def described(config: LSHConfig, fields: tuple[str, ...]) -> str:
    """The settings that are not the default ones."""
    default = LSHConfig()
    names = (name for name in fields if getattr(config, name) != getattr(default, name))
    return ", ".join(f"{name}={getattr(config, name)!r}" for name in names) or "default"


class TuningTable(list[Trial]):
    """The trials in the order they were made; prints as a table."""

    def __str__(self) -> str:
        """Prints a table.

        >>> table = TuningTable([Trial("steps", LSHConfig(active=64), Estimate(0.5, 0.01), 1.25)])
        >>> print(table)
        stage     recall            ms  reaches  settings
        steps     0.500 ± 0.010   1.25       no  active=64
        """
        lines = [f"{'stage':<10}{'recall':<15}{'ms':>5}  {'reaches':>7}  settings"]
        for trial in self:
            recall = f"{trial.recall.mean:.3f} ± {trial.recall.error:.3f}"
            reaches = "" if trial.stage != "steps" else "yes" if trial.reaches else "no"
            lines.append(f"{trial.stage:<10}{recall:<15}{trial.milliseconds:>5.2f}  {reaches:>7}  {trial.describe()}")
        return "\n".join(lines)


class Tuning(NamedTuple):
    """The result of :func:`torch_lsh.autotune`: ``config, table = autotune(...)``."""

    config: LSHConfig
    table: TuningTable


class Settings(NamedTuple):
    """What is tuned by training."""

    config: LSHConfig
    lr: float


class TrainingTrial(NamedTuple):
    """What settings were worth after some seconds of training.

    Attributes:
        settings: the settings.
        steps, seconds: how long the model was trained.
        values: the metric of every held-out row.
        round: of the search, from 1.
    """

    settings: Settings
    steps: int
    seconds: float
    values: Tensor
    round: int = 0

    @property
    def config(self) -> LSHConfig:
        return self.settings.config

    @property
    def lr(self) -> float:
        return self.settings.lr

    @property
    def metric(self) -> Estimate:
        """The mean over the held-out rows, and its standard error."""
        return Estimate.of(self.values)

    def describe(self) -> str:
        """The settings that are not the default ones, and the learning rate."""
        return f"lr={self.lr:.2g}, {described(self.config, _SHOWN_FIELDS)}"

    def beats(self, other: TrainingTrial) -> bool:
        """Whether the metric is higher by more than the standard error of the difference, row by row."""
        if not self.values.isfinite().all() or not other.values.isfinite().all():
            return self.metric.mean > other.metric.mean
        difference = Estimate.of(self.values - other.values)
        return difference.mean > difference.error


class TrainingTable(list[TrainingTrial]):
    """The trials in the order they were made; prints as a table.

    Attributes:
        best: the trial of the settings to take.
    """

    best: TrainingTrial

    def __str__(self) -> str:
        """Prints a table.

        >>> import torch
        >>> table = TrainingTable([TrainingTrial(Settings(LSHConfig(active=64), 0.01), 7, 0.5, torch.ones(9), 1)])
        >>> table.best = table[0]
        >>> print(table)
        round  seconds    steps  metric             settings
        1         0.50        7  1.0000 ± 0.0000    lr=0.01, active=64  <- best
        """
        lines = [f"{'round':<7}{'seconds':>7}  {'steps':>7}  {'metric':<19}settings"]
        for trial in self:
            metric = f"{trial.metric.mean:.4f} ± {trial.metric.error:.4f}"
            lines.append(
                f"{trial.round:<7}{trial.seconds:>7.2f}  {trial.steps:>7}  {metric:<19}{trial.describe()}"
                f"{'  <- best' if trial is self.best else ''}"
            )
        return "\n".join(lines)


class TrainingTuning(NamedTuple):
    """The result of :func:`torch_lsh.autotune` on a model and its data: ``config, table = autotune(...)``."""

    config: LSHConfig
    table: TrainingTable
