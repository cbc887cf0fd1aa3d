"""What the wide model can beside plain training: held-out rows, budgets, weights, filters, growth, dense rows."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torch_lsh import LSHConfig, LSHLinear, quantize_
from torch_lsh.data import XMCDataset, synthetic_xmc
from torch_lsh.data.xmc import XMCRows
from torch_lsh.models import XMCClassifier
from torch_lsh.models.network import softmax_loss
from torch_lsh.models.ranker import LabelRanker
from torch_lsh.models.ranking import LabelFilter
from torch_lsh.models.rows import InMemory, epoch_batches, rows_of
from torch_lsh.models.schedule import Schedule, seconds_of
from torch_lsh.models.service import XMCService
from torch_lsh.models.weights import label_weights


def one_hot_rows(labels, num_features, num_labels):
    """A row for each of the labels, with the feature of the same number."""
    start = torch.arange(len(labels) + 1)
    ids = torch.tensor(labels, dtype=torch.int32)
    return XMCDataset.from_rows(XMCRows(start, ids, torch.ones(len(labels)), start, ids, num_features, num_labels))


def trained(rows=400, labels=20, **options):
    torch.manual_seed(0)
    model = XMCClassifier(labels, labels, hidden=16)
    data = one_hot_rows([i % labels for i in range(rows)], labels, labels)
    options = {"epochs": 20, "batch_size": 20, "lr": 0.05, "progress": False, **options}
    return model, data, model.fit(data, **options)


# --- how long to train ------------------------------------------------------------------------------------------------


def test_the_rate_falls_in_the_last_part():
    schedule = Schedule(lr=1.0, epochs=10)
    assert [schedule.rate(progress, 0) for progress in (0, 5, 6, 8, 10)] == pytest.approx([1, 1, 1, 0.5, 0])
    assert not schedule.is_over(9, 0)
    assert schedule.is_over(10, 0)


def test_the_rate_falls_once_the_quality_no_longer_gains():
    schedule = Schedule(lr=1.0, epochs=None)
    assert schedule.report(1, (0.1, 0.5))
    assert not schedule.report(2, (0.2, 0.5))  # the network gains, though the mixture does not yet
    assert schedule.report(3, (0.2, 0.6))
    assert schedule.rate(3, 0) == 1
    assert schedule.report(4, (0.2, 0.601))  # a gain, but a small one
    assert not schedule.report(5, (0.1, 0.5))
    assert (schedule.falls_from, schedule.end) == (4, 6)
    assert schedule.rate(5, 0) == 0.5
    assert [schedule.is_over(epoch, 0) for epoch in (5, 6)] == [False, True]
    resumed = Schedule(lr=1.0, epochs=None)
    resumed.load(schedule.state())
    assert vars(resumed) == vars(schedule)


def test_a_number_of_epochs_is_a_limit_and_patience_ends_before():
    schedule = Schedule(lr=1.0, epochs=10, patience=2)
    for epoch, quality in enumerate([0.3, 0.2, 0.1], 1):
        schedule.report(epoch, [quality])
    assert schedule.is_over(3, 0)


def test_budgets():
    assert [seconds_of(budget) for budget in ("60s", "5m", "1h", "90", 2.5, None)] == [60, 300, 3600, 90, 2.5, None]
    for budget in ("", "5 days", "-1s", 0, -1, float("inf"), True, "1.2.3s"):
        with pytest.raises(ValueError, match=r"budget is .*; wanted seconds"):
            seconds_of(budget)
    schedule = Schedule(lr=1.0, epochs=None, budget=100)
    assert [schedule.rate(1, seconds) for seconds in (0, 60, 80, 100)] == pytest.approx([1, 1, 0.5, 0])
    assert schedule.is_over(1, 100)
    start = time.perf_counter()
    history = trained(epochs=10**6, budget=0.3)[2]
    assert 0.2 < sum(entry["seconds"] for entry in history) < 3
    assert time.perf_counter() - start < 10


def test_a_budget_counts_the_ranker():
    train, _ = synthetic_xmc(12_000, 0, num_features=2_000, num_labels=600)
    model = XMCClassifier(2_000, 600, hidden=4)
    start = time.perf_counter()
    model.fit(train, budget=0.2, progress=False)
    short = time.perf_counter() - start
    assert isinstance(model.mixture, LabelRanker)
    assert 1_000 < len(model.mixture.neighbours) < len(train)
    start = time.perf_counter()
    model.fit(train, budget="1h", epochs=1, progress=False)
    assert short < time.perf_counter() - start
    assert len(model.mixture.neighbours) == len(train)


def test_held_out_rows_train_a_ranker_and_become_neighbours():
    train, _ = synthetic_xmc(3_000, 0, num_features=500, num_labels=600)
    torch.manual_seed(0)
    model = XMCClassifier(500, 600, hidden=4)
    history = model.fit(train, validation_fraction=0.1, progress=False, epochs=2)
    assert {"validation_precision@1", "validation_precision@5"} <= history[0].keys()
    assert history[-1]["validation_neighbours_precision@1"] > history[-1]["validation_precision@1"]
    assert isinstance(model.mixture, LabelRanker)
    assert len(model.mixture.neighbours) == len(train)
    assert int(model.mixture.counts.sum()) == len(train.rows.labels)


def test_a_ranker_of_dense_rows_knows_what_a_narrow_network_does_not():
    """Rows of 600 labels, each near its own corner of a cube, that a hidden layer of width 2 cannot tell apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(600, (20_500,), generator=generator)
    corners = (labels.unsqueeze(1) >> torch.arange(10) & 1) * 2.0 - 1
    features = corners + 0.3 * torch.randn(corners.shape, generator=generator)
    torch.manual_seed(0)
    model = XMCClassifier(10, 600, hidden=2, dense_input=True)
    history = model.fit((features, labels), epochs=2, batch_size=1024, progress=False)
    assert history[-1]["validation_neighbours_precision@1"] > 0.9 > 0.5 > history[-1]["validation_precision@1"]
    assert len(model.mixture.neighbours) == len(labels)


