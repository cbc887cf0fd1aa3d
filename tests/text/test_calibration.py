"""Probabilities are calibrated on held-out texts."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_texts import generate

from torch_lsh.io import load_safetensors, save_safetensors
from torch_lsh.models import TextClassifier
from torch_lsh.text.calibration import temperature_of


@pytest.mark.parametrize(("right", "margin"), [(3, 2.0), (9, 0.5), (7, 30.0)])
def test_the_temperature_makes_the_probability_that_of_being_right(right, margin):
    logits = torch.tensor([[margin, 0.0]] * 10)
    labels = torch.tensor([0] * right + [1] * (10 - right))
    wanted = margin / math.log(right / (10 - right)) if right > 5 else 10.0  # below a half, the more uniform the better
    assert temperature_of(logits, labels) == pytest.approx(min(wanted, 10.0), rel=1e-6)


def test_the_temperature_has_the_least_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 5, generator=generator)
    labels = torch.multinomial((logits / 2.5).softmax(1), 1, generator=generator)[:, 0]
    found = temperature_of(logits, labels)
    losses = [torch.nn.functional.cross_entropy(logits / (found * factor), labels) for factor in (0.99, 1.0, 1.01)]
    assert losses[1] < min(losses[0], losses[2])
    assert found == pytest.approx(2.5, rel=0.2)


def test_the_temperature_is_within_limits_where_all_are_right_and_one_without_rows():
    assert temperature_of(torch.tensor([[1.0, 0.0]] * 3), torch.zeros(3, dtype=torch.int64)) == pytest.approx(0.1)
    assert temperature_of(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)) == 1.0
    assert temperature_of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 1.0


def calibration_error(probabilities, right, bins=10):
    sure = probabilities.max(1)
    at = np.minimum((sure * bins).astype(int), bins - 1)
    return sum(abs((right - sure)[at == one].sum()) for one in range(bins)) / len(sure)


def test_probabilities_of_a_fitted_model_are_those_of_being_right(tmp_path):
    model = TextClassifier(epochs=10, label_smoothing=0.5).fit(*generate(600), validation=generate(300, seed=1))
    texts, labels = generate(600, seed=2)
    right = model.predict(texts) == np.array(labels)
    error = calibration_error(model.predict_proba(texts), right)
    uncalibrated = TextClassifier.load(saved(model, tmp_path))
    assert uncalibrated.temperature_ == model.temperature_ < 0.8  # smoothed labels make a model too unsure
    uncalibrated.temperature_ = 1.0
    assert error < 0.3 * calibration_error(uncalibrated.predict_proba(texts), right)
    np.testing.assert_allclose(model.top_k(texts, 1)[1][:, 0], model.predict_proba(texts).max(1), rtol=1e-6)
    assert (uncalibrated.predict(texts) == model.predict(texts)).all()
    # The loss is that of the probabilities.
    picked = model.predict_proba(texts)[range(600), np.searchsorted(model.classes_, labels)]
    assert model.evaluate(texts, labels)["loss"] == pytest.approx(-np.log(picked).mean(), rel=1e-5, abs=1e-7)


def saved(model, folder):
    model.save(folder / "model")
    return folder / "model"


def test_without_held_out_texts_parts_that_networks_of_the_others_predict_calibrate():
    model = TextClassifier(epochs=10, label_smoothing=0.5).fit(*generate(300))
    uncalibrated = TextClassifier(epochs=10, label_smoothing=0.5, validation_fraction=0.0).fit(*generate(300))
    texts, labels = generate(600, seed=2)
    right = model.predict(texts) == np.array(labels)
    error = calibration_error(model.predict_proba(texts), right)
    assert model.temperature_ < 0.8
    assert error < 0.3 * calibration_error(uncalibrated.predict_proba(texts), right)


def test_texts_that_chance_labels_are_predicted_with_little_confidence():
    texts, labels = generate(250)
    random.Random(0).shuffle(labels)  # nothing to learn but the training texts by heart
    model = TextClassifier(epochs=8, label_smoothing=0.0).fit(texts, labels)
    assert model.temperature_ > 2
    assert model.predict_proba(generate(100, seed=1)[0]).max(1).mean() < 0.5


def test_few_texts_do_not_calibrate():
    assert TextClassifier(epochs=1).fit(*generate(60)).temperature_ == 1.0


def test_files_without_a_temperature_are_not_calibrated():
    previous = Path(__file__).parents[1] / "data" / "previous" / "text_2.safetensors"
    assert TextClassifier.load(previous).temperature_ == 1.0


def generate_many(rows, seed):
    """Texts with one to six of 80 labels, each of which shows in one text of two."""
    generator = random.Random(seed)
    labels = [generator.sample(range(80), generator.randint(1, 6)) for _ in range(rows)]
    noise = [f"noise{i}" for i in range(300)]
    words = [[f"word{one}" for one in some if generator.random() < 0.5] for some in labels]
    return [" ".join(some + generator.choices(noise, k=5)) for some in words], labels


@pytest.fixture(scope="module")
def many():
    torch.set_num_threads(1)
    return TextClassifier().fit(*generate_many(1500, 0))


def test_probabilities_of_several_labels_are_those_of_each(many):
    texts, labels = generate_many(600, 1)
    right = np.zeros((600, 80), bool)
    for row, some in zip(right, labels):
        row[some] = True
    probabilities = many.predict_proba(texts)
    assert probabilities.sum(1).mean() == pytest.approx(3.5, rel=0.25)  # labels of a text, not 1
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 1)):
        some = (probabilities > low) & (probabilities <= high)
        assert probabilities[some].sum() == pytest.approx(right[some].sum(), abs=0.05 * right.sum())
    np.testing.assert_allclose(many.top_k(texts, 3)[1], np.sort(probabilities)[:, :-4:-1], rtol=1e-4)
    given = sum(len(some) for some in many.predict(texts))
    assert given == int((probabilities >= many.threshold_).sum())

    def f1(threshold):
        given = probabilities >= threshold
        return 2 * (given & right).sum() / (given.sum() + right.sum())

    best = max(f1(threshold) for threshold in np.linspace(0.01, 0.99, 99))
    assert many.evaluate(texts, labels)["micro_f1"] == pytest.approx(f1(many.threshold_))
    assert f1(many.threshold_) > 0.97 * best


def test_a_text_without_known_words_has_each_label_as_often_as_texts_do(many):
    labels = generate_many(1500, 0)[1]
    shares = np.bincount([label for some in labels for label in some]) / len(labels)
    np.testing.assert_allclose(many.predict_proba(["unheard-of"])[0], shares, rtol=0.01)
    assert many.predict(["unheard-of"]) == [[]]


def test_files_of_a_ranker_without_a_calibration_share_a_softmax(many, tmp_path):
    loaded = TextClassifier.load(saved(many, tmp_path))
    texts, _ = generate_many(20, 2)
    np.testing.assert_allclose(loaded.predict_proba(texts), many.predict_proba(texts), rtol=1e-5)
    tensors, metadata = load_safetensors(tmp_path / "model", ("torch_lsh.TextClassifier/3",))
    del tensors["mixture.calibration.line"]
    content = json.loads(metadata["model"])
    del content["network"]["mixture"]["independent"]
    save_safetensors(tensors, tmp_path / "old", {**metadata, "model": json.dumps(content)})
    old = TextClassifier.load(tmp_path / "old")
    np.testing.assert_allclose(old.predict_proba(texts).sum(1), 1, rtol=1e-5)
    assert (old.top_k(texts, 5)[0] == many.top_k(texts, 5)[0]).all()


def test_labels_that_tell_themselves_are_explained_by_their_words(many):
    words = dict(many.explain("word7 noise3 word9 noise4", 7))
    assert max(words, key=words.get) == "word7"
    assert words["word7"] > 1


def f1_of(model, texts, labels, threshold):
    right = np.array([[one in some for one in model.classes_.tolist()] for some in labels])
    given = model.predict_proba(texts) >= threshold
    return 2 * (given & right).sum() / (given.sum() + right.sum())


def generate_unsure(rows, seed):
    """Texts with two of 12 labels, each of which shows in one text of three, and a word of another label."""
    generator = random.Random(seed)
    labels = [generator.sample(range(12), 2) for _ in range(rows)]
    texts = []
    for some in labels:
        shown = [one for one in some if generator.random() < 1 / 3] + [generator.randrange(12)]
        texts.append(" ".join([f"word{one}" for one in shown] + [f"noise{generator.randrange(300)}" for _ in range(6)]))
    return texts, labels


def test_few_texts_with_several_labels_have_a_threshold_and_a_temperature_of_parts_of_them():
    model = TextClassifier().fit(*generate_unsure(500, 0))
    texts, labels = generate_unsure(600, 1)
    best = max(f1_of(model, texts, labels, threshold) for threshold in np.linspace(0.02, 0.98, 49))
    found = f1_of(model, texts, labels, model.threshold_)
    assert found > best - 0.04
    assert found > f1_of(model, texts, labels, 0.5) + 0.05
    plain = TextClassifier(validation_fraction=0.0).fit(*generate_unsure(500, 0))
    assert (plain.threshold_, plain.temperature_) == (0.5, 1.0)
    right = np.array([[one in some for one in range(12)] for some in labels])
    assert loss(model.predict_proba(texts), right) < 0.95 * loss(plain.predict_proba(texts), right)


def loss(probabilities, right):
    return -np.where(right, np.log(probabilities), np.log1p(-probabilities)).mean()


def test_few_classes_with_neighbours_beside_held_out_texts_are_calibrated():
    def with_chance(rows, seed):
        texts, labels = generate(rows, seed)
        generator = random.Random(seed + 100)
        return texts, [
            one if generator.random() < 0.6 else generator.choice(["food", "law", "sport"]) for one in labels
        ]

    model = TextClassifier(neighbours=8).fit(*with_chance(1500, 0), validation=with_chance(600, 1))
    texts, labels = with_chance(1500, 2)
    right = model.predict(texts) == np.array(labels)
    assert 0.6 < right.mean() < 0.8
    assert calibration_error(model.predict_proba(texts), right) < 0.1
    calibration = model.network_.mixture.calibration
    assert not calibration.independent
    assert float(calibration.line[0]) != 1.0
    np.testing.assert_allclose(model.predict_proba(texts).sum(1), 1, rtol=1e-5)
