"""TextNeighbours alone and in a TextClassifier."""

from __future__ import annotations

import copy
import itertools
import json
import random

import numpy as np
import pytest
import torch
from torch_lsh.text.neighbours import TextNeighbours

from torch_lsh.data import HashedText, XMCRows
from torch_lsh.io import load_safetensors, save_safetensors
from torch_lsh.models import TextClassifier
from torch_lsh.text.training_data import Texts, TrainingData


def rows_of(rows, labels, num_features=8, num_labels=5):
    """Rows of unit length with equal values in the given features."""
    start, label_start = (torch.tensor([0, *map(len, some)]).cumsum(0) for some in (rows, labels))
    values = torch.cat([torch.full((len(row),), max(1, len(row)) ** -0.5) for row in rows])
    features, flat = (torch.tensor([*itertools.chain(*some)], dtype=torch.int32) for some in (rows, labels))
    return XMCRows(start, features, values, label_start, flat, num_features, num_labels)


KEPT = rows_of([[0, 1], [0, 2], [3], [], [1, 2, 4, 5]], [[0, 3], [1], [1, 2], [4], []])


def near(neighbours, row):
    rows = rows_of([row], [[]])
    return neighbours.search(rows.feature_start, rows.features.long(), rows.values)


def test_votes_are_those_of_the_nearest():
    neighbours = TextNeighbours.from_rows(KEPT, k=3)
    cosines, rows = near(neighbours, [0, 1])
    assert rows.tolist() == [[0, 1, 4]]
    torch.testing.assert_close(cosines, torch.tensor([[1, 0.5, 8**-0.5]]))
    votes = neighbours.votes(cosines, rows, power=2)  # row 4 has no label
    torch.testing.assert_close(votes, torch.tensor([[1, 0.25, 0, 1, 0]]) / 2.25)
    torch.testing.assert_close(neighbours.votes(cosines, rows, power=3)[0, 1], torch.tensor(0.125 / 2.125))
    assert neighbours.votes(*near(neighbours, [])).tolist() == [[0] * 5]


def test_probabilities_are_a_mixture():
    neighbours = TextNeighbours.from_rows(KEPT, k=3)
    neighbours.share, neighbours.power = 0.3, 2.0
    queries = rows_of([[0, 1], [7]], [[], []])
    logits = torch.randn(2, 5)
    arguments = queries.feature_start, queries.features.long(), queries.values
    mixed = neighbours(logits, *arguments).softmax(1)
    votes = torch.tensor([1, 0.25, 0, 1, 0]) / 2.25
    torch.testing.assert_close(mixed[0], 0.7 * logits[0].softmax(0) + 0.3 * votes)
    torch.testing.assert_close(mixed[1], logits[1].softmax(0))  # no neighbour


@pytest.mark.parametrize(("right", "share"), [("network", 0.0), ("neighbours", 0.9)])
def test_the_share_is_what_pays(right, share):
    neighbours = TextNeighbours.from_rows(KEPT, k=1)
    rows = rows_of([[3], [0, 2]], [[], []])
    logits = 2 * torch.eye(5)[[4, 4]]  # votes are for 1 and 2, and for 1
    labels = torch.tensor([[4, -100], [4, 3]]) if right == "network" else torch.tensor([[1, 2], [1, -100]])
    neighbours.tune([(logits, rows.feature_start, rows.features.long(), rows.values, labels)])
    assert neighbours.share == share or (right == "neighbours" and neighbours.share > 0.4)


def test_rows_that_are_no_rows_are_refused():
    for change in (
        {"features": torch.full_like(KEPT.features, 8)},
        {"labels": torch.full_like(KEPT.labels, -1)},
        {"feature_start": KEPT.feature_start.flip(0)},
        {"values": KEPT.values[1:]},
    ):
        with pytest.raises(ValueError):
            TextNeighbours.from_rows(KEPT._replace(**change))


# --- in a TextClassifier ----------------------------------------------------------------------------------------------

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
def model():
    torch.set_num_threads(1)
    return TextClassifier(hidden=8, epochs=1).fit(*generate(22_000, 0))


def test_is_the_default_over_many_classes_and_better_than_the_network(model):
    assert model.network_.neighbours.k == 64
    assert model.features_.word_ngrams == 1
    entry = model.history_[-1]
    assert entry["validation_neighbours_accuracy"] > 0.9 > 0.5 > entry["validation_accuracy"]
    texts, labels = generate(300, 1)
    assert model.score(texts, labels) > 0.9
    np.testing.assert_allclose(model.predict_proba(texts[:20]).sum(1), 1, rtol=1e-4)
    words = model.explain(texts[0])
    assert words[0][0] == texts[0].split()[0]
    assert all(np.isfinite(loss) for _, loss in words)


def test_can_be_left_out_and_asked_for():
    texts, labels = generate(5000, 0)
    assert TextClassifier(hidden=8, epochs=1, neighbours=0).fit(texts, labels).network_.neighbours is None
    few = TextClassifier(epochs=1, neighbours=5).fit(texts, [label % 3 for label in labels])
    assert few.network_.neighbours.k == 5
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
        assert other.network_.neighbours.settings() == model.network_.neighbours.settings()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("neighbours.columns", lambda columns: columns.fill_(10**6)),
        ("neighbours.labels", lambda labels: labels.fill_(CLASSES)),
        ("neighbours.row_start", lambda start: start.flip(0)),
        ("columns", lambda columns: columns.flip(0)),
        ("columns", lambda columns: columns - 2**30),
        ("columns", lambda columns: columns + 2**30),
    ],
)
def test_damaged_tensors_are_refused(model, tmp_path, name, damage):
    path = tmp_path / "model"
    model.save(path)
    tensors, metadata = load_safetensors(path)
    tensors[name] = damage(tensors[name])
    save_safetensors(tensors, path, metadata)
    with pytest.raises(ValueError, match="does not hold a model that this version knows"):
        TextClassifier.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 3},
        {"rows": 2**70},
        {"k": 0},
        {"k": 10**9},
        {"k": 2**70},
        {"share": "x"},
        {"share": 1.5},
        {"power": 1e999},
        {"evil": 1},
    ],
)
def test_damaged_settings_are_refused(model, tmp_path, change):
    path = tmp_path / "model"
    model.save(path)
    tensors, metadata = load_safetensors(path)
    settings = json.loads(metadata["model"])
    settings["neighbours"].update(change)
    save_safetensors(tensors, path, {**metadata, "model": json.dumps(settings)})
    with pytest.raises(ValueError, match="does not hold a model that this version knows"):
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
    assert 5_000 < len(model.network_.neighbours.row_start) < 12_500
    assert model.score(*generate(300, 1)) > 0.6


def test_the_same_with_any_number_of_threads():
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        some = TextClassifier(hidden=8, epochs=1, batch_size=512).fit(*generate(4500, 0))
        results.append(some.predict_proba(generate(50, 1)[0]))
    np.testing.assert_array_equal(*results)