def test_few_rows_are_all_trained_on():
    _, _, history = trained(epochs=1)
    assert "validation_precision@1" not in history[0]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_of_rows_and_labels_in_the_loss():
    logits = torch.randn(3, 4, requires_grad=True)
    log_p = logits.detach().log_softmax(1)
    labels, weights, class_weight = (
        torch.tensor([[0], [1], [2]]),
        torch.tensor([1.0, 3, 0]),
        torch.tensor([1.0, 2, 5, 1]),
    )
    torch.testing.assert_close(softmax_loss(logits, labels, weights=weights), -(log_p[0, 0] + 3 * log_p[1, 1]) / 4)
    wanted = -(log_p[0, 0] + 2 * log_p[1, 1] + 5 * log_p[2, 2]) / 8
    torch.testing.assert_close(softmax_loss(logits, labels, class_weight=class_weight), wanted)
    both = -(log_p[0, 0] + 6 * log_p[1, 1]) / 7
    torch.testing.assert_close(softmax_loss(logits, labels, weights=weights, class_weight=class_weight), both)


@pytest.mark.parametrize("class_weight", [None, torch.tensor([1.0, 2, 5, 1, 1])])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3, 2])])
def test_lazy_and_dense_logits_have_the_same_weighted_loss(weights, class_weight):
    layer = LSHLinear(6, 5, config=LSHConfig(active=1.0))
    x, labels = torch.randn(3, 6), torch.tensor([[0, 1], [1, -100], [2, 4]])
    lazy = softmax_loss(layer(x), labels, weights=weights, class_weight=class_weight)
    dense = softmax_loss(layer.to_linear()(x), labels, weights=weights, class_weight=class_weight)
    torch.testing.assert_close(lazy, dense)


def test_rows_of_weight_0_teach_nothing():
    labels = [0, 1, 2, 3] * 20
    data = one_hot_rows(labels, 4, 4)
    weight = torch.tensor([0.0 if label == 3 else 1.0 for label in labels])
    torch.manual_seed(0)
    model = XMCClassifier(4, 4, hidden=8)
    untouched = model.input.weight[3].clone()
    model.fit(data, epochs=20, batch_size=8, lr=0.05, progress=False, sample_weight=weight)
    assert model.predict(data, 1)[1][:3, 0].tolist() == [0, 1, 2]
    assert torch.equal(model.input.weight[3], untouched)


