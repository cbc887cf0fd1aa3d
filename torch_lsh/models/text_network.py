"""TextNetwork: weighted sparse features of text -> logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import LSHConfig
from ..nn import EmbeddingBag, LSHLinear
from ..nn.losses import as_target

_MOST_LABELS = 64  # of a row in one step; the rest waits for other steps


class TextNetwork(nn.Module):
    """Sparse features -> logits: a linear model, or one of low rank with a hidden layer under a (very wide) output.

    Features are weighed by ``idf``, a buffer, and rows brought to length 1 (:meth:`weigh`). The linear model is an
    embedding bag whose width is the number of classes. The hidden layer is an embedding bag, too, without an
    activation, as in fastText (Joulin et al. 2017): over many classes, ReLU units lose precision.

    Args:
        num_features: F.
        num_classes: C.
        hidden: units of the hidden layer; 0: the linear model.
        sampled: whether the output is an :class:`LSHLinear` and not an ``nn.Linear``.
        config: of that layer.
    """

    idf: Tensor

    def __init__(
        self, num_features: int, num_classes: int, hidden: int, sampled: bool = False, config: LSHConfig | None = None
    ) -> None:
        super().__init__()
        width = hidden or num_classes
        self.register_buffer("idf", torch.ones(num_features))
        self.features = EmbeddingBag(num_features, width, mode="sum")
        self.bias = nn.Parameter(torch.zeros(width))
        if hidden == 0:
            nn.init.zeros_(self.features.weight)
            self.output = None
        else:
            nn.init.normal_(self.features.weight, std=hidden**-0.5)  # rows have length 1: unit outputs
            self.output = LSHLinear(hidden, num_classes, config=config) if sampled else nn.Linear(hidden, num_classes)
            nn.init.zeros_(self.output.bias)

    def weigh(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """The values ``[nnz]`` of CSR rows times ``idf``, each row brought to length 1 (rows of zeros stay)."""
        values = values * self.idf[col]
        if len(crow) == 2:
            return values / values.norm().clamp(min=1e-12)
        lengths = torch.segment_reduce(values.square(), "sum", offsets=crow, initial=0).sqrt_().clamp_(min=1e-12)
        return values / torch.repeat_interleave(lengths, crow.diff())

    def hidden(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """The input of the output layer ``[B, hidden]``; of the linear model, its logits ``[B, C]``."""
        return ops.embedding_bag(self.features.weight, crow, col, values) + self.bias

    def forward(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """Logits ``[B, C]`` of weighed rows; lazy where the output is sampled."""
        hidden = self.hidden(crow, col, values)
        return hidden if self.output is None else self.output(hidden)

    def dense_logits(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """The same as a tensor in memory."""
        hidden = self.hidden(crow, col, values)
        return hidden if self.output is None else F.linear(hidden, self.output.weight, self.output.bias)


def softmax_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross entropy with labels ``[B, P]`` padded with -100, which share the target equally; rows without one are left
    out."""
    if labels.shape[1] == 1:
        return F.cross_entropy(logits, labels[:, 0], label_smoothing=smoothing)
    if labels.shape[1] > _MOST_LABELS:  # a random choice of every row's
        order = torch.rand(labels.shape).masked_fill_(labels < 0, -1)
        labels = labels.gather(1, order.topk(_MOST_LABELS).indices)
    if not isinstance(logits, Tensor) or type(logits) is not Tensor:
        return F.cross_entropy(logits, labels)
    target = as_target(labels, logits.shape[:1], logits.shape[1], -100, logits.dtype)
    assert target is not None
    log_p = logits.gather(1, target.labels.clamp(min=0)) - logits.logsumexp(1, keepdim=True)
    return -(target.shares * log_p).sum() / target.shares.sum().clamp(min=1)


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of every class, against labels ``[B, P]`` padded with -100."""
    target = logits.new_zeros(len(labels), logits.shape[1] + 1)  # the last column takes the padding
    target.scatter_(1, labels.masked_fill(labels < 0, logits.shape[1]), 1.0)
    return F.binary_cross_entropy_with_logits(logits, target[:, :-1])
