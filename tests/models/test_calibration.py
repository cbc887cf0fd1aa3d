"""Scores of a ranker become probabilities that fit how often its candidates are right."""

from __future__ import annotations

import math

import pytest
import torch

from torch_lsh.models.calibration import Calibration, logistic_line, slope_of_best


def drawn(slope, offset, rows=2000, candidates=20):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(rows, candidates, generator=generator)
    return scores, torch.rand(scores.shape, generator=generator) < (slope * scores + offset).sigmoid()


@pytest.mark.parametrize(("slope", "offset"), [(0.7, -2.0), (2.0, 1.0), (1.0, -5.0)])
def test_the_line_that_labels_were_drawn_by_is_found(slope, offset):
    scores, right = drawn(slope, offset)
    found = logistic_line(scores[right], scores[~right])
    torch.testing.assert_close(found, torch.tensor([slope, offset]), rtol=0.05, atol=0.02)


def test_the_line_has_the_least_loss():
    scores, right = (some[:50].flatten() for some in drawn(0.3, -1.0))
    line = logistic_line(scores[right], scores[~right])

    def loss(line):
        return torch.nn.functional.binary_cross_entropy_with_logits(scores * line[0] + line[1], right.float())

    for change in ([0.01, 0.0], [-0.01, 0.0], [0.0, 0.02], [0.0, -0.02]):
        assert loss(line) < loss(line + torch.tensor(change))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_line_is_finite_and_increases_whatever_scores_tell(sign):
    scores = torch.linspace(-100, 100, 41)
    right = sign * scores > 3
    slope, offset = logistic_line(scores[right], scores[~right]).tolist()
    assert 0.1 <= slope <= 10
    assert math.isfinite(offset)
    assert logistic_line(scores, scores[:0]).isfinite().all()
    assert logistic_line(scores[:0], scores).isfinite().all()
    assert logistic_line(scores[:0], scores[:0]).tolist() == [1, 0]


@pytest.mark.parametrize("right", [0, 5, 7, 10])
def test_the_mean_probability_of_the_best_is_the_share_that_is_right(right):
    scores = torch.tensor([[2.0, 1.5, -1.0, -torch.inf]] * 10)
    are_right = torch.zeros(10, 4, dtype=torch.bool)
    are_right[:right, 0] = True  # of the others, the label is no candidate
    slope = slope_of_best(scores, are_right)
    if right == 0:
        assert slope == pytest.approx(0.1, rel=1e-4)  # no slope makes the best of three less likely than a third
    else:
        best = (scores * slope).softmax(1)[0, 0]
        assert float(best) == pytest.approx(right / 11, abs=1e-4)  # one more row counts, which is wrong


@pytest.mark.parametrize("independent", [True, False])
def test_order_and_absent_candidates_stay(independent):
    scores, right = drawn(0.5, 3.0, rows=100)
    scores[:, 15:] = -torch.inf
    scores[7] = -torch.inf
    found = Calibration.of(scores, right, independent)(scores)
    assert torch.equal(found.argsort(dim=1, stable=True)[:, 5:], scores.argsort(dim=1, stable=True)[:, 5:])
    assert torch.equal(found == -torch.inf, scores == -torch.inf)
    sums = found.exp().sum(1)
    assert float(sums[7]) == 0
    if independent:
        assert float(sums.sum() / right[:, :15].sum()) == pytest.approx(1, abs=0.02)
    else:
        assert sums[:7].sub(1).abs().max() < 1e-5


@pytest.mark.parametrize("independent", [True, False])
def test_any_number_of_threads_gives_the_same_calibration(independent):
    scores, right = drawn(0.5, -2.0, rows=5000)
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 8):
            torch.set_num_threads(threads)
            made.append(Calibration.of(scores, right, independent).line.tolist())
    finally:
        torch.set_num_threads(before)
    assert made[1:] == made[:1] * 2