def test_weights_of_labels():
    counts = torch.tensor([6, 2, 0])
    assert label_weights("balanced", counts).tolist() == pytest.approx([8 / 12, 2, 1])
    assert label_weights({1: 3}, counts).tolist() == [1, 3, 1]
    for weights in ("even", {7: 1}, {"a": 1}, [1, 2], [1, -1, 1]):
        with pytest.raises(ValueError, match="class_weight"):
            label_weights(weights, counts)


def test_bad_weights():
    with pytest.raises(ValueError, match="sample_weight has shape"):
        trained(sample_weight=[1.0])


def test_a_label_of_large_weight_wins_over_a_more_frequent_one():
    start = torch.arange(31)
    labels = torch.tensor([0] * 20 + [1] * 10, dtype=torch.int32)
    data = XMCDataset.from_rows(XMCRows(start, torch.zeros(30, dtype=torch.int32), torch.ones(30), start, labels, 1, 2))
    best = []
    for class_weight in (None, {1: 10.0}):
        torch.manual_seed(0)
        model = XMCClassifier(1, 2, hidden=4)
        model.fit(data, epochs=20, batch_size=30, lr=0.1, progress=False, class_weight=class_weight)
        best.append(int(model.predict(data, 1)[1][0]))
    assert best == [0, 1]


# --- filters ----------------------------------------------------------------------------------------------------------


def test_permitted_and_excluded_labels():
    model, _, _ = trained()
    queries = one_hot_rows([3, 5, 7], 20, 20)
    scores, labels = model.predict(queries, 20)
    assert labels[:, 0].tolist() == [3, 5, 7]
    by_label = torch.empty(3, 20).scatter_(1, labels, scores)
    for allowed, excluded, wanted in (
        ([3, 5, 9], None, [{3, 5, 9}] * 3),
        (None, [3], [set(range(20)) - {3}] * 3),
        ([[3], [9, 2], []], None, [{3}, {9, 2}, set()]),
        (torch.tensor([[3, -1], [9, 2], [1, 7]]), [[], [9], [7]], [{3}, {2}, {1}]),
    ):
        found, best = model.predict(queries, 20, allowed=allowed, excluded=excluded, batch_size=2)
        for row, labels_of_row in enumerate(wanted):
            count = len(labels_of_row)
            assert set(best[row, :count].tolist()) == labels_of_row
            assert (best[row, count:] == -1).all()
            assert (found[row, count:] == -torch.inf).all()
            torch.testing.assert_close(found[row, :count], by_label[row, best[row, :count]])
            assert (found[row, :count].diff() <= 0).all()


@pytest.mark.parametrize(
    "labels", [[20], [-1], [[1], [2]], [0.5], torch.zeros(2, 2, dtype=torch.int64), "12", torch.ones(20) > 0]
)
def test_filters_that_do_not_fit(labels):
    with pytest.raises(ValueError, match="allowed"):
        LabelFilter(labels, None, 20, 3)


# --- growth -----------------------------------------------------------------------------------------------------------


def test_new_labels_and_features_in_a_ready_model():
    model, _, _ = trained()
    new = one_hot_rows([20, 21, 22] * 20 + list(range(20)), 23, 23)
    model.partial_fit(new, epochs=20, batch_size=20, lr=0.02)
    assert isinstance(model.output, LSHLinear)
    assert (model.num_features, model.num_labels) == (23, 23)
    assert model.output.weight.shape == (23, 16)
    queries = one_hot_rows(range(23), 23, 23)
    assert model.predict(queries, 1)[1][:, 0].tolist() == list(range(23))  # old numbers are kept


def test_growth_without_training_changes_no_logit():
    model, _, _ = trained()
    before = model.logits(torch.eye(20).to_sparse_csr())
    model.grow(25, 30)
    after = model.logits(torch.eye(20, 25).to_sparse_csr())
    assert after.shape == (20, 30)
    torch.testing.assert_close(after[:, :20], before)


