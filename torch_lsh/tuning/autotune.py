"""autotune: the LSHConfig for a layer, by measurement of what settings find and cost."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops, optim
from ..config import SCOPES, LSHConfig
from ..index.families import FAMILIES
from ..index.hash_tables import LSHIndex
from ..nn import LSHLinear
from ..sampling.active_set import choose_active_rows, hardest_rows, make_index
from ..sampling.stats import Estimate, share_found

logger = logging.getLogger("torch_lsh")

_LEAST_INPUTS = 32
_KEPT_STEPS = 4  # whose inputs AutoTuner looks at
_SCREENED_ROWS = 131_072  # families are compared on a sample of the rows
_SCRATCH_ROWS = 32_768  # of layers that steps are timed on
_SCRATCH_ACTIVE = {"batch": 16_384, "sample": 512}
_WARM_UP = 2
_SHARES = (0.003, 0.01, 0.03)  # of the rows, that a look-up may return while tables are compared
_PROBES = (4, 16)
_AS_GOOD = 0.9  # of the best recall
_CLOSE = 1.25  # between too few active rows and enough
_WARM_UP_STEPS = 6  # until the rows carried over are those of any step and not of the first
_DRAWS = 2  # of the steps that recall is measured in
_KINDS = ("scope", "carry")  # of active sets
_CONFIDENCE = 1.645  # standard errors: 95 %, one-sided
_BALANCED = {"mips": True, "balance": True}
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
_TUNED = (
    *("hash", "hashes_per_table", "num_tables", "bucket_size", "probes", "sketch_bits", "mips", "balance"),
    *("scope", "active", "random_fraction", "carry", "sampler"),
)


@dataclass(frozen=True)
class Trial:
    """What one setting found and cost.

    Attributes:
        stage: ``"families"`` and ``"sizes"``: tables alone; ``"steps"``: active sets as training draws them.
        config: what was tried.
        recall: of the ``k`` best rows. Of tables: among rows that a look-up returns, a mean over 0.3, 1 and 3 % of all
            rows. Of steps: among the active rows.
        milliseconds: of a look-up of a batch; or of a training step: choosing rows, forward, backward, Adam, and its
            share of re-hashing.
        build_seconds: of the tables; None: they were there.
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
        names = (name for name in _TUNED if getattr(self.config, name) != getattr(default, name))
        return ", ".join(f"{name}={getattr(self.config, name)!r}" for name in names) or "default"


