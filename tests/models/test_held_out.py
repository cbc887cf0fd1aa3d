"""Held-out rows: the quality of a ranker is that of the scores of all labels."""

from __future__ import annotations

import pytest
import torch

from torch_lsh.data import synthetic_xmc
from torch_lsh.models.held_out import HeldOut, Precision, parts_in_turn, places_of
from torch_lsh.models.network import WideNetwork
from torch_lsh.models.ranker import LabelRanker
from torch_lsh.models.rows import batch_of, num_rows


def test_places_of_labels():
    candidates = torch.tensor([[5, 6, -1], [8, 2, 0]])
    labels = torch.tensor([[7, 6, -100], [0, 8, 2]])
    assert places_of(labels, candidates).tolist() == [[3, 1, -100], [2, 0, 1]]
    assert places_of(labels[:, :0], candidates).shape == (2, 0)


def test_each_part_of_few_rows_is_left_out_once():
    rows = synthetic_xmc(103, 0, num_features=1000, num_labels=600, seed=0)[0].rows
    kept, held_out = rows.take(torch.arange(78)), rows.take(torch.arange(78, 103))
    parts = list(parts_in_turn(kept, held_out, seed=1))
    assert [num_rows(part) for part, _ in parts] == [26, 26, 26]
    assert sorted(row for part, _ in parts for row in as_lists(part)) == sorted(as_lists(kept))
    for part, others in parts:
        assert sorted(as_lists(part) + as_lists(others)) == sorted(as_lists(rows))
    assert as_lists(parts[0][0]) != as_lists(kept)[:26]  # rows may be in the order of their labels


def as_lists(rows):
    return [
        [part.tolist() for part in (one.features, one.values, one.labels)]
        for one in map(rows.take, torch.arange(num_rows(rows))[:, None])
    ]


def test_final_quality_is_that_of_all_scores():
    rows = synthetic_xmc(2000, 0, num_features=1000, num_labels=600, seed=0)[0].rows
    kept, held_out = rows.take(torch.arange(1700)), rows.take(torch.arange(1700, 2000))
    torch.manual_seed(0)
    network = WideNetwork(1000, 600, 8, sampled=False)
    ranker = LabelRanker.of(kept, 20)
    judge = HeldOut(held_out, network, ranker)
    judge.tune()
    found = judge.final().compute()
    network.mixture = ranker
    metric = Precision()
    batch = batch_of(held_out)
    with torch.no_grad():
        metric.update(network.scores(batch.features), batch.labels)
    assert found == pytest.approx(metric.compute())
    assert found["precision@1"] > 0.1