def test_rows_of_partial_fit_become_neighbours():
    torch.manual_seed(0)
    model = XMCClassifier(20, 20, hidden=4)
    model.fit(one_hot_rows(list(range(10)) * 3, 20, 20), epochs=1, progress=False, neighbours=3)
    assert len(model.mixture.sources[0]) == 30
    model.partial_fit(one_hot_rows([20, 20], 21, 21))
    assert len(model.mixture.sources[0]) == 32
    assert model.mixture.counts.tolist() == [3] * 10 + [0] * 10 + [2]
    assert model.predict(one_hot_rows([20], 21, 21), 1)[1].item() == 20  # by the votes


def test_a_quantised_model_does_not_grow():
    model, _, _ = trained()
    quantize_(model)
    with pytest.raises(RuntimeError, match="quantised"):
        model.partial_fit(one_hot_rows([25], 30, 30))


# --- dense rows -------------------------------------------------------------------------------------------------------


def clusters(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(30, (rows,), generator=generator)
    centres = torch.randn(30, 12, generator=torch.Generator().manual_seed(9))
    return centres[labels] + 0.3 * torch.randn(rows, 12, generator=generator), labels


@pytest.mark.parametrize("neighbours", [0, 5])
def test_dense_input(neighbours, tmp_path):
    x, y = clusters(1500, 0)
    torch.manual_seed(0)
    model = XMCClassifier(12, 30, hidden=32, dense_input=True)
    model.fit((x, y), epochs=10, batch_size=64, lr=0.01, progress=False, neighbours=neighbours)
    test_x, test_y = clusters(300, 1)
    assert model.evaluate((test_x, test_y))["precision@1"] > 0.9
    scores, labels = model.predict(test_x.numpy(), 3)
    torch.testing.assert_close(model.predict((test_x, test_y), 3)[0], scores)
    model.save(tmp_path / "model")
    loaded = XMCClassifier.load(tmp_path / "model")
    assert torch.equal(loaded.predict(test_x, 3)[1], labels)
    for bad in (test_x[:, :5], test_x.long(), test_x.to_sparse_csr(), torch.full((1, 12), torch.nan)):
        with pytest.raises(ValueError, match=r"rows has shape|features h"):
            model.predict(bad)


def test_arrays_of_every_kind():
    """Any strides, read-only ones, and data frames, whose rows may have other numbers."""
    pandas = pytest.importorskip("pandas")
    x, y = clusters(200, 0)
    models, numbers = [], y.numpy()
    backward, only_read = x.numpy()[::-1].copy()[::-1], x.numpy().copy()
    only_read.flags.writeable = False
    given = [(x, y, None), (backward, numbers[::-1].copy()[::-1], np.ones(200)[::-1]), (only_read, numbers, None)]
    some = {"index": range(7, 207)}
    frame, series = pandas.DataFrame(x.numpy(), **some), pandas.Series(numbers, **some)
    given += [(frame, series, pandas.Series(np.ones(200), **some)), (frame, series.to_frame(), None)]
    for features, labels, weights in given:
        torch.manual_seed(0)
        models.append(XMCClassifier(12, 30, hidden=8, dense_input=True))
        options = {"epochs": 1, "progress": False, "class_weight": {np.int64(2): 1.0}}
        models[-1].fit((features, labels), sample_weight=torch.ones(200) if weights is None else weights, **options)
        assert torch.equal(models[-1].predict(features)[0], models[0].predict(x)[0])
    for call in (models[0].fit, models[0].partial_fit):
        with pytest.raises(ValueError, match="the training data has no rows"):
            call((x[:0], y[:0]))


@pytest.mark.parametrize(
    ("k", "batch_size", "message"),
    [
        (1.5, 256, "k is 1.5"),
        ("3", 256, "k is '3'"),
        (True, 256, "k is True"),
        (31, 256, "k is 31; wanted 1 to 30"),
        (3, 0, "batch_size is 0; wanted at least 1"),
    ],
)
def test_sizes_of_predictions(k, batch_size, message):
    model = XMCClassifier(12, 30, hidden=8, dense_input=True)
    assert model.predict(torch.ones(2, 12), np.int64(3))[1].shape == (2, 3)
    with pytest.raises(ValueError, match=message):
        model.predict(torch.ones(2, 12), k, batch_size)


def test_labels_in_every_form():
    sparse = pytest.importorskip("scipy.sparse")
    features = np.zeros((3, 2), np.float32)
    indicator = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    matrices = (indicator, indicator > 0, indicator.astype(np.float32), torch.tensor(indicator).to_sparse_csr())
    scipy_ones = [kind(indicator) for kind in (sparse.csr_matrix, sparse.csc_array, sparse.coo_array)]
    for labels in ([[0, 2], [], [1]], torch.tensor([[0, 2], [-1, -1], [1, -1]]), *matrices, *scipy_ones):
        rows = rows_of((features, labels), 3)
        assert rows.label_start.tolist() == [0, 2, 2, 3]
        assert rows.labels.tolist() == [0, 2, 1]
    assert rows_of((features, [2, 0, 1])).num_labels == 3
    assert rows_of((features[:0], indicator[:0]), 3).label_start.tolist() == [0]
    for labels in ([0, 1], [0, 1, 5], [0.5, 1, 2], [[-3], [], []], ["a", "b", "c"], [{0}, {1}, {2}], None):
        with pytest.raises(ValueError):
            rows_of((features, labels), 3)
    with pytest.raises(TypeError, match="wanted an XMCDataset"):
        rows_of([1, 2])


def test_features_of_scipy():
    sparse = pytest.importorskip("scipy.sparse")
    features = sparse.random(50, 12, 0.3, format="coo", random_state=0, dtype=np.float64)
    labels = sparse.csr_matrix(np.eye(5)[np.arange(50) % 5])
    model = XMCClassifier(12, 5, hidden=8)
    model.fit((features, np.arange(50) % 5), epochs=1, progress=False)
    wanted = model.predict(XMCDataset.from_scipy(features, labels), 3)
    for rows in (features, features.tocsc(), sparse.csr_array(features), (features, labels)):
        torch.testing.assert_close(model.predict(rows, 3), wanted)
    for call in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match="features are dense; wanted sparse"):
            call((features.toarray(), labels))
    with pytest.raises(ValueError, match=r"rows has shape \(50, 11\); wanted sparse CSR \[B, 12\]"):
        model.predict(features.tocsr()[:, :11], 3)
    damaged = features.tocsr()
    damaged.indices[3] = -1
    with pytest.raises(ValueError, match="features run from -1 to 11; wanted 0 to 11"):
        model.predict(damaged, 3)
    damaged.indices[3], damaged.data[4] = 0, np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.predict(damaged, 3)
    for start in ([0, 5], [0, 2, 1, 2]):
        broken = torch.sparse_csr_tensor(start, [3, 4], [1.0, 1.0], (len(start) - 1, 12), check_invariants=False)
        with pytest.raises(ValueError, match="offsets of features must rise from 0 to 2"):
            model.predict(broken)
    with pytest.raises(ValueError, match=r"rows has shape \(50, 12\); wanted sparse CSR"):
        model.predict(features.toarray())


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_that_are_skipped_are_those_that_came_first():
    source = InMemory(one_hot_rows([i % 7 for i in range(50)], 7, 7).rows, 7, torch.arange(50.0))
    every = list(epoch_batches(source, 8, seed=3, epoch=2))
    rest = list(epoch_batches(source, 8, seed=3, epoch=2, skip=4))
    assert [batch.weights.tolist() for batch in rest] == [batch.weights.tolist() for batch in every[4:]]
    assert sorted(torch.cat([batch.weights for batch in every]).tolist()) == list(range(50))
    other = list(epoch_batches(source, 8, seed=3, epoch=3))
    assert other[0].weights.tolist() != every[0].weights.tolist()
    for batch in every:
        assert batch.labels[:, 0].tolist() == [int(number) % 7 for number in batch.weights]


