"""TextNetwork: weighted sparse features of text -> logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import LSHConfig
from ..nn import EmbeddingBag, LSHLinear
from ..nn.logits.targets import as_target
from .neighbours import TextNeighbours

DENSE_CLASSES = 4096  # with at most so many, a dense output layer is the faster one
_MOST_LABELS = 64  # of a row in one step, drawn at random


class TextNetwork(nn.Module):
    """Sparse features -> logits: a linear model, or a hidden layer under a (very wide) output layer.

    Only hashed columns that occur in the training data have weights. Features are weighted by ``idf``, and rows are
    scaled to unit length (:meth:`rows`). The linear model is an embedding bag whose width is the number of classes. The
    hidden layer is an embedding bag without an activation, as in fastText (Joulin et al. 2017): over many classes, ReLU
    units lose precision. A trained network may have ``neighbours``.

    Args:
        num_columns: of the hashed text.
        num_features: F, columns that have weights. Which ones is said in the buffer ``columns`` ``[F]`` int32,
            increasing; ``idf`` ``[F]`` is a buffer, too.
        num_classes: C.
        hidden: units of the hidden layer; 0: the linear model.
        sampled: whether the output is an :class:`LSHLinear` and not an ``nn.Linear``.
        config: of that layer.
    """

    columns: Tensor
    idf: Tensor

    def __init__(
        self,
        num_columns: int,
        num_features: int,
        num_classes: int,
        hidden: int,
        sampled: bool = False,
        config: LSHConfig | None = None,
    ) -> None:
        super().__init__()
        width = hidden or num_classes
        self.num_columns = num_columns
        self.register_buffer("columns", torch.arange(num_features, dtype=torch.int32))
        self.register_buffer("idf", torch.ones(num_features))
        self.features = EmbeddingBag(num_features, width, mode="sum")
        self.bias = nn.Parameter(torch.zeros(width))
        self.neighbours: TextNeighbours | None = None
        self._feature_of: Tensor | None = None
        if hidden == 0:
            nn.init.zeros_(self.features.weight)
            self.output = None
        else:
            nn.init.normal_(self.features.weight, std=hidden**-0.5)  # rows have length 1: unit outputs
            self.output = LSHLinear(hidden, num_classes, config=config) if sampled else nn.Linear(hidden, num_classes)
            nn.init.zeros_(self.output.bias)

    def index_columns(self) -> None:
        """Builds the table from columns to features. Call it after ``columns`` has changed.

        Raises:
            ValueError: ``columns`` does not increase within 0 to ``num_columns - 1``.
        """
        columns = self.columns.long()
        outside = len(columns) > 0 and (columns[0] < 0 or columns[-1] >= self.num_columns)
        if outside or bool((columns.diff() <= 0).any()):
            raise ValueError(f"columns must increase within 0 to {self.num_columns - 1}")
        self._feature_of = torch.full((self.num_columns,), -1, dtype=torch.int32)
        self._feature_of[columns] = torch.arange(len(columns), dtype=torch.int32)

    def rows(self, crow: Tensor, col: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turns hashed text into the rows that the other methods take.

        Columns without weights are dropped and the others become feature numbers; values are multiplied by ``idf``, and
        rows are scaled to unit length (empty rows stay empty).

        Args:
            crow, col, values: hashed text ``[B, num_columns]`` in CSR form; ``col`` int64 or int32.
        """
        if self._feature_of is None:
            self.index_columns()
        assert self._feature_of is not None
        feature = self._feature_of[col]
        known = feature >= 0
        if not bool(known.all()):
            before = torch.zeros(len(known) + 1, dtype=torch.int64)
            torch.cumsum(known, 0, out=before[1:])
            crow, feature, values = before[crow], feature[known], values[known]
        feature = feature.long()
        values = values * self.idf[feature]
        if len(crow) == 2:
            return crow, feature, values / values.norm().clamp(min=1e-12)
        lengths = torch.segment_reduce(values.square(), "sum", offsets=crow, initial=0).sqrt_().clamp_(min=1e-12)
        return crow, feature, values / torch.repeat_interleave(lengths, crow.diff())

    def hidden(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """The input of the output layer ``[B, hidden]``; of the linear model, its logits ``[B, C]``."""
        return ops.embedding_bag(self.features.weight, crow, col, values) + self.bias

    def forward(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """Logits ``[B, C]`` of :meth:`rows` without neighbours; lazy where the output is sampled."""
        hidden = self.hidden(crow, col, values)
        return hidden if self.output is None else self.output(hidden)

    def dense_logits(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """Logits ``[B, C]`` as a tensor in memory, with neighbours."""
        hidden = self.hidden(crow, col, values)
        logits = hidden if self.output is None else F.linear(hidden, self.output.weight, self.output.bias)
        return logits if self.neighbours is None else self.neighbours(logits, crow, col, values)


def softmax_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Computes the cross entropy with labels ``[B, P]`` padded with -100, which share the target equally.

    Rows without a label do not count.
    """
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
