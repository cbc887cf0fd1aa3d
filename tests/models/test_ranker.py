"""LabelRanker: candidates, what is known of them, and their ranks."""

from __future__ import annotations

import copy

import pytest
import torch

from torch_lsh import ops
from torch_lsh.data import XMCRows, collate_xmc, synthetic_xmc
from torch_lsh.data.xmc import join_rows
from torch_lsh.metrics import PrecisionAtK
from torch_lsh.models import ranker as ranker_module
from torch_lsh.models.neighbours import neighbours_of
from torch_lsh.models.ranker import Evidence, LabelRanker, best_of
from torch_lsh.models.weighting import FeatureWeighting

LABELS = 1500


def reloaded(ranker, *lacking):
    """A ranker of equal sizes with the same state, as files have it, without some of the configuration."""
    configuration = {name: value for name, value in ranker.configuration().items() if name not in lacking}
    assert configuration.pop("kind") == "ranker"
    with torch.device("meta"):
        made = LabelRanker.empty(LABELS, **configuration)
    made.load_state_dict(ranker.state_dict(), assign=True)
    made.check(2000)
    return made


@pytest.fixture(scope="module")
def data():
    train, test = synthetic_xmc(2000, 300, num_features=2000, num_labels=LABELS, seed=0)
    rows = train.rows
    return rows.take(torch.arange(1500)), rows.take(torch.arange(1500, 2000)), test.rows


def no_logits(rows):
    """Logits of a network that knows nothing."""
    return torch.zeros(len(rows.label_start) - 1, LABELS)


def tuned(train, held_out, logits=no_logits):
    made = LabelRanker.of(train, 30)
    prepared = made.prepare(collate_xmc(held_out)[0])
    candidates = logits(held_out).gather(1, prepared.labels.clamp(min=0))
    made.tune([(prepared, candidates, collate_xmc(held_out)[1])])
    return made


@pytest.fixture(scope="module")
def ranker(data):
    return tuned(*data[:2])


@torch.no_grad()
def topk(ranker, rows, k, logits=no_logits):
    evidence = ranker.prepare(collate_xmc(rows)[0])
    candidates = logits(rows).gather(1, evidence.labels.clamp(min=0))
    return best_of(ranker.scores(evidence, candidates), evidence.labels, k)


def precision(rows, labels):
    metric = PrecisionAtK((1, 5))
    metric.update(labels, collate_xmc(rows)[1])
    return metric.compute()


def test_its_first_label_is_better_than_that_of_votes_and_of_centroids(data, ranker):
    test = data[2]
    evidence = ranker.prepare(collate_xmc(test)[0])
    ours = precision(test, topk(ranker, test, 5)[1])
    for column in (4, 8):  # votes, cosines
        values = evidence.values[:, :, column].masked_fill(evidence.labels < 0, -torch.inf)
        alone = precision(test, best_of(values, evidence.labels, 5)[1])
        assert ours[1] > alone[1]
        assert ours[5] > 0.98 * alone[5]


def test_features_that_no_training_row_has_do_not_count(data):
    train, _, test = data
    rows = test.take(torch.arange(20))
    kept = train.features != int(rows.features[0])
    start = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])[train.feature_start]
    without = train._replace(feature_start=start, features=train.features[kept], values=train.values[kept])
    ranker = LabelRanker.of(without, 30, FeatureWeighting.of(train, False, True))  # which knows the feature
    known = rows.features != rows.features[0]
    start = torch.cat([torch.zeros(1, dtype=torch.int64), known.cumsum(0)])[rows.feature_start]
    others = rows._replace(feature_start=start, features=rows.features[known], values=rows.values[known])
    for found, wanted in zip(ranker.prepare(collate_xmc(rows)[0]), ranker.prepare(collate_xmc(others)[0])):
        torch.testing.assert_close(found, wanted)


