"""Calibration: scores of candidates -> probabilities that fit how often candidates are right."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LIMIT = 10.0  # of the slope, and its inverse
CALIBRATED_ROWS = 2_000  # enough for two numbers
_STEPS = 20


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
            made.line = logistic_line(scores[known], right[known])
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
    low, high = -math.log(_LIMIT), math.log(_LIMIT)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = float((below * math.exp(middle)).exp_().sum(1).reciprocal_().sum())
        low, high = (middle, high) if found < wanted else (low, middle)
    return math.exp((low + high) / 2)


def logistic_line(scores: Tensor, right: Tensor) -> Tensor:
    """Slope and offset of the logistic regression of ``right`` ``[n]`` on scores ``[n]``: ``[2]`` float32.

    Targets are those of Platt, a little off 0 and 1, so that there is an end where scores tell all. The slope is at
    least 1/10, so that the order of the scores stays.
    """
    x = torch.stack([scores.double(), torch.ones(len(scores), dtype=torch.float64)], 1)
    positive = float(right.sum())
    high, low = (positive + 1) / (positive + 2), 1 / (len(right) - positive + 2)
    target = torch.where(right, high, low).double()
    line = torch.tensor([1.0, 0.0], dtype=torch.float64)
    loss = _logistic_loss(x @ line, target)
    for _ in range(_STEPS):
        share = (x @ line).sigmoid_()
        slope = x.t() @ (share - target)
        curvature = (x * (share * (1 - share)).unsqueeze(1)).t() @ x
        step = torch.linalg.solve(curvature + 1e-9 * torch.eye(2, dtype=torch.float64), slope)
        found = math.inf
        for _ in range(_STEPS):  # half the step until it is one downwards
            found = _logistic_loss(x @ (line - step), target)
            if found <= loss:
                break
            step /= 2
        if not found < loss - 1e-6:
            break
        line, loss = line - step, found
    line[0].clamp_(1 / _LIMIT, _LIMIT)
    return line.float()


def _logistic_loss(logits: Tensor, target: Tensor) -> float:
    return float(F.binary_cross_entropy_with_logits(logits, target))
