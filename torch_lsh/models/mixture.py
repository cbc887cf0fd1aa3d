"""Mixture: the probabilities of a network and the votes of neighbours, where no held-out rows train a ranker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .neighbours import Neighbours, neighbours_from, with_more_rows
from .rows import Features, Rows

_BUCKETS = 8  # of labels, by powers of two of their frequency


class Mixture(nn.Module):
    """Mixes a network's probabilities with other scores, with a share for each frequency of labels.

    Labels are sorted into buckets by the power of two of how many training rows have them: the votes of neighbours are
    better on rare labels, those of a network on frequent ones. One source after the other joins: with it, the score of
    a label is ``(1 - share) * score before + share * score of the source``, with the share of the label's bucket.

    Args:
        sources: Neighbours; files of earlier versions may hold several.
        counts: How many training rows have each label, ``[N]``.
        share: Of each source at the beginning.
    """

    uses_logits = is_of_use = True

    counts: Tensor  # [N] int32
    bucket: Tensor  # [N] int32
    shares: Tensor  # [sources, buckets] float32

    def __init__(self, sources: Sequence[Neighbours], counts: Tensor, share: float = 0.5) -> None:
        super().__init__()
        self.sources = nn.ModuleList(sources)
        self.register_buffer("counts", counts.int())
        self.register_buffer("bucket", bucket_of(counts))
        self.register_buffer("shares", torch.full((len(sources), _BUCKETS), share))

    def forward(self, logits: Tensor, features: Features) -> Tensor:
        """Logarithms ``[B, N]`` of the mixture for logits ``[B, N]`` and features ``[B, F]``."""
        mixture = logits.softmax(1)
        for number, source in enumerate(self.sources):
            mixture.lerp_(source(features), self.shares[number].index_select(0, self.bucket))
        mixture /= mixture.sum(1, keepdim=True).clamp(min=1e-30)
        return mixture.clamp_(min=1e-30).log_()

    def count(self, counts: Tensor) -> None:
        """Counts more training rows: how many have each label, ``[N]``; N may be larger than before."""
        counts = counts.clone().int()
        counts[: len(self.counts)] += self.counts
        self.counts, self.bucket = counts, bucket_of(counts)

    def with_rows(self, rows: Rows, counts: Tensor) -> Mixture:
        """The same mixture with more rows, so many of each label ``[N]``, as neighbours."""
        self.count(counts)
        for number, source in enumerate(self.sources):
            if isinstance(source, Neighbours):
                self.sources[number] = with_more_rows(source, rows)
        return self

    def configuration(self) -> dict[str, Any]:
        """The arguments of :meth:`empty`, except ``num_labels``, and the kind."""
        return {"kind": "mixture", "sources": [source.configuration() for source in self.sources]}  # type: ignore[operator]

    @classmethod
    def empty(cls, num_labels: int, sources: Sequence[dict[str, Any]]) -> Mixture:
        """A mixture of the same sizes as the one that has this configuration."""
        return cls([neighbours_from(some, num_labels) for some in sources], torch.zeros(num_labels))

    def check(self, num_features: int) -> None:
        """Raises a ValueError where buffers are not those of a mixture for rows of so many features."""
        if not torch.equal(self.bucket, bucket_of(self.counts)):
            raise ValueError("bucket does not follow from counts")
        if not bool(((self.shares >= 0) & (self.shares < 1)).all()):
            raise ValueError("shares holds numbers outside of 0 to below 1")
        for source in self.sources:
            if isinstance(source, Neighbours):
                source.check(num_features)

    def make_room(self, num_labels: int) -> None:
        """Makes room for labels that no row has."""
        self.count(torch.zeros(num_labels, dtype=torch.int32))
        for source in self.sources:
            source.make_room(num_labels)  # type: ignore[operator]


def bucket_of(counts: Tensor) -> Tensor:
    """The bucket of labels that so many rows have, int32: 0 for at most one row, then one per power of two."""
    return counts.clamp(min=1).float().log2().floor().clamp(max=_BUCKETS - 1).int()