def test_votes_are_shares_of_all_neighbours(data, ranker):
    train, _, test = data
    rows = test.take(torch.arange(3))
    evidence = ranker.prepare(collate_xmc(rows)[0])
    weighed = ranker.weighting.rows(train)
    cosines, near = neighbours_of(weighed, 30).search(collate_xmc(ranker.weighting.rows(rows))[0])
    for i in range(3):
        sums = torch.zeros(LABELS)
        for cosine, row in zip(cosines[i].tolist(), near[i].tolist()):
            if row >= 0:
                labels = train.labels[train.label_start[row] : train.label_start[row + 1]].long()
                sums[labels] += cosine**2
        found = evidence.labels[i] >= 0
        wanted = (sums / sums.sum())[evidence.labels[i][found]]
        torch.testing.assert_close(evidence.values[i, found, 4], wanted, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_scores_are_logarithms_of_probabilities_that_each_candidate_is_right(data, ranker):
    best, labels = topk(ranker, data[2], 400)
    assert (best.diff(dim=1)[best[:, 1:] > -torch.inf] <= 0).all()
    assert ((labels == -1) == (best == -torch.inf)).all()
    for row in labels:
        known = row[row >= 0]
        assert len(known.unique()) == len(known)
    wanted = collate_xmc(data[2])[1]
    right = ((labels.unsqueeze(2) == wanted.unsqueeze(1)) & (labels >= 0).unsqueeze(2)).any(2).float()
    probabilities = best.exp()
    assert float(right.sum(1).mean()) > 1.5  # so that a softmax, whose sum is 1, is far off
    assert float(probabilities.sum() / right.sum()) == pytest.approx(1, abs=0.1)
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 1)):
        some = (probabilities > low) & (probabilities <= high)
        assert float(probabilities[some].mean()) == pytest.approx(float(right[some].mean()), abs=0.1)


@torch.no_grad()
def test_scores_of_all_labels_have_candidates_first_and_the_rest_by_logits(data, ranker):
    rows = data[2].take(torch.arange(4))
    logits = torch.randn(4, LABELS, generator=torch.Generator().manual_seed(0))
    features, _ = collate_xmc(rows)
    scores = ranker(logits, features)
    best, labels = topk(ranker, rows, 400, lambda _: logits)
    for i in range(4):
        count = int((labels[i] >= 0).sum())
        order = scores[i].argsort(descending=True, stable=True)
        torch.testing.assert_close(scores[i][order[:count]], best[i, :count])
        assert set(order[:count].tolist()) == set(labels[i, :count].tolist())
        assert (logits[i][order[count:]].diff() < 1e-4).all()


def test_a_batch_is_its_rows_one_by_one(data, ranker):
    test = data[2]
    together = topk(ranker, test.take(torch.arange(7)), 5)
    for i in range(7):
        alone = topk(ranker, test.take(torch.tensor([i])), 5)
        torch.testing.assert_close(alone[0][0], together[0][i], rtol=1e-4, atol=1e-4)


def test_equal_seeds_give_equal_rankers(data, ranker):
    again = tuned(*data[:2])
    for ours, theirs in zip(topk(again, data[2], 5), topk(ranker, data[2], 5)):
        assert torch.equal(ours, theirs)


def test_logits_of_a_good_network_count(data):
    """A network that knows the labels makes the ranker right wherever a label is a candidate."""
    train, held_out, test = data

    def logits(rows):
        row = torch.repeat_interleave(rows.label_start.diff())
        return no_logits(rows).index_put((row, rows.labels.long()), torch.tensor(5.0))

    made = tuned(train, held_out, logits)
    labels = made.prepare(collate_xmc(test)[0]).labels
    reachable = (labels.unsqueeze(2) == collate_xmc(test)[1].unsqueeze(1)).any(2) & (labels >= 0)
    found = precision(test, topk(made, test, 5, logits)[1])
    assert found[1] > 0.98 * float(reachable.any(1).float().mean())


