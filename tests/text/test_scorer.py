"""Predictions by tables over hashed columns are those of the network."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from generated_texts import generate, generate_several

from torch_lsh.data import HashedText
from torch_lsh.models import TextClassifier
from torch_lsh.text.columns import Columns
from torch_lsh.text.linear import LinearNetwork
from torch_lsh.text.scorer import LinearScorer


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_those_of_the_network(classes):
    generator = torch.Generator().manual_seed(classes)
    hashing = HashedText(10, 2, norm=None)
    columns = Columns(torch.randperm(1024, generator=generator)[:300].int(), torch.rand(300, generator=generator), 1024)
    network = LinearNetwork(300, classes).eval()
    torch.nn.init.normal_(network.input.weight)
    torch.nn.init.normal_(network.bias)
    scorer = LinearScorer.of(hashing, columns, network)

    def wanted(texts):
        return network.scores(columns.csr(*hashing.csr(texts))).detach()

    for texts in (["a b a c", "", "one two three four", "?"], ["the one and only"], []):
        torch.testing.assert_close(scorer(texts), wanted(texts))
    with torch.no_grad():
        network.input.weight.mul_(2)  # the tables follow
    for some in (scorer, pickle.loads(pickle.dumps(scorer))):
        torch.testing.assert_close(some(["one two"]), wanted(["one two"]))


def test_scores_of_a_classifier_follow_further_training():
    model = TextClassifier(epochs=2).fit(*generate(200))
    before = model.predict_proba(["oven goal judge"])
    model.partial_fit(["oven goal judge"] * 20, ["art"] * 20)
    after = model.predict_proba(["oven goal judge"])
    assert before.shape == (1, 3)
    assert after.shape == (1, 4)
    assert model.predict(["oven goal judge"]).tolist() == ["art"]


def test_networks_that_are_more_than_a_table_have_no_scorer():
    hashing = HashedText(22)
    narrow = Columns(torch.tensor([0], dtype=torch.int32), torch.ones(1), 1 << 22)
    assert LinearScorer.of(hashing, narrow, LinearNetwork(1, 4)) is not None
    assert LinearScorer.of(hashing, narrow, LinearNetwork(1, 64)) is None
    hidden = TextClassifier(hidden=4, epochs=1).fit(*generate(60))
    assert hidden.predict_proba(["goal"]).shape == (1, 3)
    several = TextClassifier(epochs=1).fit(*generate_several(100))
    texts = ["goal oven", "judge"]
    logits = several.network_.scores(several.columns_.csr(*several.features_.csr(texts))).detach()
    np.testing.assert_allclose(several.predict_proba(texts), logits.sigmoid(), rtol=1e-5)


def test_columns_come_once():
    with pytest.raises(ValueError, match="columns holds a number twice"):
        Columns(torch.tensor([5, 2, 5], dtype=torch.int32), torch.ones(3), 8)
