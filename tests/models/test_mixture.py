"""Neighbours and their mixture with a network's probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch

from torch_lsh.data import XMCRows
from torch_lsh.models.mixture import Mixture, bucket_of
from torch_lsh.models.neighbours import neighbours_of, with_more_rows
from torch_lsh.models.rows import DenseRows, batch_of


def rows_of(rows, labels, num_features=8, num_labels=5):
    """Rows of unit length with equal values in the given features."""
    start, label_start = (torch.tensor([0, *map(len, some)]).cumsum(0) for some in (rows, labels))
    values = torch.cat([torch.full((len(row),), max(1, len(row)) ** -0.5) for row in rows])
    features, flat = (torch.tensor([*itertools.chain(*some)], dtype=torch.int32) for some in (rows, labels))
    return XMCRows(start, features, values, label_start, flat, num_features, num_labels)


KEPT = rows_of([[0, 1], [0, 2], [3], [], [1, 2, 4, 5]], [[0, 3], [1], [1, 2], [4], []])


def features_of(*rows):
    return batch_of(rows_of(rows, [[] for _ in rows])).features


def mixture_of(neighbours, share, counts=None):
    return Mixture([neighbours], torch.ones(5, dtype=torch.int64) if counts is None else counts, share)


def test_votes_are_those_of_the_nearest():
    neighbours = neighbours_of(KEPT, k=3)
    cosines, rows = neighbours.search(features_of([0, 1]))
    assert rows.tolist() == [[0, 1, 4]]
    torch.testing.assert_close(cosines, torch.tensor([[1, 0.5, 8**-0.5]]))
    neighbours.power = 2
    votes = neighbours.votes(cosines, rows)  # row 4 has no label
    torch.testing.assert_close(votes, torch.tensor([[1, 0.25, 0, 1, 0]]) / 2.25)
    neighbours.power = 3
    torch.testing.assert_close(neighbours.votes(cosines, rows)[0, 1], torch.tensor(0.125 / 2.125))
    assert neighbours(features_of([])).tolist() == [[0] * 5]


def test_rows_of_any_length_and_order():
    """Cosines do not depend on lengths, on the order of the columns, or on whether a column is written twice."""
    wanted = neighbours_of(KEPT, k=3).search(features_of([0, 1]))
    crow, col = torch.tensor([0, 3]), torch.tensor([1, 0, 1])
    query = torch.sparse_csr_tensor(crow, col, torch.tensor([1.0, 2, 1]), (1, 8), check_invariants=False)
    longer = KEPT._replace(values=KEPT.values * 7)
    for a, b in zip(neighbours_of(longer, k=3).search(query), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_dense_rows_have_the_neighbours_of_sparse_ones():
    sparse = neighbours_of(KEPT, k=3)
    dense = neighbours_of(DenseRows(batch_of(KEPT).features.to_dense(), KEPT.label_start, KEPT.labels, 5), k=3)
    queries = features_of([0, 1], [3, 4])
    torch.testing.assert_close(dense(queries.to_dense()), sparse(queries))
    few = neighbours_of(dense.rows().take(torch.tensor([0])), k=3)
    cosines, rows = few.search(queries.to_dense())
    assert rows.tolist() == [[0, -1, -1]] * 2
    assert cosines[:, 1:].tolist() == [[-torch.inf] * 2] * 2


def test_more_rows_are_found_as_if_they_had_been_there():
    first, last = (KEPT.take(torch.tensor(some)) for some in ([0, 1, 2], [3, 4]))
    together = with_more_rows(neighbours_of(first, k=3), last)
    queries = features_of([0, 1], [4, 5])
    for a, b in zip(together.search(queries), neighbours_of(KEPT, k=3).search(queries), strict=True):
        assert torch.equal(a, b)


def test_longer_rows_that_join_are_scaled():
    first, last = (KEPT.take(torch.tensor(some)) for some in ([0, 1, 2], [3, 4]))
    together = with_more_rows(neighbours_of(first, k=3), last._replace(values=7 * last.values))
    torch.testing.assert_close(together.values, KEPT.values)


def test_rows_known_to_be_of_unit_length_are_kept_as_they_are():
    kept = neighbours_of(KEPT, k=3, unit=True)
    assert kept.values is KEPT.values
    assert kept.columns is KEPT.features


def test_probabilities_are_a_mixture():
    neighbours = neighbours_of(KEPT, k=3, power=2.0)
    logits = torch.randn(2, 5)
    mixed = mixture_of(neighbours, 0.3)(logits, features_of([0, 1], [7])).exp()
    votes = torch.tensor([1, 0.25, 0, 1, 0]) / 2.25
    torch.testing.assert_close(mixed[0], 0.7 * logits[0].softmax(0) + 0.3 * votes)
    torch.testing.assert_close(mixed[1], logits[1].softmax(0))  # no neighbour


def test_each_frequency_has_its_share():
    assert bucket_of(torch.tensor([0, 1, 2, 3, 4, 10**6])).tolist() == [0, 0, 1, 1, 2, 7]
    mixture = mixture_of(neighbours_of(KEPT, k=3, power=2.0), 0.0, torch.tensor([1, 1, 2, 4, 4]))
    mixture.shares[0, 2] = 0.5  # labels 3 and 4
    logits = torch.zeros(1, 5)
    wanted = torch.tensor([0.2, 0.2, 0.2, 0.1 + 0.5 / 2.25, 0.1])
    torch.testing.assert_close(mixture(logits, features_of([0, 1])).exp()[0], wanted / wanted.sum())


def test_rows_that_are_no_rows_are_refused():
    for change in (
        {"features": torch.full_like(KEPT.features, 8)},
        {"labels": torch.full_like(KEPT.labels, -1)},
        {"feature_start": KEPT.feature_start.flip(0)},
        {"values": KEPT.values[1:]},
    ):
        with pytest.raises(ValueError):
            neighbours_of(KEPT._replace(**change), k=3)
