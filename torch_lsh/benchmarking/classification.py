"""Models from sparse features to very many labels on real data, for benchmarks of quality per second."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..data import XMCDataset, collate_xmc
from ..metrics import PrecisionAtK

DATA = Path(os.environ.get("TORCH_LSH_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
WIDTH, BATCH = 128, 256

Batch = tuple[Tensor, Tensor]  # features, sparse CSR, and labels [B, P] padded with -100


def check_present(names: Sequence[str]) -> None:
    """
    Raises:
        FileNotFoundError: a data set is not in the folder that TORCH_LSH_DATA names.
    """
    for name in names:
        for split in ("train", "test"):
            path = DATA / name / f"{split}.txt.xz"
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist; wanted the folder of {name} in TORCH_LSH_DATA")


def read(name: str) -> tuple[XMCDataset, XMCDataset]:
    """Train and test set, without rows that have no label.

    Word counts of citeulike-t become log(1 + count); rows of other data sets are normalised to length 1.
    """
    check_present([name])
    splits = []
    for split in ("train", "test"):
        counts = name == "citeulike-t"
        rows = XMCDataset(DATA / name / f"{split}.txt.xz", normalize=None if counts else "l2").rows
        if counts:
            rows = rows._replace(values=rows.values.log1p())
        splits.append(XMCDataset.from_rows(rows.take((rows.label_start.diff() > 0).nonzero()[:, 0])))
    return splits[0], splits[1]


def some_batches(test: XMCDataset, rows: int) -> list[Batch]:
    """A random sample of ``rows`` test rows, always the same."""
    sample = torch.randperm(len(test), generator=torch.Generator().manual_seed(7))[:rows]
    return [collate_xmc(test.__getitems__(part.tolist())) for part in sample.split(1024)]


class Weights(NamedTuple):
    """Initial weights, the same for all systems."""

    features: Tensor  # [num_features, width]
    labels: Tensor  # [num_labels, width]

    @classmethod
    def draw(cls, dataset: XMCDataset, input_std: float, seed: int, width: int = WIDTH) -> Weights:
        generator = torch.Generator().manual_seed(seed)
        return cls(
            torch.randn(dataset.num_features, width, generator=generator) * input_std,
            (torch.rand(dataset.num_labels, width, generator=generator) * 2 - 1) * width**-0.5,
        )

    def output_layer(self) -> nn.Linear:
        """A new layer with these weights and a bias of zeros."""
        layer = nn.Linear(self.labels.shape[1], self.labels.shape[0])
        layer.weight.data.copy_(self.labels)
        layer.bias.data.zero_()
        return layer


class Input(Protocol):
    """What turns a sparse batch into the hidden activations of the output layer."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def step(self) -> None: ...


class Trainee:
    """One system with its model, its clock and its curve.

    Args:
        name: what it is called.
        input: sparse features -> hidden activations (:class:`torch_lsh.benchmarking.systems.SparseInput`).
        output: a system of :mod:`torch_lsh.benchmarking.systems`.
    """

    def __init__(self, name: str, input: Input, output: Any) -> None:
        self.name = name
        self.input = input
        self.output = output
        self.seconds = 0.0
        self.steps = 0
        self.curve: list[dict[str, Any]] = []

    def train(self, batches: Sequence[Batch], until: float = float("inf")) -> None:
        """Trains on the batches, or on as many as are begun before the clock shows ``until`` seconds."""
        for x, y in batches:
            if self.seconds >= until:
                break
            start = time.perf_counter()
            self.output.loss(self.input(x), y).backward()
            self.output.step()
            self.input.step()
            self.seconds += time.perf_counter() - start
            self.steps += 1

    @torch.no_grad()
    def evaluate(self, test: Sequence[Batch], epoch: float) -> None:
        """Appends precision@1, @3 and @5, with all classes scored, to the curve; the clock stands still."""
        metric = PrecisionAtK((1, 3, 5))
        for x, y in test:
            metric.update(self.output.topk(self.input(x), 5), y)
        precision = {f"precision@{k}": value for k, value in metric.compute().items()}
        self.curve.append(
            {"system": self.name, "epoch": epoch, "steps": self.steps, "seconds": self.seconds, **precision}
        )
        print(
            f"{self.name:>30}  epoch {epoch:5.2f}  {self.seconds:8.2f} s  "
            + "  ".join(f"P@{k} {precision[f'precision@{k}']:.4f}" for k in (1, 3, 5)),
            flush=True,
        )


def first_at(curve: Sequence[dict[str, Any]], precision: float) -> float | None:
    """Seconds of training at the first evaluation with that precision@1; None: never."""
    return next((point["seconds"] for point in curve if point["precision@1"] >= precision), None)
