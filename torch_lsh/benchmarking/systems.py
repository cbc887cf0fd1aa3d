"""The systems to compare: one model whose output layer is trained in different ways.

An output system has ``loss(h, y)`` for hidden activations ``h`` ``[B, d]`` and labels ``y`` ``[B, P]`` padded with
-100, ``topk(h, k)`` over all classes, and ``step()``. An input system turns a sparse batch into hidden activations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import optim
from ..config import LSHConfig
from ..nn import EmbeddingBag, LSHLinear


def _shares(y: Tensor) -> Tensor:
    present = (y >= 0).float()
    return present / present.sum(1, keepdim=True).clamp(min=1)


def _multi_label_loss(log_p: Tensor, y: Tensor) -> Tensor:
    shares = _shares(y)
    return -(shares * log_p).sum() / shares.sum()


class Dense:
    """nn.Linear + cross entropy + fused Adam."""

    name = "dense"

    def __init__(self, layer: nn.Linear, lr: float, active: int) -> None:
        self.layer = layer
        self.optimizer = torch.optim.Adam(layer.parameters(), lr=lr, fused=True)

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        logits = self.layer(h)
        if y.shape[1] == 1:
            return F.cross_entropy(logits, y[:, 0])
        # Faster than a dense [B, N] target of probabilities.
        return _multi_label_loss(logits.gather(1, y.clamp(min=0)) - logits.logsumexp(1, keepdim=True), y)

    def topk(self, h: Tensor, k: int) -> Tensor:
        return torch.cat([self.layer(part).topk(k).indices for part in h.split(256)])

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class DenseBFloat16(Dense):
    """The same under CPU autocast: products in bfloat16, parameters in float32."""

    name = "dense bfloat16"

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().loss(h, y)


class LinearCrossEntropy(Dense):
    """F.linear_cross_entropy: the dense loss in chunks, one label per sample."""

    name = "linear_cross_entropy"

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        return F.linear_cross_entropy(h, self.layer.weight, y[:, 0], linear_bias=self.layer.bias)


class Uniform:
    """Sampled softmax over the labels and uniform random rows, in plain PyTorch with SparseAdam."""

    name = "uniform"

    def __init__(self, layer: nn.Linear, lr: float, active: int) -> None:
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone().unsqueeze(1))
        self.active = active
        self.optimizer = torch.optim.SparseAdam([self.weight, self.bias], lr=lr)

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        labels = y[y >= 0].unique()
        random = torch.randint(len(self.weight), (max(0, self.active - len(labels)),))
        rows = torch.cat([labels, random]).unique()
        logits = h @ F.embedding(rows, self.weight, sparse=True).T + F.embedding(rows, self.bias, sparse=True).T
        position = torch.searchsorted(rows, y.clamp(min=0))
        if y.shape[1] == 1:
            return F.cross_entropy(logits, position[:, 0])
        position = position.masked_fill(y < 0, 0)
        return _multi_label_loss(logits.gather(1, position) - logits.logsumexp(1, keepdim=True), y)

    def topk(self, h: Tensor, k: int) -> Tensor:
        return torch.cat([(part @ self.weight.T + self.bias.T).topk(k).indices for part in h.split(256)])

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class AdaptiveLogSoftmax:
    """nn.AdaptiveLogSoftmaxWithLoss; the classes must be ordered by frequency. One label per sample."""

    name = "adaptive_log_softmax"

    def __init__(self, layer: nn.Linear, lr: float, active: int) -> None:
        size = layer.out_features
        self.layer = nn.AdaptiveLogSoftmaxWithLoss(layer.in_features, size, [size // 40, size // 8])
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=lr, fused=True)

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        return self.layer(h, y[:, 0]).loss

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class LSH:
    """LSHLinear + F.cross_entropy + torch_lsh.optim.Adam."""

    name = "torch_lsh"

    in_backward = False

    def __init__(self, layer: nn.Linear, lr: float, active: int, **options: Any) -> None:
        config = LSHConfig.from_options(active=active, **options)
        self.layer = LSHLinear.from_linear(layer, config)
        self.optimizer = optim.Adam(self.layer.parameters(), lr=lr, in_backward=self.in_backward)

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.layer(h), y if y.shape[1] > 1 else y[:, 0])

    def topk(self, h: Tensor, k: int) -> Tensor:
        return torch.cat([self.layer(part).topk(k).indices for part in h.split(256)])

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class LSHBFloat16(LSH):
    """The same under CPU autocast: products in bfloat16, parameters in float32."""

    name = "torch_lsh bfloat16"

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().loss(h, y)


class LSHInBackward(LSH):
    """LSHLinear whose optimizer updates the rows in the backward pass."""

    name = "torch_lsh in_backward"
    in_backward = True


class LSHOneCall(LSHInBackward):
    """The same with the loss of ``layer.cross_entropy(h, y)``, which makes no lazy logits."""

    name = "torch_lsh in_backward, one call"

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        return self.layer.cross_entropy(h, y if y.shape[1] > 1 else y[:, 0])


class LSHBFloat16Weights(LSH):
    """Weights and moments in bfloat16, with stochastic rounding."""

    name = "torch_lsh bfloat16 weights"

    def __init__(self, layer: nn.Linear, lr: float, active: int, **options: Any) -> None:
        super().__init__(layer.to(torch.bfloat16), lr, active, **options)
        self.optimizer = optim.Adam(self.layer.parameters(), lr=lr, moment_dtype=torch.bfloat16)

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        return super().loss(h.to(torch.bfloat16), y)

    def topk(self, h: Tensor, k: int) -> Tensor:
        return super().topk(h.to(torch.bfloat16), k)


class SparseInput:
    """Sparse features -> ReLU. ``kind``: "dense" (fused Adam), "sparse" (SparseAdam) or "torch_lsh"."""

    def __init__(self, weight: Tensor, lr: float, kind: str) -> None:
        features, width = weight.shape
        self.kind = kind
        bag = EmbeddingBag if kind == "torch_lsh" else nn.EmbeddingBag
        self.bag = bag(features, width, mode="sum", sparse=kind == "sparse")
        self.bag.weight.data.copy_(weight)
        self.bias = nn.Parameter(torch.zeros(width))
        self.optimizers: list[torch.optim.Optimizer]
        if kind == "torch_lsh":
            self.optimizers = [optim.Adam([self.bag.weight, self.bias], lr=lr)]
        elif kind == "sparse":
            self.optimizers = [
                torch.optim.SparseAdam([self.bag.weight], lr=lr),
                torch.optim.Adam([self.bias], lr=lr, fused=True),
            ]
        else:
            self.optimizers = [torch.optim.Adam([self.bag.weight, self.bias], lr=lr, fused=True)]

    def __call__(self, x: Tensor) -> Tensor:
        if self.kind == "torch_lsh":
            return F.relu(self.bag(x) + self.bias)
        bags = self.bag(x.col_indices(), x.crow_indices()[:-1], per_sample_weights=x.values())
        return F.relu(bags + self.bias)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


INPUT_OF = {"dense": "dense", "uniform": "sparse", "torch_lsh": "torch_lsh"}