class TuningTable(list[Trial]):
    """The trials in the order they were made; prints as a table."""

    def __str__(self) -> str:
        """
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
    """What :func:`autotune` returns: ``config, table = autotune(...)``."""

    config: LSHConfig
    table: TuningTable


@torch.no_grad()
def autotune(
    layer: LSHLinear,
    inputs: Tensor,
    target_recall: float = 0.9,
    *,
    k: int = 10,
    batch_size: int = 256,
    seconds: float = 18.0,
    hashes: Sequence[str] | None = None,
    scopes: Sequence[str] | None = None,
    apply: bool = False,
) -> Tuning:
    """Picks the settings of a layer by measurement: the fastest training step that finds ``target_recall`` of the best
    rows.

    Half of the inputs are what tables may know (coordinates, learned hashes) and what the first steps see; on the other
    half recall is measured, of the exact ``k`` best rows. In turn:

    1. *families*: every hash family, with and without ``mips`` and ``balance``, with one and more probes, on a sample
       of the rows: what do look-ups find?
    2. *sizes*: for the best of them, on all rows: number and size of tables and buckets, sketches.
    3. *steps*: for the best tables, carrying, active rows, random share and the scopes asked for: active sets are drawn
       batch after batch as in training. From few active rows up, until the target is reached or a step takes longer
       than the best one so far. Dense is a candidate, too.

    A setting reaches the target when its recall is above by 1.645 standard errors. The time of a step is that of
    choosing the active rows, measured on the layer, and of all else, measured on a smaller layer for two numbers of
    active rows and interpolated. Where time runs out, the rest is left out. The layer and PyTorch's random stream stay
    as they are.

    Recall is not precision. A step also teaches a sample about rows that are not among its best: most of the softmax
    while that is flat, and the labels of the other samples in a set that the batch shares. Classifiers of many labels
    learn more from many cheap steps, so the defaults of :class:`LSHConfig` are cheaper than what reaches a high recall,
    and are as precise much sooner (``benchmarks/ablation.py --only autotune``). Where the best rows themselves matter,
    tune; and compare.

    Args:
        layer: a layer with the weights that settings are to suit, best some hundred steps into training.
        inputs: ``[*, in_features]``: some hundreds that the layer meets in training, in random order.
        target_recall: over 0, below 1.
        k: whose recall.
        batch_size: of training; at most half of the inputs is taken.
        seconds: to spend, about.
        hashes: families to try; None: all that :class:`LSHConfig` takes.
        scopes: to try; None: the layer's. A set of each sample's own finds its best rows with the fewest rows, so it
            wins by recall where a set that the batch shares wins by precision.
        apply: give the layer the settings found.

    Returns:
        The settings, in which everything that was not tuned is as in ``layer.config``, and a table of all trials. Where
        dense is best, ``active`` is 1.0: such a layer computes exactly, and :func:`torch_lsh.densify_` makes it
        faster.

    Raises:
        ValueError: an argument does not fit.
        RuntimeError: the layer is not one that can be sampled.

    >>> layer = LSHLinear(16, 5_000)
    >>> config, table = autotune(layer, torch.randn(128, 16), target_recall=0.5, seconds=1.0)
    >>> max(trial.recall.mean for trial in table if trial.config == config and trial.stage == "steps") >= 0.5
    True
    """
    if not isinstance(layer, LSHLinear):
        raise TypeError(f"layer is a {type(layer).__name__}; wanted LSHLinear")
    if not 0 < target_recall < 1:
        raise ValueError(f"target_recall is {target_recall}; wanted more than 0 and less than 1")
    for name, number in (("k", k), ("batch_size", batch_size), ("seconds", seconds)):
        if not number > 0:
            raise ValueError(f"{name} is {number}; wanted more than 0")
    if k > layer.out_features:
        raise ValueError(f"k is {k}; wanted at most {layer.out_features}")
    families = _families(hashes)
    if scopes is None:
        scopes = [layer.config.scope]
    if not scopes or not set(scopes) <= set(SCOPES):
        raise ValueError(f"scopes is {scopes!r}; wanted some of {', '.join(map(repr, SCOPES))}")
    layer._check_can_sample(inputs)
    x = inputs.detach().reshape(-1, layer.in_features)
    x = x[x.isfinite().all(1)]
    if len(x) < _LEAST_INPUTS:
        raise ValueError(f"inputs has {len(x)} finite samples; wanted at least {_LEAST_INPUTS}, best some hundreds")
    with _same_random_stream(), torch.inference_mode(False), torch.no_grad():
        search = _Search(layer, x, target_recall, k, batch_size, seconds, scopes)
        search.run(families)
    best = search.best
    if not search.has_time():
        logger.warning("autotune: %.3g s were over after %d trials; more may find better", seconds, len(search.table))
    logger.info("autotune: %s, recall %.3f, %.2f ms a step", best.describe(), best.recall.mean, best.milliseconds)
    if apply:
        layer.reconfigure(best.config)
    return Tuning(best.config, search.table)


def _families(hashes: Sequence[str] | None) -> list[str]:
    """Those that an LSHConfig takes."""
    wanted = list(dict.fromkeys(("learned", *FAMILIES) if hashes is None else hashes))
    known = [name for name in wanted if _config_or_none(LSHConfig(), hash=name) is not None]
    if not known or (hashes is not None and len(known) < len(wanted)):
        raise ValueError(f"hashes is {hashes!r}; wanted some of those that LSHConfig takes")
    return known


def _config_or_none(config: LSHConfig, **changes: Any) -> LSHConfig | None:
    """None: a family has no use for one of these settings."""
    try:
        return replace(config, **changes)
    except ValueError:
        return None


@contextmanager
def _same_random_stream() -> Iterator[None]:
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


class _Tables(NamedTuple):
    """Tables of all rows, and what look-ups find in them."""

    config: LSHConfig
    index: Any  # what make_index gives
    recall: float
    milliseconds: float  # of a look-up of a batch
    build_seconds: float


class _Search:
    """The search of :func:`autotune`."""

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
        self.scopes = scopes
        self.started, self.seconds = time.monotonic(), seconds
        self.weight, self.bias = layer.weight.detach(), layer._bias_for_index()
        x = x.to(self.weight.dtype)
        self.target, self.k = target, k
        self.batch_size = min(batch_size, len(x) // 2)
        self.known, self.measured = x[: len(x) // 2].contiguous(), x[len(x) // 2 :].contiguous()
        default = LSHConfig()
        self.base = replace(layer.config, **{name: getattr(default, name) for name in _TUNED})
        self.best_rows = ops.linear_topk(self.measured, self.weight, self.bias, k)[1]
        self.step_costs = _StepCosts(layer.in_features, self.num_rows, self.bias is not None, self.batch_size)
        dense = 1e3 * self.step_costs.dense
        self.best = Trial("steps", replace(self.base, active=1.0), Estimate(1.0, 0.0), dense, reaches=True, dense=True)
        self.table = TuningTable([self.best])
        self.build_seconds: dict[tuple[str, bool], float] = {}  # per row and table, by family and balance

    @property
    def num_rows(self) -> int:
        return len(self.weight)

    def has_time(self, share: float = 1.0, for_tables: LSHConfig | None = None) -> bool:
        """Whether there is some left of that share of all the time, so much that tables can be built, too."""
        needed = 0.0
        if for_tables is not None:
            per_row = self.build_seconds.get((for_tables.hash, for_tables.balance), 0.0)
            needed = per_row * self.num_rows * (for_tables.num_tables or 1)
        return time.monotonic() + needed < self.started + share * self.seconds

    def run(self, families: Sequence[str]) -> None:
        finalists = self.compare_sizes(self.compare_families(families))
        # With what the fast ones reach, most of the others need not be tried.
        for tables in sorted(finalists, key=lambda tables: tables.milliseconds):
            self.try_steps(tables)

    # --- tables ---

    def compare_families(self, families: Sequence[str]) -> list[LSHConfig]:
        """The best setting of each family, the family to go on with first."""
        stride = -(-self.num_rows // _SCREENED_ROWS)
        weight = self.weight[::stride].contiguous()
        bias = None if self.bias is None else self.bias[::stride].contiguous()
        best_rows = ops.linear_topk(self.measured, weight, bias, self.k)[1] if stride > 1 else self.best_rows
        found: dict[str, _Tables] = {}
        balanced = {family: _config_or_none(self.base, hash=family, **_BALANCED) for family in families}
        plain = {family: replace(self.base, hash=family) for family in families}
        # Balanced coordinates, where a family takes them, are seldom worse, so the others come last.
        first = [balanced[family] or plain[family] for family in families]
        last = [plain[family] for family in families if balanced[family] is not None]
        for config in (*first, *last):
            if self.has_time(0.3) or not found:
                tables = self.look_up("families", config, weight, bias, best_rows)
                found[config.hash] = max(found.get(config.hash, tables), tables, key=lambda one: one.recall)
        enough = _AS_GOOD * max(tables.recall for tables in found.values())
        # Of those that find about as much as the best, the quickest to build come first.
        ordered = sorted(
            found.values(), key=lambda one: one.build_seconds if one.recall >= enough else 1e9 - one.recall
        )
        return [tables.config for tables in ordered]

    def compare_sizes(self, promising: list[LSHConfig]) -> list[_Tables]:
        """Of tables of all rows those that find most, and the fastest of those that find about as much."""
        finalists: list[_Tables] = []
        best = promising[:2]
        # Each size for the better family that takes it.
        sized = [next(filter(None, (_config_or_none(base, **size) for base in best)), None) for size in _SIZES]
        for config in (*best, *filter(None, sized)):
            if finalists and not self.has_time(0.55, for_tables=config):
                continue
            tables = self.look_up("sizes", config, self.weight, self.bias, self.best_rows)
            most = max(*finalists, tables, key=lambda one: one.recall) if finalists else tables
            good = [one for one in (*finalists, tables) if one.recall >= _AS_GOOD * most.recall]
            fast = min(good, key=lambda one: one.milliseconds)
            finalists = [most] if fast is most else [most, fast]  # the memory of the others is free again
        return finalists

    def look_up(self, stage: str, config: LSHConfig, weight: Tensor, bias: Tensor | None, best_rows: Tensor) -> _Tables:
        """Builds the tables of ``config``; what do look-ups find in them, with the best of some numbers of probes?"""
        index = make_index(config, *weight.shape)
        start = time.perf_counter()
        index.build(weight, bias, self.known)
        build = time.perf_counter() - start
        if config.num_tables is None:
            self.build_seconds[config.hash, config.balance] = build / len(weight) / index.num_tables
        counts = [max(self.k, round(share * len(weight))) for share in _SHARES]
        several = _PROBES[: 1 if stage == "families" else None] if isinstance(index, LSHIndex) else ()
        best: _Tables | None = None
        for probes in dict.fromkeys((config.probes, *several)):
            if probes is not None:
                index.probes = probes
            start = time.perf_counter()
            found = index.query(self.measured, counts[-1])
            milliseconds = 1e3 * (time.perf_counter() - start) * self.batch_size / len(self.measured)
            places = _places(found, best_rows)
            shares = torch.stack([(places < count).float().mean(1) for count in counts]).mean(0)
            tried = replace(config, probes=probes)
            self.table.append(
                Trial(stage, tried, Estimate.of(shares), milliseconds, None if best is not None else build)
            )
            if best is None or shares.mean().item() > best.recall:
                best = _Tables(tried, index, shares.mean().item(), milliseconds, build)
        assert best is not None
        if best.config.probes is not None:
            index.probes = best.config.probes
        return best

    # --- steps ---

    def try_steps(self, tables: _Tables) -> None:
        """Walks up from few active rows for each kind of active set, while that can be the best step."""
        # Rows are hashed anew at most once in so many updates.
        rows = torch.arange(0, self.num_rows, max(1, self.num_rows // 1024))
        start = time.perf_counter()
        tables.index.update(self.weight, self.bias, rows)
        rehash = (time.perf_counter() - start) / len(rows) / getattr(self.base.rehash, "touches", 1)
        for changes in _STEPS:
            config = replace(tables.config, **changes)
            if config.scope not in self.scopes:
                continue
            least, margin = max(self.k, config.active_rows(self.num_rows) // 2), 1.0
            if "random_fraction" in changes:  # a variant of what was found, which has to be clearly better
                if self.best.dense or any(getattr(self.best.config, name) != getattr(config, name) for name in _KINDS):
                    continue
                least, margin = self.best.config.active_rows(self.num_rows) // 2, 0.95
            self.walk(tables.index, config, least, rehash, margin)

    def walk(self, index: Any, config: LSHConfig, active: int, rehash: float, margin: float) -> None:
        """From ``active`` rows up until they are enough, or down until they are not, and to where they just are."""
        too_few, enough = 0, self.num_rows
        while self.has_time():
            rest = 1e3 * (self.step_costs(config.scope, active) + rehash * active)
            if rest >= margin * self.best.milliseconds:
                if too_few == 0:
                    return
                enough = active  # at any rate too dear
            else:
                trial = self.step(index, replace(config, active=active), rehash, margin)
                of_fewer = trial.milliseconds - rest if trial.reaches else trial.milliseconds
                if of_fewer >= margin * self.best.milliseconds:
                    return  # choosing takes too long
                too_few, enough = (too_few, active) if trial.reaches else (active, enough)
            active = active // 4 if too_few == 0 else 4 * too_few
            if active >= enough:
                active = round(math.sqrt(too_few * enough))
            if active < self.k or (too_few > 0 and enough < _CLOSE * too_few):
                return

    def step(self, index: Any, config: LSHConfig, rehash: float, margin: float = 1.0) -> Trial:
        """A setting's recall and time, and whether it is the best so far (by a factor of ``margin``)."""
        shares, choosing = simulate_steps(
            index, config, self.weight, self.bias, self.known, self.measured, self.best_rows, self.batch_size
        )
        recall, active = Estimate.of(shares), config.active_rows(self.num_rows)
        milliseconds = 1e3 * (choosing + self.step_costs(config.scope, active) + rehash * active)
        reaches = recall.mean - _CONFIDENCE * recall.error >= self.target
        trial = Trial("steps", config, recall, milliseconds, reaches=reaches)
        self.table.append(trial)
        if reaches and milliseconds < margin * self.best.milliseconds:
            self.best = trial
        return trial


