"""Metrics of models on data, against values computed by hand; filter files; labels that a model does not know."""

from __future__ import annotations

import bz2
import json
import math

import pytest
import torch
from command_line import assert_one_line, run

from torch_lsh.data import XMCDataset, XMCRows, read_filter, synthetic_xmc, write_xmc
from torch_lsh.metrics import METRIC_NAMES, propensities
from torch_lsh.models import XMCClassifier


def model_that_ranks(order, num_features=3):
    """A model that gives every row the same ranking."""
    model = XMCClassifier(num_features, len(order), hidden=2, dense=True)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias[torch.tensor(order)] = torch.arange(len(order), 0, -1).float()
    return model


def dataset(labels, num_labels, num_features=3):
    counts = torch.tensor([0, *(len(some) for some in labels)])
    flat = torch.tensor([label for some in labels for label in some], dtype=torch.int32)
    start = torch.arange(len(labels) + 1)
    features = torch.zeros(len(labels), dtype=torch.int32)
    values = torch.ones(len(labels))
    return XMCDataset.from_rows(XMCRows(start, features, values, counts.cumsum(0), flat, num_features, num_labels))


def test_every_metric_by_hand():
    model = model_that_ranks([2, 0, 1, 3])
    result = model.evaluate(
        dataset([[2, 3], [0]], 4),
        ks=(2,),
        metrics=METRIC_NAMES,
        propensities=torch.tensor([0.5, 1.0, 0.25, 1.0]),
    )
    discount = 1 / math.log2(3)
    assert result == pytest.approx(
        {
            "precision@2": (1 / 2 + 1 / 2) / 2,
            "recall@2": (1 / 2 + 1) / 2,
            "ndcg@2": (1 / (1 + discount) + discount) / 2,
            "mrr@2": (1 + 1 / 2) / 2,
            "coverage@2": 2 / 3,
            "psp@2": (4 + 2) / (5 + 2),
            "psrecall@2": (4 / 2 + 2) / (5 / 2 + 2),
            "psndcg@2": (4 / (1 + discount) + 2 * discount) / ((4 + discount) / (1 + discount) + 2),
        }
    )


def test_excluded_pairs_and_filter_files(tmp_path):
    model, data = model_that_ranks([2, 0, 1, 3]), dataset([[0], [0], [3]], 4)
    assert model.evaluate(data, ks=(1,))["precision@1"] == 0
    path = tmp_path / "filter_labels_test.txt.BZ2"
    path.write_bytes(bz2.compress(b"\xef\xbb\xbf0 2\n\n2 2\n2 0\n2 1\n"))
    for excluded in (path, str(path), [[0, 2], [2, 2], [2, 0], [2, 1]], read_filter(path)):
        for size in (1, 2, 256):
            result = model.evaluate(data, ks=(1,), batch_size=size, excluded=excluded)
            assert result == {"precision@1": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 1\n2\n", "filter.txt, line 2: the line is '2'; wanted 'row label'"),
        ("0 1\n\nx 1\n", "filter.txt, line 3: the line is 'x 1'"),
        ("-1 1\n", "filter.txt, line 1: the line is '-1 1'"),
        ("0 1\n1 one\n", "filter.txt, line 2: the label is 'one'; wanted a number from 0"),
        ("0 1\n7 1\n", "filter.txt has row 7; wanted 0 to 1"),
    ],
)
def test_malformed_filter_files(tmp_path, content, message):
    path = tmp_path / "filter.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        model_that_ranks([0, 1]).evaluate(dataset([[0], [1]], 2), excluded=path)


def test_a_filter_file_that_is_cut_off(tmp_path):
    path = tmp_path / "filter.txt.bz2"
    path.write_bytes(bz2.compress(b"0 1\n" * 1000)[:-8])
    with pytest.raises(ValueError, match=r"filter.txt.bz2, line 1001 or later: the compressed file is damaged"):
        read_filter(path)