# --- files and serving ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [0, 3])
def test_a_mapped_model_is_the_same_and_trains_on(tmp_path, neighbours):
    model, data, _ = trained(neighbours=neighbours)
    model.save(tmp_path / "model")
    mapped = XMCClassifier.load(tmp_path / "model", mmap=True)
    content = (tmp_path / "model").read_bytes()
    for a, b in zip(mapped.predict(data), model.predict(data), strict=True):
        assert torch.equal(a, b)
    mapped.partial_fit(data)
    assert (tmp_path / "model").read_bytes() == content


def test_a_service_answers_as_the_model_does():
    model, _, _ = trained()
    service = XMCService(model)
    inputs = service.inputs({"rows": [{"3": 1.0}, {"7": 2, "5": 0.5}, {}]})
    assert [one.value for one in inputs] == [{3: 1.0}, {5: 0.5, 7: 2.0}, {}]
    answers = service.predict(inputs, 2)
    assert [answer["labels"][0] for answer in answers[:2]] == [3, 7]
    scores, labels = model.predict(one_hot_rows([3], 20, 20), 2)
    assert answers[0]["labels"] == labels[0].tolist()
    assert answers[0]["scores"] == pytest.approx(scores[0].tolist(), rel=1e-5)
    assert service.inputs({"features": {"0": 1}})[0].value == {0: 1.0}
    for content in (
        {},
        {"features": {}, "rows": []},
        {"rows": []},
        {"rows": {}},
        {"features": [1]},
        {"features": {"20": 1}},
        {"features": {"-1": 1}},
        {"features": {"x": 1}},
        {"features": {"1": "x"}},
        {"features": {"1": True}},
        {"features": {"1": float("nan")}},
        {"features": {}, "allowed": 3},
        {"features": {}, "allowed": []},
        {"features": {}, "excluded": [20]},
        {"features": {}, "excluded": [True]},
        {"features": {}, "excluded": list(range(20))},
    ):
        with pytest.raises(ValueError):
            service.inputs(content)