def simulate_steps(
    index: Any,
    config: LSHConfig,
    weight: Tensor,
    bias: Tensor | None,
    known: Tensor,
    measured: Tensor,
    best_rows: Tensor,
    batch_size: int,
) -> tuple[Tensor, float]:
    """Draws active sets, batch after batch, as training does, but without labels and with weights that stay.

    Args:
        index: tables in step with the weights.
        config: of the layer.
        weight, bias: of the layer.
        known: ``[n, in]``: inputs of the first steps, in which rows to carry over are found.
        measured: ``[m, in]``: those of the steps after.
        best_rows: ``[m, k]`` of ``measured``.
        batch_size: of a step.

    Returns:
        The share of the best rows of each measured input that was active in its step, ``[m]``, and the seconds that
        choosing the active rows took, as a median.
    """
    seconds: list[float] = []

    def step(x: Tensor, seed: int, carried: Tensor | None) -> tuple[Tensor, Tensor | None]:
        none = torch.empty(len(x), 0, dtype=torch.int64)
        start = time.perf_counter()
        active = choose_active_rows(index, x, none, len(weight), config, seed, carried)
        seconds.append((time.perf_counter() - start) * batch_size / len(x))
        if config.scope == "batch" and config.carry > 0:
            # The gradient of a softmax but for the labels.
            pushed_down = ops.gather_matmul(x, weight, bias, active.rows).T.float().softmax(0).sum(1)
            count = math.ceil(config.carry * config.active_rows(len(weight)))
            carried = hardest_rows(pushed_down, active, count, corrected=False)
        return active.rows, carried

    first: Tensor | None = None
    warm_up = _WARM_UP_STEPS if config.scope == "batch" and config.carry > 0 else 1
    for number, x in zip(range(warm_up), itertools.cycle(known.split(batch_size))):
        first = step(x, number, first)[1]
    seconds.clear()
    draws = []
    for draw in range(_DRAWS):
        carried, shares = first, []
        for number, (x, best) in enumerate(zip(measured.split(batch_size), best_rows.split(batch_size))):
            rows, carried = step(x, (draw + 1) * 1_000_003 + number, carried)
            shares.append(share_found(rows, best))
        draws.append(torch.cat(shares))
    return torch.stack(draws).mean(0), statistics.median(seconds)


