"""The search of tune_lookups: indexes first, then training steps with the best of them."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..config import LSHConfig
from ..index.base import Index
from ..index.config import HashTableConfig, IndexConfig, named_index_config
from ..index.hash_tables import HashTableIndex
from ..nn import LSHLinear
from ..sampling.stats import Estimate
from .steps import StepCosts, Task, simulate_steps
from .trials import TUNED_FIELDS, Trial, TuningTable

_SCREENED_ROWS = 131_072  # families are compared on a sample of the rows
_SHARES = (0.003, 0.01, 0.03)  # of the rows, that a look-up may return while indexes are compared
_PROBES = (4, 16)
_TIME_FOR_FAMILIES, _TIME_FOR_SIZES = 0.3, 0.55  # shares of all the time, since the start
_AS_GOOD = 0.9  # of the best recall
_CLOSE = 1.25  # between too few active rows and enough
_CLEARLY_FASTER = 0.95
_CONFIDENCE = 1.645  # standard errors: 95 %, one-sided
_SIZES: tuple[dict[str, Any], ...] = (
    {"num_tables": 48, "bucket_size": 256, "sketch_bits": 480},
    {"sketch_bits": 480},
    {"num_tables": 48, "sketch_bits": 480},
    {"bucket_size": 256, "sketch_bits": 480},
    {"num_tables": 12, "bucket_size": 256},
    {"num_tables": 48, "bucket_size": 32},
)
_STEPS: tuple[dict[str, Any], ...] = (
    {"scope": "batch"},
    {"scope": "sample"},
    {"carry": 0.0},
    {"random_fraction": 0.05},
    {"random_fraction": 0.05, "carry": 0.0},
    {"random_fraction": 0.05, "scope": "sample"},
    {"random_fraction": 0.25},
    {"random_fraction": 0.25, "carry": 0.0},
)


class _Candidate(NamedTuple):
    """An index, and what look-ups find in it."""

    config: IndexConfig
    rows: Index
    recall: float
    milliseconds: float  # to look up a batch
    build_seconds: float


class Search:
    """The search of :func:`tune_lookups`, whose arguments it takes.

    Attributes:
        best: the best trial so far.
        table: all trials.
    """

    def __init__(
        self,
        layer: LSHLinear,
        x: Tensor,
        target: float,
        k: int,
        batch_size: int,
        seconds: float,
        scopes: Sequence[str],
    ) -> None:
        self._scopes, self._target = scopes, target
        self._started, self._seconds = time.monotonic(), seconds
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        known, measured = (part.contiguous() for part in x.to(weight.dtype).tensor_split([len(x) // 2]))
        best_rows = ops.linear_topk(measured, weight, bias, k)[1]
        self._task = Task(weight, bias, known, measured, best_rows, min(batch_size, len(x) // 2))
        default = LSHConfig()
        self._base = replace(layer.config, **{name: getattr(default, name) for name in TUNED_FIELDS})
        self._step_costs = StepCosts(layer.in_features, len(weight), bias is not None, self._task.batch_size)
        self._entry_seconds: dict[Hashable, float] = {}  # to hash a row for one table, by _family
        dense = replace(self._base, active=1.0)
        dense_milliseconds = 1e3 * self._step_costs.dense
        self.best = Trial("steps", dense, Estimate(1.0, 0.0), dense_milliseconds, reaches=True, dense=True)
        self.table = TuningTable([self.best])

    def has_time(self, share: float = 1.0, to_build: IndexConfig | None = None) -> bool:
        """Whether some of that share of all the time is left, enough to build an index if one is given."""
        needed = 0.0
        if to_build is not None:
            tables = to_build.num_tables if isinstance(to_build, HashTableConfig) else None
            needed = self._entry_seconds.get(_family(to_build), 0.0) * self._task.num_rows * (tables or 1)
        return time.monotonic() + needed < self._started + share * self._seconds

    def run(self, names: Sequence[str]) -> None:
        """Compares the indexes of these names, and tries training steps with the best."""
        finalists = self._compare_sizes(self._compare_families(names))
        # The fast ones set a time that rules out most steps of the others.
        for candidate in sorted(finalists, key=lambda one: one.milliseconds):
            self._try_steps(candidate)

    # --- indexes ---

    def _compare_families(self, names: Sequence[str]) -> list[IndexConfig]:
        """The best setting of each family, the family to go on with first."""
        task = self._task.of_every_nth_row(-(-self._task.num_rows // _SCREENED_ROWS))
        found: dict[str, _Candidate] = {}
        for config in _families(names):
            if self.has_time(_TIME_FOR_FAMILIES) or not found:
                candidate = self._look_up("families", config, task, _PROBES[:1])
                found[config.name] = max(found.get(config.name, candidate), candidate, key=lambda one: one.recall)
        enough = _AS_GOOD * max(candidate.recall for candidate in found.values())
        # Of those that find about as much as the best, the quickest to build come first.
        ordered = sorted(
            found.values(), key=lambda one: one.build_seconds if one.recall >= enough else 1e9 - one.recall
        )
        return [candidate.config for candidate in ordered]

    def _compare_sizes(self, promising: list[IndexConfig]) -> list[_Candidate]:
        """Of indexes of all rows the one that finds most, and the fastest of those that find about as much."""
        finalists: list[_Candidate] = []
        best = promising[:2]
        for config in (*best, *_sizes(best)):
            if finalists and not self.has_time(_TIME_FOR_SIZES, to_build=config):
                continue
            candidate = self._look_up("sizes", config, self._task, _PROBES)
            most = max(*finalists, candidate, key=lambda one: one.recall) if finalists else candidate
            good = [one for one in (*finalists, candidate) if one.recall >= _AS_GOOD * most.recall]
            fast = min(good, key=lambda one: one.milliseconds)
            finalists = [most] if fast is most else [most, fast]  # frees the memory of the others
        return finalists

    def _look_up(self, stage: str, config: IndexConfig, task: Task, probes: Sequence[int]) -> _Candidate:
        """Builds the index of ``config``, and looks up with its probes and others; returns the best."""
        index = config.make(task.num_rows, task.weight.shape[1], self._base.seed)
        start = time.perf_counter()
        index.build(task.weight, task.bias, task.known)
        build_seconds = time.perf_counter() - start
        if not isinstance(index, HashTableIndex):
            self._entry_seconds[_family(config)] = build_seconds / task.num_rows
        elif isinstance(config, HashTableConfig) and config.num_tables is None:
            self._entry_seconds[_family(config)] = build_seconds / task.num_rows / index.num_tables
        best: _Candidate | None = None
        for tried in _with_probes(config, probes):
            _set_probes(index, tried)
            shares, seconds = _shares_found(index, task)
            milliseconds = 1e3 * seconds * task.batch_size / len(task.measured)
            built = build_seconds if best is None else None
            self.table.append(Trial(stage, replace(self._base, index=tried), Estimate.of(shares), milliseconds, built))
            if best is None or shares.mean().item() > best.recall:
                best = _Candidate(tried, index, shares.mean().item(), milliseconds, build_seconds)
        assert best is not None
        _set_probes(index, best.config)
        return best

    # --- steps ---

    def _try_steps(self, candidate: _Candidate) -> None:
        """Walks up from few active rows for each kind of active set, while that can be the best step."""
        rehash = self._rehash_seconds(candidate.rows)
        for changes in _STEPS:
            config = replace(self._base, index=candidate.config, **changes)
            if config.scope not in self._scopes:
                continue
            least, margin = max(self._task.k, config.active_rows(self._task.num_rows) // 2), 1.0
            if "random_fraction" in changes:  # varies the best step; the share matters little
                best = self.best.config
                if self.best.dense or (best.scope, best.carry) != (config.scope, config.carry):
                    continue
                least, margin = best.active_rows(self._task.num_rows) // 2, _CLEARLY_FASTER
            self._walk(candidate.rows, config, least, rehash, margin)

    def _rehash_seconds(self, index: Index) -> float:
        """Of re-hashing, per active row of a step: a row is hashed again at most once in ``touches`` updates."""
        rows = torch.arange(0, self._task.num_rows, max(1, self._task.num_rows // 1024), device="cpu")
        start = time.perf_counter()
        index.update(self._task.weight, self._task.bias, rows)
        return (time.perf_counter() - start) / len(rows) / getattr(self._base.rehash, "touches", 1)

    def _walk(self, index: Index, config: LSHConfig, active: int, rehash: float, margin: float) -> None:
        """Tries ``active`` rows, then more until they are enough or fewer until they are not, and closes in."""
        too_few, enough = 0, self._task.num_rows
        while self.has_time():
            rest = 1e3 * (self._step_costs(config.scope, active) + rehash * active)
            if rest >= margin * self.best.milliseconds:
                if too_few == 0:
                    return
                enough = active  # too slow in any case
            else:
                trial = self._step(index, replace(config, active=active), rest, margin)
                of_fewer = trial.milliseconds - rest if trial.reaches else trial.milliseconds
                if of_fewer >= margin * self.best.milliseconds:
                    return  # choosing takes too long
                too_few, enough = (too_few, active) if trial.reaches else (active, enough)
            active = active // 4 if too_few == 0 else 4 * too_few
            if active >= enough:
                active = round(math.sqrt(too_few * enough))
            if active < self._task.k or (too_few > 0 and enough < _CLOSE * too_few):
                return

    def _step(self, index: Index, config: LSHConfig, rest: float, margin: float) -> Trial:
        """A setting's recall and time; the best so far if it reaches the target and is faster by ``margin``.

        Args:
            rest: milliseconds of a step without choosing the rows.
        """
        shares, choosing = simulate_steps(index, config, self._task)
        recall, milliseconds = Estimate.of(shares), 1e3 * choosing + rest
        reaches = recall.mean - _CONFIDENCE * recall.error >= self._target
        trial = Trial("steps", config, recall, milliseconds, reaches=reaches)
        self.table.append(trial)
        if reaches and milliseconds < margin * self.best.milliseconds:
            self.best = trial
        return trial


def _family(config: IndexConfig) -> Hashable:
    """What the time to hash a row depends on, but for the number of tables."""
    return config.name, isinstance(config, HashTableConfig) and config.balance


def _families(names: Sequence[str]) -> list[IndexConfig]:
    """The settings to compare. Balanced coordinates are seldom worse, so the hash tables without them come last."""
    plain = [named_index_config(name) for name in names]
    first: list[IndexConfig] = [
        replace(config, mips=True, balance=True) if isinstance(config, HashTableConfig) else config for config in plain
    ]
    return [*first, *(config for config in plain if isinstance(config, HashTableConfig))]


def _sizes(best: list[IndexConfig]) -> list[IndexConfig]:
    """Other sizes of the better family that has any."""
    tables = [config for config in best if isinstance(config, HashTableConfig)]
    return [replace(tables[0], **size) for size in _SIZES] if tables else []


def _with_probes(config: IndexConfig, probes: Sequence[int]) -> list[IndexConfig]:
    """``config`` with its own number of probes and others, where it has a choice."""
    if not isinstance(config, HashTableConfig):
        return [config]
    return [replace(config, probes=number) for number in dict.fromkeys((config.probes, *probes))]


def _set_probes(index: Index, config: IndexConfig) -> None:
    if isinstance(index, HashTableIndex) and isinstance(config, HashTableConfig):
        index.probes = config.probes


def _shares_found(index: Index, task: Task) -> tuple[Tensor, float]:
    """The share of each input's best rows that a look-up finds, a mean over its lengths; and the seconds it takes."""
    counts = [max(task.k, round(share * task.num_rows)) for share in _SHARES]
    start = time.perf_counter()
    found = index.query(task.measured, counts[-1])
    seconds = time.perf_counter() - start
    places = _places(found, task.best_rows)
    return torch.stack([(places < count).float().mean(1) for count in counts]).mean(0), seconds


def _places(found: Tensor, best_rows: Tensor) -> Tensor:
    """The place of each of ``best_rows`` ``[Q, k]`` in ``found`` ``[Q, M]``; M if it is not there.

    >>> _places(torch.tensor([[7, 3, -1]]), torch.tensor([[3, 5]]))
    tensor([[1, 3]])
    """
    rows, order = found.sort(1)
    at = torch.searchsorted(rows, best_rows.contiguous()).clamp_(max=found.shape[1] - 1)
    return order.gather(1, at).masked_fill_(rows.gather(1, at) != best_rows, found.shape[1])
