"""The command line: what it writes where, and that bad input is one line and exit status 2."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import assert_one_line, run

import torch_lsh
from torch_lsh import cli
from torch_lsh.cli import bench, xmc
from torch_lsh.data import XMCDataset, synthetic_xmc
from torch_lsh.data.xmc import write_xmc
from torch_lsh.io import sole_writer
from torch_lsh.models import XMCClassifier

F, N = 400, 90


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of training rows, test rows, and a model trained on them by the command."""
    folder = tmp_path_factory.mktemp("files")
    train, test = synthetic_xmc(400, 50, F, N)
    write_xmc(train, folder / "train.txt")
    write_xmc(test, folder / "test.txt.gz")
    assert train_on(folder, folder / "model.pt") == 0
    return folder


def train_on(folder, model, *options):
    small = ["--epochs", "3", "--batch-size", "40", "--hidden", "16", "--active", "0.5", "--lr", "0.01", "--quiet"]
    return cli.main(["train", str(folder / "train.txt"), "--model", str(model), *small, *map(str, options)])


def test_train(files, tmp_path, capsys):
    model = tmp_path / "model.pt"
    assert train_on(files, model, "--test", files / "test.txt.gz") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"training on XMCDataset(400 rows, {F} features, {N} labels)"
    assert [line.split("  ")[0] for line in lines[1:4]] == ["epoch 1", "epoch 2", "epoch 3"]
    assert all("loss" in line and "samples/s" in line and "precision@5" in line for line in lines[1:4])
    assert lines[4:] == [f"saved {model}"]
    # the same command gives the same model; evaluating on the way changes nothing
    for a, b in zip(XMCClassifier.load(model).parameters(), XMCClassifier.load(files / "model.pt").parameters()):
        assert torch.equal(a, b)
    assert XMCClassifier.load(model).output.config.active == 0.5


def test_train_with_options(files, tmp_path, capsys):
    model = tmp_path / "model.pt"
    assert train_on(files, model, "--dense", "--normalize", "l2", "--seed", 3) == 0
    assert XMCClassifier.load(model).dense
    assert train_on(files, model, "--hash", "dwta", "--active", "1e-1") == 0
    config = XMCClassifier.load(model).output.config
    assert (config.index.hash, config.active) == ("dwta", 0.1)
    capsys.readouterr()
    assert train_on(files, model, "--budget", "0.05", "--epochs", 500) == 0
    assert 1 <= capsys.readouterr().out.count("\nepoch ") < 500


def test_train_on_a_stream_is_as_in_memory(files, tmp_path):
    models = [tmp_path / "memory", tmp_path / "stream"]
    assert [train_on(files, models[0]), train_on(files, models[1], "--stream")] == [0, 0]
    memory, stream = (XMCClassifier.load(model).output.weight for model in models)
    assert torch.equal(memory, stream)


def test_train_generates_data_on_request(tmp_path, capsys, monkeypatch):
    sizes = []
    monkeypatch.setattr(xmc, "synthetic_xmc", lambda seed: sizes.append(seed) or synthetic_xmc(100, 20, F, N, seed))
    model = tmp_path / "model.pt"
    assert (
        cli.main(
            ["train", "--generate", "--model", str(model), "--epochs", "1", "--hidden", "4", "--seed", "7", "--quiet"]
        )
        == 0
    )
    assert sizes == [7]
    assert "precision@1" in capsys.readouterr().out
    assert model.exists()


def test_progress_bar(files, tmp_path, capsys):
    model = tmp_path / "model.pt"
    assert cli.main(["train", str(files / "train.txt"), "--model", str(model), "--epochs", "1", "--hidden", "4"]) == 0
    assert "epoch 1: 100%" in capsys.readouterr().err


