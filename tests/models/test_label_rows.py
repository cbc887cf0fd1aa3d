"""Centroids and linear classifiers of labels."""

from __future__ import annotations

import pytest
import torch

from torch_lsh.data import XMCRows, collate_xmc, synthetic_xmc
from torch_lsh.models.label_rows import Centroids, LinearClassifiers, rows_of_labels
from torch_lsh.models.weighting import FeatureWeighting


@pytest.fixture(scope="module")
def rows():
    train, _ = synthetic_xmc(300, 0, num_features=400, num_labels=50)
    return FeatureWeighting.of(train.rows, log=False, idf=False).rows(train.rows)


def dense(rows: XMCRows):
    features = collate_xmc(rows)[0].to_dense()
    labels = torch.zeros(len(features), rows.num_labels)
    row = torch.repeat_interleave(rows.label_start.diff())
    labels[row, rows.labels.long()] = 1
    return features, labels


def as_matrix(module):
    return torch.sparse_csr_tensor(
        module.start, module.columns.long(), module.values, (module.num_labels, module.num_features)
    ).to_dense()


def test_rows_of_labels_is_the_transpose(rows):
    start, row = rows_of_labels(rows)
    _, labels = dense(rows)
    for label in range(rows.num_labels):
        assert row[start[label] : start[label + 1]].tolist() == labels[:, label].nonzero()[:, 0].tolist()


def test_centroids_are_means_of_unit_length_without_small_entries(rows):
    features, labels = dense(rows)
    wanted = torch.nn.functional.normalize(labels.T @ features, dim=1)
    ours = as_matrix(Centroids.of(rows))
    assert (ours[ours != 0] >= 0.03).all()
    torch.testing.assert_close(ours, wanted.where(wanted >= 0.03, 0), rtol=1e-4, atol=1e-6)
    assert (wanted - ours).max() < 0.031


def test_the_nearest_centroids_are_found(rows):
    centroids = Centroids.of(rows)
    features, _ = collate_xmc(rows.take(torch.arange(20)))
    products = features.to_dense() @ as_matrix(centroids).T
    found = centroids.search(features, 3)
    torch.testing.assert_close(products.gather(1, found), products.topk(3).values)


def test_products_with_chosen_labels(rows):
    centroids = Centroids.of(rows)
    features, _ = collate_xmc(rows.take(torch.arange(4)))
    labels = torch.tensor([[3, 0, -1]] * 4)
    wanted = features.to_dense() @ as_matrix(centroids).T
    torch.testing.assert_close(centroids(features, labels)[:, :2], wanted[:, [3, 0]])
    assert centroids(features, labels)[:, 2].tolist() == [0] * 4


def test_classifiers_tell_their_rows_from_the_negatives():
    """Label 0 and label 1 share a feature; another one tells them apart."""
    start = torch.arange(0, 17, 2)
    features = torch.tensor([0, 1, 0, 2] * 4, dtype=torch.int32)
    values = torch.full((16,), 0.5**0.5)
    labels = torch.tensor([0, 1] * 4, dtype=torch.int32)
    rows = XMCRows(start, features, values, torch.arange(9), labels, 3, 2)
    classifiers = LinearClassifiers.of(rows, torch.tensor([[1, -1], [0, 1]] * 4))
    batch, _ = collate_xmc(rows)
    scores = classifiers(batch, torch.tensor([[0, 1]] * 8))
    low, high = scores.abs().amin((1, 2)).tolist()  # errors cost more, so weights are larger
    assert 0.02 < low < high
    assert high > 0.2
    for of_cost, values in zip(scores, classifiers.values):
        assert of_cost.argmax(1).tolist() == [0, 1] * 4
        matrix = torch.sparse_csr_tensor(classifiers.start, classifiers.columns.long(), values, (2, 3)).to_dense()
        assert matrix[0, 1] > 0 > matrix[0, 2]


def test_a_label_of_the_row_is_no_negative(rows):
    _, labels = dense(rows)
    own = torch.full((len(labels), 1), -1)
    own[:, 0] = labels.argmax(1)
    with_own = LinearClassifiers.of(rows, own)
    without = LinearClassifiers.of(rows, torch.full_like(own, -1))
    assert torch.equal(with_own.values, without.values)
    assert torch.equal(with_own.bias, without.bias)


def test_pairs_of_label_and_row_may_be_more_than_32_bits():
    count, labels = 70_000, 40_000
    start = torch.zeros(count + 1, dtype=torch.int64)
    start[-1] = 1  # one feature, in the last row
    last = torch.tensor([labels - 1], dtype=torch.int32)
    rows = XMCRows(start, torch.tensor([2]).int(), torch.ones(1), start, last, 3, labels)
    negatives = torch.full((count, 1), -1, dtype=torch.int32)
    negatives[-2:] = labels - 2
    classifiers = LinearClassifiers.of(rows, negatives)
    assert classifiers.start.diff().nonzero()[:, 0].tolist() == [labels - 2, labels - 1]
    for values in classifiers.values:
        assert values[0] < 0 < values[1]


@pytest.mark.parametrize("kind", [Centroids, LinearClassifiers])
def test_labels_may_have_no_entries(kind):
    kind(5, 3, 0).check(3)
    with pytest.raises(ValueError, match="3 features; wanted 4"):
        kind(5, 3, 0).check(4)
