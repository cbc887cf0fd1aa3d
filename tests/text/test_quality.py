"""Quality: the threshold with the best micro F1, wherever it is."""

from __future__ import annotations

import pytest
import torch

from torch_lsh.text.linear import LinearNetwork
from torch_lsh.text.quality import Quality

NETWORK = LinearNetwork(1, 3, binary=True)  # probabilities are logistic functions of the logits


def quality_of(probabilities, labels, threshold=None):
    metric = Quality(True, NETWORK, threshold)
    for some, own in zip(probabilities, labels):
        metric.update(torch.tensor([some]).logit(), torch.tensor([own]))
    return metric


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8])
def test_the_best_threshold_is_found_over_the_whole_range(scale):
    # Right: 0.9, 0.8, 0.6 and 0.3, of six labels. F1 of 1 to 6 given labels: 2/7, 4/8, 4/9, 6/10, 6/11, 8/12.
    probabilities = [[0.9, 0.7, 0.1], [0.8, 0.6, 0.5], [0.3, 0.2, 0.05]]
    labels = [[0, -100, -100], [0, 1, -100], [0, 3, 4]]
    metric = quality_of([[scale * p for p in row] for row in probabilities], labels)
    threshold, f1 = metric.best()
    assert threshold == pytest.approx(scale * (0.3 + 0.2) / 2, rel=1e-4)
    assert f1 == pytest.approx(8 / 12)
    assert metric.compute()["micro_f1"] == pytest.approx(8 / 12)


def test_the_best_threshold_may_be_close_to_one_and_close_to_zero():
    sure = quality_of([[0.9999, 0.999, 0.998]] * 2, [[0], [0]])
    assert sure.best_threshold() == pytest.approx(0.99945, abs=1e-5)
    all_right = quality_of([[1e-6, 2e-6, 3e-6]], [[0, 1, 2]])
    assert all_right.best_threshold() == pytest.approx(5e-7, rel=1e-3)


def test_the_best_threshold_is_found_anew_with_more_rows():
    metric = quality_of([[0.9, 0.2, 0.1]], [[0]])
    assert metric.best() == pytest.approx((0.55, 1.0))
    metric.update(torch.tensor([[0.1, 0.4, 0.2]]).logit(), torch.tensor([[1]]))
    assert metric.best() == pytest.approx((0.3, 1.0))


def test_equal_probabilities_are_given_together():
    metric = quality_of([[0.8, 0.8, 0.8], [0.8, 0.3, 0.1]], [[0, -100], [0, 1]])
    # The four at 0.8, of which two are right, and the one at 0.3: 6 / 8. One or two of the four alone are no choice.
    assert metric.best() == pytest.approx((0.2, 6 / 8))


@pytest.mark.parametrize(
    "probabilities", [[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]], ids=["all are 0", "none above 0 is right"]
)
def test_where_no_threshold_gives_a_right_label_it_is_one_half(probabilities):
    metric = quality_of([probabilities] * 2, [[1], [2]])
    assert metric.best() == (0.5, 0.0)
    assert metric.compute()["micro_f1"] == 0.0


def test_the_f1_of_a_threshold_counts_all_labels_from_it_on():
    wide = LinearNetwork(1, 300, binary=True)
    metric = Quality(True, wide, 0.5)
    logits = torch.cat([torch.ones(2, 200), -torch.ones(2, 100)], 1)
    metric.update(logits, torch.arange(150).expand(2, -1))
    assert metric.best() == pytest.approx((0.5, 2 * 150 / (200 + 150)))
