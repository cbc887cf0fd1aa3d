"""Labels that rows may be mistaken for."""

from __future__ import annotations

import torch

from torch_lsh.data import XMCRows, synthetic_xmc
from torch_lsh.models.hard_labels import Thoroughness, hard_labels
from torch_lsh.models.label_rows import Centroids
from torch_lsh.models.neighbours import neighbours_of
from torch_lsh.models.ranker import LabelRanker


def rows_of_labels(counts):
    """Rows with so many labels each, and one feature each, of unit length."""
    counts = torch.tensor(counts)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    rows = torch.arange(len(counts) + 1)
    labels = torch.arange(int(start[-1]), dtype=torch.int32)
    return XMCRows(rows, rows[:-1].int(), torch.ones(len(counts)), start, labels, len(counts), len(labels))


def test_rows_of_one_label_need_fewer():
    one, several = Thoroughness.for_rows(rows_of_labels([1, 1, 2])), Thoroughness.for_rows(rows_of_labels([1, 2]))
    assert one.width * 2 == several.width
    assert one.passes < several.passes
    assert Thoroughness.for_rows(rows_of_labels([])) == several
    assert Thoroughness.for_rows(rows_of_labels([2, 0, 0])) == several
    assert Thoroughness.for_rows(rows_of_labels([1, 0, 0])) == one


def made(num_rows=300):
    rows = synthetic_xmc(num_rows, 1, num_features=200, num_labels=100, seed=0)[0].rows
    return rows, neighbours_of(rows, 20), Centroids.of(rows)


def test_hard_labels_are_those_of_neighbours_and_of_the_nearest_centroids():
    rows, neighbours, centroids = made()
    thoroughness = Thoroughness(8, 4, (2, 100, 1 << 12), 1)  # itself and the nearest one
    found = hard_labels(rows, neighbours, centroids, thoroughness)
    assert found.shape == (300, thoroughness.width)
    assert found.dtype == torch.int32
    dense = torch.zeros(300, 200)
    row = torch.repeat_interleave(torch.arange(300), rows.feature_start.diff())
    dense[row, rows.features.long()] = rows.values
    cosines = dense @ dense.T
    cosines.fill_diagonal_(-1)
    nearest = cosines.argmax(1)
    for label, of_nearest in zip(found, nearest.tolist()):
        begin, end = rows.label_start[of_nearest], rows.label_start[of_nearest + 1]
        assert set(rows.labels[begin:end][:8].tolist()) & set(label.tolist())
    from_row_100_on = hard_labels(rows, neighbours, centroids, thoroughness, 100)
    torch.testing.assert_close(from_row_100_on, found[100:])


def test_classifiers_are_trained_again_where_rows_come_to_have_several_labels():
    single, several = rows_of_labels([1] * 20), synthetic_xmc(200, 1, num_features=20, num_labels=20, seed=0)[0].rows
    ranker = LabelRanker.of(single, 5)
    grown = ranker.with_rows(several, refit=True)
    assert grown.counts.sum() == 20 + len(several.labels)
    assert not grown.lacks_classifiers(several.labels)
