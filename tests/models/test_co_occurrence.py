"""CoOccurrences: shares of rows, and "noisy or" of the features of a row."""

from __future__ import annotations

import math

import torch

from torch_lsh.data import XMCRows, collate_xmc, synthetic_xmc
from torch_lsh.models import co_occurrence
from torch_lsh.models.co_occurrence import CoOccurrences


def as_matrix(made):
    return torch.sparse_csr_tensor(
        made.start, made.columns.long(), made.values, (made.num_labels, made.num_features)
    ).to_dense()


def test_values_are_those_of_the_shares_of_rows():
    rows = synthetic_xmc(300, 0, num_features=400, num_labels=50)[0].rows
    has_feature = collate_xmc(rows)[0].to_dense() != 0
    has_label = torch.zeros(300, 50)
    has_label[torch.repeat_interleave(rows.label_start.diff()), rows.labels.long()] = 1
    shares = has_label.T @ has_feature.float() / (2 + has_feature.sum(0))
    ours = as_matrix(CoOccurrences.of(rows))
    certain = (shares - 0.05).abs() > 1e-6  # one of twenty is just the least share
    kept = shares > 0.05
    assert 0 < kept.sum() < (shares > 0).sum()
    torch.testing.assert_close(ours[certain], -torch.log1p(-shares.where(kept, 0))[certain])


def test_a_row_has_a_label_unless_all_its_features_fail_to_bring_it():
    """Feature 0 comes with label 0 in 2 of 2 rows, feature 1 in 1 of 2; explicit zeros are no features."""
    rows = XMCRows(
        torch.tensor([0, 1, 3, 4]),
        torch.tensor([0, 0, 1, 1], dtype=torch.int32),
        torch.tensor([5.0, 1, 1, -3]),
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([0, 0, 1], dtype=torch.int32),
        3,
        2,
    )
    made = CoOccurrences.of(rows)
    query = torch.sparse_csr_tensor(
        torch.tensor([0, 2, 4]), torch.tensor([0, 1, 0, 2]), torch.tensor([2.0, 9, 0, 1]), (2, 3)
    )
    sums = made(query, torch.tensor([[0, 1, -1]] * 2))
    torch.testing.assert_close(1 - sums.neg().exp(), torch.tensor([[1 - 0.5 * 0.75, 0.25, 0], [0, 0, 0]]))


def test_a_label_that_a_row_has_twice_is_no_certainty():
    rows = XMCRows(
        torch.tensor([0, 1]),
        torch.tensor([0], dtype=torch.int32),
        torch.ones(1),
        torch.tensor([0, 4]),
        torch.zeros(4, dtype=torch.int32),
        1,
        1,
    )
    assert as_matrix(CoOccurrences.of(rows)).isfinite().all()


def test_pairs_that_come_once_are_left_out_where_there_are_too_many(monkeypatch):
    rows = synthetic_xmc(300, 0, num_features=400, num_labels=50)[0].rows
    everything = as_matrix(CoOccurrences.of(rows))
    pairs = int((rows.feature_start.diff() * rows.label_start.diff()).sum())
    monkeypatch.setattr(co_occurrence, "_MOST_PAIRS", pairs)
    assert torch.equal(as_matrix(CoOccurrences.of(rows)), everything)
    monkeypatch.setattr(co_occurrence, "_MOST_PAIRS", pairs - 1)
    least = -math.log1p(-0.34)
    found = as_matrix(CoOccurrences.of(rows))
    torch.testing.assert_close(found, everything.where(everything > least, 0))
    assert 0 < (found > 0).sum() < (everything > 0).sum()