def _places(found: Tensor, best_rows: Tensor) -> Tensor:
    """Where in ``found`` ``[Q, M]`` each of ``best_rows`` ``[Q, k]`` is; M where it is not.

    >>> _places(torch.tensor([[7, 3, -1]]), torch.tensor([[3, 5]]))
    tensor([[1, 3]])
    """
    rows, order = found.sort(1)
    at = torch.searchsorted(rows, best_rows.contiguous()).clamp_(max=found.shape[1] - 1)
    return order.gather(1, at).masked_fill_(rows.gather(1, at) != best_rows, found.shape[1])


class _StepCosts:
    """Seconds of a training step but for choosing the rows, by measurement on a layer of at most 32,768 rows.

    Of the dense layer, in proportion to its rows; of a sampled one, a straight line through the times for two numbers
    of active rows.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, batch_size: int) -> None:
        rows = min(out_features, _SCRATCH_ROWS)
        self._shape, self._batch_size = (in_features, rows, bias), batch_size
        self.dense = self._seconds(nn.Linear(*self._shape)) * out_features / rows
        self._lines: dict[str, tuple[float, float]] = {}

    def __call__(self, scope: str, active: int) -> float:
        if scope not in self._lines:
            many = min(_SCRATCH_ACTIVE[scope], max(2, self._shape[1] // 2))
            few = max(1, many // 8)
            at_few, at_many = (
                self._seconds(LSHLinear(*self._shape, config=LSHConfig(active=count, scope=scope, sampler="uniform")))
                for count in (few, many)
            )
            slope = max(0.0, at_many - at_few) / (many - few)
            self._lines[scope] = max(0.0, at_few - slope * few), slope
        constant, slope = self._lines[scope]
        return constant + slope * active

    def _seconds(self, layer: nn.Linear) -> float:
        """Of a step with Adam: the median of some."""
        optimizer = optim.Adam(layer.parameters(), lr=1e-3)
        x = torch.randn(self._batch_size, layer.in_features, device="cpu")
        y = torch.randint(layer.out_features, (self._batch_size,), device="cpu")
        seconds = []
        for _ in range(_WARM_UP + 5):
            start = time.perf_counter()
            with torch.enable_grad():
                F.cross_entropy(layer(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[_WARM_UP:])


class AutoTuner:
    """Tunes the LSH layers of a model again when they find too little: call :meth:`step` after ``optimizer.step()``.

    Every ``every`` steps the recall of each layer is measured on inputs of the last steps, as
    :meth:`torch_lsh.LSHLinear.stats` does. Where it is below the target by more than ``tolerance`` and its standard
    error, :func:`autotune` looks for other settings, for the layer's own hash family and in few seconds, and the layer
    takes them. What it picks depends on times, so runs with it do not repeat each other bit by bit.

    Args:
        model: a module; all LSH layers in it are watched (:meth:`torch_lsh.LSHLinear.watch`) until :meth:`detach`.
        target_recall: as for :func:`autotune`.
        every: steps between two measurements.
        tolerance: see above.
        k: whose recall.
        queries: that a measurement is made on.
        seconds: for a search.

    Raises:
        ValueError: an argument does not fit, or there is no LSH layer.

    >>> model = nn.Sequential(LSHLinear(8, 5_000))
    >>> tuner = AutoTuner(model, target_recall=0.9, every=100)
    >>> tuner.step()  # whether it gave a layer other settings
    False
    """

    def __init__(
        self,
        model: nn.Module,
        target_recall: float = 0.9,
        *,
        every: int = 1000,
        tolerance: float = 0.05,
        k: int = 10,
        queries: int = 64,
        seconds: float = 5.0,
    ) -> None:
        if not 0 < target_recall < 1 or not 0 <= tolerance < target_recall:
            raise ValueError(
                f"target_recall is {target_recall} and tolerance {tolerance}; wanted 0 <= tolerance < target_recall < 1"
            )
        for name, number in (("every", every), ("k", k), ("queries", queries), ("seconds", seconds)):
            if not number > 0:
                raise ValueError(f"{name} is {number}; wanted more than 0")
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, LSHLinear)}
        if not self._layers:
            raise ValueError("model has no LSH layer; swap layers in with torch_lsh.sparsify_(model)")
        self.target_recall, self.every, self.tolerance = target_recall, every, tolerance
        self.k, self.queries, self.seconds = k, queries, seconds
        self._inputs: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._steps = 0
        for layer in self._layers.values():
            if layer.stopwatch is None:
                layer.watch()

    def step(self) -> bool:
        """Counts one training step and measures when it is time; returns whether a layer was given other settings."""
        self._steps += 1
        if -self._steps % self.every >= _KEPT_STEPS:
            return False
        for name, layer in self._layers.items():
            if layer._watched is not None:
                self._inputs[name].append(layer._watched)
        if self._steps % self.every:
            return False
        tuned = [self._tune(name, layer) for name, layer in self._layers.items()]
        self._inputs = {name: [] for name in self._layers}
        return any(tuned)

    def _tune(self, name: str, layer: LSHLinear) -> bool:
        steps = self._inputs[name][-_KEPT_STEPS:]
        if not steps or layer.config.sampler != "lsh":
            return False
        batch_size, inputs = len(steps[-1]), torch.cat(steps)
        recall = layer.stats(inputs, k=self.k, queries=self.queries, batch_size=batch_size, seed=self._steps).recall
        assert recall is not None
        logger.debug("recall@%d of %s is %.3f", self.k, name, recall.mean)
        if not recall.mean + recall.error < self.target_recall - self.tolerance or len(inputs) < _LEAST_INPUTS:
            return False
        logger.info("recall@%d of %s fell to %.3f (target: %.3f)", self.k, name, recall.mean, self.target_recall)
        before = layer.config
        autotune(
            layer,
            inputs,
            self.target_recall,
            k=self.k,
            batch_size=batch_size,
            seconds=self.seconds,
            hashes=[layer.config.hash],
            apply=True,
        )
        return layer.config != before

    def detach(self) -> None:
        """Ends watching the layers."""
        for layer in self._layers.values():
            layer.watch(False)
