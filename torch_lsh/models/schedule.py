"""Schedule: how long to train, and with which learning rate, as held-out rows and a budget of time say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

_MOST_EPOCHS = 40
_LEAST_GAIN = 0.02  # of the quality, relative; a smaller one ends the constant part
DECAY = 0.4  # of the run, in which the learning rate falls
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Schedule:
    """The learning rate at any point of a training run, and its end.

    The rate is constant, and falls linearly to 0 in the last part of the run (Hägele et al., *Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations*, NeurIPS 2024). Where the number of epochs is not given,
    it begins to fall when the quality on held-out rows no longer gains, and does so for half as many epochs as it took
    until then. Given a budget of time, it falls in the last part of that at the latest.

    Args:
        lr: Learning rate at the beginning.
        epochs: Most epochs; None means until the quality no longer gains.
        patience: Epochs without a better quality before training stops, given ``epochs``.
        budget: Seconds of training; None means without a limit.
        decay: The last part of the run, as a share of the epochs or of the budget.
    """

    def __init__(
        self, lr: float, epochs: int | None, patience: int = 2, budget: float | None = None, decay: float = DECAY
    ) -> None:
        self.lr, self.patience, self.budget, self.decay = lr, patience, budget, decay
        self.open_ended = epochs is None
        self.end = epochs  # None while it is not known
        self.falls_from = 0.0 if epochs is None else (1 - decay) * epochs
        self.best: list[float] = []  # qualities, each by itself
        self.since_best = 0

    def rate(self, progress: float, seconds: float) -> float:
        """The learning rate after ``progress`` epochs and ``seconds`` of training."""
        factor = 1.0 if self.end is None else (self.end - progress) / max(1e-9, self.end - self.falls_from)
        if self.budget is not None:
            factor = min(factor, (self.budget - seconds) / (self.decay * self.budget))
        return self.lr * min(1.0, max(0.0, factor))

    def report(self, epoch: int, qualities: Sequence[float]) -> bool:
        """Takes note of the qualities on held-out rows after an epoch.

        Args:
            epoch: Number of epochs so far.
            qualities: Of parts of the model, then that of the model. Training goes on while any of them gains: a
                network does so for a while before its mixture with neighbours does.

        Returns:
            Whether the model is better than ever before.
        """
        before = self.best or [-math.inf] * len(qualities)
        gains = (new > old + _LEAST_GAIN * abs(old) for new, old in zip(qualities, before) if old > -math.inf)
        if self.end is None and self.best and not any(gains):
            self.falls_from, self.end = epoch, epoch + math.ceil(epoch / 2)
        better = qualities[-1] > before[-1]
        self.since_best = 0 if better else self.since_best + 1
        self.best = [max(pair) for pair in zip(qualities, before)]
        return better

    def is_over(self, epoch: int, seconds: float) -> bool:
        """Whether training ends after ``epoch`` epochs and ``seconds``."""
        out_of_patience = not self.open_ended and self.since_best >= self.patience
        return (
            self.is_out_of_time(seconds) or out_of_patience or epoch >= (_MOST_EPOCHS if self.end is None else self.end)
        )

    def is_out_of_time(self, seconds: float) -> bool:
        return self.budget is not None and seconds >= self.budget

    def state(self) -> dict[str, Any]:
        """What :meth:`report` has changed."""
        names = ("falls_from", "end", "best", "since_best") if self.open_ended else ("best", "since_best")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state` returned.

        Raises:
            ValueError: The state is of another kind of schedule, or none.
        """
        if state.keys() != self.state().keys():
            raise ValueError(f"the schedule has {', '.join(map(str, state))}; wanted {', '.join(self.state())}")
        for name, value in state.items():
            numbers = value if name == "best" else [] if name == "end" and value is None else [value]
            if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
                raise ValueError(
                    f"{name} is {value!r:.50}; wanted {'a list of numbers' if name == 'best' else 'a number'}"
                )
        vars(self).update(state)


def seconds_of(budget: float | str | None) -> float | None:
    """Reads a budget of time: seconds, or text such as ``"90s"``, ``"5m"`` or ``"1h"``.

    Raises:
        ValueError: It is neither, or not positive.

    >>> seconds_of("5m"), seconds_of(2)
    (300.0, 2.0)
    """
    if budget is None:
        return None
    seconds: float | None = None
    if isinstance(budget, str) and (found := re.fullmatch(r"\s*([0-9.]+)\s*(s|m|min|h|)\s*", budget)):
        try:
            seconds = float(found[1]) * _UNITS[found[2]]
        except ValueError:
            seconds = None
    elif isinstance(budget, (int, float)) and not isinstance(budget, bool):
        seconds = float(budget)
    if seconds is None or not 0 < seconds < math.inf:
        raise ValueError(f"budget is {budget!r}; wanted seconds, or text such as '90s', '5m' or '1h'")
    return seconds
