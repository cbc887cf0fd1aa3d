"""LinearNetwork: features of text -> logits of few classes, without a hidden layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..models.network import Network, softmax_loss
from ..models.rows import Features
from ..nn import EmbeddingBag


class LinearNetwork(Network):
    """A linear model of sparse features: an embedding bag whose width is the number of classes.

    Args:
        num_features: F.
        num_labels: C.
        binary: Whether every class is a decision of its own.
        label_smoothing: Of the softmax loss; it keeps the model from growing ever more confident.
    """

    def __init__(self, num_features: int, num_labels: int, binary: bool = False, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.binary, self.label_smoothing = binary, label_smoothing
        self.input = EmbeddingBag(num_features, num_labels, mode="sum")
        nn.init.zeros_(self.input.weight)
        self.bias = nn.Parameter(torch.zeros(num_labels))

    @property
    def num_features(self) -> int:
        return self.input.num_embeddings

    @property
    def num_labels(self) -> int:
        return self.input.embedding_dim

    def forward(self, features: Features) -> Tensor:
        """Computes logits ``[B, C]`` of sparse CSR features ``[B, F]``."""
        return self.logits(features)

    def logits(self, features: Features) -> Tensor:
        crow, col, values = features.crow_indices(), features.col_indices(), features.values()
        return ops.embedding_bag(self.input.weight, crow, col, values) + self.bias

    def loss(self, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Computes the mean cross entropy, of the softmax or of every class; see :func:`softmax_loss`."""
        logits = self(features)
        if not self.binary:
            return softmax_loss(logits, labels, self.label_smoothing, weights, self.class_weight)
        target = logits.new_zeros(len(labels), logits.shape[1] + 1)  # the last column takes the padding
        target.scatter_(1, labels.masked_fill(labels < 0, logits.shape[1]), 1.0)
        losses = F.binary_cross_entropy_with_logits(logits, target[:, :-1], self.class_weight, reduction="none").mean(1)
        return losses.mean() if weights is None else (losses * weights).sum() / weights.sum().clamp(min=1e-12)

    @torch.no_grad()
    def mix_(self, other: LinearNetwork, share: float) -> None:
        """Gives another network a share of the logits."""
        self.input.weight.lerp_(other.input.weight, share)
        self.bias.lerp_(other.bias, share)

    @torch.no_grad()
    def grow(self, num_features: int, num_labels: int) -> None:
        """Adds zeros for new features and labels; all others keep their numbers."""
        larger = LinearNetwork(max(num_features, self.num_features), max(num_labels, self.num_labels))
        larger.input.weight[: self.num_features, : self.num_labels] = self.input.weight
        larger.bias[: self.num_labels] = self.bias
        self.input, self.bias = larger.input, larger.bias
