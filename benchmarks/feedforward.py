"""A wide MLP block (512 -> 65,536 -> 512): LSHFeedForward beside the dense block.

    python benchmarks/feedforward.py step --json out.jsonl       one training step: forward, backward, Adam
    python benchmarks/feedforward.py quality --json out.jsonl    both trained on real text: accuracy per second

The bound. For each projection a dense step makes three matrix products of 2 * batch * d_model * d_hidden operations,
and Adam reads or writes seven numbers for each of the 2 * d_model * d_hidden weights. With a share ``a`` of the neurons
active both are ``a`` times as much; gathering the active weights reads and writes one number more for each. Hashing
and look-ups of the batch come on top. ``step`` prints the bound from the speeds of a matrix product and of a copy that
it measures on this machine.
"""

from __future__ import annotations

import argparse
import csv
import lzma
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_lsh
from torch_lsh.benchmarking import harness

DATA = Path(os.environ.get("TORCH_LSH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


# --- one step ---------------------------------------------------------------------------------------------------------


def training_step(block: nn.Module, optimizer: torch.optim.Optimizer, batch: int, width: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        x = torch.randn(batch, width, generator=generator).requires_grad_()
        block(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bound_seconds(share: float, batch: int, width: int, hidden: int) -> float:
    """Seconds of the products and of the memory traffic of a share of the block, at the speeds of this machine."""
    active = max(1, round(share * hidden))
    rows = min(active, 2048)
    x, w = torch.randn(batch, width), torch.randn(rows, width)
    products = statistics.median(harness.in_turn({"": lambda: x @ w.t()}, 9)[""]) * active / rows
    a, b = torch.empty(1 << 24), torch.empty(1 << 24)
    per_number = statistics.median(harness.in_turn({"": lambda: a.copy_(b)}, 9)[""]) / (2 * a.numel())
    weights = 2 * width * active
    gathering = 0 if share == 1 else 2 * weights
    return 6 * products + per_number * (7 * weights + gathering)


def compare_steps(arguments: argparse.Namespace, info: dict[str, Any]) -> list[dict[str, Any]]:
    width, hidden, batch = arguments.d_model, arguments.d_hidden, arguments.batch
    steps = {}
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
    steps["dense"] = training_step(dense, torch.optim.Adam(dense.parameters(), 1e-3, fused=True), batch, width)
    for scope in arguments.scope:
        config = torch_lsh.LSHConfig(active=arguments.active, scope=scope)
        block = torch_lsh.LSHFeedForward(width, hidden, "relu", config=config)
        optimizer = torch_lsh.optim.Adam(block.parameters(), 1e-3)
        steps[f"torch_lsh {scope}"] = training_step(block, optimizer, batch, width)
    seconds = harness.in_turn(steps, arguments.rounds)
    for name in steps:
        if name != "dense":  # so many that re-hashes fall due
            seconds[name] = harness.in_turn({"": steps[name]}, 60)[""]
    bounds = {
        name: bound_seconds(1.0 if name == "dense" else arguments.active, batch, width, hidden) * 1e3 for name in steps
    }
    of_dense = statistics.median(seconds["dense"]) * 1e3
    records = [
        {"benchmark": "feedforward step", "system": name, **harness.summary(measured), "bound_ms": bounds[name]}
        for name, measured in seconds.items()
    ]
    print(f"{width} -> {hidden:,} -> {width}, {arguments.active:.1%} active, batch {batch}, Adam")
    columns = ("median_ms", "mean_ms", "min_ms", "max_ms", "runs", "bound_ms")
    print(
        harness.table(
            [
                [r["system"], *(r[key] for key in columns), of_dense / r["median_ms"], of_dense / r["mean_ms"]]
                for r in records
            ],
            ("system", "median ms", "mean", "min", "max", "runs", "bound ms", "times faster", "by mean"),
        )
    )
    return [{**record, "machine": info} for record in records]


# --- quality ----------------------------------------------------------------------------------------------------------


def split_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def read_agnews(folder: Path) -> tuple[list[tuple[int, list[str]]], list[tuple[int, list[str]]]]:
    with lzma.open(folder / "train.tsv.xz", "rt", encoding="utf-8") as lines:
        train = [(int(label), split_words(text)) for label, text in (line.split("\t", 1) for line in lines)]
    with lzma.open(folder / "test.csv.xz", "rt", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
        rows = rows[1:] if rows[0][0] == "class" else rows
        test = [(int(label) - 1, split_words(f"{title} {text}")) for label, title, text in rows]
    lowest = min(label for label, _ in train)
    return [(label - lowest, words) for label, words in train], test


class Bags:
    """Texts as sets of the words that occur at least twice in training, scaled to length 1."""

    def __init__(self, texts: list[tuple[int, list[str]]], number: dict[str, int]) -> None:
        self.labels = torch.tensor([label for label, _ in texts])
        self.words = [torch.tensor(sorted({number[w] for w in words if w in number})) for _, words in texts]
        self.num_words = len(number)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        words = [self.words[row].long() for row in rows.tolist()]
        counts = torch.tensor([len(part) for part in words])
        values = counts.clamp(min=1).rsqrt().repeat_interleave(counts)
        crow = F.pad(counts.cumsum(0), (1, 0))
        x = torch.sparse_csr_tensor(crow, torch.cat(words), values, (len(rows), self.num_words), check_invariants=False)
        return x, self.labels[rows]


class Classifier(nn.Module):
    def __init__(self, words: int, width: int, block: nn.Module, classes: int) -> None:
        super().__init__()
        self.bag = torch_lsh.EmbeddingBag(words, width, mode="sum")
        nn.init.normal_(self.bag.weight, std=0.03)
        self.block = block
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.block(self.bag(x))))


@torch.no_grad()
def accuracy(model: nn.Module, test: Bags) -> float:
    model.eval()
    hits = 0
    for rows in torch.arange(len(test.labels)).split(512):
        x, labels = test.batch(rows)
        hits += int((model(x).argmax(1) == labels).sum())
    model.train()
    return hits / len(test.labels)


def compare_quality(arguments: argparse.Namespace, info: dict[str, Any]) -> list[dict[str, Any]]:
    train_texts, test_texts = read_agnews(DATA / "agnews")
    counts = Counter(word for _, words in train_texts for word in words)
    number = {word: i for i, word in enumerate(word for word, count in counts.items() if count > 1)}
    train, test = Bags(train_texts, number), Bags(test_texts, number)
    classes = int(train.labels.max()) + 1
    width, hidden = arguments.d_model, arguments.d_hidden
    print(f"agnews: {len(train.labels):,} / {len(test.labels):,} texts, {len(number):,} words, {classes} classes")
    records = []
    for system in arguments.systems:
        for seed in range(arguments.seeds):
            torch.manual_seed(seed)
            block: nn.Module = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
            if system == "none":
                block = nn.Identity()
            model: nn.Module = Classifier(len(number), width, block, classes)
            if system == "torch_lsh":
                model = torch_lsh.sparsify_(model, torch_lsh.LSHConfig(active=arguments.active), lambda m, name: True)
            optimizer = torch_lsh.optim.Adam(model.parameters(), lr=arguments.lr)
            seconds = 0.0
            for epoch in range(1, arguments.epochs + 1):
                order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
                start = time.perf_counter()
                for rows in order.split(arguments.batch):
                    x, labels = train.batch(rows)
                    F.cross_entropy(model(x), labels).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                seconds += time.perf_counter() - start
                record = {
                    "benchmark": "feedforward quality",
                    "system": system,
                    "seed": seed,
                    "epoch": epoch,
                    "seconds": seconds,
                    "accuracy": accuracy(model, test),
                }
                records.append(record)
                print(
                    f"{system:>10}  seed {seed}  epoch {epoch}  {seconds:7.1f} s  {record['accuracy']:.4f}", flush=True
                )
    return [{**record, "machine": info} for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["step", "quality"])
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--d-hidden", type=int, default=65_536)
    parser.add_argument("--active", type=float, default=0.02)
    parser.add_argument("--scope", nargs="+", default=["batch"], choices=["batch", "sample"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--systems", nargs="+", default=["none", "dense", "torch_lsh"])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    info = harness.machine(arguments.threads)
    print(info)
    parts = {"step": compare_steps, "quality": compare_quality}
    harness.write_json([record for what in arguments.what for record in parts[what](arguments, info)], arguments.json)


if __name__ == "__main__":
    main()
