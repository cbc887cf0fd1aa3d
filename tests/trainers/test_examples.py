"""The examples run, with little data and one process."""

from __future__ import annotations

import runpy
import socket
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the sources are not here")


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def one_process(monkeypatch):
    """What torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.filterwarnings("ignore")  # of Lightning, about workers and logging
def test_lightning(run):
    pytest.importorskip("lightning")
    assert "precision@1" in run("lightning_head.py", "--classes", 20_000, "--samples", 1_000, "--epochs", 2)


def test_trainer(run):
    pytest.importorskip("transformers", minversion="5.0")
    output = run("trainer_gpt2.py", "--words", 20_000, "--sequences", 32, "--epochs", 1)
    assert "lm_head: LSHLinear(128 -> 20,000)\n    last result" in output
    assert "tied with transformer.wte\n" in output


def test_data_parallel(run, one_process):
    assert "MB sent per step and process" in run("torchrun_ddp.py", "--classes", 20_000, "--steps", 3)


def test_sharded_head(run, one_process, tmp_path):
    for _ in range(2):  # the second run resumes
        output = run("sharded_head.py", "--classes", 20_000, "--steps", 3, "--checkpoint", tmp_path / "run")
        assert "each holds 20,000 of 20,000 rows" in output


@pytest.mark.parametrize("body", ["gru", "sasrec"])
def test_next_item(run, body):
    output = run("next_item.py", "--body", body, "--epochs", 1, "--steps", 3, "--width", 16)
    assert "recall@20 0." in output
    assert "mrr@20 0." in output


def test_recommender(run, tmp_path):
    """Thirty groups of users; what a user lacks of its group's twelve items is to be found among 400."""
    group = {user: [user % 30 * 13 + i for i in range(12)] for user in range(300)}
    lacks = {user: items[user // 30] for user, items in group.items()}
    rows = [[user, *(item for item in items if item != lacks[user])] for user, items in group.items()]
    (tmp_path / "train.txt").write_text("\n".join(" ".join(map(str, row)) for row in rows))
    (tmp_path / "test.txt").write_text("\n".join(f"{user} {item}" for user, item in lacks.items()))
    files = "--train", tmp_path / "train.txt", "--test", tmp_path / "test.txt"
    settings = "--epochs", 20, "--every", 20, "--width", 16, "--batch-size", 16, "--lr", 0.03
    output = run("recommender.py", *files, *settings)
    assert float(output.split("recall@20")[1].split()[0]) > 0.5


@pytest.mark.parametrize("dense", [[], ["--dense"]])
def test_recommender_holds_items_out(run, tmp_path, dense):
    """Thirty groups of users with the same twelve items: those that were held out are to be found among 390."""
    rows = ([user, *(user % 30 * 13 + i for i in range(12))] for user in range(300))
    (tmp_path / "train.txt").write_text("\n".join(" ".join(map(str, row)) for row in rows))
    settings = "--epochs", 10, "--every", 10, "--width", 16, "--batch-size", 32, "--lr", 0.03
    output = run("recommender.py", "--train", tmp_path / "train.txt", *settings, *dense)
    assert float(output.split("recall@20")[1].split()[0]) > 0.5