@pytest.mark.parametrize("refit", [False, True])
def test_more_rows_become_neighbours(data, ranker, refit):
    train, held_out, _ = data
    more = ranker.with_rows(held_out._replace(num_labels=LABELS + 7, num_features=2010), refit)
    assert len(more.neighbours) == 2000
    assert more.num_labels == LABELS + 7
    assert more.rank is ranker.rank
    assert int(more.counts.sum()) == len(train.labels) + len(held_out.labels)
    assert len(more.classifiers.start) == LABELS + 8
    # A row is its own nearest neighbour now.
    row = held_out.take(torch.tensor([3]))._replace(num_features=2010)
    cosines, rows = more.neighbours.search(more.weighting(collate_xmc(row)[0]))
    assert rows[0, 0] == 1503
    assert cosines[0, 0] > 0.999
    assert more.prepare(collate_xmc(row)[0]).labels[0, 0] >= 0


def test_labels_of_held_out_rows_alone_have_the_mean_bias(data, ranker):
    """A score of 0, as that of no classifier, is far above what classifiers make of rows unlike their own."""
    held_out, test = data[1:]
    new = torch.full_like(held_out.labels, LABELS)
    more = ranker.with_rows(held_out._replace(labels=new, num_labels=LABELS + 1), refit=False)
    scores = more.classifiers(collate_xmc(test)[0], torch.full((len(test.label_start) - 1, 1), LABELS))
    mean = torch.stack([bias[bias != 0].mean() for bias in ranker.classifiers.bias])
    assert bool((mean < -0.5).all())
    torch.testing.assert_close(scores, mean.view(2, 1, 1).expand_as(scores))
    assert more.classifiers.lacks(torch.tensor([LABELS]))


@pytest.fixture(scope="module")
def grouped(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranker_module, "_GROUPED_FROM", 1500)
        return tuned(*data[:2])


def test_new_labels_of_more_rows_join_the_groups_of_labels_like_them(data, grouped):
    """A label whose rows are those of another one, of which no training row has the features."""
    train, held_out = data[:2]
    label = int(torch.bincount(train.labels, minlength=LABELS).argmax())
    row = torch.repeat_interleave(train.label_start.diff())[train.labels == label]
    start = torch.arange(len(row) + 1)
    twins = train.take(row)._replace(label_start=start, labels=torch.full((len(row),), LABELS).int())
    more = grouped.with_rows(twins._replace(num_labels=LABELS + 2), refit=False)
    assert torch.equal(more.groups.groups[:, LABELS], grouped.groups.groups[:, label])
    assert torch.equal(more.groups.groups[:, :LABELS], grouped.groups.groups)
    again = grouped.with_rows(held_out, refit=True)
    known = grouped.counts > 0
    assert torch.equal(again.groups.groups[:, known], grouped.groups.groups[:, known])
    assert not torch.equal(again.groups.bias, grouped.groups.bias)


@torch.no_grad()
def test_groups_are_a_source_that_files_hold(data, grouped):
    for ours, theirs in zip(topk(reloaded(grouped), data[2], 5), topk(grouped, data[2], 5)):
        assert torch.equal(ours, theirs)
    features = collate_xmc(data[2])[0]
    evidence = grouped.prepare(features)
    scores = grouped.groups(grouped.weighting(features, grouped.neighbours.column_start), evidence.labels)
    found = evidence.labels >= 0
    torch.testing.assert_close(evidence.values[:, :, 12][found], scores[found])
    made = copy.deepcopy(grouped)
    made.make_room(LABELS + 9)
    made.check(2000)


@torch.no_grad()
def test_of_few_rows_and_in_files_of_earlier_versions_there_are_no_groups(data, ranker):
    assert ranker.configuration()["groups"] is None
    empty = reloaded(ranker, "groups")  # files of earlier versions lack it
    for ours, theirs in zip(topk(empty, data[2], 5), topk(ranker, data[2], 5)):
        assert torch.equal(ours, theirs)
    assert empty.with_rows(data[1], refit=True).groups is None


def test_a_ranker_of_equal_sizes_takes_its_state(data, ranker):
    empty = reloaded(ranker)
    with pytest.raises(ValueError, match="weight has 2000 numbers; wanted 2001"):
        empty.check(2001)
    for ours, theirs in zip(topk(empty, data[2], 5), topk(ranker, data[2], 5)):
        assert torch.equal(ours, theirs)


