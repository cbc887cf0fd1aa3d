"""What autotune tried: a table of trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..config import LSHConfig
from ..sampling.stats import Estimate

TUNED_FIELDS = ("index", "scope", "active", "random_fraction", "carry", "sampler")


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
        default = LSHConfig()
        names = (name for name in TUNED_FIELDS if getattr(self.config, name) != getattr(default, name))
        return ", ".join(f"{name}={getattr(self.config, name)!r}" for name in names) or "default"


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
