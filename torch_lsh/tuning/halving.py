"""The search for the best metric after equal training time, by successive halving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..index.config import HashTableConfig, PartitionConfig
from .training import TrainingTask
from .trials import Settings, TrainingTable, TrainingTrial

_ROUNDS = (0.3, 0.3, 0.4)  # shares of the time to train
_KEPT = (4, 2)  # settings beside the present ones that go on to the second and third round
_LRS = (1 / 3, 3.0, 10.0)
_ACTIVE = (1 / 4, 4.0, 16.0)
LEAST_ACTIVE = 64
MOST_TRIALS = 24  # about


class Candidate(NamedTuple):
    """Settings, and which of them is not the present one ("" of several)."""

    settings: Settings
    changed: str


def candidates(present: Settings, out_features: int) -> list[Candidate]:
    """The present settings, and those with one change."""
    config = present.config
    found = [Candidate(present, "")]

    def add(changed: str, settings: Settings) -> None:
        if all(settings != other.settings for other in found):
            found.append(Candidate(settings, changed))

    for factor in _LRS:
        add("lr", present._replace(lr=factor * present.lr))
    active = config.active_rows(out_features)
    for factor in _ACTIVE:
        count = max(LEAST_ACTIVE, round(factor * active))
        if count < out_features:
            add("active", present._replace(config=replace(config, active=count)))
    changes: dict[str, list[dict[str, object]]] = {
        "correction": [{"correction": name} for name in ("stratified", "even", "none")],
        "index": [
            {"index": PartitionConfig()},
            {"index": HashTableConfig(mips=True, balance=True)},
            {"sampler": "uniform"},
        ],
    }
    for changed, options in changes.items():
        for option in options:
            add(changed, present._replace(config=replace(config, **option)))  # type: ignore[arg-type]
    return found


def search(task: TrainingTask, present: Settings, out_features: int, seconds: float) -> TrainingTable:
    """Three rounds: every change alone; the best ones and their combinations for longer; the best two for longer.

    The present settings take part in every round. They win unless other settings are better by a standard error.
    """
    table = TrainingTable()
    tried = candidates(present, out_features)
    for number, share in enumerate(_ROUNDS):
        each = share * seconds / len(tried)
        trials = [task.run(candidate.settings, each) for candidate in tried]
        table.extend(trial._replace(round=number + 1) for trial in trials)
        if number < len(_KEPT):
            kept = best_of(tried[1:], trials[1:], _KEPT[number])
            if number == 0:
                kept += combinations(tried, trials, [candidate.settings for candidate in kept])
            tried = [tried[0], *kept]
    last = table[-len(tried) :]
    winner = max(last, key=lambda trial: trial.metric.mean)
    table.best = winner if winner.beats(last[0]) else last[0]
    return table


def best_of(tried: list[Candidate], trials: list[TrainingTrial], count: int) -> list[Candidate]:
    """The candidates of the best trials, best first."""
    order = sorted(range(len(tried)), key=lambda i: -trials[i].metric.mean)
    return [tried[i] for i in order[:count]]


def combinations(tried: list[Candidate], trials: list[TrainingTrial], known: list[Settings]) -> list[Candidate]:
    """The best two changes of different settings together, and the best of all that gain."""
    present = trials[0]
    best: dict[str, TrainingTrial] = {}
    for candidate, trial in zip(tried[1:], trials[1:]):
        if trial.metric.mean > max(present, best.get(candidate.changed, present), key=_mean).metric.mean:
            best[candidate.changed] = trial
    gains = sorted(best, key=lambda changed: -best[changed].metric.mean)
    found: list[Candidate] = []
    for names in (gains[:2], gains):
        settings = present.settings
        for name in names:
            settings = _CHANGE[name](settings, best[name].settings)
        if len(names) > 1 and all(settings != other for other in (*known, *(one.settings for one in found))):
            found.append(Candidate(settings, ""))
    return found


def _mean(trial: TrainingTrial) -> float:
    return trial.metric.mean


def _with(*names: str) -> Callable[[Settings, Settings], Settings]:
    def change(settings: Settings, other: Settings) -> Settings:
        values = {name: getattr(other.config, name) for name in names}
        return settings._replace(config=replace(settings.config, **values))

    return change


_CHANGE: dict[str, Callable[[Settings, Settings], Settings]] = {
    "lr": lambda settings, other: settings._replace(lr=other.lr),
    "active": _with("active"),
    "correction": _with("correction"),
    "index": _with("index", "sampler"),
}
