"""What a training step costs, and which rows it would find."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops, optim
from ..config import LSHConfig
from ..index.base import Index
from ..nn import LSHLinear
from ..sampling.active_set import Budget, choose_active_rows
from ..sampling.stats import share_found

_SCRATCH_ROWS = 32_768  # of the layers that are timed
_SCRATCH_ACTIVE = {"batch": 16_384, "sample": 512}
_UNTIMED, _TIMED = 2, 5  # steps
_UNMEASURED_STEPS = 6  # after these the carried rows are those of any step
_DRAWS = 2  # of the steps that recall is measured in


class Task(NamedTuple):
    """The rows to find, and the inputs to find them for.

    Attributes:
        weight, bias: of the layer.
        known: ``[n, in]``: inputs to build indexes with, and of the first steps.
        measured: ``[m, in]``: inputs to measure recall with.
        best_rows: ``[m, k]``: the exact best rows of ``measured``.
        batch_size: of a step.
    """

    weight: Tensor
    bias: Tensor | None
    known: Tensor
    measured: Tensor
    best_rows: Tensor
    batch_size: int

    @property
    def num_rows(self) -> int:
        return len(self.weight)

    @property
    def k(self) -> int:
        return self.best_rows.shape[1]

    def of_every_nth_row(self, stride: int) -> Task:
        """The same task for fewer rows."""
        weight = self.weight[::stride].contiguous()
        bias = None if self.bias is None else self.bias[::stride].contiguous()
        best_rows = ops.linear_topk(self.measured, weight, bias, self.k)[1] if stride > 1 else self.best_rows
        return self._replace(weight=weight, bias=bias, best_rows=best_rows)


class _Steps:
    """Draws active sets as training does, without labels and with weights that stay."""

    def __init__(self, index: Index, config: LSHConfig, task: Task) -> None:
        self._index, self._task = index, task
        self._budget = Budget.of(config, task.num_rows)
        self.carried: Tensor | None = None
        self.seconds: list[float] = []  # to choose the active rows of a full batch

    @property
    def carries(self) -> bool:
        return not self._budget.per_sample and self._budget.num_carried > 0

    def step(self, x: Tensor, seed: int) -> Tensor:
        """The active rows of a batch."""
        task, none = self._task, torch.empty(len(x), 0, dtype=torch.int64, device="cpu")
        start = time.perf_counter()
        active = choose_active_rows(self._index, x, none, self._budget, seed, self.carried)
        self.seconds.append((time.perf_counter() - start) * task.batch_size / len(x))
        if self.carries:
            # The gradient of a softmax but for the labels.
            pushed_down = ops.gather_matmul(x, task.weight, task.bias, active.rows).T.float().softmax(0).sum(1)
            self.carried = ops.largest_rows(pushed_down, active.rows, self._budget.num_carried)
        return active.rows


def simulate_steps(index: Index, config: LSHConfig, task: Task) -> tuple[Tensor, float]:
    """Draws active sets, batch after batch, as training does, but without labels and with weights that stay.

    Args:
        index: in step with the weights.
        config: of the layer.
        task: the rows and inputs.

    Returns:
        The share of the best rows of each measured input that is active in its step, ``[m]``; and the median of the
        seconds that choosing the active rows takes.
    """
    steps = _Steps(index, config, task)
    batches = itertools.cycle(task.known.split(task.batch_size))
    for number, x in zip(range(_UNMEASURED_STEPS if steps.carries else 1), batches):
        steps.step(x, number)
    steps.seconds.clear()
    first, draws = steps.carried, []
    for draw in range(_DRAWS):
        steps.carried, shares = first, []
        for number, (x, best) in enumerate(
            zip(task.measured.split(task.batch_size), task.best_rows.split(task.batch_size))
        ):
            shares.append(share_found(steps.step(x, (draw + 1) * 1_000_003 + number), best))
        draws.append(torch.cat(shares))
    return torch.stack(draws).mean(0), statistics.median(steps.seconds)


class StepCosts:
    """Seconds of a training step without choosing the rows, measured on a layer of at most 32,768 rows.

    A dense layer takes time in proportion to its rows. For a sampled one, a straight line goes through the times at two
    numbers of active rows.

    Args:
        in_features: width of the layer.
        out_features: rows of the layer.
        bias: whether it has a bias.
        batch_size: of a step.

    Attributes:
        dense: seconds of a step of ``nn.Linear``.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, batch_size: int) -> None:
        rows = min(out_features, _SCRATCH_ROWS)
        self._shape, self._batch_size = (in_features, rows, bias), batch_size
        self.dense = self._seconds(nn.Linear(*self._shape, device="cpu")) * out_features / rows
        self._lines: dict[str, tuple[float, float]] = {}

    def __call__(self, scope: str, active: int) -> float:
        """Seconds of a step with so many active rows."""
        if scope not in self._lines:
            self._lines[scope] = self._line(scope)
        constant, slope = self._lines[scope]
        return constant + slope * active

    def _line(self, scope: str) -> tuple[float, float]:
        many = min(_SCRATCH_ACTIVE[scope], max(2, self._shape[1] // 2))
        few = max(1, many // 8)
        at_few, at_many = (
            self._seconds(LSHLinear(*self._shape, device="cpu", config=config))
            for config in (LSHConfig(active=count, scope=scope, sampler="uniform") for count in (few, many))
        )
        slope = max(0.0, at_many - at_few) / (many - few)
        return max(0.0, at_few - slope * few), slope

    def _seconds(self, layer: nn.Linear) -> float:
        """Of a step with Adam, the median."""
        optimizer = optim.Adam(layer.parameters(), lr=1e-3)
        x = torch.randn(self._batch_size, layer.in_features, device="cpu")
        y = torch.randint(layer.out_features, (self._batch_size,), device="cpu")
        seconds = []
        for _ in range(_UNTIMED + _TIMED):
            start = time.perf_counter()
            with torch.enable_grad():
                F.cross_entropy(layer(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[_UNTIMED:])