def test_rows_without_right_candidates_leave_it_of_no_use(data, ranker):
    held_out = data[1]
    made = copy.deepcopy(ranker)
    prepared = made.prepare(collate_xmc(held_out)[0])
    nothing = torch.full((len(prepared.labels), 1), -100)
    made.tune([(prepared, torch.zeros(prepared.labels.shape), nothing)])
    assert not made.is_of_use
    made.tune([(prepared, torch.zeros(prepared.labels.shape), collate_xmc(held_out)[1])])
    assert made.is_of_use


def test_rows_of_new_labels_alone_leave_the_ranking_to_the_votes(data):
    """A catalogue, of a row for each label: the held-out rows train nothing, and are found when they have joined."""
    count = 90
    start, columns = torch.arange(count + 1), torch.arange(count, dtype=torch.int32)
    everything = XMCRows(start, columns, torch.ones(count), start, columns, count, count)
    some, others = everything.take(torch.arange(60)), everything.take(torch.arange(60, count))
    made = LabelRanker.of(some, 64, uses_logits=False)
    features, labels = collate_xmc(others)
    made.tune([(made.prepare(features), None, labels)], knowable=False)
    assert made.is_of_use
    made = made.with_rows(others, refit=False)
    features, labels = collate_xmc(everything)
    assert torch.equal(made(None, features).argmax(1), labels[:, 0])


def test_room_for_labels_changes_nothing_else(data, ranker):
    test = data[2]
    made = copy.deepcopy(ranker)
    wanted = topk(made, test, 5)
    made.make_room(LABELS + 9)
    assert made.num_labels == LABELS + 9
    made.check(2000)
    for ours, theirs in zip(topk(made, test, 5), wanted):
        assert torch.equal(ours, theirs)


def test_the_most_frequent_labels_are_candidates_where_few_others_are():
    # Each row has a feature of its own, and one of 100 labels besides the label 0, which all have.
    labels = torch.stack([torch.zeros(200), 1 + torch.arange(200) % 100], 1).int()
    start = torch.arange(201)
    rows = XMCRows(start, torch.arange(200).int(), torch.ones(200), 2 * start, labels.flatten(), 201, 101)
    made = LabelRanker.of(rows, 5)
    features = torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([3]), torch.ones(1), (1, 201))
    (one,) = made.prepare(features).labels
    assert {0, 4} <= set(one.tolist())  # of the one row with that feature
    assert len(one[one >= 0].unique()) == int((one >= 0).sum()) == 11


def test_labels_like_the_nearest_one_are_candidates():
    # Label i has the features i and i + 1, in two rows each; the row has feature 7, of labels 6 and 7.
    labels = torch.arange(200).int() % 100
    features = torch.stack([labels, labels + 1], 1)
    start = torch.arange(201)
    rows = XMCRows(2 * start, features.flatten(), torch.ones(400), start, labels, 101, 100)
    made = LabelRanker.of(rows, 5)
    one = torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([7]), torch.ones(1), (1, 101))
    evidence = made.prepare(one)
    first = int(made.centroids.search(one, 1))
    beside = {6: 5, 7: 8}[first]  # has nothing of the row, and one of the two features of its nearest label
    at = evidence.labels[0].tolist().index(beside)
    assert evidence.values[0, at, 8] == 0  # cosine with the row
    centroids = torch.zeros(2, 101)
    for row, label in zip(centroids, (first, beside)):
        row[label : label + 2] = made.weighting.weight[label : label + 2]
    cosine = torch.nn.functional.cosine_similarity(*centroids, dim=0)
    torch.testing.assert_close(evidence.values[0, at, 12], cosine)
    assert made.with_rows(rows, refit=False).compares_labels
    assert not LabelRanker.of(rows.take(torch.arange(80))._replace(num_labels=90), 5).compares_labels
    several = rows._replace(label_start=rows.label_start[::2].contiguous())
    several = several._replace(feature_start=rows.feature_start[::2].contiguous())
    assert not LabelRanker.of(several, 5).compares_labels
    known = without_kind(made.configuration())
    assert len(LabelRanker.empty(100, **known).mean) == len(made.mean)
    del known["compares_labels"]  # files of earlier versions do not say
    assert len(LabelRanker.empty(100, **known).mean) == len(made.mean) - 1


