"""Few texts of several classes: ranked, where no setting says otherwise."""

from __future__ import annotations

import random

import numpy as np
import pytest

from torch_lsh.models.ranker import LabelRanker
from torch_lsh.text import TextClassifier
from torch_lsh.text.linear import LinearNetwork


def generate(rows, classes, seed=0):
    """Texts with three words, of ten for each class, and three that tell nothing."""
    generator = random.Random(seed)
    labels = [generator.randrange(classes) for _ in range(rows)]
    texts = [
        " ".join(
            [f"word{label}x{generator.randrange(10)}" for _ in range(3)]
            + [f"noise{generator.randrange(99)}" for _ in range(3)]
        )
        for label in labels
    ]
    return texts, labels


def is_ranked(model):
    ranked = isinstance(model.network_.mixture, LabelRanker)
    assert isinstance(model.network_, LinearNetwork) != ranked
    assert model.features_.word_ngrams == (1 if ranked else 2)
    return ranked


@pytest.mark.parametrize(
    ("rows", "classes", "ranked"), [(300, 8, True), (300, 7, False), (199, 8, False), (10_050, 8, False)]
)
def test_few_texts_of_several_classes_are_ranked(rows, classes, ranked):
    model = TextClassifier().fit(*generate(rows, classes))
    assert is_ranked(model) == ranked
    texts, labels = generate(300, classes, seed=1)
    assert (model.predict(texts) == np.array(labels)).mean() > 0.9
    assert model.predict_proba(texts).sum(1) == pytest.approx(1, abs=1e-4)


def test_a_file_is_ranked_as_its_texts_are(tmp_path):
    texts, labels = generate(300, 8)
    path = tmp_path / "texts.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in zip(texts, labels)))
    model = TextClassifier().fit(path)
    assert is_ranked(model)
    np.testing.assert_array_equal(model.predict_proba(texts), TextClassifier().fit(texts, labels).predict_proba(texts))


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"hidden": 0}, {}),
        ({"neighbours": 0}, {}),
        ({"epochs": 2}, {}),
        ({"validation_fraction": 0.0}, {}),
        ({"memory": 1000}, {}),
        ({}, {"sample_weight": np.ones(300)}),
        ({}, {"class_weight": "balanced"}),
        ({}, {"validation": generate(100, 8, seed=2)}),
    ],
    ids=lambda some: next(iter(some), ""),
)
def test_settings_ask_for_the_linear_model(settings, arguments):
    assert not is_ranked(TextClassifier(**settings).fit(*generate(300, 8), **arguments))


def test_several_labels_of_few_texts_have_a_threshold_of_the_ranker():
    texts, labels = generate(400, 8)
    both = [[one, other] for one, other in zip(labels[:200], labels[200:])]
    model = TextClassifier().fit([f"{one} {other}" for one, other in zip(texts[:200], texts[200:])], both)
    assert is_ranked(model)
    assert model.network_.independent
    assert model.evaluate(texts, [[label] for label in labels])["micro_f1"] > 0.9
