"""The settings that autotune picks for a model, beside the present ones after equal time of training.

    python benchmarks/autotune.py citeulike-t wikitext-2 --seconds 60 --json out.jsonl

Tasks are plain PyTorch models: an embedding bag, a hidden layer and an LSHLinear (citeulike-t, yso-en; precision@1), an
LSTM and an LSHLinear (wikitext-2; perplexity). After the search, models with the present settings, with the learning
rate of the pick alone, and with the pick train anew, for as long as the last round of the search did and three times as
long; the test set judges them. Time is CPU time of one thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from corpora import DATA
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import torch_lsh
from torch_lsh import LSHConfig
from torch_lsh.benchmarking import harness
from torch_lsh.data import XMCDataset, collate_xmc
from torch_lsh.tuning import best_is_label
from torch_lsh.tuning.training import TrainingTask
from torch_lsh.tuning.trials import Settings

HELD_OUT = 3_000  # rows
LENGTH, COLUMNS = 35, 20  # of a batch of words


class Task(NamedTuple):
    """A model and its data."""

    make: Callable[[LSHConfig], nn.Module]
    train: Iterable[Any]
    held_out: Iterable[Any]
    test: Iterable[Any]
    metric: Callable[[Any, Any], Tensor]
    shown: Callable[[float], float] = float


def labels(name: str) -> Task:
    train, test = (XMCDataset(DATA / name / f"{part}.txt.xz") for part in ("train", "test"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()

    def loader(rows: Any, shuffle: bool = False) -> DataLoader:
        return DataLoader(rows, 256, shuffle, collate_fn=collate_xmc)

    def make(config: LSHConfig) -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(
            torch_lsh.EmbeddingBag(train.num_features, 128),
            nn.ReLU(),
            torch_lsh.LSHLinear(128, train.num_labels, config=config),
        )

    known, held_out = Subset(train, order[HELD_OUT:]), Subset(train, order[:HELD_OUT])
    return Task(make, loader(known, True), loader(held_out), loader(test), best_is_label)


class LanguageModel(nn.Module):
    """The logits ``[B * T, words]`` of the words that follow ``[B, T]``."""

    def __init__(self, words: int, config: LSHConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 200, sparse=True)
        self.body = nn.LSTM(200, 200, batch_first=True)
        self.head = torch_lsh.LSHLinear(200, words, config=config)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(words))[0].flatten(0, 1))


class Shuffled:
    """Batches in an order that every pass draws anew."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return (self.batches[i] for i in torch.randperm(len(self.batches)).tolist())


def words(name: str) -> Task:
    import lzma

    numbers: dict[str, int] = {}

    def batches(part: str) -> list[Any]:
        with lzma.open(DATA / name / f"{part}.txt.xz", "rt", encoding="utf-8") as lines:
            text = torch.tensor(
                [numbers.setdefault(word, len(numbers)) for line in lines for word in [*line.split(), "<eos>"]]
            )
        count = (len(text) - 1) // (COLUMNS * LENGTH) * COLUMNS * LENGTH
        given, following = (some.view(COLUMNS, -1).split(LENGTH, 1) for some in (text[:count], text[1 : count + 1]))
        return [(x, y.flatten()) for x, y in zip(given, following, strict=True)]

    train, valid, test = batches("train"), batches("valid"), batches("test")

    def make(config: LSHConfig) -> nn.Module:
        torch.manual_seed(1)
        return LanguageModel(len(numbers), config)

    def metric(logits: Tensor, following: Tensor) -> Tensor:
        return -F.cross_entropy(logits, following, reduction="none")

    return Task(make, Shuffled(train), valid, test, metric, lambda value: math.exp(-value))


TASKS = {"citeulike-t": labels, "yso-en": labels, "wikitext-2": words}


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    task, present = TASKS[name](name), Settings(LSHConfig(), arguments.lr)
    started = time.process_time()
    _, table = torch_lsh.autotune(
        task.make(present.config),
        task.train,
        held_out=task.held_out,
        metric=task.metric,
        seconds=arguments.seconds,
        lr=arguments.lr,
        clock=time.process_time,
    )
    print(f"\n{name}: {time.process_time() - started:.0f} CPU-seconds\n{table}", flush=True)
    best = table.best
    trained = TrainingTask(
        task.make,
        task.train,
        task.test,
        torch_lsh.optim.Adam,
        lambda model, batch: (model(batch[0]), batch[1]),
        F.cross_entropy,
        task.metric,
        time.process_time,
    )
    records = []
    for title, settings in (
        ("present", present),
        ("learning rate of the pick", present._replace(lr=best.lr)),
        ("pick", best.settings),
    ):
        for seconds in (best.seconds, 3 * best.seconds):
            trial = trained.run(settings, seconds)
            value = task.shown(trial.metric.mean)
            print(f"{title:<27}{seconds:>6.1f} s  {value:.4g}  {trial.describe()}", flush=True)
            records.append({"set": name, "settings": title, "seconds": seconds, "lr": trial.lr, "test": value})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of the search")
    parser.add_argument("--lr", type=float, default=1e-3, help="the present learning rate")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    machine = harness.machine(1)
    print(machine)
    for name in arguments.tasks:
        harness.write_json([{**record, **machine} for record in measure(name, arguments)], arguments.json)


if __name__ == "__main__":
    main()
