"""Calibration: scores of candidates -> probabilities that fit how often candidates are right."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LIMIT = 10.0  # of the slope, and its inverse
CALIBRATED_ROWS = 2_000  # enough for two numbers
_STEPS = 20
_BINS = 1024  # of scores; in so narrow ones, their mean stands for all


class Calibration(nn.Module):
    """Scores -> logarithms of probabilities. The order of a row's scores stays.

    Where rows have one label each, probabilities are those of a softmax of the scores times a slope: the one at which
    the mean probability of the best candidates is the share of them that are right (rows whose label is no candidate
    included). Where rows may have several, every candidate has a probability of its own, the logistic function of slope
    times score plus offset. A softmax would make them sum to 1, whatever the number of labels.

    Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017; Platt, *Probabilistic Outputs for Support Vector
    Machines*, 1999.

    Args:
        independent: Whether rows may have several labels.

    >>> scores = torch.tensor([[9.0, 8.0, -9.0]] * 4)
    >>> right = torch.tensor([[1, 1, 0]] * 2 + [[1, 0, 0], [0, 1, 0]]) > 0
    >>> Calibration.of(scores, right, independent=True)(scores)[0].exp().round(decimals=1)
    tensor([0.7000, 0.7000, 0.1000])
    """

    line: Tensor  # [2] float32, slope and offset

    def __init__(self, independent: bool = False) -> None:
        super().__init__()
        self.independent = bool(independent)
        self.register_buffer("line", torch.tensor([1.0, 0.0]))

    @classmethod
    def of(cls, scores: Tensor, right: Tensor, independent: bool) -> Calibration:
        """The calibration that rows ask for.

        Args:
            scores: ``[R, K]``, -inf where there is no candidate.
            right: ``[R, K]`` bool, which candidates the row has.
            independent: See the class.
        """
        made = cls(independent)
        if independent:
            known = scores > -torch.inf
            made.line = logistic_line(scores[known & right], scores[known & ~right])
        else:
            made.line[0] = slope_of_best(scores, right)
        return made

    def forward(self, scores: Tensor) -> Tensor:
        """Logarithms of probabilities ``[B, K]`` of scores ``[B, K]``; -inf where the score is."""
        slope, offset = self.line
        if self.independent:
            return F.logsigmoid(scores * slope + offset)
        return (scores * slope).log_softmax(1).masked_fill(scores == -torch.inf, -torch.inf)

    def check(self) -> None:
        """Raises a ValueError where the slope is not positive or a number is not finite."""
        if not bool(self.line.isfinite().all()) or not float(self.line[0]) > 0:
            raise ValueError(f"calibration is {self.line.tolist()}; wanted a positive slope and a finite offset")


def slope_of_best(scores: Tensor, right: Tensor) -> float:
    """The slope at which the best candidates have a mean probability that is the share of them that are right.

    One more row counts, which is wrong, so that the slope is finite where all are right.

    >>> scores, right = torch.tensor([[2.0, 0.0]] * 3), torch.tensor([[1, 0]] * 3) > 0
    >>> round(slope_of_best(scores, right), 4), round(math.log(3) / 2, 4)  # 3 of 4
    (0.5493, 0.5493)
    """
    best = scores.max(1, keepdim=True)
    known = best.values[:, 0] > -torch.inf
    below = (scores - best.values)[known]
    wanted = float(right.gather(1, best.indices).sum()) / (len(scores) + 1) * len(scores)

    def excess(at: float) -> float:
        return float((below * math.exp(at)).exp_().sum(1).reciprocal_().sum()) - wanted

    low, high = -math.log(_LIMIT), math.log(_LIMIT)
    of_low, of_high = excess(low), excess(high)
    if of_low >= 0 or of_high <= 0:
        return math.exp(low if of_low >= 0 else high)
    last = 0.0
    for _ in range(_STEPS):  # secants, with half the excess of an end that stays twice (the Illinois method)
        middle = (low * of_high - high * of_low) / (of_high - of_low)
        found = excess(middle)
        if abs(found) < 1e-6 * len(scores):
            break
        if found < 0:
            low, of_low, of_high = middle, found, of_high / (2 if last < 0 else 1)
        else:
            high, of_high, of_low = middle, found, of_low / (2 if last > 0 else 1)
        last = found
    return math.exp(middle)


def logistic_line(right: Tensor, wrong: Tensor) -> Tensor:
    """Slope and offset of the logistic regression of being right on the scores of candidates: ``[2]`` float32.

    Targets are those of Platt, a little off 0 and 1, so that there is an end where scores tell all. The slope is at
    least 1/10, so that the order of the scores stays.

    Args:
        right: Scores of right candidates, ``[p]``.
        wrong: Of wrong ones, ``[n]``.
    """
    high, low = (len(right) + 1) / (len(right) + 2), 1 / (len(wrong) + 2)
    parts = [(*_binned(some), target) for some, target in ((right, high), (wrong, low)) if len(some) > 0]
    if not parts:
        return torch.tensor([1.0, 0.0])
    means, counts, targets = zip(*parts)
    x = torch.stack([torch.cat(means), torch.ones(sum(map(len, means)), dtype=torch.float64)])
    target = torch.cat([torch.full_like(some, value) for some, value in zip(means, targets)])
    weight = torch.cat(counts)
    weight *= len(weight) / weight.sum()
    line = torch.tensor([1.0, 0.0], dtype=torch.float64)
    loss = _logistic_loss(line @ x, target, weight)
    for _ in range(_STEPS):
        share = (line @ x).sigmoid_()
        slope = x @ (weight * (share - target))
        curvature = (x * (weight * share * (1 - share))) @ x.t()
        step = torch.linalg.solve(curvature + 1e-9 * torch.eye(2, dtype=torch.float64), slope)
        found = math.inf
        for _ in range(_STEPS):  # half the step until it is one downwards
            found = _logistic_loss((line - step) @ x, target, weight)
            if found <= loss:
                break
            step /= 2
        if not found < loss - 1e-6:
            break
        line, loss = line - step, found
    line[0].clamp_(1 / _LIMIT, _LIMIT)
    return line.float()


def _binned(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The means of scores ``[n]`` in bins of equal width and how many are in each, both ``[bins]`` float64."""
    least, most = scores.aminmax()
    bins = ((scores - least) * ((_BINS - 1) / (most - least).clamp(min=1e-30))).int()
    counts, sums = torch.bincount(bins), torch.bincount(bins, weights=scores.double())
    found = counts.nonzero()[:, 0]
    counts = counts[found].double()
    return sums[found] / counts, counts


def _logistic_loss(logits: Tensor, target: Tensor, weight: Tensor) -> float:
    return float(F.binary_cross_entropy_with_logits(logits, target, weight))
