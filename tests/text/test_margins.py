"""Support vector machines beside the network of few classes."""

from __future__ import annotations

import random

import pytest
import torch
from generated_texts import generate

from torch_lsh.data import XMCDataset
from torch_lsh.models import TextClassifier
from torch_lsh.text import fitting
from torch_lsh.text.margins import margin_network, share_of


@pytest.mark.parametrize("classes", [2, 4])
def test_margins_are_those_of_support_vector_machines(classes):
    scipy_sparse, svm = pytest.importorskip("scipy.sparse"), pytest.importorskip("sklearn.svm")
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(80) % classes
    features = torch.rand(80, 900, generator=generator) + torch.rand(classes, 900, generator=generator)[labels]
    features = torch.nn.functional.normalize(features * (torch.rand(80, 900, generator=generator) < 0.05))
    one_hot = torch.nn.functional.one_hot(labels, classes)
    rows = XMCDataset.from_scipy(
        scipy_sparse.csr_matrix(features.numpy()), scipy_sparse.csr_matrix(one_hot.numpy())
    ).rows
    network = margin_network(rows, seed=0)
    theirs = svm.LinearSVC(C=1.0, tol=1e-6, max_iter=10_000).fit(features.numpy(), labels.numpy())
    wanted = torch.from_numpy(theirs.decision_function(features.numpy())).float()
    found = network.scores(features.to_sparse_csr()).detach()
    found = found[:, 1] - found[:, 0] if classes == 2 else found
    torch.testing.assert_close(found, wanted, atol=0.2, rtol=0)  # five passes
    assert (found - wanted).abs().mean() < 0.05 * wanted.abs().max()


def test_share_is_that_of_least_cross_entropy():
    torch.manual_seed(0)
    labels = torch.randint(3, (600,))
    good, bad = (torch.nn.functional.one_hot(labels, 3) * scale + torch.randn(600, 3) for scale in (3, 0))
    also_good = torch.nn.functional.one_hot(labels, 3) * 3 + torch.randn(600, 3)
    assert share_of(good, bad, labels) == 1.0
    assert share_of(bad, good, labels) == 0.0
    assert share_of(also_good, good, labels) == 0.5
    assert share_of(good, good, labels) == 0.0


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_network_and_margins_are_mixed(share, monkeypatch):
    texts, labels = generate(200)
    monkeypatch.setattr(fitting, "share_of", lambda *_: 0.0)
    alone = TextClassifier(epochs=1).fit(texts, labels)
    monkeypatch.setattr(fitting, "share_of", lambda *_: 1.0)
    margins = TextClassifier(epochs=1).fit(texts, labels)
    monkeypatch.setattr(fitting, "share_of", lambda *_: share)
    mixed = TextClassifier(epochs=1).fit(texts, labels)
    for one, other, both in zip(*(model.network_.parameters() for model in (alone, margins, mixed))):
        assert not torch.equal(one, other)
        torch.testing.assert_close(both, one.lerp(other, share))


@pytest.mark.parametrize("settings", [{"sample_weight": [2.0] * 300}, {"class_weight": "balanced"}])
def test_weights_leave_no_share(settings, monkeypatch):
    monkeypatch.setattr(fitting, "margin_network", lambda *_: pytest.fail("trained without the weights"))
    TextClassifier(epochs=1).fit(*generate(300), **settings)


def test_punctuation_between_letters_of_chinese_counts():
    chance = random.Random(0)

    def texts(count):
        return [
            ("".join(chance.choices("的一是了我不人在他有这个上们来到时大地为子中", k=12)) + mark, mark)
            for mark in chance.choices("！？", k=count)
        ]

    train, test = texts(150), texts(100)
    model = TextClassifier().fit(*zip(*train))
    assert model.features_.symbols
    assert model.score(*zip(*test)) == 1.0
