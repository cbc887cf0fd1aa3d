"""python -m torch_lsh inspect: on every kind of file, and that bad input is one line and exit status 2."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import torch_lsh
from torch_lsh import HashTableConfig, LSHConfig, cli
from torch_lsh.data import synthetic_xmc
from torch_lsh.data.xmc import write_xmc
from torch_lsh.io import save_safetensors
from torch_lsh.models import TextClassifier, XMCClassifier

F, N, D = 300, 5_000, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("inspect")
    train, test = synthetic_xmc(200, 60, F, N)
    write_xmc(test, folder / "test.txt")
    config = LSHConfig(active=500, index=HashTableConfig(hash="dwta", num_tables=7, balance=True, mips=True))
    model = XMCClassifier(F, N, D, config=config)
    model.fit(train, epochs=1, batch_size=50, progress=False)
    model.save(folder / "model.pt")
    torch.save(model.hidden(synthetic_csr(40)).detach(), folder / "inputs.pt")
    save_safetensors({"x": torch.randn(30, D)}, folder / "inputs.safetensors")
    torch.save({"epoch": 3, "model": model.state_dict()}, folder / "state.pt")
    weights = {"head.weight": torch.randn(N, D), "head.bias": torch.zeros(N), "other.weight": torch.randn(4, 4)}
    save_safetensors(weights, folder / "weights.safetensors")
    return folder


def synthetic_csr(rows):
    return (torch.rand(rows, F) < 0.05).float().to_sparse_csr()


def run(capsys, *arguments):
    capsys.readouterr()
    status = cli.main(["inspect", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_xmc_model_with_its_own_config_and_data(folder, capsys):
    status, output, _ = run(capsys, folder / "model.pt", "--data", folder / "test.txt", "-k", 5)
    assert status == 0
    assert output.startswith(f"output: LSHLinear(in_features={D}, out_features={N}")
    assert "L = 7 of K" in output
    assert "recall@5" in output
    assert "on 60 queries" in output
    status, output, _ = run(capsys, folder / "model.pt", "--data", folder / "test.txt", "-k", 5, "--json")
    numbers = json.loads(output)
    model = XMCClassifier.load(folder / "model.pt")
    with torch.no_grad():
        x = model.hidden(torch_lsh.data.collate_xmc(list(torch_lsh.data.XMCDataset(folder / "test.txt")))[0])
    x = x[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert numbers["recall"] == pytest.approx(model.output.stats(x, k=5, queries=60).recall.mean)
    assert numbers["layer"] == "output"
    assert numbers["stale_rows"] == 0


def test_without_inputs_there_is_no_recall(folder, capsys):
    status, output, _ = run(capsys, folder / "model.pt")
    assert status == 0
    assert "not measured" in output
    assert "rows per bucket" in output


@pytest.mark.parametrize("inputs", ["inputs.pt", "inputs.safetensors"])
@pytest.mark.parametrize(("file", "name"), [("state.pt", "output.weight"), ("weights.safetensors", "head.weight")])
def test_files_of_tensors(folder, capsys, file, name, inputs):
    status, output, _ = run(capsys, folder / file, "--inputs", folder / inputs, "--json")
    assert status == 0
    numbers = json.loads(output)  # one layer: others are narrow
    assert numbers["layer"] == name
    assert numbers["out_features"] == N
    assert 0 < numbers["recall"] <= 1
    assert numbers["queries"] in (30, 40)


def test_bias_counts(tmp_path, capsys):
    """With the bias of one row beyond all others, that row is everybody's best, and is found."""
    weight, bias = torch.randn(N, D), torch.zeros(N)
    bias[77] = 1e4
    torch.save({"a.weight": weight, "a.bias": bias}, tmp_path / "state.pt")
    torch.save(torch.randn(20, D), tmp_path / "x.pt")
    arguments = ["-k", 1, "--json", "--inputs", tmp_path / "x.pt"]
    _, with_bias, _ = run(capsys, tmp_path / "state.pt", *arguments)
    torch.save({"a.weight": weight}, tmp_path / "state.pt")
    _, without, _ = run(capsys, tmp_path / "state.pt", *arguments)
    assert json.loads(with_bias)["recall"] in (0.0, 1.0)
    assert 0 < json.loads(without)["recall"] < 1


