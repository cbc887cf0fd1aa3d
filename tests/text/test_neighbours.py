"""Neighbours in a TextClassifier."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch

from torch_lsh.data import HashedText
from torch_lsh.io import load_safetensors, save_safetensors
from torch_lsh.models import TextClassifier
from torch_lsh.models.ranker import LabelRanker
from torch_lsh.text.training_data import Texts, TrainingData

CLASSES = 4200


def generate(rows, seed):
    """Each class has words of its own, more than a small network can tell apart from few texts."""
    generator = random.Random(seed)
    labels = [i if rows >= CLASSES and i < CLASSES else generator.randrange(CLASSES) for i in range(rows)]
    texts = [
        f"word{label} part{label % 70} part{label % 61} thing{generator.randrange(50)} of {generator.randrange(20)}"
        for label in labels
    ]
    return texts, labels


@pytest.fixture(scope="module")
def ranking():
    """A model with held-out texts, which train a ranker."""
    torch.set_num_threads(1)
    return TextClassifier(hidden=8, epochs=1).fit(*generate(22_000, 0))


@pytest.fixture(scope="module")
def mixing():
    """A model without held-out texts."""
    torch.set_num_threads(1)
    return TextClassifier(hidden=8, epochs=1, validation_fraction=0).fit(*generate(4500, 0))


@pytest.fixture(params=["ranking", "mixing"])
def model(request):
    return request.getfixturevalue(request.param)


def test_are_the_default_over_many_classes_and_better_than_the_network(ranking):
    assert isinstance(ranking.network_.mixture, LabelRanker)
    assert ranking.network_.mixture.neighbours.k == 64
    assert len(ranking.network_.mixture.neighbours) == 22_000
    assert ranking.features_.word_ngrams == 1
    entry = ranking.history_[-1]
    assert entry["validation_neighbours_accuracy"] > 0.9 > 0.5 > entry["validation_accuracy"]
    texts, labels = generate(300, 1)
    assert ranking.score(texts, labels) > 0.9
    np.testing.assert_allclose(ranking.predict_proba(texts[:20]).sum(1), 1, rtol=1e-4)
    words = ranking.explain(texts[0])
    assert words[0][0] == texts[0].split()[0]
    assert all(np.isfinite(loss) for _, loss in words)


def test_vote_without_held_out_texts_too(mixing):
    (neighbours,) = mixing.network_.mixture.sources
    assert (neighbours.k, len(neighbours)) == (64, 4500)
    assert mixing.score(*generate(300, 1)) > 0.6


def test_few_texts_with_many_labels_have_a_ranker():
    texts, labels = generate(4500, 0)
    model = TextClassifier(hidden=4, epochs=1).fit(texts, labels)
    assert isinstance(model.network_.mixture, LabelRanker)
    assert len(model.network_.mixture.neighbours) == 4500
    assert model.score(*generate(300, 1)) > 0.6


def test_can_be_left_out_and_asked_for():
    texts, labels = generate(5000, 0)
    assert TextClassifier(hidden=8, epochs=1, neighbours=0).fit(texts, labels).network_.mixture is None
    few = TextClassifier(epochs=1, neighbours=5).fit(texts, [label % 3 for label in labels])
    assert few.network_.mixture.sources[0].k == 5
    with pytest.raises(ValueError, match="neighbours is 5; wanted 0 for a multi-label task without a hidden layer"):
        TextClassifier(neighbours=5).fit(["a", "b"], [["x"], ["x", "y"]])
    with pytest.raises(ValueError, match="neighbours is -1"):
        TextClassifier(neighbours=-1).fit(["a", "b"], ["x", "y"])


def test_saved_and_copied(model, tmp_path):
    texts, _ = generate(30, 2)
    wanted = model.predict_proba(texts)
    model.save(tmp_path / "model")
    for other in (TextClassifier.load(tmp_path / "model"), copy.deepcopy(model)):
        np.testing.assert_array_equal(other.predict_proba(texts), wanted)
        assert other.network_.mixture.configuration() == model.network_.mixture.configuration()


OUT_OF_RANGE = {
    "columns": lambda columns: columns.fill_(10**6),
    "labels": lambda labels: labels.fill_(CLASSES),
    "start": lambda start: start.flip(0),
    "values": lambda values: values.fill_(torch.nan),
}


@pytest.mark.parametrize(
    ("kind", "name", "damage"),
    [
        ("mixing", "mixture.sources.0.columns", "columns"),
        ("mixing", "mixture.sources.0.labels", "labels"),
        ("mixing", "mixture.sources.0.row_start", "start"),
        ("mixing", "mixture.sources.0.column_rows", "columns"),
        ("mixing", "mixture.bucket", lambda bucket: bucket + 8),
        ("mixing", "mixture.shares", lambda shares: shares + 1),
        ("ranking", "mixture.neighbours.columns", "columns"),
        ("ranking", "mixture.neighbours.labels", "labels"),
        ("ranking", "mixture.neighbours.row_start", "start"),
        ("ranking", "mixture.centroids.columns", "columns"),
        ("ranking", "mixture.centroids.column_labels", "labels"),
        ("ranking", "mixture.centroids.start", "start"),
        ("ranking", "mixture.co_occurrences.columns", "columns"),
        ("ranking", "mixture.co_occurrences.start", "start"),
        ("ranking", "mixture.classifiers.columns", "columns"),
        ("ranking", "mixture.classifiers.start", "start"),
        ("ranking", "mixture.classifiers.values", "values"),
        ("ranking", "mixture.groups.groups", lambda groups: groups.fill_(10**6)),
        ("ranking", "mixture.groups.column_groups", "columns"),
        ("ranking", "mixture.groups.column_start", "start"),
        ("ranking", "mixture.groups.bias", lambda bias: bias[1:].clone()),
        ("ranking", "mixture.counts", lambda counts: counts - 2**20),
        ("ranking", "mixture.deviation", lambda deviation: deviation * 0),
        ("ranking", "mixture.weighting.weight", lambda weight: weight[1:].clone()),
        ("ranking", "mixture.rank.0.weight", lambda weight: weight[1:].clone()),
        ("mixing", "columns", lambda columns: columns.fill_(3)),
        ("mixing", "columns", lambda columns: columns - 2**30),
        ("mixing", "columns", lambda columns: columns + 2**30),
        ("mixing", "columns", lambda columns: columns.long()),
        ("mixing", "idf", lambda idf: idf.double()),
    ],
)
def test_damaged_tensors_are_refused(request, tmp_path, kind, name, damage):
    path = tmp_path / "model"
    request.getfixturevalue(kind).save(path)
    tensors, metadata = load_safetensors(path)
    tensors[name] = OUT_OF_RANGE.get(damage, damage)(tensors[name])
    save_safetensors(tensors, path, metadata)
    with pytest.raises(ValueError, match="does not hold a model that this version knows"):
        TextClassifier.load(path)


NEIGHBOURS = [
    {"rows": 3},
    {"rows": 2**70},
    {"k": 0},
    {"k": 10**9},
    {"k": 2**70},
    {"power": "x"},
    {"power": 1e999},
    {"num_features": 10**6},
    {"kind": "none"},
    {"evil": 1},
]


@pytest.mark.parametrize(
    ("kind", "place", "change"),
    [
        *(("mixing", ("sources", 0), change) for change in NEIGHBOURS),
        *(("ranking", ("neighbours",), change) for change in NEIGHBOURS),
        ("mixing", ("sources", 0), {"kind": "dense"}),
        ("ranking", ("neighbours",), {"kind": "dense"}),
        ("ranking", ("weighting",), {"num_features": 3}),
        ("ranking", ("weighting",), {"evil": 1}),
        ("ranking", ("centroids",), {"entries": 3}),
        ("ranking", ("centroids",), {"num_features": 2**70}),
        ("ranking", ("co_occurrences",), {"entries": 3}),
        ("ranking", ("classifiers",), {"entries": -1}),
        ("ranking", ("classifiers",), {"num_features": 10**6}),
        ("ranking", ("classifiers",), {"num_features": "x"}),
        ("ranking", ("groups",), {"entries": 3}),
        ("ranking", ("groups",), {"num_features": 10**6}),
        ("ranking", ("groups",), {"sizes": [1]}),
        ("ranking", ("groups",), {"sizes": [-1, 145]}),
        ("ranking", ("groups",), {"sizes": ["x"]}),
        ("ranking", (), {"groups": None}),
        *((kind, (), change) for kind in ("mixing", "ranking") for change in ({"kind": "none"}, {"evil": 1})),
        ("mixing", (), {"kind": "ranker"}),
        ("ranking", (), {"kind": "mixture"}),
    ],
)
def test_damaged_settings_are_refused(request, tmp_path, kind, place, change):
    path = tmp_path / "model"
    request.getfixturevalue(kind).save(path)
    tensors, metadata = load_safetensors(path)
    settings = json.loads(metadata["model"])
    damaged = settings["network"]["mixture"]
    for key in place:
        damaged = damaged[key]
    damaged.update(change)
    save_safetensors(tensors, path, {**metadata, "model": json.dumps(settings)})
    with pytest.raises(ValueError, match="does not hold a model that this version knows"):
        TextClassifier.load(path)


def test_neighbours_of_another_kind_than_the_input_are_refused(model, tmp_path):
    path = tmp_path / "model"
    model.save(path)
    tensors, metadata = load_safetensors(path)
    settings = json.loads(metadata["model"])
    settings["network"]["dense_input"] = True
    save_safetensors(tensors, path, {**metadata, "model": json.dumps(settings)})
    with pytest.raises(ValueError, match="rows of another kind than the network"):
        TextClassifier.load(path)


def test_of_more_texts_than_fit_in_memory_a_choice_is_kept():
    texts, labels = generate(15_000, 0)
    features = HashedText(bits=14, word_ngrams=1, norm=None)
    data = TrainingData(Texts(texts, labels), features, 0.1, 500, 1 << 19, seed=0)
    assert data.statistics.cached is None
    kept = data.sample(data.statistics.bytes // 3)
    assert len(kept.feature_start) == pytest.approx(5_000, rel=0.05)
    assert len(kept.labels.unique()) > 2500  # of 4,200, from everywhere
    model = TextClassifier(hidden=8, epochs=1, memory=1 << 19, batch_size=512).fit(texts, labels)
    assert 5_000 < len(model.network_.mixture.neighbours) < 12_500
    assert model.score(*generate(300, 1)) > 0.6


def test_the_same_with_any_number_of_threads():
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        some = TextClassifier(hidden=8, epochs=1, batch_size=512).fit(*generate(4500, 0))
        results.append(some.predict_proba(generate(50, 1)[0]))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("classes", "of_words", "char_ngrams", "split_characters"), [(60, 2, (2, 4), True), (70, 1, (2, 2), False)]
)
def test_letters_without_blanks_are_features_as_the_number_of_classes_asks(
    classes, of_words, char_ngrams, split_characters
):
    texts = [chr(0x4E00 + i) + chr(0x5E00 + i % 7) + "好" for i in range(classes)]
    features = TextClassifier(hidden=4, epochs=1).fit(texts, list(range(classes))).features_
    assert (features.word_ngrams, features.char_ngrams) == (of_words, char_ngrams)
    assert features.split_characters == split_characters


def test_texts_that_have_become_neighbours_choose_no_temperature():
    """They are their own nearest neighbours, so that any model would seem too unsure."""
    draw = random.Random(0)

    def some(rows):
        labels = [draw.randrange(5) for _ in range(rows)]
        of_words = [label if draw.random() < 0.5 else draw.randrange(5) for label in labels]
        return [f"word{5 * draw.randrange(20) + label} thing{draw.randrange(500)}" for label in of_words], labels

    model = TextClassifier(neighbours=8, epochs=2).fit(*some(800), validation=some(400))
    assert isinstance(model.network_.mixture, LabelRanker)
    assert model.temperature_ == 1
    texts, _ = some(400)
    model.temperature_ = 0.5  # as older files have it
    wanted = np.sort(model.predict_proba(texts), 1)[:, ::-1][:, :2]
    np.testing.assert_allclose(model.top_k(texts, 2)[1], wanted, rtol=1e-5)
