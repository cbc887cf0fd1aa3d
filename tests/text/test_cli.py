"""The commands about texts."""

from __future__ import annotations

import io
import json
import os

import pytest
from command_line import assert_one_line, run
from generated_texts import generate, generate_several, write_csv

from torch_lsh import cli
from torch_lsh.models import TextClassifier


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_csv(folder / "train.csv", *generate(1200))
    write_csv(folder / "test.csv", *generate(200, seed=1))
    model = folder / "model.safetensors"
    assert cli.main(["train-text", str(folder / "train.csv"), "--model", str(model), "--quiet", "--epochs", "4"]) == 0
    return folder


def test_train_text(files, tmp_path, capsys):
    model = tmp_path / "m"
    options = ["--epochs", 2, "--hidden", 8, "--bits", 12, "--char-ngrams", 3, 5, "--seed", 4, "--quiet"]
    test = ["--test", files / "test.csv", "--validation", files / "test.csv"]
    status, output, _ = run(capsys, "train-text", files / "train.csv", "--model", model, *options, *test)
    assert status == 0
    lines = output.splitlines()
    assert lines[0].startswith("epoch 1  loss ")
    assert "validation_accuracy" in lines[1]
    assert json.loads(lines[2])["test"]["rows"] == 200
    assert lines[3].startswith(f"saved {model}: 3 labels")
    loaded = TextClassifier.load(model)
    assert (loaded.features_.bits, loaded.features_.char_ngrams, loaded.seed) == (12, (3, 5), 4)
    assert loaded.network_.input.embedding_dim == 8


def test_a_budget_ends_the_training(files, tmp_path, capsys):
    options = ["--epochs", 500, "--hidden", 8, "--budget", "0.1s", "--quiet"]
    status, output, _ = run(capsys, "train-text", files / "train.csv", "--model", tmp_path / "m", *options)
    assert status == 0
    assert 1 <= output.count("\nepoch ") + output.startswith("epoch ") < 500


def test_several_labels_by_number_without_a_header(tmp_path, capsys):
    texts, labels = generate_several(300)
    path = tmp_path / "train.tsv"
    path.write_text("".join(f"{'|'.join(some)}\t{text}\n" for text, some in zip(texts, labels)))
    columns = ["--text", 1, "--label", 0, "--separator", "|"]
    model = tmp_path / "m"
    assert run(capsys, "train-text", path, "--model", model, *columns, "--quiet", "--epochs", 5)[0] == 0
    status, output, _ = run(capsys, "evaluate", path, "--model", model, *columns)
    assert status == 0
    assert json.loads(output)["precision@1"] > 0.9


def test_evaluate_and_predict_know_a_text_model(files, capsys):
    status, output, _ = run(capsys, "evaluate", files / "test.csv", "--model", files / "model.safetensors")
    assert status == 0
    assert json.loads(output)["accuracy"] > 0.95
    status, output, _ = run(capsys, "predict", files / "test.csv", "--model", files / "model.safetensors", "-k", 2)
    assert status == 0
    rows = [json.loads(line) for line in output.splitlines()]
    model = TextClassifier.load(files / "model.safetensors")
    texts, _ = generate(200, seed=1)
    labels, probabilities = model.top_k(texts, 2)
    assert [row["labels"] for row in rows] == labels.tolist()
    assert rows[0]["probabilities"] == [round(p, 6) for p in probabilities[0].tolist()]


