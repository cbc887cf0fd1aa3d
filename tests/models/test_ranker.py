"""LabelRanker: candidates, what is known of them, and their ranks."""

from __future__ import annotations

import pytest
import torch

from torch_lsh.data import collate_xmc, synthetic_xmc
from torch_lsh.data.xmc import join_rows, padded_labels
from torch_lsh.metrics import PrecisionAtK
from torch_lsh.models.neighbours import neighbours_of
from torch_lsh.models.ranker import Evidence, LabelRanker, best_of
from torch_lsh.models.weighting import FeatureWeighting


@pytest.fixture(scope="module")
def data():
    train, test = synthetic_xmc(3000, 300, num_features=2000, num_labels=500, seed=0)
    weighting = FeatureWeighting.of(train.rows, log=False, idf=False)
    rows = weighting.rows(train.rows)
    return rows.take(torch.arange(2500)), rows.take(torch.arange(2500, 3000)), weighting.rows(test.rows)


@pytest.fixture(scope="module")
def ranker(data):
    train, held_out, _ = data
    made = LabelRanker.of(train, 30, with_logits=False)
    made.tune(batches(made, held_out))
    return made.eval()


def batches(ranker, rows):
    return [(ranker.evidence(collate_xmc(rows)[0]), padded_labels(rows))]


def topk(ranker, rows, k):
    evidence = ranker.evidence(collate_xmc(rows)[0])
    return best_of(ranker(evidence), evidence.labels, k)


def precision(rows, labels):
    metric = PrecisionAtK((1, 5))
    metric.update(labels, padded_labels(rows))
    return metric.compute()


@torch.no_grad()
def test_it_is_better_than_votes_and_than_centroids(data, ranker):
    test = data[2]
    evidence = ranker.evidence(collate_xmc(test)[0])
    ours = precision(test, topk(ranker, test, 5)[1])
    for column in (0, 8):  # votes, cosines
        values = evidence.values[:, :, column].masked_fill(evidence.labels < 0, -torch.inf)
        alone = precision(test, evidence.labels.gather(1, values.topk(5).indices))
        assert ours[1] > alone[1]
        assert ours[5] > alone[5]


@torch.no_grad()
def test_votes_are_shares_of_all_neighbours(data, ranker):
    train, _, test = data
    features, _ = collate_xmc(test.take(torch.arange(3)))
    cosines, rows = neighbours_of(train, 30).search(features)
    evidence = ranker.evidence(features)
    for i in range(3):
        sums = torch.zeros(train.num_labels)
        for cosine, row in zip(cosines[i].tolist(), rows[i].tolist()):
            if row >= 0:
                labels = train.labels[train.label_start[row] : train.label_start[row + 1]].long()
                sums[labels] += cosine**2
        found = evidence.labels[i] >= 0
        wanted = (sums / sums.sum())[evidence.labels[i][found]]
        torch.testing.assert_close(evidence.values[i, found, 4], wanted, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_scores_are_logarithms_of_probabilities(data, ranker):
    rows = data[2].take(torch.arange(10))
    scores = ranker(ranker.evidence(collate_xmc(rows)[0]))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(10))
    best, labels = topk(ranker, rows, 400)
    assert (best.diff(dim=1)[best[:, 1:] > -torch.inf] <= 0).all()
    assert ((labels == -1) == (best == -torch.inf)).all()
    for row in labels:
        known = row[row >= 0]
        assert len(known.unique()) == len(known)


@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one(data, ranker):
    test = data[2]
    together = topk(ranker, test.take(torch.arange(7)), 5)
    for i in range(7):
        alone = topk(ranker, test.take(torch.tensor([i])), 5)
        torch.testing.assert_close(alone[0][0], together[0][i], rtol=1e-4, atol=1e-4)


def test_equal_seeds_give_equal_rankers(data, ranker):
    train, held_out, test = data
    again = LabelRanker.of(train, 30, with_logits=False)
    again.tune(batches(again, held_out))
    with torch.no_grad():
        for ours, theirs in zip(topk(again, test, 5), topk(ranker, test, 5)):
            assert torch.equal(ours, theirs)


@torch.no_grad()
def test_logits_of_a_good_network_count(data):
    """A network that knows the labels makes the ranker right wherever a label is a candidate."""
    train, held_out, test = data
    made = LabelRanker.of(train, 30, with_logits=True)

    def evidence(rows):
        found = made.evidence(collate_xmc(rows)[0])
        return found.with_logits(5.0 * right(found, rows))

    quality = made.tune([(evidence(held_out), padded_labels(held_out))])
    found = evidence(test)
    best = best_of(made(found), found.labels, 5)[1]
    reachable = right(found, test).any(1).float().mean()
    assert precision(test, best)[1] > 0.98 * float(reachable)
    assert 0 < quality <= 1


def right(evidence: Evidence, rows):
    return (evidence.labels.unsqueeze(2) == padded_labels(rows).unsqueeze(1)).any(2) & (evidence.labels >= 0)


def test_more_rows_become_neighbours(data, ranker):
    train, held_out, _ = data
    more = ranker.with_rows(join_rows([train, held_out]))
    assert len(more.neighbours) == 3000
    assert more.rank is ranker.rank
    assert int(more.counts.sum()) == len(train.labels) + len(held_out.labels)
    # A row is its own nearest neighbour now.
    cosines, rows = more.neighbours.search(collate_xmc(held_out.take(torch.tensor([3])))[0])
    assert rows[0, 0] == 2503
    assert cosines[0, 0] > 0.999
