from __future__ import annotations

import pytest
import torch

from torch_lsh.data import synthetic_xmc


@pytest.fixture(scope="module")
def large():
    return synthetic_xmc(12_000, 1_000)


def test_shape_of_amazon(large):
    train, test = large
    assert (len(train), len(test)) == (12_000, 1_000)
    for dataset in large:
        assert (dataset.num_features, dataset.num_labels) == (135_909, 670_091)
        assert 70 < len(dataset.rows.features) / len(dataset) < 80
        assert 5 < len(dataset.rows.labels) / len(dataset) < 6
        assert dataset.rows.label_start.diff().min() >= 1


def test_rows_are_normalised_and_sorted(large):
    rows = large[0].rows
    row = torch.repeat_interleave(rows.feature_start.diff())
    squares = torch.zeros(12_000).index_add(0, row, rows.values.square())
    torch.testing.assert_close(squares, torch.ones(12_000))
    assert (rows.values > 0).all()
    features = row * 135_909 + rows.features
    labels = torch.repeat_interleave(rows.label_start.diff()) * 670_091 + rows.labels
    assert (features.diff() > 0).all()
    assert (labels.diff() > 0).all()


def test_popularity_follows_a_power_law(large):
    for ids in (large[0].rows.labels, large[0].rows.features):
        counts = ids.unique(return_counts=True)[1].sort(descending=True).values.double()
        assert counts[: len(counts) // 100].sum() > 0.05 * counts.sum()  # five times a uniform one's share
        assert counts[0] > 20 * counts.median()


def test_labels_of_a_row_share_a_cluster(large):
    rows = large[0].rows
    first = rows.labels[rows.label_start[:-1]] // 8
    assert torch.equal(torch.repeat_interleave(first, rows.label_start.diff()), rows.labels // 8)


def test_features_tell_the_labels():
    """Nearest neighbours among the training rows find a label of many test rows; chance does not."""
    train, test = synthetic_xmc(5_000, 300, num_features=20_000, num_labels=1_000)

    def matrix(dataset):
        rows = dataset.rows
        shape = (len(dataset), dataset.num_features)
        return torch.sparse_csr_tensor(rows.feature_start, rows.features.long(), rows.values, shape)

    similarity = matrix(train) @ matrix(test).to_dense().T
    nearest = similarity.argmax(0)
    shuffled = nearest[torch.randperm(300, generator=torch.Generator().manual_seed(0))]

    def hits(neighbours):
        pairs = enumerate(neighbours.tolist())
        return sum(int(train[j].labels[0]) in test[i].labels.tolist() for i, j in pairs) / 300

    assert hits(nearest) > 0.3
    assert hits(shuffled) < 0.05


def test_deterministic_by_seed():
    def arrays(seed, num_train=300):
        return [torch.cat([t.double() for t in d.rows[:5]]) for d in synthetic_xmc(num_train, 40, 500, 300, seed)]

    first, again, other, longer = arrays(0), arrays(0), arrays(1), arrays(0, 400)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other))
    assert torch.equal(first[1], longer[1])


@pytest.mark.parametrize(("num_features", "num_labels"), [(1, 1), (5, 8), (30, 13)])
def test_small_sizes(num_features, num_labels):
    train, test = synthetic_xmc(50, 0, num_features, num_labels)
    assert len(test) == 0
    assert train.rows.features.max() < num_features
    assert train.rows.labels.max() < num_labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0), "num_train is -1; wanted 0 or more"),
        ((1, 1, 0), "num_features is 0; wanted at least 1"),
        ((1, 1, 1, 0), "num_labels is 0; wanted at least 1"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_xmc(*arguments)
