"""TextClassifier: learning, inference, files, bad input."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import pickle
import random

import numpy as np
import pytest
import torch
from generated_texts import WORDS, generate, generate_several, write_csv

from torch_lsh import LSHLinear
from torch_lsh.data import HashedText
from torch_lsh.io import load_safetensors, save_safetensors
from torch_lsh.models import TextClassifier
from torch_lsh.models.network import WideNetwork
from torch_lsh.text.training_data import Texts, TrainingData


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return TextClassifier().fit(*generate(1500))


@pytest.fixture(scope="module")
def several():
    torch.set_num_threads(1)
    return TextClassifier().fit(*generate_several(1500))


# --- learning ---------------------------------------------------------------------------------------------------------


def test_learns(model):
    test = generate(300, seed=1)
    assert model.score(*test) > 0.97
    assert model.classes_.tolist() == ["food", "law", "sport"]
    assert not model.multilabel_
    result = model.evaluate(*test)
    assert result["rows"] == 300
    assert 0 < result["loss"] < 0.6
    assert "validation_accuracy" not in model.history_[0]  # so few texts are all trained on


def test_learns_with_a_hidden_layer():
    model = TextClassifier(hidden=8).fit(*generate(1000))
    assert model.network_.input.embedding_dim == 8
    assert model.score(*generate(300, seed=1)) > 0.95


@pytest.mark.parametrize("labels", [[3, 1, 2], [True, False, True], [5.0, 1.0, 2.0], ["ä", "北", ""]])
def test_labels_of_every_kind(labels, tmp_path):
    texts = ["good film", "bad film", "long film"] * 5
    model = TextClassifier(epochs=20).fit(texts, labels * 5)
    assert model.predict(texts[:3]).tolist() == labels
    model.save(tmp_path / "model")
    assert TextClassifier.load(tmp_path / "model").predict(texts[:3]).tolist() == labels


def test_many_classes_get_a_hidden_layer_and_very_many_an_lsh_layer():
    texts = [f"word{i} thing" for i in range(100)] * 3
    model = TextClassifier(hidden=None, epochs=1).fit(texts, [int(text[4:-6]) for text in texts])
    assert type(model.network_.output) is torch.nn.Linear
    texts = [f"word{i} of the shelf" for i in range(4200)] * 3
    labels = [f"class {text.split()[0][4:]}" for text in texts]
    model = TextClassifier(hidden=16, epochs=2, batch_size=64, lr=0.02, neighbours=0).fit(texts, labels)
    assert isinstance(model.network_.output, LSHLinear)
    assert model.score(texts[:500], labels[:500]) > 0.1  # chance: 1 in 4,200
    assert model.predict_proba(texts[:3]).shape == (3, 4200)


def test_several_labels(several):
    test = generate_several(300, seed=1)
    assert several.multilabel_
    result = several.evaluate(*test)
    assert result["precision@1"] > 0.97
    assert result["micro_f1"] > 0.9
    predictions = several.predict(test[0])
    exact = np.mean([set(given) == set(true) for given, true in zip(predictions, test[1])])
    assert exact > 0.75
    assert several.predict_proba(test[0]).sum(1).max() > 1.2  # a decision for each class


def test_multi_hot_labels_are_columns():
    texts, labels = generate_several(600)
    names = sorted(WORDS)
    model = TextClassifier(epochs=8).fit(texts, np.array([[name in row for name in names] for row in labels], int))
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.evaluate(texts, [[names.index(name) for name in row] for row in labels])["precision@1"] > 0.97


def test_texts_without_a_label_do_not_take_part():
    texts, labels = generate_several(400)
    model = TextClassifier(epochs=3).fit(texts + ["nothing"] * 50, labels + [[]] * 50)
    assert np.isfinite(model.history_[-1]["loss"])


def test_the_same_seed_gives_the_same_model_with_any_number_of_threads():
    states = []
    for threads, seed in ((1, 0), (2, 0), (1, 1)):
        torch.set_num_threads(threads)
        torch.manual_seed(threads)  # of no influence
        states.append(TextClassifier(seed=seed, epochs=1).fit(*generate(600)).network_.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["input.weight"], states[2]["input.weight"])


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    TextClassifier(epochs=1).fit(*generate(50))
    assert torch.equal(torch.rand(3), wanted)


def test_stops_early_and_goes_back_to_the_best():
    texts, labels = generate(1500)
    generator = random.Random(0)
    wrong = [generator.choice(sorted(WORDS)) for _ in labels]  # nothing to learn: the longer, the worse
    held_out = (texts[:200], wrong[200:400])
    model = TextClassifier(epochs=30, patience=2, label_smoothing=0.0).fit(texts, wrong, validation=held_out)
    losses = [entry["validation_loss"] for entry in model.history_]
    assert len(losses) < 30
    assert len(losses) - 1 - int(np.argmin(losses)) == 2
    assert model.evaluate(*held_out)["loss"] <= min(losses)  # calibrated
    model.temperature_ = 1.0
    assert model.evaluate(*held_out)["loss"] == pytest.approx(min(losses))


def test_holds_texts_out_where_there_are_many():
    model = TextClassifier(epochs=1, batch_size=512, features=HashedText(bits=14, word_ngrams=1)).fit(*generate(22_000))
    assert model.history_[0]["validation_accuracy"] > 0.95


def test_validation_data_are_given(tmp_path):
    texts, labels = generate(300)
    held_out = generate(100, seed=1)
    model = TextClassifier(epochs=3).fit(texts, labels, validation=held_out)
    assert model.history_[-1]["validation_accuracy"] == pytest.approx(model.score(*held_out), abs=0.02)
    path = write_csv(tmp_path / "test.csv", *held_out)
    other = TextClassifier(epochs=3).fit(texts, labels, validation=path)
    assert [e["validation_loss"] for e in other.history_] == [e["validation_loss"] for e in model.history_]
    with pytest.raises(ValueError, match="row 1: the label 'news' did not occur"):
        TextClassifier().fit(texts, labels, validation=(["a", "b"], ["law", "news"]))


# --- files of texts ---------------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_model_as_lists(tmp_path):
    texts, labels = generate(1200)
    path = write_csv(tmp_path / "train.csv", texts, labels)
    settings = {"epochs": 2, "features": HashedText(bits=14)}
    from_lists = TextClassifier(**settings).fit(texts, labels)
    from_file = TextClassifier(**settings).fit(path)
    for name, value in from_lists.network_.state_dict().items():
        assert torch.equal(value, from_file.network_.state_dict()[name])


def test_what_does_not_fit_in_memory_is_read_at_every_epoch(tmp_path):
    texts, labels = generate(20_000)
    path = write_csv(tmp_path / "train.csv", texts, labels)
    model = TextClassifier(epochs=2, memory=100_000, batch_size=512, features=HashedText(bits=14, word_ngrams=1))
    model.fit(path)
    assert model.score(*generate(300, seed=1)) > 0.97
    assert model.history_[0]["validation_accuracy"] > 0.95


def test_streamed_rows_are_those_in_memory():
    texts, labels = generate(22_000)
    features = HashedText(bits=12, word_ngrams=1)
    kept, streamed = (
        TrainingData(Texts(texts, labels), features, 0.1, 500, memory, seed=3) for memory in (1 << 30, 1000)
    )
    assert kept.statistics.cached is not None
    assert streamed.statistics.cached is None
    assert torch.equal(kept.statistics.idf, streamed.statistics.idf)
    assert torch.equal(kept.statistics.held_out.features, streamed.statistics.held_out.features)
    assert len(kept.statistics.held_out.feature_start) == 501
    (block,), blocks = list(kept.blocks()), list(streamed.blocks())
    assert torch.equal(block.rows.features, torch.cat([some.rows.features for some in blocks]))
    assert torch.equal(block.rows.labels, torch.cat([some.rows.labels for some in blocks]))
    assert torch.equal(kept.statistics.label_counts, torch.bincount(block.rows.labels))
    assert torch.equal(streamed.statistics.label_counts, kept.statistics.label_counts)


def test_cells_with_several_labels(tmp_path):
    path = write_csv(tmp_path / "train.csv", *generate_several(600))
    model = TextClassifier(epochs=8).fit(path, label_separator=";")
    assert model.multilabel_
    assert model.evaluate(path, label_separator=";")["precision@1"] > 0.97


# --- inference --------------------------------------------------------------------------------------------------------


def test_probabilities_and_the_best_labels(model):
    texts, _ = generate(700, seed=2)
    probabilities = model.predict_proba(texts)
    assert probabilities.shape == (700, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(texts)).all()
    labels, best = model.top_k(texts, 2)
    assert labels.shape == best.shape == (700, 2)
    np.testing.assert_allclose(best, np.sort(probabilities)[:, :0:-1])
    with pytest.raises(ValueError, match="k is 4; wanted 1 to 3"):
        model.top_k(texts, 4)
    one_by_one = np.concatenate([model.predict_proba([text]) for text in texts[:50]])
    np.testing.assert_allclose(one_by_one, probabilities[:50], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("text", ["", "!?", "unheard of", "\ud800", b"\xff\xfe", "word " * 500_000, "x" * 2_000_000])
def test_texts_of_every_kind_are_classified(model, several, text):
    assert model.predict([text])[0] in WORDS
    assert np.isfinite(model.predict_proba([text])).all()
    assert set(several.predict([text])[0]) <= set(WORDS)


def test_no_texts(model, several):
    assert model.predict([]).shape == (0,)
    assert several.predict([]) == []
    assert model.predict_proba([]).shape == (0, 3)
    assert model.top_k([], 2)[0].shape == (0, 2)


def test_collections_of_texts(model):
    texts = ["goal match", "soup oven"]
    for some in (tuple(texts), np.array(texts), np.array(texts, object), iter(texts)):
        assert model.predict(some).tolist() == ["sport", "food"]


def test_explains(model, several):
    words = model.explain("The judge, noise3: a court!  The JUDGE")
    assert {word for word, _ in words[:2]} == {"judge", "court"}
    assert {word for word, _ in words} == {"the", "judge", "noise3", "a", "court"}
    assert [loss for _, loss in words] == sorted((loss for _, loss in words), reverse=True)
    assert dict(model.explain("judge court", label="food"))["judge"] < 0
    assert several.explain("goal oven", label="food")[0][0] == "oven"
    assert model.explain("") == []
    assert len(model.explain("goal " + "a b c d e " * 1000, max_words=3)) == 3
    with pytest.raises(ValueError, match="the label 'news' did not occur"):
        model.explain("goal", label="news")


# --- saved models -----------------------------------------------------------------------------------------------------


def test_saved_models_are_the_same(model, several, tmp_path):
    texts, _ = generate(50, seed=3)
    for some in (model, several):
        some.save(tmp_path / "model")
        loaded = TextClassifier.load(tmp_path / "model")
        np.testing.assert_array_equal(loaded.predict_proba(texts), some.predict_proba(texts))
        assert list(loaded.predict(texts)) == list(some.predict(texts))
        assert loaded.get_params() == some.get_params()
        assert loaded.history_ == some.history_
        assert loaded.threshold_ == some.threshold_


def test_a_saved_lsh_model(tmp_path):
    texts = [f"word{i}" for i in range(4200)]
    model = TextClassifier(hidden=8, epochs=1, features=HashedText(bits=13, char_ngrams=(3, 4))).fit(texts, texts)
    model.save(tmp_path / "model")
    loaded = TextClassifier.load(tmp_path / "model")
    assert isinstance(loaded.network_.output, LSHLinear)
    assert loaded.features_ == model.features_
    np.testing.assert_array_equal(loaded.predict_proba(texts[:9]), model.predict_proba(texts[:9]))


def test_truncated_and_foreign_files_are_refused(model, tmp_path):
    path = tmp_path / "model"
    model.save(path)
    content = path.read_bytes()
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"model is cut off, damaged"):
            TextClassifier.load(path)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match=r"names no format; wanted torch_lsh.TextClassifier/3"):
        TextClassifier.load(path)
    (tmp_path / "pickle").write_bytes(pickle.dumps(model))
    with pytest.raises(ValueError, match="not a safetensors file"):
        TextClassifier.load(tmp_path / "pickle")


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["a", "b"]},
        {"network": {"hidden": 5}},
        {"settings": {"evil": 1}},
        {"settings": {"epochs": -1}},
        {"features": {"bits": 40}},
        {"features": None},
        {"threshold": "x"},
    ],
)
def test_a_changed_header_is_refused(model, tmp_path, change):
    path = tmp_path / "model"
    model.save(path)
    tensors, metadata = load_safetensors(path)
    metadata["model"] = json.dumps({**json.loads(metadata["model"]), **change})
    save_safetensors(tensors, path, metadata)
    with pytest.raises(ValueError, match="does not hold a model that this version knows"):
        TextClassifier.load(path)


@pytest.mark.parametrize("name", ["idf", "bias"])
@pytest.mark.parametrize("number", [float("nan"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(model, tmp_path, name, number):
    path = tmp_path / "model"
    model.save(path)
    tensors, metadata = load_safetensors(path)
    name = next(full for full in tensors if full.endswith(name))
    tensors[name].view(-1)[0] = number
    save_safetensors(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"model does not hold .*: {name} holds a NaN or an infinity"):
        TextClassifier.load(path)


def test_copies(model):
    texts, _ = generate(20, seed=4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict_proba(texts), model.predict_proba(texts))


# --- what the wide model can, with texts ------------------------------------------------------------------------------


def test_weights_of_texts_and_labels():
    texts, labels = ["word"] * 30, ["a"] * 20 + ["b"] * 10
    settings = {"epochs": 20, "features": HashedText(bits=8)}
    assert TextClassifier(**settings).fit(texts, labels).predict(["word"]).tolist() == ["a"]
    for weights in (
        {"class_weight": {"b": 10.0}},
        {"sample_weight": [1.0] * 20 + [10.0] * 10},
        {"sample_weight": np.r_[np.zeros(20), np.ones(10)]},
    ):
        assert TextClassifier(**settings).fit(texts, labels, **weights).predict(["word"]).tolist() == ["b"]
    with pytest.raises(ValueError, match="class_weight has the label 'c', which no text has"):
        TextClassifier().fit(texts, labels, class_weight={"c": 1})
    with pytest.raises(ValueError, match="sample_weight has 29 numbers"):
        TextClassifier().fit(texts, labels, sample_weight=[1.0] * 29)


@pytest.mark.parametrize("settings", [{}, {"hidden": 8}, {"hidden": 8, "neighbours": 3}])
def test_learns_new_labels_and_words(settings):
    texts, labels = generate(400)
    model = TextClassifier(epochs=10, **settings).fit(texts, labels)
    more = [f"planet orbit noise{i % 7}" for i in range(100)]
    model.partial_fit(texts[:100] + more, labels[:100] + ["space"] * 100, epochs=10, lr=0.02)
    assert model.classes_.tolist() == ["food", "law", "sport", "space"]
    assert model.predict(["orbit planet", "goal match", "soup oven"]).tolist() == ["space", "sport", "food"]
    assert model.score(*generate(200, seed=1)) > 0.9
    assert len(model.history_) == 20


def test_partial_fit_of_what_does_not_fit(model):
    model = copy.deepcopy(model)
    with pytest.raises(ValueError, match="several labels"):
        model.partial_fit(["a"], [["law", "food"]])
    new = TextClassifier(epochs=3).partial_fit(*generate(300), classes=["law", "art"])
    assert new.classes_.tolist() == ["food", "law", "sport", "art"]
    assert new.predict_proba(["goal match"]).shape == (1, 4)
    assert new.predict(["goal match"]) == ["sport"]


def test_an_interrupted_fit_goes_on(tmp_path, monkeypatch):
    texts, labels = generate(600)
    settings = {"epochs": 3, "hidden": 8, "features": HashedText(bits=12)}
    wanted = TextClassifier(**settings).fit(texts, labels, checkpoint=tmp_path / "other", checkpoint_every=7)
    step, steps = WideNetwork.loss, []

    def interrupted(self, *batch):
        steps.append(None)
        if len(steps) == 40:
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(WideNetwork, "loss", interrupted)
    options = {"checkpoint": tmp_path / "run", "checkpoint_every": 7}
    with pytest.raises(KeyboardInterrupt):
        TextClassifier(**settings).fit(texts, labels, **options)
    model = TextClassifier(**settings).fit(texts, labels, **options)
    assert len(steps) < 40 + 3 * 34
    for name, value in wanted.network_.state_dict().items():
        assert torch.equal(value, model.network_.state_dict()[name])
    with pytest.raises(ValueError, match="belongs to a run with configuration"):
        TextClassifier(**{**settings, "hidden": 9}).fit(texts, labels, **options)


def test_a_run_of_other_texts_or_labels_is_not_resumed(tmp_path):
    texts, labels = generate(300)
    options = {"epochs": 2, "hidden": 8}
    TextClassifier(**options).fit(texts, labels, checkpoint=tmp_path / "run")
    names = dict(zip(("food", "law", "sport"), ("sport", "food", "law")))
    others = (
        ({}, texts[::-1], labels[::-1], None),
        ({}, texts, [names[label] for label in labels], None),
        ({}, texts, labels, np.arange(300) % 3),
        ({"label_smoothing": 0.2}, texts, labels, None),
    )
    for change, some, of_some, weights in others:
        with pytest.raises(ValueError, match=r"belongs to a run with .*(checksum of rows|label_smoothing)"):
            TextClassifier(**options, **change).fit(some, of_some, checkpoint=tmp_path / "run", sample_weight=weights)


def test_an_interrupted_partial_fit_leaves_a_whole_model(monkeypatch):
    texts, labels = generate(300)
    model = TextClassifier(epochs=1, hidden=8).fit(texts, labels)
    before = model.predict(texts).tolist()

    def interrupted(self, *batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(WideNetwork, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(["brand new words"] * 3, ["new"] * 3)
    assert model.classes_.tolist() == ["food", "law", "sport", "new"]
    assert model.predict_proba(texts).shape == (300, 4)
    assert model.predict(texts, excluded=["new"]).tolist() == before


def test_classes_without_texts_get_room(model):
    wider = copy.deepcopy(model).partial_fit([], [], classes=["food", "new"])
    assert wider.classes_.tolist() == ["food", "law", "sport", "new"]
    assert wider.predict_proba(["goal"]).shape == (1, 4)


def test_a_mapped_model_is_the_same(model, several, tmp_path):
    texts, _ = generate(20, seed=4)
    for some in (model, several):
        some.save(tmp_path / "model")
        mapped = TextClassifier.load(tmp_path / "model", mmap=True)
        np.testing.assert_array_equal(mapped.predict_proba(texts), some.predict_proba(texts))


def test_permitted_and_excluded_labels(model):
    text = ["goal match"]
    assert model.top_k(text, 1)[0].tolist() == [["sport"]]
    labels, probabilities = model.top_k(text, 3)
    order = labels[0].tolist()
    found, some = model.top_k(text, 2, excluded=["sport"])
    assert found[0].tolist() == [name for name in order if name != "sport"]
    np.testing.assert_allclose(some[0], [probabilities[0, order.index(name)] for name in found[0]], rtol=1e-5)
    assert model.top_k(text * 2, 1, allowed=[["law"], ["food", "law"]])[0][0, 0] == "law"
    assert model.predict(text, excluded=["sport"])[0] != "sport"
    with pytest.raises(ValueError, match="the label 'news' did not occur"):
        model.top_k(text, 1, allowed=["news"])


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "labels", "words"),
    [
        (["a", "b"], ["x"], "X has 2 texts and y 1 labels"),
        (["a", "b"], None, "y is None; wanted a label for each text"),
        ([], [], "X holds no text with a label"),
        (["a", "b"], ["x", "x"], "y holds one class only, 'x'"),
        (["a", "b"], ["x", None], "label 1 is None"),
        (["a", "b"], ["x", float("nan")], "label 1 is nan"),
        (["a", "b"], [1.0, 1.5], "label 1 is 1.5; wanted text or a whole number, not a continuous target"),
        (["a", "b"], [1, 2**63], "label 1 is 9223372036854775808; wanted a whole number of 64 bits"),
        (["a", "b"], [[1], [2, -(2**63) - 1]], "label 1 is -9223372036854775809; wanted a whole number of 64 bits"),
        (["a", "b"], ["x", ["y"]], r"label 1 is \['y'\]; wanted one label"),
        (["a", "b"], [["x"], "y"], "label 1 is 'y'; wanted a list"),
        (["a", "b"], [[], []], "no text with a label"),
        (["a", "b"], ["x", 1], "labels are a whole number \\(1\\) and text"),
        (["a", "b"], "xy", "y is 'xy'; wanted several"),
        (["a", "b"], np.array([[1, 2], [0, 1]]), r"wanted labels \[rows\], or zeros and ones"),
        ("data.csv", ["x"], "X is the path 'data.csv', and y is given"),
    ],
)
def test_bad_texts_and_labels(texts, labels, words):
    model = TextClassifier()
    with pytest.raises(ValueError, match=words):
        model.fit(texts, labels)
    assert not hasattr(model, "network_")


@pytest.mark.parametrize("labels", [[3, 4], ["x", "y"], [[3], []], [["x", "y"], ["x"]]])
def test_rows_of_numbers_and_text_of_numpy_are_those_of_python(labels):
    def of_numpy(label):
        return list(map(of_numpy, label)) if isinstance(label, list) else np.array(label)[()]

    assert list(Texts(["a", b"b"], labels)) == list(Texts(["a", b"b"], list(map(of_numpy, labels))))


def test_what_is_not_text_is_named_by_its_row(model):
    with pytest.raises(TypeError, match="text 1 is None of type NoneType; wanted str"):
        TextClassifier().fit(["a", None], ["x", "y"])
    with pytest.raises(TypeError, match="text 1 is 3"):
        model.predict(["a", 3])
    with pytest.raises(ValueError, match="wanted several"):
        model.predict("a")


def test_a_label_never_seen_counts_as_wrong(model, tmp_path):
    texts, labels = ["match goal team", "b"], ["sport", "news"]
    known = model.evaluate(texts[:1], labels[:1])
    assert "labels_unknown" not in known
    expected = {"accuracy": known["accuracy"] / 2, "loss": known["loss"], "rows": 2, "labels_unknown": 1}
    assert model.evaluate(texts, labels) == pytest.approx(expected)
    assert model.evaluate(write_csv(tmp_path / "test.csv", texts, labels)) == pytest.approx(expected)
    assert math.isnan(model.evaluate(["b"], ["news"])["loss"])
    with pytest.raises(ValueError, match="no rows to evaluate on"):
        model.evaluate([], [])


def test_ranking_metrics():
    """By hand: the likeliest labels of "one" are a and b, those of "two" are b and a."""
    texts = ["one", "two"] * 20
    model = TextClassifier(epochs=20).fit(texts, [["a"], ["b"]] * 20)
    assert [labels.tolist() for labels in model.top_k(["one", "two"], 2)[0]] == [["a", "b"], ["b", "a"]]
    given = (["one", "two", "two"], [["b"], ["b", "x"], ["a", "b"]])
    metrics = model.evaluate(*given, metrics=("recall", "mrr", "psp"), ks=(1, 2), propensities=torch.tensor([0.5, 1]))
    assert metrics["labels_unknown"] == 1
    assert metrics["recall@1"] == pytest.approx((0 + 1 / 2 + 1 / 2) / 3)
    assert metrics["recall@2"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert metrics["mrr@2"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert metrics["psp@1"] == pytest.approx((0 + 1 + 1) / (1 + 2 + 2))  # an unknown label counts as the rarest
    assert metrics.items() >= model.evaluate(*given).items()  # the others are as ever
    excluded = [(0, "a"), (1, "b"), (2, "y")]
    assert model.evaluate(*given, metrics=("recall",), ks=(1,), excluded=excluded)["recall@1"] == pytest.approx(1.5 / 3)
    with pytest.raises(ValueError, match="keeps no label counts"):
        model.evaluate(*given, metrics=("psp",))


def test_filter_file_of_texts(tmp_path):
    model = TextClassifier(epochs=20).fit(["one", "two"] * 20, ["class a", "class b"] * 20)
    path = tmp_path / "filter.txt"
    path.write_text("0 class a\n1 other\n")
    found = model.evaluate(["one", "two"], ["class b"] * 2, metrics=("precision",), ks=(1,), excluded=path)
    assert (found["accuracy"], found["precision@1"]) == (0.5, 1.0)
    path.write_text("0 class a\nx class b\n")
    with pytest.raises(ValueError, match=r"filter.txt, line 2: the line is 'x class b'"):
        model.evaluate(["one"], ["class b"], metrics=("precision",), excluded=path)


def test_a_label_in_digits_is_the_whole_number():
    texts = ["one", "two"] * 20
    numbers = TextClassifier(epochs=5).fit(texts, [1, 22] * 20)
    words = TextClassifier(epochs=5).fit(texts, ["1", "22"] * 20)
    for labels in ([1, 22], ["1", "22"]):
        for model in (numbers, words):
            result = model.evaluate(["one", "two"], labels)
            assert result["accuracy"] == 1
            assert "labels_unknown" not in result
    assert numbers.evaluate(["one", "two"], ["01", "x"])["labels_unknown"] == 2
    assert numbers.predict(["one"], excluded=["1"]).tolist() == [22]
    assert words.partial_fit(["three"], [3]).classes_.tolist() == ["1", "22", "3"]
    assert numbers.partial_fit(["three"], ["3"]).classes_.tolist() == [1, 22, 3]
    with pytest.raises(
        ValueError, match="row 0: the label 'x' is text, and the classes of the training data are whole numbers"
    ):
        numbers.partial_fit(["one"], ["x"])
    with pytest.raises(ValueError, match=r"labels are a whole number \(1\) and text \('1'\); wanted one kind"):
        TextClassifier().fit(texts, [1, "1"] * 20)


def test_a_bad_row_in_a_file_leaves_a_fitted_model_as_it_was(model, tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"text,label\na,x\nb\xff,y\n")
    model = copy.deepcopy(model)
    before = model.predict_proba(["goal"])
    with pytest.raises(ValueError, match=r"row 2 \(line 3\): the text is not UTF-8"):
        model.fit(path)
    np.testing.assert_array_equal(model.predict_proba(["goal"]), before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"features": 3}, "features is 3; wanted a HashedText"),
        ({"hidden": -1}, "hidden is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"label_smoothing": 1}, "label_smoothing is 1"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"patience": 0}, "patience is 0"),
        ({"memory": -1}, "memory is -1"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        TextClassifier(**settings).fit(["a", "b"], ["x", "y"])


def test_not_fitted(tmp_path):
    model = TextClassifier()
    for call in (
        lambda: model.predict(["a"]),
        lambda: model.predict_proba(["a"]),
        lambda: model.top_k(["a"]),
        lambda: model.evaluate(["a"], ["x"]),
        lambda: model.explain("a"),
        lambda: model.save(tmp_path / "model"),
    ):
        with pytest.raises(ValueError, match="not fitted"):
            call()


def test_models_are_not_written_where_they_cannot_be(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        model.save(tmp_path / "no" / "model")


# --- scikit-learn -----------------------------------------------------------------------------------------------------


def test_parameters():
    model = TextClassifier(epochs=3)
    assert model.set_params(lr=0.1).get_params()["lr"] == 0.1
    assert repr(model) == "TextClassifier(epochs=3, lr=0.1)"
    with pytest.raises(ValueError, match="has no epoch; it has features"):
        model.set_params(epoch=3)


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not here")
def test_conventions_of_scikit_learn():
    from sklearn.base import clone, is_classifier
    from sklearn.exceptions import NotFittedError
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    texts, labels = generate(200)
    model = TextClassifier(epochs=3, features=HashedText(bits=12))
    assert clone(model).get_params() == model.get_params()
    assert is_classifier(model)
    with pytest.raises(NotFittedError):
        model.predict(["a"])
    model.set_params(epochs=10)
    assert cross_val_score(model, texts, labels, cv=2).min() > 0.8
    search = GridSearchCV(make_pipeline(FunctionTransformer(), model), {"textclassifier__lr": [0.02, 0.05]}, cv=2)
    assert search.fit(texts, labels).score(*generate(50, seed=1)) > 0.8


def test_labels_and_texts_of_other_libraries():
    sparse, pandas = pytest.importorskip("scipy.sparse"), pytest.importorskip("pandas")
    texts, numbers = ["one", "two"] * 20, [0, 1] * 20
    multi_hot = np.eye(2, dtype=np.int64)[numbers]
    one_label, several = (TextClassifier(epochs=2).fit(texts, y) for y in (numbers, multi_hot))
    expected = one_label.predict_proba(texts[:2])
    frame = pandas.DataFrame({"y": numbers})
    for y in (torch.tensor(numbers), torch.tensor(numbers).view(-1, 1), frame, frame["y"]):
        np.testing.assert_array_equal(TextClassifier(epochs=2).fit(texts, y).predict_proba(texts[:2]), expected)
    column = pandas.DataFrame({"x": texts})
    np.testing.assert_array_equal(TextClassifier(epochs=2).fit(column, numbers).predict_proba(column[:2]), expected)
    expected = several.predict(texts[:2])
    for y in (sparse.csr_matrix(multi_hot), sparse.coo_array(multi_hot), torch.tensor(multi_hot)):
        np.testing.assert_array_equal(TextClassifier(epochs=2).fit(texts, y).predict(texts[:2]), expected)
    with pytest.raises(ValueError, match="X is a data frame of 2 columns; wanted one"):
        TextClassifier().fit(pandas.DataFrame({"a": texts, "b": texts}), numbers)


@pytest.mark.parametrize(("classes", "word_ngrams"), [(64, 2), (65, 1)])
def test_texts_of_many_classes_are_words_alone(classes, word_ngrams):
    texts = [f"word{number} of {number}" for number in range(classes)]
    assert TextClassifier(epochs=1).fit(texts, list(range(classes))).features_.word_ngrams == word_ngrams


def test_fit_trains_in_inference_mode():
    texts, labels = ["fine film", "good fun", "dull plot", "bad film"] * 10, ["p", "p", "n", "n"] * 10
    wanted = TextClassifier(hidden=8).fit(texts, labels).partial_fit(texts, labels)
    with torch.inference_mode():
        model = TextClassifier(hidden=8).fit(texts, labels).partial_fit(texts, labels)
    assert np.array_equal(model.predict_proba(texts), wanted.predict_proba(texts))