def test_a_service_predicts_within_the_labels_that_each_request_permits():
    model, _, _ = trained()
    service = XMCService(model)
    row = {"features": {"3": 1.0}}
    requests = [
        row,
        {**row, "excluded": [3]},
        {**row, "allowed": [5, 3, 7]},
        {**row, "allowed": [3, 4], "excluded": [3]},
    ]
    answers = service.predict([one for request in requests for one in service.inputs(request)], 5)
    features = one_hot_rows([3], 20, 20)
    assert answers[0]["labels"] == model.predict(features, 5)[1][0].tolist()
    assert answers[1]["labels"] == model.predict(features, 5, excluded=[3])[1][0].tolist()
    assert answers[2]["labels"] == model.predict(features, 3, allowed=[3, 5, 7])[1][0].tolist()
    assert answers[3]["labels"] == [4]
    assert len(answers[3]["scores"]) == 1


def test_a_service_of_dense_rows():
    service = XMCService(XMCClassifier(3, 5, hidden=4, dense_input=True))
    assert len(service.predict(service.inputs({"features": [1, 2.5, 0]}), 4)[0]["labels"]) == 4
    for row in ([1, 2], {"0": 1}, [1, 2, "x"]):
        with pytest.raises(ValueError):
            service.inputs({"features": row})


def test_training_rows_without_any_label_are_told(tmp_path):
    (tmp_path / "train.txt").write_text("2 3 4\n 1:0.5\n 0:1\n")
    with pytest.warns(UserWarning, match="no row of the training data has a label, so nothing is learned"):
        XMCClassifier(3, 4, 8).fit(XMCDataset(tmp_path / "train.txt"), epochs=1, progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dense", [False, True])
def test_a_model_that_was_cast_predicts(dtype, dense):
    """Its network is cast, and what ranks beside it is not."""
    torch.manual_seed(0)
    labels = torch.randint(70, (1_200,))
    if dense:
        data = F.one_hot(labels, 70) + 0.1 * torch.randn(1_200, 70), labels
    else:
        data = one_hot_rows(labels.tolist(), 70, 70)
    model = XMCClassifier(70, 70, hidden=16, dense_input=dense)
    model.fit(data, epochs=1, progress=False)
    assert isinstance(model.mixture, LabelRanker)
    before = model.predict(data, k=1)[1]
    scores, after = model.to(dtype).predict(data, k=1)
    assert model.output.weight.dtype is dtype
    assert scores.dtype is torch.float32
    assert (after == before).float().mean() > 0.95
