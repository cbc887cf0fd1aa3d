"""The quality of a text network on labelled rows: accuracy and loss, or precision@k and micro F1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..metrics import PrecisionAtK
from ..models.network import Network

THRESHOLD = 0.5  # where nothing tells a better one
_MOST = 100  # labels of a row that count where the best threshold is sought; no ranker has more candidates


class Quality:
    """A :class:`torch_lsh.models.held_out.Metric` of texts.

    Args:
        multilabel: Whether a row may have several labels.
        network: Whose scores they are.
        threshold: Probability from which on a label counts as given; None takes the best one.
    """

    def __init__(self, multilabel: bool, network: Network, threshold: float | None = None) -> None:
        self.multilabel, self.network, self.threshold = multilabel, network, threshold
        self.precision: PrecisionAtK | None = None
        self.loss = self.rows = 0.0
        self.known = 0  # rows with a loss
        self.labels = 0
        self.given: list[tuple[Tensor, Tensor]] = []  # labels that may be given: probabilities, and which are right
        self._best: tuple[float, float] | None = None  # what best() found of these

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds rows: logits ``[B, C]``, and labels ``[B, P]`` padded with -100.

        Labels from C on, which the network does not know, count as wrong; they have no loss.
        """
        classes = logits.shape[1]
        if self.precision is None:
            self.precision = PrecisionAtK([k for k in (1, 3, 5) if k <= classes])
        best = logits.topk(min(classes, 5)).indices
        self.precision.update(best, labels)
        if self.multilabel:
            self._add(self.network.probabilities(logits), labels)
        else:
            known = (labels[:, 0] >= 0) & (labels[:, 0] < classes)
            self.known += int(known.sum())
            true = labels[:, 0].masked_fill(~known, -100)
            self.loss += float(torch.nn.functional.cross_entropy(logits, true, ignore_index=-100, reduction="sum"))
        self.rows += len(labels)

    def _add(self, probabilities: Tensor, labels: Tensor) -> None:
        self._best = None
        classes = probabilities.shape[1]
        known = (labels >= 0) & (labels < classes)
        right = torch.zeros(len(labels), classes + 1, dtype=torch.bool)  # the last column takes the others
        right = right.scatter_(1, labels.where(known, classes), True)[:, :-1]
        if self.threshold is None:
            best = probabilities.topk(min(classes, _MOST))
            self.given.append((best.values.flatten(), right.gather(1, best.indices).flatten()))
        else:
            given = probabilities >= self.threshold
            self.given.append((probabilities[given], right[given]))
        self.labels += int((labels >= 0).sum())

    def best(self) -> tuple[float, float]:
        """The threshold with the best micro F1, halfway between two probabilities, and that F1.

        Where :attr:`threshold` is given, it is that one; where every F1 is 0, it is 0.5. A probability of 0 is given by
        no threshold.
        """
        if self._best is None:
            self._best = self._find_best()
        return self._best

    def _find_best(self) -> tuple[float, float]:
        probabilities, right = (torch.cat(some) for some in zip(*self.given))
        if self.threshold is not None:
            return self.threshold, 2 * int(right.sum()) / max(1, len(right) + self.labels)
        probabilities, order = probabilities.sort(descending=True)
        counts = torch.arange(1, len(order) + 1)
        f1 = 2 * right[order].cumsum(0) / (counts + self.labels)
        following = torch.cat([probabilities[1:], torch.zeros(1)])
        f1 = f1.masked_fill(probabilities == following, 0)  # equal ones are given together
        at = int(f1.argmax())
        if f1[at] == 0:
            return THRESHOLD, 0.0
        return float(probabilities[at] + following[at]) / 2, float(f1[at])

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
        return {**at_k, "micro_f1": self.best()[1]}

    def quality(self) -> float:
        """Precision@1, or less the loss where there is one: it depends less on a few texts than accuracy does."""
        result = self.compute()
        return result["precision@1"] if self.multilabel else -result["loss"]

    def best_threshold(self) -> float:
        """The threshold with the best micro F1."""
        return self.best()[0]
