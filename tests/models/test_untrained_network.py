"""A ranker without the logits of a network, which is not trained then: fit, files, more rows, every way to predict."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math

import pytest
import torch

from torch_lsh import quantize_
from torch_lsh.data import XMCDataset, XMCRows, XMCStream, collate_xmc, synthetic_xmc
from torch_lsh.io import load_safetensors
from torch_lsh.models import TextClassifier, XMCClassifier
from torch_lsh.models.ranker import LabelRanker
from torch_lsh.models.service import XMCService

FEATURES, LABELS, HIDDEN = 1000, 600, 16


@pytest.fixture(scope="module")
def data():
    """No label has 100 rows."""
    train, test = synthetic_xmc(2000, 100, num_features=FEATURES, num_labels=LABELS, seed=0)
    counts = torch.bincount(train.rows.labels)
    rare = counts[train.rows.labels.long()] < 100
    assert rare.double().mean() > 0.5
    return train, test


def made(features=FEATURES, labels=LABELS):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return XMCClassifier(features, labels, hidden=HIDDEN)


@pytest.fixture(scope="module")
def model(data):
    fitted, said, logged = made(), io.StringIO(), io.StringIO()
    logger, handler = logging.getLogger("torch_lsh"), logging.StreamHandler(logged)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with contextlib.redirect_stderr(said):
        fitted.history = fitted.fit(data[0], progress=True, eval_dataset=data[1])
    logger.removeHandler(handler)
    logger.setLevel(level)
    fitted.said, fitted.logged = said.getvalue(), logged.getvalue()
    return fitted


def is_trained(network):
    return not torch.equal(network.output.weight, made(labels=network.num_labels).output.weight)


def equal(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs))


def one_feature_each(labels, features=None, num_labels=LABELS):
    """Rows of a feature and labels ``[rows]`` or ``[rows, P]`` each."""
    start = torch.arange(len(labels) + 1)
    labels = labels.view(len(labels), -1)
    features = labels[:, 0] if features is None else features
    ones, flat = torch.ones(len(labels)), labels.flatten().int()
    of_labels = start * labels.shape[1]
    return XMCDataset.from_rows(XMCRows(start, features.int(), ones, of_labels, flat, FEATURES, num_labels))


def test_the_network_stays_as_it_was(data, model):
    assert isinstance(model.mixture, LabelRanker)
    assert not model.mixture.uses_logits
    fresh = made()
    assert torch.equal(model.input.weight, fresh.input.weight)
    assert torch.equal(model.output.weight, fresh.output.weight)
    [entry] = model.history
    ks = {f"{name}precision@{k}" for name in ("", "validation_neighbours_") for k in (1, 3, 5)}
    assert entry.keys() == {"epoch", "seconds", "samples_per_second", *ks}
    assert entry["epoch"] == 0
    assert all(math.isfinite(value) for value in entry.values())
    assert model.evaluate(data[1])["precision@1"] == pytest.approx(entry["precision@1"], abs=0.05)


def test_it_is_as_good_as_with_the_network(data, model):
    trained = made()
    trained.fit(data[0], epochs=2, progress=False)
    assert model.evaluate(data[1])["precision@1"] > trained.evaluate(data[1])["precision@1"] - 0.03


@pytest.mark.parametrize(
    ("num_labels", "per_row", "frequent", "trained"),
    [(LABELS, 8, 5, True), (LABELS, 8, 3, False), (LABELS, 7, 5, False), (4097, 2, 1, True), (4096, 2, 1, False)],
)
def test_many_frequent_labels_decide(num_labels, per_row, frequent, trained):
    """So many labels of each of 2,200 rows are the same, and the others are labels of a few rows."""
    labels = 8 + (torch.arange(2200).unsqueeze(1) + 70 * torch.arange(per_row)) % 580
    labels[:, :frequent] = torch.arange(frequent)
    fitted = made(labels=num_labels)
    history = fitted.fit(one_feature_each(labels, labels[:, -1], num_labels), progress=False, max_steps=1)
    assert ([entry["epoch"] for entry in history] == []) == is_trained(fitted) == trained


def test_a_user_is_told(model):
    assert model.said.count("pass epochs to train it") == 1
    assert model.logged.count("pass epochs to train it") == 1


@pytest.mark.parametrize("asked", [{"epochs": 1}, {"sample_weight": torch.ones(2000)}, {"class_weight": {3: 2.0}}])
def test_epochs_and_weights_train_it(data, asked):
    fitted = made()
    fitted.fit(data[0], progress=False, max_steps=1, **asked)
    assert is_trained(fitted)


def test_it_is_trained_where_a_ranker_is_of_no_use():
    """No two rows have a feature in common."""
    fitted = made(features=2200)
    labels, start = torch.arange(2200) % LABELS, torch.arange(2201)
    rows = XMCRows(start, start[:-1].int(), torch.ones(2200), start, labels.int(), 2200, LABELS)
    fitted.fit(XMCDataset.from_rows(rows), progress=False, max_steps=1)
    assert is_trained(fitted)


def test_a_stream_with_a_budget_and_a_checkpoint(data, model, tmp_path, capsys):
    """Without epochs, as asked, so that there is nothing to tell."""
    fitted, rows = made(), XMCStream(lambda: [data[0].rows], FEATURES, LABELS)
    history = fitted.fit(rows, budget="1h", checkpoint=tmp_path / "run", epochs=0, progress=True)
    assert [entry["epoch"] for entry in history] == [0]
    assert "epochs" not in capsys.readouterr().err
    assert equal(fitted.predict(data[1]), model.predict(data[1]))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_a_trained_network_is_refused(data, tmp_path):
    path = tmp_path / "run"
    made().fit(data[0], epochs=1, max_steps=1, checkpoint=path, checkpoint_every=1, progress=False)
    fitted, before = made(), path.read_bytes()
    with pytest.raises(ValueError, match=r"run belongs to a run that trains the network.*resume=False"):
        fitted.fit(data[0], checkpoint=path, progress=False)
    assert fitted.mixture is None
    assert fitted.fit(data[0], checkpoint=path, resume=False, progress=False)[0]["epoch"] == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("from_file", [False, True])
def test_a_quantised_model_takes_new_labels(data, model, tmp_path, from_file):
    more = data[1].rows
    more = XMCDataset.from_rows(more._replace(labels=more.labels + 7, num_labels=LABELS + 7))
    expected, quantised = copy.deepcopy(model), quantize_(copy.deepcopy(model))
    if from_file:
        quantised.save(tmp_path / "model")
        quantised = XMCClassifier.load(tmp_path / "model")
    expected.partial_fit(more)
    quantised.partial_fit(more)
    quantised.save(tmp_path / "more")
    for fitted in (quantised, XMCClassifier.load(tmp_path / "more")):
        assert equal(fitted.predict(data[1]), expected.predict(data[1]))
        assert torch.isfinite(fitted(collate_xmc([data[1][0]])[0])).all()  # a new one is made where asked


@torch.no_grad()
def test_no_prediction_looks_at_it(data, model):
    broken = copy.deepcopy(model)
    for value in (broken.input.weight, broken.input_bias, broken.output.weight, broken.output.bias):
        value.fill_(math.nan)
    best = model.predict(data[1], k=1)[1].tolist()
    for asked in ({}, {"k": LABELS}, {"excluded": best}, {"allowed": [4, 5, 6], "k": 2}):
        assert equal(broken.predict(data[1], **asked), model.predict(data[1], **asked))
    assert broken.evaluate(data[1]) == model.evaluate(data[1])


@torch.no_grad()
def test_labels_behind_the_candidates_are_sorted_by_frequency(data, model):
    scores, labels = model.predict(data[1], k=LABELS)
    behind = scores <= -50
    counts = model.mixture.counts[labels].masked_fill(~behind, 2**30)
    assert behind.any(1).all()
    assert (counts.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("mmap", [False, True])
def test_files_leave_it_out(data, model, tmp_path, mmap):
    model.save(tmp_path / "model")
    tensors, _ = load_safetensors(tmp_path / "model")
    assert tensors
    assert all(name.startswith("mixture.") for name in tensors)
    loaded = XMCClassifier.load(tmp_path / "model", mmap=mmap)
    assert equal(loaded.predict(data[1]), model.predict(data[1]))
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    hidden = loaded.hidden(torch.eye(FEATURES)[:2].to_sparse_csr())
    assert hidden.shape == (2, HIDDEN)
    assert hidden.isfinite().all()
    assert (hidden != 0).any()


def test_a_loaded_model_learns_as_any_other(data, model, tmp_path):
    model.save(tmp_path / "model")
    loaded, new = XMCClassifier.load(tmp_path / "model", mmap=True), made()
    ours, theirs = (some.fit(data[0], epochs=2, neighbours=0, progress=False) for some in (loaded, new))
    assert [entry["loss"] for entry in ours] == pytest.approx([entry["loss"] for entry in theirs], rel=0.05)
    assert ours[1]["loss"] < ours[0]["loss"]
    loaded.save(tmp_path / "model")
    again = XMCClassifier.load(tmp_path / "model")
    assert torch.equal(again.output.weight, loaded.output.weight)


def test_more_rows(data, model, tmp_path):
    """The new label has a feature of its own, beside one that other rows have."""
    start, count = torch.arange(31), 30
    features = torch.tensor([5, FEATURES] * count, dtype=torch.int32)
    labels = torch.full((count,), LABELS + 3, dtype=torch.int32)
    rows = XMCRows(2 * start, features, torch.ones(2 * count), start, labels, FEATURES + 1, LABELS + 4)
    new = XMCDataset.from_rows(rows)
    model.save(tmp_path / "model")
    learned = [copy.deepcopy(model), XMCClassifier.load(tmp_path / "model")]
    for some in learned:
        [entry] = some.partial_fit(new)
        assert entry["epoch"] == 0
        assert "loss" not in entry
        assert (some.num_features, some.num_labels) == (FEATURES + 1, LABELS + 4)
        assert some.output.weight.shape == (LABELS + 4, HIDDEN)
        assert some.evaluate(new)["precision@1"] > 0.9
    assert torch.equal(learned[0].output.weight[:LABELS], model.output.weight)
    assert equal(*(some.predict(new) for some in learned))
    learned[1].save(tmp_path / "model")
    assert equal(XMCClassifier.load(tmp_path / "model").predict(new), learned[1].predict(new))


def test_a_server(model, tmp_path):
    model.save(tmp_path / "model")
    service = XMCService.load(tmp_path / "model")
    content = {"features": {"3": 0.5, "17": 1}, "excluded": [1, 2]}
    [answer] = service.predict(service.inputs(content), 5)
    assert len(set(answer["labels"]) - {1, 2}) == 5
    assert all(map(math.isfinite, answer["scores"]))


@pytest.fixture(scope="module")
def texts():
    """The label of a text follows from two of its words."""
    labels = (torch.arange(2600) * 7 % 520).tolist()
    return [f"a{label % 23} b{label // 23} and" for label in labels], [f"l{label}" for label in labels]


def test_texts(texts, tmp_path):
    model = TextClassifier(hidden=8).fit(*texts)
    assert [(entry["epoch"], "loss" in entry) for entry in model.history_] == [(0, False)]
    found = model.predict(texts[0][:200])
    assert (found == texts[1][:200]).mean() > 0.95
    model.save(tmp_path / "model")
    _, metadata = load_safetensors(tmp_path / "model")
    json.loads(metadata["model"], parse_constant=pytest.fail)  # NaN is not JSON
    loaded = TextClassifier.load(tmp_path / "model")
    assert (loaded.predict(texts[0][:200]) == found).all()
    assert next(model.network_.parameters()).is_meta  # until somebody asks for its activations
    hidden = loaded.hidden_activations(texts[0][:3])
    assert hidden.isfinite().all()
    assert torch.equal(model.hidden_activations(texts[0][:3]), hidden)
    loaded.partial_fit(["a1 b1 zebra"] * 4, ["new"] * 4)
    assert loaded.predict(["a1 b1 zebra"]).tolist() == ["new"]
    assert loaded.predict_proba(["a1 b1 zebra"]).sum() == pytest.approx(1, abs=1e-3)
    assert [entry["epoch"] for entry in loaded.history_] == [0, 0]


@pytest.mark.parametrize(("rows", "lacking"), [(1999, 0), (4999, 0), (5100, 500 / 8)])
def test_few_rows_train_the_classifiers_again(rows, lacking):
    """Five hundred labels occur once; whether each has a classifier tells whether it was held out from them."""
    labels = torch.cat([torch.arange(500), torch.arange(500, 600).repeat(46)])[:rows]
    fitted = made()
    fitted.fit(one_feature_each(labels), progress=False)
    found = int((fitted.mixture.classifiers.start.diff()[labels[:500]] == 0).sum())
    assert found == pytest.approx(lacking, rel=0.3)


@pytest.mark.parametrize(
    ("rows", "options", "share"),
    [
        (1900, {}, 1),
        (1900, {"epochs": 1}, 1 / 4),
        (2100, {}, 1 / 4),
        (200, {}, 1),
        (199, {}, 0),
        (999, {"epochs": 1}, 0),
    ],
)
def test_how_many_rows_tune_the_ranker(rows, options, share, monkeypatch):
    counts = []

    def tuned(self, batches, **options):
        batches = list(batches)
        counts.append(sum(len(labels) for _, _, labels in batches))
        return tune(self, batches, **options)

    tune = LabelRanker.tune
    monkeypatch.setattr(LabelRanker, "tune", tuned)
    made().fit(one_feature_each(torch.arange(rows) % 70), progress=False, **options)
    assert counts == pytest.approx([share * rows] if share else [], rel=0.15)


def test_a_half_is_known_by_sources_of_the_other_half():
    """Every label has three rows and a feature of its own."""
    labels = torch.arange(400).repeat(3)
    fitted = made()
    fitted.fit(one_feature_each(labels), progress=False)
    assert not fitted.mixture.uses_logits
    assert len(fitted.mixture.neighbours) == len(labels)
    _, found = fitted.predict(one_feature_each(labels), k=1)
    assert (found[:, 0] == labels).float().mean() > 0.99


@pytest.mark.parametrize("count", [600, 2400])  # each half is held out once, or a quarter
def test_a_catalogue_of_one_row_a_label_is_ranked_by_votes(count):
    generator = torch.Generator().manual_seed(0)
    columns = torch.rand(count, 3000, generator=generator).topk(12).indices.sort().values.int().flatten()
    start, labels = torch.arange(count + 1), torch.arange(count, dtype=torch.int32)
    rows = XMCRows(12 * start, columns, torch.ones(12 * count), start, labels, 3000, count)
    catalogue = XMCDataset.from_rows(rows)
    fitted = XMCClassifier(3000, count, hidden=8)
    assert fitted.fit(catalogue, progress=False)[0]["epoch"] == 0
    assert fitted.evaluate(catalogue)["precision@1"] == 1