def test_without_the_packages_of_the_extra(files, tmp_path, capsys, monkeypatch):
    """A progress bar is a comfort, a plot was asked for."""
    find_spec = importlib.util.find_spec
    without = {"tqdm", "matplotlib"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in without else find_spec(name))
    model = str(tmp_path / "m.pt")
    assert cli.main(["train", str(files / "train.txt"), "--model", model, "--epochs", "1", "--hidden", "4"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(bench, "overview", lambda **_: pytest.fail("a benchmark"))
    assert_one_line(run(capsys, "bench", "--plot", tmp_path / "plot.png"), "drawing needs matplotlib")


def test_evaluate(files, capsys):
    status, output, errors = run(capsys, "evaluate", files / "test.txt.gz", "--model", files / "model.pt")
    assert (status, errors) == (0, "")
    expected = XMCClassifier.load(files / "model.pt").evaluate(XMCDataset(files / "test.txt.gz"))
    assert json.loads(output) == expected
    assert list(expected) == ["precision@1", "precision@3", "precision@5"]


def test_evaluate_rows_without_labels(files, tmp_path, capsys):
    data = tmp_path / "data.txt"
    data.write_text(f"1 {F} {N}\n 0:1\n")
    status, output, _ = run(capsys, "evaluate", data, "--model", files / "model.pt")
    assert (status, output) == (0, '{"precision@1": null, "precision@3": null, "precision@5": null}\n')


def test_predict(files, capsys):
    status, output, errors = run(capsys, "predict", files / "test.txt.gz", "--model", files / "model.pt", "-k", 3)
    assert (status, errors) == (0, "")
    scores, classes = XMCClassifier.load(files / "model.pt").predict(XMCDataset(files / "test.txt.gz"), 3)
    lines = [[pair.split(":") for pair in line.split(" ")] for line in output.splitlines()]
    assert len(lines) == 50
    assert [[int(label) for label, _ in line] for line in lines] == classes.tolist()
    torch.testing.assert_close(torch.tensor([[float(s) for _, s in line] for line in lines]), scores, atol=1e-4, rtol=0)


def test_bench(tmp_path, capsys):
    sizes = {"rows": 300, "width": 4, "batch": 8, "active": 20, "rounds": 1}
    options = [part for name, size in sizes.items() for part in (f"--{name}", size)]
    status, output, _ = run(capsys, "--threads", 1, "bench", *options, "--plot", tmp_path / "plot.png")
    assert status == 0
    assert "'threads': 1" in output
    assert [line.split()[0] for line in output.splitlines()[4:7]] == ["dense", "uniform", "torch_lsh"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_bench_of_more_active_rows_than_there_are(capsys):
    sizes = {"rows": 30, "width": 4, "batch": 8, "active": 10**12, "rounds": 1}
    status, output, _ = run(
        capsys, "--threads", 1, "bench", *(part for name, size in sizes.items() for part in (f"--{name}", size))
    )
    assert status == 0
    assert " 30 active rows" in output


def test_checkpoint(files, tmp_path, monkeypatch, capsys):
    """An interrupted command is 130, as a shell expects, and the same command goes on and ends with the same model."""
    options = ["--checkpoint", tmp_path / "run.pt", "--checkpoint-every", 4]
    assert (
        train_on(files, tmp_path / "expected.pt", "--checkpoint", tmp_path / "other.pt", "--checkpoint-every", 4) == 0
    )
    loss, calls = XMCClassifier.loss, []

    def interrupted(self, features, labels):
        calls.append(None)
        if len(calls) == 17:
            raise KeyboardInterrupt
        return loss(self, features, labels)

    monkeypatch.setattr(XMCClassifier, "loss", interrupted)
    assert train_on(files, tmp_path / "model.pt", *options) == 130
    assert capsys.readouterr().err == "torch_lsh: interrupted\n"
    assert not (tmp_path / "model.pt").exists()
    assert train_on(files, tmp_path / "model.pt", *options) == 0
    assert len(calls) == 17 + 30 - 14  # from the checkpoint after step 14
    models = [XMCClassifier.load(tmp_path / name) for name in ("model.pt", "expected.pt")]
    for a, b in zip(*(model.parameters() for model in models)):
        assert torch.equal(a, b)
    assert_one_line(
        (train_on(files, tmp_path / "model.pt", *options, "--lr", 0.5), *capsys.readouterr()), "run.pt", "'lr': 0.5"
    )


# --- bad input --------------------------------------------------------------------------------------------------------


def test_missing_files(files, tmp_path, capsys):
    model, data, missing = files / "model.pt", files / "train.txt", tmp_path / "nothing.txt"
    for arguments in (
        ("train", missing, "--model", tmp_path / "model.pt"),
        ("train", data, "--model", tmp_path / "model.pt", "--test", missing),
        ("evaluate", missing, "--model", model),
        ("predict", missing, "--model", model),
        ("evaluate", data, "--model", missing),
    ):
        assert_one_line(run(capsys, *arguments), missing)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_malformed_data(files, tmp_path, capsys, command):
    data = tmp_path / "data.txt"
    data.write_text(f"3 {F} {N}\n1 0:1\n2 0:one\n3 0:1\n")
    model = tmp_path / "model.pt" if command == "train" else files / "model.pt"
    output = assert_one_line(run(capsys, command, data, "--model", model), f"{data}, line 3: ", "'0:one'")
    assert output == ""
    assert os.listdir(tmp_path) == ["data.txt"]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_data_of_another_width(files, tmp_path, capsys, command):
    data = tmp_path / "data.txt"
    write_xmc(synthetic_xmc(5, 0, F + 1, N)[0], data)
    assert_one_line(
        run(capsys, command, data, "--model", files / "model.pt"), f"{F + 1} features", f"takes {F} and {N}"
    )


def test_test_rows_of_another_width_are_found_before_training(files, tmp_path, capsys, monkeypatch):
    write_xmc(synthetic_xmc(5, 0, F + 1, N)[0], tmp_path / "test.txt")
    monkeypatch.setattr(XMCClassifier, "loss", lambda *_: pytest.fail("a training step"))
    capsys.readouterr()
    result = train_on(files, tmp_path / "model.pt", "--test", tmp_path / "test.txt"), *capsys.readouterr()
    assert_one_line(result, f"{F + 1} features")


def test_files_that_are_no_models(files, tmp_path, capsys):
    assert_one_line(
        run(capsys, "evaluate", files / "train.txt", "--model", files / "train.txt"),
        "train.txt",
        "damaged or was not written by torch_lsh",
    )
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    assert_one_line(run(capsys, "predict", files / "train.txt", "--model", tmp_path / "module.pt"), "module.pt")


def test_paths_that_cannot_be_written_are_found_before_training(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(XMCClassifier, "loss", lambda *_: pytest.fail("a training step"))
    monkeypatch.setattr(bench, "overview", lambda **_: pytest.fail("a benchmark"))
    missing = tmp_path / "missing" / "file"
    for arguments in (
        ("train", files / "train.txt", "--model", missing),
        ("train", files / "train.txt", "--model", tmp_path / "model.pt", "--checkpoint", missing),
        ("bench", "--plot", missing),
    ):
        assert_one_line(run(capsys, *arguments), missing, "there is no folder")
    assert_one_line(run(capsys, "train", files / "train.txt", "--model", tmp_path), tmp_path, "it is a folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--active", "0"], "active is 0; wanted at least 1 row"),
        (["--active", "1.5"], "active is 1.5"),
        (["--hash", "md5"], "hash is 'md5'; wanted one of 'simhash', 'simhash_hadamard', 'cross_polytope'"),
        (["--lr", "-1"], "lr is -1.0; wanted a positive number"),
        (["--workers", "-1"], "num_workers is -1; wanted at least 0"),
        (["--seed", str(2**70)], "seed is"),
    ],
)
def test_bad_settings(files, tmp_path, capsys, options, message):
    capsys.readouterr()
    result = train_on(files, tmp_path / "model.pt", *options), *capsys.readouterr()
    assert_one_line(result, message)
    assert not (tmp_path / "model.pt").exists()


def test_test_rows_without_training_rows(files, tmp_path, capsys):
    result = run(capsys, "train", "--generate", "--model", tmp_path / "model.pt", "--test", files / "test.txt.gz")
    assert_one_line(result, "--test was given beside --generate")


def test_more_labels_asked_for_than_there_are(files, capsys):
    result = run(capsys, "predict", files / "test.txt.gz", "--model", files / "model.pt", "-k", N + 1)
    assert_one_line(result, f"k is {N + 1}; wanted 1 to {N}")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["--threads", "0", "bench"],
        ["train", "m", "--epochs", "0"],
        ["train", "m", "--batch-size", "-4"],
        ["train", "m", "--budget", "soon"],
        ["train-text", "m", "--budget", "0s"],
        ["train", "m", "--hidden", "x"],
        ["train", "m", "--active", "many"],
        ["train", "m", "--checkpoint-every", "0"],
        ["bench", "--rows", "0"],
        ["predict", "d", "--model", "m", "-k", "0"],
        ["predict", "d"],
    ],
    ids=" ".join,
)
def test_usage(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert "torch_lsh" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["--version"])
    assert error.value.code == 0
    assert capsys.readouterr().out.strip() == torch_lsh.__version__


