"""Weighting of sparse features."""

from __future__ import annotations

import pytest
import torch

from torch_lsh.data import XMCRows
from torch_lsh.models.weighting import FeatureWeighting, _precision_of_neighbours


def rows_of(matrix, labels):
    csr = torch.as_tensor(matrix).float().to_sparse_csr()
    return XMCRows(
        csr.crow_indices(),
        csr.col_indices().int(),
        csr.values(),
        torch.arange(len(labels) + 1),
        torch.tensor(labels, dtype=torch.int32),
        csr.shape[1],
        max(labels) + 1,
    )


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("idf", [False, True])
def test_values(log, idf):
    rows = rows_of([[1, 3, 0], [0, 2, 0], [0, 0, 0], [0, 1, -4]], [0, 0, 0, 0])
    values = torch.tensor([[1.0, 3, 0], [0, 2, 0], [0, 0, 0], [0, 1, -4]])
    if log:
        values = values.sign() * (1 + values.abs()).log()
    if idf:
        values *= (5 / torch.tensor([2.0, 4, 2])).log() + 1
    wanted = torch.nn.functional.normalize(values, dim=1)
    weighting = FeatureWeighting.of(rows, log, idf)
    ours = weighting.rows(rows)
    matrix = torch.sparse_csr_tensor(ours.feature_start, ours.features.long(), ours.values, (4, 3))
    torch.testing.assert_close(matrix.to_dense(), wanted)
    raw = torch.sparse_csr_tensor(rows.feature_start, rows.features.long(), rows.values, (4, 3))
    weighed = weighting(raw)
    assert weighed.unit
    parts = weighed.crow_indices(), weighed.col_indices(), weighed.values()
    torch.testing.assert_close(torch.sparse_csr_tensor(*parts, (4, 3)).to_dense(), wanted)


def test_columns_increase_and_repeated_ones_are_added_up():
    weighting = FeatureWeighting(4)
    features = torch.sparse_csr_tensor(torch.tensor([0, 3]), torch.tensor([2, 0, 2]), torch.tensor([1.0, 4, 2]), (1, 4))
    weighed = weighting(features)
    assert weighed.col_indices().tolist() == [0, 2]
    torch.testing.assert_close(weighed.values(), torch.tensor([0.8, 0.6]))


def test_a_feature_twice_in_a_row_is_of_one_row():
    rows = rows_of([[1, 3], [0, 2]], [0, 0])
    twice = rows._replace(
        feature_start=2 * rows.feature_start,
        features=rows.features.repeat_interleave(2),
        values=rows.values.repeat_interleave(2) / 2,
    )
    assert torch.equal(FeatureWeighting.of(twice, True, True).weight, FeatureWeighting.of(rows, True, True).weight)


def test_counts_of_frequent_words_are_damped():
    """The label follows from one rare word; a frequent word with large counts hides it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 40
    counts = torch.zeros(400, 45)
    counts[torch.arange(400), labels] = 1
    counts[:, 40:] = torch.randint(0, 20, (400, 5), generator=generator).float()
    chosen = FeatureWeighting.choose(rows_of(counts, labels.tolist()))
    assert chosen.log
    assert chosen.weight[0] > chosen.weight[40]


@pytest.mark.parametrize("weighed", [False, True])
def test_rarity_does_not_count_twice(weighed):
    """Neighbours are better with rarity squared, but it is in the values already, unless they are counts."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 40
    values = torch.zeros(400, 340)
    values[torch.arange(400), labels] = 1
    values[:, 40:] = (torch.rand(400, 300, generator=generator) < 0.3).float()
    rows = rows_of(values, labels.tolist())
    if weighed:
        rows = FeatureWeighting.of(rows, log=False, idf=True).rows(rows)
    again = FeatureWeighting.of(rows, log=False, idf=True)
    assert _precision_of_neighbours(again.rows(rows)) > _precision_of_neighbours(FeatureWeighting(340).rows(rows))
    assert bool((FeatureWeighting.choose(rows).weight == 1).all()) is weighed


def test_values_that_tell_are_left_alone():
    """The label is in the values; weights would hide it."""
    labels = torch.arange(300) % 3
    values = torch.ones(300, 5)
    values[torch.arange(300), labels] = 10
    chosen = FeatureWeighting.choose(rows_of(values, labels.tolist()))
    assert not chosen.log
    assert bool((chosen.weight == 1).all())


def test_features_that_no_row_has_do_not_count():
    weighting = FeatureWeighting(4)
    weighting.weight = torch.tensor([1.0, 2, 3, 4])
    features = torch.sparse_csr_tensor(torch.tensor([0, 2, 3]), torch.tensor([1, 2, 2]), torch.ones(3), (2, 4))
    weighed = weighting(features, column_start=torch.tensor([0, 1, 4, 4, 4]))
    assert weighed.crow_indices().tolist() == [0, 1, 1]
    assert weighed.col_indices().tolist() == [1]
    assert weighed.values().tolist() == [1.0]
