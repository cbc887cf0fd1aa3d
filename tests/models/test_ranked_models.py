"""XMCClassifier and TextClassifier with a ranker: files, filters, more rows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from torch_lsh.data import XMCDataset, collate_xmc, synthetic_xmc
from torch_lsh.models import TextClassifier, XMCClassifier
from torch_lsh.models.mixture import Mixture
from torch_lsh.models.ranker import LabelRanker

FEATURES, LABELS = 1000, 600


@pytest.fixture(scope="module")
def data():
    return synthetic_xmc(2000, 200, num_features=FEATURES, num_labels=LABELS, seed=0)


@pytest.fixture(scope="module")
def model(data):
    return fitted(data[0])


def fitted(rows):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = XMCClassifier(FEATURES, LABELS, hidden=16)
    made.fit(rows, epochs=1, progress=False)
    return made


def test_many_labels_have_a_ranker_of_all_rows(data, model):
    assert isinstance(model.mixture, LabelRanker)
    assert len(model.mixture.neighbours) == len(data[0])


def test_few_labels_and_rows_have_none(data):
    few = XMCDataset.from_rows(data[0].rows.take(torch.arange(500)))
    made = XMCClassifier(FEATURES, LABELS, hidden=4)
    made.fit(few, epochs=1, progress=False)
    assert isinstance(made.mixture, Mixture)
    made = XMCClassifier(FEATURES, LABELS, hidden=4)
    made.fit(few, epochs=1, progress=False, neighbours=0)
    assert made.mixture is None


def test_it_is_better_than_the_network(data, model):
    alone = XMCClassifier(FEATURES, LABELS, hidden=16)
    alone.fit(data[0], epochs=1, progress=False, neighbours=0)
    assert model.evaluate(data[1])["precision@1"] > alone.evaluate(data[1])["precision@1"] + 0.1


@torch.no_grad()
def test_predictions_are_the_best_of_all_scores(data, model):
    features, _ = collate_xmc(data[1].rows)
    scores, labels = model.predict(features, k=5)
    everything = model.scores(features)
    torch.testing.assert_close(scores, everything.topk(5).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, everything.gather(1, labels), rtol=1e-4, atol=1e-4)


def test_more_labels_than_candidates(data, model):
    scores, labels = model.predict(data[1], k=LABELS)
    assert (labels.sort(1).values == torch.arange(LABELS)).all()
    assert (scores.diff(dim=1) <= 0).all()


def test_excluded_labels(data, model):
    best = model.predict(data[1], k=1)[1]
    _, labels = model.predict(data[1], k=3, excluded=best.tolist())
    assert not (labels == best).any()


@pytest.mark.parametrize("mmap", [False, True])
def test_files(data, model, tmp_path, mmap):
    model.save(tmp_path / "model")
    loaded = XMCClassifier.load(tmp_path / "model", mmap=mmap)
    assert isinstance(loaded.mixture, LabelRanker)
    for ours, theirs in zip(loaded.predict(data[1]), model.predict(data[1])):
        assert torch.equal(ours, theirs)


def test_more_rows_with_new_labels(data, model):
    made = copy.deepcopy(model)
    rows = data[1].rows
    new = torch.full((len(data[1]),), LABELS + 3, dtype=torch.int32)
    start = torch.arange(len(new) + 1)
    made.partial_fit(XMCDataset.from_rows(rows._replace(label_start=start, labels=new, num_labels=LABELS + 4)))
    assert made.num_labels == LABELS + 4
    assert (made.predict(data[1], k=1)[1] == LABELS + 3).float().mean() > 0.5


def test_runs_of_equal_seeds_are_equal(data, model):
    for ours, theirs in zip(fitted(data[0]).predict(data[1]), model.predict(data[1])):
        assert torch.equal(ours, theirs)


def test_texts():
    """Every label has two words of its own."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5000, 25_000)
    texts = [f"a{label % 71} b{label // 71} and" for label in labels]
    model = TextClassifier(epochs=1, hidden=8).fit(texts, labels.tolist())
    assert isinstance(model.network_.mixture, LabelRanker)
    some = texts[:200]
    found, probabilities = model.top_k(some, 3)
    assert (found[:, 0] == labels[:200]).mean() > 0.95
    everything = model.predict_proba(some)
    np.testing.assert_allclose(np.sort(everything, 1)[:, :-4:-1], probabilities, rtol=1e-3, atol=1e-5)