def test_text_model(tmp_path, capsys):
    texts = [f"word{i} term{i} thing{i % 7}" for i in range(4_200)]
    model = TextClassifier(epochs=1, hidden=8, progress=False).fit(texts, texts)
    model.save(tmp_path / "text.safetensors")
    (tmp_path / "data.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{text}\n" for text in texts))
    status, output, _ = run(capsys, tmp_path / "text.safetensors", "--data", tmp_path / "data.tsv", "--json")
    assert status == 0
    numbers = json.loads(output)
    assert numbers["out_features"] == 4_200
    assert numbers["queries"] == 128
    assert 0 < numbers["recall"] <= 1
    model = TextClassifier(epochs=1, progress=False).fit(["a b", "c d"] * 20, [0, 1] * 20)
    model.save(tmp_path / "linear.safetensors")
    status, _, errors = run(capsys, tmp_path / "linear.safetensors")
    assert status == 2
    assert "linear model" in errors


def test_plot(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for options in (["--data", folder / "test.txt"], []):
        path = tmp_path / f"{len(options)}.png"
        assert run(capsys, folder / "model.pt", *options, "--queries", 16, "--plot", path)[0] == 0
        assert path.read_bytes().startswith(b"\x89PNG")


def test_bad_input(folder, tmp_path, capsys):
    def error(*arguments):
        status, _, errors = run(capsys, *arguments)
        assert status == 2
        assert errors.startswith("torch_lsh: ")
        assert errors.count("\n") == 1
        return errors

    assert "No such file" in error(tmp_path / "none.pt")
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 and so on")
    assert "damaged" in error(tmp_path / "damaged.pt")
    assert "wanted one of them" in error(
        folder / "model.pt", "--data", folder / "test.txt", "--inputs", folder / "inputs.pt"
    )
    assert "has output" in error(folder / "model.pt", "--layer", "input")
    assert "wanted a wide 'head.bias'" in error(folder / "weights.safetensors", "--layer", "head.bias")
    assert "--inputs" in error(folder / "state.pt", "--data", folder / "test.txt")
    torch.save(torch.randn(3, D + 1), tmp_path / "narrow.pt")
    assert f"takes [n, {D}]" in error(folder / "model.pt", "--inputs", tmp_path / "narrow.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "does not hold one tensor" in error(folder / "model.pt", "--inputs", tmp_path / "list.pt")
    assert "holds a list" in error(tmp_path / "list.pt")
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "small.pt")
    assert "weight [3, 2], bias [3]; wanted a matrix of at least 4096 rows" in error(tmp_path / "small.pt")
    model = XMCClassifier(F, N, D)
    model.output = torch_lsh.quantize_(model.output.eval())
    model.save(tmp_path / "int8.pt")
    assert "int8" in error(tmp_path / "int8.pt")
    assert "no folder" in error(folder / "model.pt", "--plot", tmp_path / "none" / "x.png")
    other, _ = synthetic_xmc(20, 5, F + 1, N)
    write_xmc(other, tmp_path / "other.txt")
    assert "301 features; wanted some of 300" in error(folder / "model.pt", "--data", tmp_path / "other.txt")


def test_dense_model_is_looked_at_as_an_lsh_layer(tmp_path, capsys):
    XMCClassifier(F, N, D, dense=True).save(tmp_path / "dense.pt")
    status, output, _ = run(capsys, tmp_path / "dense.pt", "--json")
    assert status == 0
    assert json.loads(output)["active"] == LSHConfig().active_rows(N)