def test_all_of_few_labels_are_candidates():
    labels = torch.arange(120).int() % 40
    rows = XMCRows(torch.arange(121), torch.arange(120).int() % 60, torch.ones(120), torch.arange(121), labels, 61, 41)
    made = LabelRanker.of(rows, 5)
    features = torch.sparse_csr_tensor(torch.tensor([0, 1, 1]), torch.tensor([3]), torch.ones(1), (2, 61))
    evidence = made.prepare(features)
    everything = [*range(40), -1]  # the last one has no row
    assert evidence.labels.tolist() == [everything, everything]
    assert evidence.values[0, :, 4].nonzero()[:, 0].tolist() == [3, 23]  # votes


def test_labels_are_as_frequent_as_before_where_all_have_more_rows(data):
    train, held_out, _ = data
    labels = torch.repeat_interleave(torch.arange(20), torch.arange(40, 60)).int()
    some = join_rows([train, held_out]).take(torch.arange(len(labels)))
    rows = some._replace(label_start=torch.arange(len(labels) + 1), labels=labels, num_labels=20)
    made = LabelRanker.of(rows, 30, uses_logits=False)
    features, wanted = collate_xmc(rows)
    made.tune([(made.prepare(features), None, wanted)])
    frequencies = [
        ((each.prepare(features).values - each.mean) / each.deviation)[:, :, -1]
        for each in (made, made.with_rows(rows, refit=False))
    ]
    torch.testing.assert_close(*frequencies, atol=0.2, rtol=0)


def test_examples_know_which_candidates_are_right(data):
    made = LabelRanker.of(data[0], 30, uses_logits=False)
    draw = torch.Generator().manual_seed(0)
    batches = []
    for count in (7, 1, 20):
        candidates = torch.stack([torch.randperm(40, generator=draw)[:15] for _ in range(count)])
        candidates[:, 12:] = -1
        labels = torch.randint(-1, 40, (count, 9), generator=draw)
        values = torch.randn(count, 15, len(made.mean), generator=draw)
        known = torch.ones(count, dtype=torch.bool)
        batches.append((Evidence(candidates, values, known), None, labels.masked_fill(labels % 5 == 0, -100)))
    values, none, right = made._examples(batches)
    assert values.shape == (28, 15, len(made.mean))
    candidates = torch.cat([evidence.labels for evidence, *_ in batches]).tolist()
    labels = [set(some) for *_, labels in batches for some in labels.tolist()]
    assert none.tolist() == [[label < 0 for label in some] for some in candidates]
    assert right.tolist() == [[i in own and i >= 0 for i in some] for some, own in zip(candidates, labels)]
    assert right.any()


def of_unknown_features(rows):
    nothing = torch.zeros_like(rows.feature_start)
    return rows._replace(feature_start=nothing, features=rows.features[:0], values=rows.values[:0])


@pytest.mark.parametrize("labels", [40, 200])
def test_rows_without_known_features_have_the_shares_of_rows_whose_features_no_other_has(labels):
    # Label 0 is the most frequent one. Of rows with a feature of their own, seven have label 1 and three label 2.
    own = torch.arange(10)
    features = torch.cat([torch.zeros(90), 1 + own]).int()
    given = torch.cat([torch.zeros(90), 1 + (own >= 7).float()]).int()
    rows = XMCRows(torch.arange(101), features, torch.ones(100), torch.arange(101), given, 12, labels)
    made = LabelRanker.of(rows, 5, uses_logits=False)
    unknown = torch.sparse_csr_tensor(torch.tensor([0, 1, 1]), torch.tensor([11]), torch.ones(1), (2, 12))
    shares = [7.07 / 11, 3.03 / 11, 0.9 / 11]
    for _ in range(2):
        evidence = made.prepare(unknown)
        assert not evidence.known.any()
        scores, best = best_of(made.scores(evidence, None), evidence.labels, 3)
        assert best.tolist() == [[1, 2, 0]] * 2
        torch.testing.assert_close(scores.exp(), torch.tensor([shares] * 2))
        torch.testing.assert_close(made(None, unknown)[:, [1, 2, 0]], scores)
        made = made.with_rows(rows.take(torch.arange(0)), refit=False)
    known = torch.sparse_csr_tensor(torch.tensor([0, 2]), torch.tensor([0, 11]), torch.ones(2), (1, 12))
    assert made.prepare(known).known.all()
    made = made.with_rows(rows._replace(labels=given.clamp(max=0)), refit=False)  # no row is alone any more
    evidence = made.prepare(unknown)
    assert best_of(made.scores(evidence, None), evidence.labels, 1)[1].tolist() == [[0], [0]]