def test_labels_that_the_model_does_not_know_count_as_wrong():
    model = model_that_ranks([1, 0])
    result = model.evaluate(dataset([[1], [5], [0, 4, 5]], 6), ks=(1, 3), metrics=("precision", "recall"))
    assert result == {
        "precision@1": pytest.approx(1 / 3),
        "precision@3": pytest.approx((1 / 3 + 0 + 1 / 3) / 3),
        "recall@1": pytest.approx(1 / 3),
        "recall@3": pytest.approx((1 + 0 + 1 / 3) / 3),
        "labels_unknown": 3,
    }


def test_rows_with_fewer_features_and_labels_than_the_model():
    model = model_that_ranks([2, 0, 1, 3], num_features=9)
    assert model.evaluate(dataset([[2]], 3), ks=(1,)) == {"precision@1": 1.0}
    assert model.predict(dataset([[2]], 3), k=1)[1].tolist() == [[2]]


def test_propensities_follow_from_the_labels_of_the_training_rows():
    train, test = synthetic_xmc(300, 50, num_features=200, num_labels=100)
    model = XMCClassifier(200, 100, hidden=4)
    history = model.fit(train, epochs=1, eval_dataset=test, progress=False, neighbours=5, metrics=("psp",), ks=(1, 2))
    counts = torch.bincount(train.rows.labels, minlength=100)
    for origin, constants in ((None, ()), ("amazon", (0.6, 2.6))):
        expected = model.evaluate(test, metrics=("psp",), propensities=propensities(counts, 300, *constants))
        assert model.evaluate(test, metrics=("psp",), propensities=origin) == expected
    assert history[0]["psp@1"] == model.evaluate(test, metrics=("psp",))["psp@1"]
    assert {name for name in history[0] if "@" in name} == {"psp@1", "psp@2"}
    with pytest.raises(ValueError, match="propensities is 'books'; wanted"):
        model.evaluate(test, metrics=("psp",), propensities="books")


def test_arguments_that_do_not_fit():
    model, data = model_that_ranks([0, 1]), dataset([[0], [1]], 2)
    with pytest.raises(ValueError, match="propensities is None, and the model keeps no label counts"):
        model.evaluate(data, metrics=("psp",))
    with pytest.raises(ValueError, match=r"names is .*; wanted some of precision"):
        model.evaluate(data, metrics=("accuracy",))
    for pairs in ([0, 1], [[0, 1, 2]], [[0.5, 1]], [[-1, 0]]):
        with pytest.raises(ValueError, match=r"excluded has shape .*; wanted pairs \[E, 2\]"):
            model.evaluate(data, excluded=pairs)
    with pytest.raises(ValueError, match="excluded has row 2; wanted 0 to 1"):
        model.evaluate(data, excluded=[[2, 0]])
    before = model.output.weight.clone()
    with pytest.raises(ValueError, match="names is"):
        model.fit(data, eval_dataset=data, metrics=("accuracy",))
    assert torch.equal(model.output.weight, before)


def test_command_line(tmp_path, capsys):
    data, path, pairs = tmp_path / "data.txt", tmp_path / "model.safetensors", tmp_path / "filter.txt"
    write_xmc(dataset([[2, 3], [0], [3]], 4), data)
    pairs.write_text("1 2\n")
    model = model_that_ranks([2, 0, 1, 3])
    model.save(path)
    options = ["--model", path, "--metrics", "precision", "psp", "--ks", 1, 2, "--filter", pairs, "--train", data]
    status, output, _ = run(capsys, "evaluate", data, *options, "--propensities", "amazon")
    likely = propensities(torch.tensor([1, 0, 1, 2]), 3, 0.6, 2.6)
    expected = model.evaluate(
        XMCDataset(data), ks=(1, 2), metrics=("precision", "psp"), propensities=likely, excluded=[[1, 2]]
    )
    assert status == 0
    assert json.loads(output) == pytest.approx(expected)
    assert expected["precision@1"] == pytest.approx(2 / 3)
    pairs.write_text("1\n")
    assert_one_line(run(capsys, "evaluate", data, *options), f"{pairs}, line 1: ")
    options = ["--test", data, "--metrics", "ndcg", "--ks", 2, "--epochs", 1, "--hidden", 2, "--quiet"]
    status, output, _ = run(capsys, "train", data, "--model", path, *options)
    assert status == 0
    assert "ndcg@2 " in output
    assert "precision" not in output
