"""Training loops of classifiers with very many labels, shared by benchmarks of quality against time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from torch_lsh.data import XMCDataset, collate_xmc
from torch_lsh.metrics import PrecisionAtK

WIDTH, BATCH = 128, 256

Batch = tuple[Tensor, Tensor]  # features, sparse CSR, and labels [B, P] padded with -100


def some_batches(test: XMCDataset, rows: int) -> list[Batch]:
    """Draws ``rows`` test rows at random, the same ones in every run, in batches."""
    sample = torch.randperm(len(test), generator=torch.Generator().manual_seed(7))[:rows]
    return [collate_xmc(test.__getitems__(part.tolist())) for part in sample.split(1024)]


class Weights(NamedTuple):
    """Initial weights that all systems share."""

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
        """Makes a layer with these weights and a bias of zeros."""
        layer = nn.Linear(self.labels.shape[1], self.labels.shape[0])
        layer.weight.data.copy_(self.labels)
        layer.bias.data.zero_()
        return layer


class Input(Protocol):
    """A function from a sparse batch to the hidden activations, with an optimizer."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def step(self) -> None: ...


class Trainee:
    """One system with its model, its clock and its curve.

    Args:
        name: its name.
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
        """Trains on the batches, until the clock of the training steps shows ``until`` seconds."""
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
        """Appends exact precision@1, @3 and @5 to the curve. The clock stands still."""
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
    """Seconds of training until precision@1 was first reached at an evaluation; None: never."""
    return next((point["seconds"] for point in curve if point["precision@1"] >= precision), None)
