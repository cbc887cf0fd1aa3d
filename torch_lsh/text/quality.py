"""The quality of a text network on labelled rows: accuracy and loss, or precision@k and micro F1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..metrics import PrecisionAtK

_THRESHOLDS = torch.cat([torch.arange(0.01, 0.1, 0.01), torch.arange(0.1, 0.95, 0.05)])


class Quality:
    """A :class:`torch_lsh.models.held_out.Metric` of texts.

    Args:
        multilabel: Whether a row may have several labels.
        binary: Whether every class is a decision of its own.
        threshold: Probability from which on a label counts as given; None tries many and takes the best.
    """

    def __init__(self, multilabel: bool, binary: bool, threshold: float | None = None) -> None:
        self.multilabel, self.binary = multilabel, binary
        self.thresholds = _THRESHOLDS if threshold is None else torch.tensor([threshold])
        self.precision: PrecisionAtK | None = None
        self.loss = self.rows = 0.0
        self.known = 0  # rows with a loss
        self.counts = torch.zeros(3, len(self.thresholds), dtype=torch.int64)  # given and right, given, right

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds rows: logits ``[B, C]``, and labels ``[B, P]`` padded with -100.

        Labels from C on, which the network does not know, count as wrong; they have no loss.
        """
        classes = logits.shape[1]
        if self.precision is None:
            self.precision = PrecisionAtK([k for k in (1, 3, 5) if k <= classes])
        best = logits.topk(min(classes, 50))
        self.precision.update(best.indices, labels)
        if self.multilabel:
            values = best.values
            probabilities = values.sigmoid() if self.binary else (values - logits.logsumexp(1, True)).exp()
            given = probabilities.unsqueeze(0) >= self.thresholds.view(-1, 1, 1)
            right = (best.indices.unsqueeze(2) == labels.unsqueeze(1)).any(2)
            self.counts[0] += (given & right).sum((1, 2))
            self.counts[1] += given.sum((1, 2))
            self.counts[2] += (labels >= 0).sum()
        else:
            known = (labels[:, 0] >= 0) & (labels[:, 0] < classes)
            self.known += int(known.sum())
            true = labels[:, 0].masked_fill(~known, -100)
            self.loss += float(torch.nn.functional.cross_entropy(logits, true, ignore_index=-100, reduction="sum"))
        self.rows += len(labels)

    def f1(self) -> Tensor:
        """Computes micro F1 per threshold."""
        return 2 * self.counts[0] / (self.counts[1] + self.counts[2]).clamp(min=1)

    def compute(self) -> dict[str, float]:
        """Computes the quality of all rows so far.

        Raises:
            ValueError: There were no rows.
        """
        if self.precision is None:
            raise ValueError("there are no rows to evaluate on")
        precision = self.precision.compute()
        if not self.multilabel:
            return {"accuracy": precision[1], "loss": self.loss / self.known if self.known else math.nan}
        at_k = {f"precision@{k}": value for k, value in precision.items()}
        return {**at_k, "micro_f1": float(self.f1().max())}

    def quality(self) -> float:
        """Precision@1, or less the loss where there is one: it depends less on a few texts than accuracy does."""
        result = self.compute()
        return result["precision@1"] if self.multilabel else -result["loss"]

    def best_threshold(self) -> float:
        """The threshold with the best micro F1."""
        return float(self.thresholds[self.f1().argmax()])