def test_predict_needs_no_labels(files, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text\ngoal match\n")
    status, output, _ = run(capsys, "predict", tmp_path / "a.csv", "--model", files / "model.safetensors", "-k", 1)
    assert (status, json.loads(output)["labels"]) == (0, ["sport"])


def test_bad_input_is_one_line(files, tmp_path, capsys):
    model, train = files / "model.safetensors", files / "train.csv"
    assert_one_line(run(capsys, "train-text", tmp_path / "no.csv"), "no.csv: there is no such file")
    assert_one_line(run(capsys, "train-text", train, "--model", tmp_path / "no" / "m"), "there is no folder")
    assert_one_line(run(capsys, "train-text", train, "--text", "body"), "train.csv has no column 'body'")
    assert_one_line(run(capsys, "train-text", train, "--hidden", "-1"), "hidden is -1")
    (tmp_path / "bad.csv").write_bytes(b"text,label\na,sport\n\xff,law\n")
    assert_one_line(run(capsys, "train-text", tmp_path / "bad.csv"), "row 2 (line 3): the text is not UTF-8")
    (tmp_path / "new.csv").write_text("text,label\na,sport\nb,news\n")
    status, output, _ = run(capsys, "evaluate", tmp_path / "new.csv", "--model", model, "--metrics", "mrr", "--ks", 2)
    assert status == 0
    assert json.loads(output).keys() == {"accuracy", "loss", "rows", "mrr@2", "labels_unknown"}
    (tmp_path / "cut").write_bytes(model.read_bytes()[:-10])
    for command in (
        ["evaluate", train, "--model", tmp_path / "cut"],
        ["predict", train, "--model", tmp_path / "cut"],
        ["serve", tmp_path / "cut"],
    ):
        assert_one_line(run(capsys, *command), "cut is cut off, damaged")


def test_no_command_costs_its_input(files, tmp_path, capsys):
    train = tmp_path / "train.csv"
    train.write_bytes((files / "train.csv").read_bytes())
    assert_one_line(run(capsys, "train-text", train, "--model", train), "is not a file of torch_lsh")
    assert train.read_bytes() == (files / "train.csv").read_bytes()
    assert os.listdir(tmp_path) == ["train.csv"]


def test_what_would_fail_at_the_end_is_tried_at_the_start(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TextClassifier, "fit", lambda *_, **__: pytest.fail("training"))
    train, model = files / "train.csv", tmp_path / "m"
    (tmp_path / "other.csv").write_text("body\na\n")
    for options, words in (
        (["--test", tmp_path / "no.csv"], "no.csv: there is no such file"),
        (["--test", tmp_path / "other.csv"], "has no column 'text'"),
        (["--validation", tmp_path / "other.csv"], "has no column 'text'"),
        (["--model", "/proc/m"], "/proc/m cannot be written"),
    ):
        assert_one_line(run(capsys, "train-text", train, "--model", model, *options), words)


def test_a_bad_row_of_the_test_file_does_not_cost_the_model(files, tmp_path, capsys):
    (tmp_path / "test.csv").write_text("text,label\na,sport\nb,\n")
    model = tmp_path / "m"
    options = ["--model", model, "--test", tmp_path / "test.csv", "--epochs", 1, "--quiet"]
    assert_one_line(run(capsys, "train-text", files / "train.csv", *options), "row 2 (line 3): the label is ''")
    assert (
        TextClassifier.load(model).classes_.tolist()
        == TextClassifier.load(files / "model.safetensors").classes_.tolist()
    )


def test_standard_input(files, capsys, monkeypatch):
    model = files / "model.safetensors"

    def given(text, *command):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        return run(capsys, *command)

    status, output, _ = given(b"a match\nthe court\n", "predict", "-", "--model", model, "-k", 1)
    assert (status, output.count("\n")) == (0, 2)
    status, output, _ = given(b"__label__sport a\n__label__news b\n", "evaluate", "-", "--model", model)
    assert (status, json.loads(output)["rows"], json.loads(output)["labels_unknown"]) == (0, 2, 1)
    status, output, _ = given(b"text,label\na,sport\n", "evaluate", "-", "--model", model, "--format", ".csv")
    assert (status, json.loads(output)["rows"]) == (0, 1)
    assert_one_line(given(b"a,b\n", "evaluate", "-", "--model", model, "--format", ".csv"), "- has no column 'text'")
    assert_one_line(given(b"__label__a a\n", "train-text", "-", "--model", model), "standard input can be read once")


def test_labels_of_few_texts_need_no_network(tmp_path, capsys):
    numbers = [text * 7 % 520 for text in range(2600)]
    write_csv(tmp_path / "train.csv", [f"a{n % 23} b{n // 23} and" for n in numbers], [f"l{n}" for n in numbers])
    options = ["--model", tmp_path / "m", "--hidden", 8, "--quiet"]
    status, output, _ = run(capsys, "train-text", tmp_path / "train.csv", *options)
    assert status == 0
    [line] = output.splitlines()[:-1]
    assert line.startswith("network not trained (--epochs trains it)  validation_")
    assert "nan" not in line
