"""Mixture: the probabilities of a network and other sources of scores, with shares that held-out rows choose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .neighbours import Neighbours, neighbours_from, with_more_rows
from .rows import Features, Rows

_BUCKETS = 8  # of labels, by powers of two of their frequency
_SHARES = tuple(i / 10 for i in range(10))
_BEST = 32  # labels of each source that can be among the best of a mixture
_KS = (1, 3, 5)


class ScoreSource(Protocol):
    """An ``nn.Module`` whose call gives scores ``[B, N]`` of features ``[B, F]``: from 0, with a sum up to 1."""

    def __call__(self, features: Features) -> Tensor: ...

    def prepare(self, features: Features) -> Any:
        """What the scores follow from, whatever the settings."""
        ...

    def trials(self, prepared: Any) -> list[Tensor]:
        """The scores with each of the settings that there are to choose from."""
        ...

    def adopt(self, trial: int) -> None:
        """Takes over the setting of this number."""
        ...

    def make_room(self, num_labels: int) -> None:
        """Makes room for new labels behind those that there are."""
        ...


class Mixture(nn.Module):
    """Mixes a network's probabilities with other scores, with a share for each frequency of labels.

    Labels are sorted into buckets by the power of two of how many training rows have them: the votes of neighbours are
    better on rare labels, those of a network on frequent ones. One source after the other joins: with it, the score of
    a label is ``(1 - share) * score before + share * score of the source``, with the share of the label's bucket.

    Args:
        sources: Modules, see :class:`ScoreSource`.
        counts: How many training rows have each label, ``[N]``.
        share: Of each source at the beginning.
    """

    uses_logits = True

    counts: Tensor  # [N] int32
    bucket: Tensor  # [N] int32
    shares: Tensor  # [sources, buckets] float32

    def __init__(self, sources: Sequence[nn.Module], counts: Tensor, share: float = 0.5) -> None:
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

    @property
    def is_of_use(self) -> bool:
        """Whether any source has a share."""
        return bool((self.shares > 0).any())

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

    def prepare(self, features: Features) -> list[Any]:
        """What :meth:`tune` needs to know of features ``[B, F]``."""
        return [source.prepare(features) for source in self.sources]  # type: ignore[operator]

    @torch.no_grad()
    def tune(self, batches: Iterable[tuple[Tensor, list[Any], Tensor]]) -> tuple[float, float]:
        """Chooses shares and the settings of the sources by the precision of the mixture.

        Args:
            batches: Logits of the network ``[B, N]`` for rows that no source has seen, what :meth:`prepare` returned
                for them, and their labels ``[B, P]``, negative where there is none.

        Returns:
            The mean of precision@1, 3 and 5 of the network alone, and that of the mixture.
        """
        parts = []
        for logits, prepared, labels in batches:
            trials = [source.trials(some) for source, some in zip(self.sources, prepared)]  # type: ignore[operator]
            parts.append(Candidates.of(logits.softmax(1), trials, labels, self.bucket))
        candidates = Candidates.join(parts)
        alone = precision = candidates.precision(candidates.base)
        for number, source in enumerate(self.sources):
            found = [_share_for_all(candidates, scores) for scores in candidates.trials[number]]
            best = max(range(len(found)), key=lambda trial: found[trial][1])
            scores = candidates.trials[number][best]
            source.adopt(best)  # type: ignore[operator]
            self.shares[number], precision = _share_of_each(candidates, scores, *found[best])
            shares = self.shares[number][candidates.bucket]
            candidates = candidates._replace(base=candidates.base.lerp(scores, shares))
        return alone, precision


def bucket_of(counts: Tensor) -> Tensor:
    """The bucket of labels that so many rows have, int32: 0 for at most one row, then one per power of two."""
    return counts.clamp(min=1).float().log2().floor().clamp(max=_BUCKETS - 1).int()


class Candidates(NamedTuple):
    """The labels that can be among the best of a mixture, for each of some rows.

    Attributes:
        base: ``[R, M]``, scores of the network; 0 at padding.
        trials: ``[R, M]`` of each setting of each source.
        right: ``[R, M]``, whether the row has the label.
        bucket: ``[R, M]`` int64, that of the label.
    """

    base: Tensor
    trials: list[list[Tensor]]
    right: Tensor
    bucket: Tensor

    @classmethod
    def of(cls, base: Tensor, trials: list[list[Tensor]], labels: Tensor, bucket: Tensor) -> Candidates:
        """The best labels of each source of scores ``[B, N]``."""
        found = min(_BEST, base.shape[1])
        best = torch.cat([scores.topk(found).indices for scores in (base, *(some[0] for some in trials))], 1)
        best = best.sort(1).values
        repeated = torch.zeros_like(best, dtype=torch.bool)
        repeated[:, 1:] = best[:, 1:] == best[:, :-1]

        def gathered(scores: Tensor) -> Tensor:
            return scores.gather(1, best).masked_fill_(repeated, 0)

        right = (best.unsqueeze(2) == labels.unsqueeze(1)).any(2) & ~repeated
        return cls(gathered(base), [[gathered(s) for s in some] for some in trials], right, bucket[best].long())

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """The candidates of all rows."""
        trials = [[torch.cat(scores) for scores in zip(*some)] for some in zip(*(part.trials for part in parts))]
        base, right, bucket = (torch.cat([getattr(p, name) for p in parts]) for name in ("base", "right", "bucket"))
        return cls(base, trials, right, bucket)

    def precision(self, scores: Tensor) -> float:
        """The mean of precision@1, 3 and 5 of scores ``[R, M]``."""
        right = self.right.gather(1, scores.topk(min(max(_KS), scores.shape[1])).indices).float()
        return sum(float(right[:, :k].sum()) / k for k in _KS) / (len(_KS) * max(1, len(right)))


def _precision(candidates: Candidates, scores: Tensor, shares: Tensor) -> float:
    return candidates.precision(candidates.base.lerp(scores, shares[candidates.bucket]))


def _share_for_all(candidates: Candidates, scores: Tensor) -> tuple[Tensor, float]:
    """The share of a source with the best precision, the least among equals, for all buckets ``[buckets]``."""
    tried = [torch.full((_BUCKETS,), share) for share in _SHARES]
    precisions = [_precision(candidates, scores, shares) for shares in tried]
    best = precisions.index(max(precisions))
    return tried[best], precisions[best]


def _share_of_each(candidates: Candidates, scores: Tensor, shares: Tensor, precision: float) -> tuple[Tensor, float]:
    """Shares with a better precision, found by changing one bucket after the other."""
    for bucket in candidates.bucket.unique().tolist():
        for share in _SHARES:
            changed = shares.clone()
            changed[bucket] = share
            if (reached := _precision(candidates, scores, changed)) > precision:
                shares, precision = changed, reached
    return shares, precision
