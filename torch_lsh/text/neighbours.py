"""TextNeighbours: the labels of the training texts that are nearest to a text."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .. import ops
from ..data import XMCRows
from ..data.xmc import check_rows, runs

_MAX_POSTINGS = 1 << 14  # read per text; time grows with them, and beyond these they hardly find another neighbour
MOST_NEIGHBOURS = 1 << 12  # of a text: a quarter of the postings, as candidates are four times as many
_CANDIDATES = 4  # times the neighbours wanted
_POWERS = (2.0, 3.0, 4.0)
_SHARES = tuple(i / 10 for i in range(10))


class TextNeighbours(nn.Module):
    """Training rows of unit length with their labels, and an inverted index to find the nearest by cosine.

    Each of the ``k`` nearest rows votes for its labels with its cosine to the power of ``power``. The votes are scaled
    to the sum 1 and mixed with the probabilities of a network, as in kNN language models. Neighbours tell rare words
    apart, which a network of low rank cannot; the network decides where no row is near.

    Khandelwal et al., *Generalization through Memorization: Nearest Neighbor Language Models*, ICLR 2020.

    Args:
        num_features, num_classes: F and C.
        rows, entries, labels: how many rows, values and labels of rows there are.
        k: neighbours that vote.
        power: of the cosines.
        share: of the votes in the mixture, 0 to below 1.

    >>> rows = XMCRows(torch.tensor([0, 1, 2]), torch.tensor([3, 5], dtype=torch.int32), torch.ones(2),
    ...                torch.tensor([0, 1, 2]), torch.tensor([7, 8], dtype=torch.int32), 6, 9)
    >>> neighbours = TextNeighbours.from_rows(rows, k=1)
    >>> neighbours.votes(*neighbours.search(torch.tensor([0, 1]), torch.tensor([5]), torch.ones(1))).argmax(1)
    tensor([8])
    """

    row_start: Tensor
    columns: Tensor
    values: Tensor
    label_start: Tensor
    labels: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        rows: int,
        entries: int,
        labels: int,
        k: int = 64,
        power: float = 3.0,
        share: float = 0.5,
    ) -> None:
        if not 1 <= k <= MOST_NEIGHBOURS or not 0 <= share < 1 or not 0 < power < math.inf:
            raise ValueError(
                f"k, power and share are {k}, {power} and {share}; "
                f"wanted 1 <= k <= {MOST_NEIGHBOURS}, finite power > 0, share in [0, 1)"
            )
        super().__init__()
        self.num_features, self.num_classes = num_features, num_classes
        self.k, self.power, self.share = k, power, share
        self.register_buffer("row_start", torch.zeros(rows + 1, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(entries))
        self.register_buffer("label_start", torch.zeros(rows + 1, dtype=torch.int64))
        self.register_buffer("labels", torch.zeros(labels, dtype=torch.int32))
        self._by_column: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def from_rows(cls, rows: XMCRows, k: int = 64) -> TextNeighbours:
        """Keeps the rows; their tensors are not copied."""
        with torch.device("meta"):
            sizes = len(rows.feature_start) - 1, len(rows.features), len(rows.labels)
            made = cls(rows.num_features, rows.num_labels, *sizes, k)
        made.row_start, made.columns, made.values = rows.feature_start, rows.features, rows.values
        made.label_start, made.labels = rows.label_start, rows.labels
        made.index_rows()
        return made

    def settings(self) -> dict[str, float]:
        """The arguments that make such a module, except ``num_features`` and ``num_classes``."""
        sizes = {"rows": len(self.row_start) - 1, "entries": len(self.columns), "labels": len(self.labels)}
        return {**sizes, "k": self.k, "power": self.power, "share": self.share}

    def index_rows(self) -> None:
        """Builds the inverted index. Call it after the buffers have changed.

        Raises:
            ValueError: the buffers are not rows with labels.
        """
        rows = XMCRows(
            self.row_start,
            self.columns,
            self.values,
            self.label_start,
            self.labels,
            self.num_features,
            self.num_classes,
        )
        check_rows(rows)
        counts = torch.bincount(self.columns, minlength=self.num_features)
        start = torch.zeros(self.num_features + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=start[1:])
        order = self.columns.argsort(stable=True)
        of_entry = torch.repeat_interleave(
            torch.arange(len(self.row_start) - 1, dtype=torch.int32), self.row_start.diff()
        )
        self._by_column = start, of_entry[order], self.values[order]

    def search(self, crow: Tensor, col: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the nearest kept rows: cosines and row numbers, both ``[B, k]``, padded with -inf and -1.

        Args:
            crow, col, values: rows of unit length.
        """
        assert self._by_column is not None
        by_row = self.row_start, self.columns, self.values
        candidates = _CANDIDATES * self.k
        return ops.nearest_rows(crow, col, values, *by_row, *self._by_column, self.k, candidates, _MAX_POSTINGS)

    def votes(self, cosines: Tensor, rows: Tensor, power: float | None = None) -> Tensor:
        """Computes the votes ``[B, C]`` for each class, with the sum 1, or all 0 where no row is near."""
        weights = cosines.clamp(min=0).pow(self.power if power is None else power)
        start, at = runs(self.label_start, rows.clamp(min=0).flatten())
        counts = start.diff()
        first_class = torch.arange(len(rows)).mul_(self.num_classes)
        classes = self.labels[at] + torch.repeat_interleave(first_class, counts.view(rows.shape).sum(1))
        votes = torch.zeros(len(rows) * self.num_classes)
        votes.index_add_(0, classes, torch.repeat_interleave(weights.flatten(), counts))
        votes = votes.view(len(rows), self.num_classes)
        return votes / votes.sum(1, keepdim=True).clamp(min=1e-30)

    def tune(self, batches: Iterable[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]) -> None:
        """Chooses ``power`` and ``share`` so that the likeliest class is right most often; ``share`` may become 0.

        Args:
            batches: logits of the network ``[B, C]``, rows ``crow``, ``col`` and ``values`` that are not among the kept
                ones, and their labels ``[B, P]``, negative where there is none.
        """
        right = torch.zeros(len(_POWERS), len(_SHARES), dtype=torch.int64)
        for logits, crow, col, values, labels in batches:
            probabilities, near = logits.softmax(1), self.search(crow, col, values)
            for i, power in enumerate(_POWERS):
                votes = self.votes(*near, power)
                for j, share in enumerate(_SHARES):
                    best = probabilities.lerp(votes, share).argmax(1, keepdim=True)
                    right[i, j] += (best == labels).sum()
        i, j = divmod(int(right.argmax()), len(_SHARES))
        self.power, self.share = _POWERS[i], _SHARES[j]

    def forward(self, logits: Tensor, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """Logarithms ``[B, C]`` of the mixture of a network's probabilities and the votes."""
        mixture = logits.softmax(1).lerp_(self.votes(*self.search(crow, col, values)), self.share)
        return mixture.clamp_(min=1e-30).log_()

    def extra_repr(self) -> str:
        return f"{len(self.row_start) - 1:,} rows, k={self.k}, power={self.power}, share={self.share}"