def test_rows_without_known_features_do_not_tune(data):
    train, held_out, _ = data
    nothing = of_unknown_features(held_out.take(torch.arange(40)))
    made, wanted = tuned(train, join_rows([nothing, held_out])), tuned(train, held_out)
    for ours, theirs in zip(made.state_dict().values(), wanted.state_dict().values()):
        assert torch.equal(ours, theirs)


def test_a_ranker_is_of_use_where_only_rows_without_known_features_are_told(data):
    train, held_out, _ = data
    made = tuned(train, of_unknown_features(held_out))
    assert made.is_of_use
    assert made.mean.count_nonzero() == 0  # votes rank the others


def test_configurations_of_earlier_versions_make_rankers(data):
    known = without_kind(tuned(*data[:2]).configuration())
    made = LabelRanker.empty(LABELS, **known, ranks_unknown=True)
    assert without_kind(made.configuration()) == known


def without_kind(configuration):
    return {name: value for name, value in configuration.items() if name != "kind"}


@pytest.mark.parametrize(
    ("rows", "labels", "of_each", "read"),
    [
        (5000, 1024, 2, (0, 1024)),
        (4999, 1024, 2, (66, 2048)),
        (5000, 1025, 2, (66, 2048)),
        (5000, 1025, 1, (0, 1024)),
        (4999, 1025, 1, (66, 2048)),
    ],
)
def test_a_search_of_many_reads_less_where_rows_are_many_and_labels_few(monkeypatch, rows, labels, of_each, read):
    start = torch.arange(rows + 1)
    given = torch.arange(rows * of_each).int() % labels
    kept = neighbours_of(XMCRows(start, start[1:].int() % 9, torch.ones(rows), start * of_each, given, 9, labels), k=1)
    asked = []
    monkeypatch.setattr(ops, "nearest_rows", lambda *arguments: asked.append(arguments))
    kept.search_of_many()(torch.eye(9).to_sparse_csr())
    assert asked[0][-2:] == read


@pytest.mark.parametrize("of_each", [1, 2])
def test_half_of_the_rows_of_one_frequent_label_look_for_hard_labels(of_each):
    generator = torch.Generator().manual_seed(0)
    first = torch.cat([torch.arange(600) % 3, torch.full((100,), 3)])  # 200 rows each of three labels, 100 of another
    labels = torch.stack([first, torch.randint(4, 6, (700,), generator=generator)][:of_each], 1)
    features = torch.rand(700, 8, generator=generator)
    columns = torch.arange(8).int().repeat(700)
    starts = torch.arange(701) * 8, torch.arange(701) * of_each
    rows = XMCRows(starts[0], columns, features.flatten(), starts[1], labels.flatten().int(), 8, 6)
    hard = LabelRanker.of(rows, neighbours=5)._hard_labels
    looked = (hard >= 0).any(1)
    if of_each == 2:
        assert looked.all()
    else:
        assert looked[first == 3].all()
        assert 250 < looked[:600].sum() < 350
        assert LabelRanker.of(rows, neighbours=5)._hard_labels.equal(hard)
        assert not LabelRanker.of(rows, neighbours=5, seed=1)._hard_labels.equal(hard)


def test_rows_that_all_look_for_no_hard_labels(data, monkeypatch):
    train, held_out, _ = data
    made = LabelRanker.of(train, 30)
    monkeypatch.setattr("torch_lsh.models.ranker._look_for_hard_labels", lambda near, _: torch.zeros(len(near)).bool())
    grown = made.with_rows(held_out, refit=True)
    assert len(grown.neighbours) == 2000