def test_errors_of_operators_and_of_the_allocator_are_the_users(capsys):
    """Those say what does not fit; of other RuntimeErrors, which are faults of ours, the traceback is needed."""
    huge = ["bench", "--rows", 10**13, "--width", 1000, "--rounds", 1]
    assert_one_line(run(capsys, *huge), "can't allocate memory")


@pytest.mark.parametrize("error", [RuntimeError("a fault"), TypeError("a fault"), KeyError("a fault")])
def test_other_errors_keep_their_traceback(files, monkeypatch, error):
    def broken(path):
        raise error

    monkeypatch.setattr(XMCClassifier, "load", broken)
    with pytest.raises(type(error), match="a fault"):
        cli.main(["evaluate", str(files / "test.txt.gz"), "--model", str(files / "model.pt")])


def test_output_that_nobody_reads_to_its_end(files, monkeypatch):
    """``| head -1``: no complaint about the closed pipe, neither now nor when Python flushes at exit."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert cli.main(["predict", str(files / "test.txt.gz"), "--model", str(files / "model.pt")]) == 141


# --- no command costs a file, or the work of hours --------------------------------------------------------------------


def test_data_is_never_taken_for_the_model(files, tmp_path, capsys):
    """``train train.txt`` once trained on generated data, and wrote the model over the file."""
    data = tmp_path / "train.txt"
    data.write_bytes((files / "train.txt").read_bytes())
    for arguments, words in (
        (["train"], "wanted either DATA, a training file, or --generate"),
        (["train", data, "--generate"], "wanted either DATA, a training file, or --generate"),
        (["train", data, "--model", data], "exists and is not a file of torch_lsh, so it is not overwritten"),
        (["train", "--generate", "--model", data], "exists and is not a file of torch_lsh"),
        (["train", data, "--model", tmp_path / "m.pt", "--checkpoint", data], "is not a file of torch_lsh"),
        (["train", data, "--model", tmp_path / "m.pt", "--checkpoint", files / "model.pt"], "has the format"),
        (["train", data, "--model", tmp_path / "m.pt", "--checkpoint", tmp_path / "m.pt"], "wanted a file for each"),
        (["bench", "--plot", data], "no name of a drawing"),
    ):
        assert_one_line(run(capsys, *arguments), words)
    assert data.read_bytes() == (files / "train.txt").read_bytes()
    assert os.listdir(tmp_path) == ["train.txt"]


def test_only_drawings_are_drawn_over(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "overview", lambda **_: pytest.fail("a benchmark"))
    (tmp_path / "notes.png").write_text("notes")
    assert_one_line(run(capsys, "bench", "--plot", tmp_path / "notes.png"), "exists and is no drawing")


def test_a_model_is_replaced_by_a_model(files, tmp_path):
    model = tmp_path / "model.pt"
    for _ in range(2):
        assert train_on(files, model, "--epochs", 1) == 0
    assert XMCClassifier.load(model).num_labels == N


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder in which even root can make no file")
def test_a_folder_that_cannot_be_written_is_found_before_training(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(XMCClassifier, "loss", lambda *_: pytest.fail("a training step"))
    for options in (["--model", "/proc/m.pt"], ["--model", tmp_path / "m.pt", "--checkpoint", "/proc/run.pt"]):
        assert_one_line(run(capsys, "train", files / "train.txt", *options), "cannot be written", "in folder /proc")


def test_two_runs_of_one_checkpoint(files, tmp_path, capsys):
    with sole_writer(tmp_path / "run.pt"):
        result = train_on(files, tmp_path / "m.pt", "--checkpoint", tmp_path / "run.pt"), *capsys.readouterr()
    assert_one_line(result, "run.pt is being written by another run; wanted a file of its own for every run")


def test_the_right_command_is_named(files, tmp_path, capsys):
    options = ["--epochs", 1, "--checkpoint", tmp_path / "run.pt"]
    assert train_on(files, tmp_path / "m.pt", *options) == 0
    for command, *arguments in (
        ["serve", tmp_path / "run.pt"],
        ["evaluate", files / "train.txt", "--model", tmp_path / "run.pt"],
    ):
        assert_one_line(
            run(capsys, command, *arguments),
            f"holds the state of a training run, which is for inspect, train --checkpoint; {command} takes none",
        )


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "torch_lsh", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # test runners in the background may ignore SIGINT, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_process(files, tmp_path, workers):
    options = ["--epochs", 100_000, "--checkpoint", tmp_path / "run.pt", "--checkpoint-every", 1, "--quiet"]
    process = start("train", files / "train.txt", "--model", tmp_path / "model.pt", *options, "--workers", workers)
    while not (tmp_path / "run.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    output, errors = process.communicate()
    assert (process.returncode, errors) == (130, "torch_lsh: interrupted\n")
    assert "saved" not in output
    # An interrupt within a callback ends the process at once, which leaves the file of the lock, but no lock.
    assert set(os.listdir(tmp_path)) - {".run.pt.lock"} == {"run.pt"}


SLOW_IMPORT = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("importing", flush=True)
            time.sleep(30)
sys.meta_path.insert(0, Slow())
"""


def test_interrupted_while_it_imports(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT)
    paths = os.pathsep.join([str(tmp_path), os.path.dirname(os.path.dirname(torch_lsh.__file__))])
    process = subprocess.Popen(
        [sys.executable, "-m", "torch_lsh", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "torch_lsh: interrupted\n"
    assert process.returncode == 130


def test_other_processes_that_import_the_package_are_interrupted_as_ever():
    code = "import signal, torch_lsh; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert result.stdout == "True\n"
