"""Rows held out from training: how many, which, and what the quality of a network on them is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..metrics import PrecisionAtK
from .network import Network
from .ranker import Evidence, LabelRanker
from .ranking import evidence_of, logits_for
from .rows import Batch, InMemory, Rows, batch_of, join, num_rows

_CROSSED, _DENSE_CROSSED = 2_000, 1_000  # see Purpose; of dense rows, a network tells more
FEW = 5_000  # with fewer rows, the classifiers of a ranker are trained again with the rows that were held out
MOST_HELD_OUT = 10_000
_ENOUGH = 1_500  # rows to hold out
_LARGEST_SHARE = 0.125
_MOST_SCORES = 1 << 28  # of held-out rows, after an epoch
_MOST_SCORED = 1 << 22  # scores of held-out rows beside a ranker, where they decide nothing
_RANKED, _RANKED_ALONE = 256, 1024  # rows at a time, with logits of the network and without


class Purpose(NamedTuple):
    """What rows are held out for.

    Attributes:
        least: Labelled rows below which none are held out.
        shares: The largest share of fewer than so many rows, as pairs ``(rows, share)`` by increasing numbers of rows;
            it is an eighth of more.
        crossed: With fewer rows, each part of them tunes a ranker of the others, and no network is trained.
    """

    least: int
    shares: tuple[tuple[int, float], ...] = ()
    crossed: int = 0


TO_STOP = Purpose(20_000)  # training on all of fewer rows is worth more than knowing when to stop
TO_RANK = Purpose(1_000, ((_CROSSED, 0.25),))  # rows held out from the network are trained on by other sources
TO_RANK_ALONE = Purpose(200, ((FEW, 0.25),), _CROSSED)  # without the network
TO_RANK_DENSE = Purpose(200, ((_CROSSED, 0.25),), _DENSE_CROSSED)  # with it unless rows are few


def split(source: InMemory, fraction: float, seed: int, purpose: Purpose = TO_STOP) -> tuple[InMemory, Rows | None]:
    """Splits rows at random into those to train on and those held out; the latter have labels.

    Args:
        source: The rows.
        fraction: Share to hold out, at most 10,000 rows; of few rows it becomes larger.
        seed: Seed of the choice.
        purpose: What for.
    """
    rows, weights = source.rows, source.weights
    labelled = rows.label_start.diff() > 0
    fraction = share_to_hold_out(int(labelled.sum()), fraction, purpose)
    if fraction == 0:
        return source, None
    generator = torch.Generator().manual_seed(seed)
    out = labelled & (torch.rand(num_rows(rows), generator=generator, dtype=torch.float64) < fraction)
    out &= out.cumsum(0) <= MOST_HELD_OUT
    check_some_left(int((labelled & ~out).sum()), fraction)
    kept = (~out).nonzero()[:, 0]
    weights = None if weights is None else weights[kept]
    return InMemory(rows.take(kept), len(source.label_counts), weights), rows.take(out.nonzero()[:, 0])


def check_some_left(labelled: int, fraction: float) -> None:
    """Raises a ValueError where so large a share is held out that no labelled row is left to train on."""
    if labelled == 0:
        raise ValueError(f"validation_fraction is {fraction}, which leaves no labelled row to train on; wanted less")


def share_to_hold_out(labelled: int, fraction: float, purpose: Purpose) -> float:
    """The share of so many labelled rows to hold out; see :func:`split`."""
    if fraction == 0 or labelled < purpose.least:
        return 0.0
    largest = next((share for rows, share in purpose.shares if labelled < rows), _LARGEST_SHARE)
    return max(fraction, min(_ENOUGH / labelled, largest))


def parts_in_turn(rows: Rows, held_out: Rows, seed: int) -> Iterator[tuple[Rows, Rows]]:
    """Random parts of rows, each about as large as the rows held out, and all other rows beside each."""
    parts = max(1, round(num_rows(rows) / num_rows(held_out)))
    order = torch.randperm(num_rows(rows), generator=torch.Generator().manual_seed(seed))
    for part in order.chunk(parts):
        others = torch.ones(num_rows(rows), dtype=torch.bool)
        others[part] = False
        yield rows.take(part), join([rows.take(others.nonzero()[:, 0]), held_out])


def are_crossed(rows: int, held_out: Rows | None, purpose: Purpose) -> bool:
    """Whether :func:`split` left so few rows that parts of them are to tune rankers, too."""
    return held_out is not None and rows + num_rows(held_out) < purpose.crossed


class Metric(Protocol):
    """Gathers the quality of logits."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds logits ``[B, N]`` and labels ``[B, P]``."""
        ...

    def compute(self) -> dict[str, float]:
        """The quality of all rows so far, by name."""
        ...

    def quality(self) -> float:
        """One number, the greater the better."""
        ...


class Precision:
    """A :class:`Metric`: precision@1, 3 and 5, and their mean."""

    def __init__(self) -> None:
        self._metric = PrecisionAtK((1, 3, 5))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        best = logits.topk(min(5, logits.shape[1])).indices
        self._metric.update(torch.nn.functional.pad(best, (0, 5 - best.shape[1]), value=-1), labels)

    def compute(self) -> dict[str, float]:
        return {f"precision@{k}": value for k, value in self._metric.compute().items()}

    def quality(self) -> float:
        return sum(self._metric.compute().values()) / 3


class HeldOut:
    """Measures a network on held-out rows, and tunes its ranker on them.

    Args:
        rows: The rows; where scoring them takes long, the first of them count.
        network: The network.
        ranker: Ranks its labels; None means the network alone.
        metric: Makes a metric.
    """

    def __init__(
        self,
        rows: Rows,
        network: Network,
        ranker: LabelRanker | None,
        metric: Callable[[], Metric] = Precision,
    ) -> None:
        self.network, self.ranker, self._metric = network, ranker, metric
        scores, least = (_MOST_SCORES, 512) if ranker is None else (_MOST_SCORED, 128)
        most = max(least, scores // network.num_labels)
        counted = rows.take(torch.arange(min(num_rows(rows), most)))
        blocks = torch.arange(num_rows(counted)).split(network.rows_at_a_time)
        self._batches: list[Batch] = [batch_of(counted.take(block)) for block in blocks]
        self._ranked_batches: list[tuple[Batch, Evidence | None]] = []
        self._tuned: list[tuple[Evidence, Tensor | None, Tensor]] = []  # what the ranker was tuned on last
        self._knowable = False  # whether a ranker's training rows have some label of the rows that tune it
        if ranker is not None:
            self.add(rows, ranker)  # it looks at few labels of each row, so that more rows can count for it

    def add(self, rows: Rows, ranker: LabelRanker) -> None:
        """Adds rows that tune the ranker by what one knows of them that was not made of them."""
        self._knowable |= bool((ranker.counts[rows.labels.long()] > 0).any())
        size = _RANKED if ranker.uses_logits else _RANKED_ALONE
        for block in torch.arange(min(num_rows(rows), MOST_HELD_OUT)).split(size):
            batch = batch_of(rows.take(block))
            prepared = None if ranker.asks_network else ranker.prepare(batch.features)
            self._ranked_batches.append((batch, prepared))

    @torch.no_grad()
    def measure(self) -> tuple[dict[str, float], tuple[float, ...]]:
        """The quality of the network alone by name, and as one number.

        With a ranker there is no number: what it finds hardly depends on how long the network is trained.
        """
        self.network.eval()
        metric = self._metric()
        for batch in self._batches:
            metric.update(self.network.logits(batch.features), batch.labels)
        return metric.compute(), (metric.quality(),) if self.ranker is None else ()

    @torch.no_grad()
    def tune(self) -> None:
        """Tunes the ranker for the present parameters of the network."""
        if self.ranker is not None:
            self.network.eval()
            self._tuned = list(self._ranked(self.ranker))
            self.ranker.tune(self._tuned, knowable=self._knowable)

    def _ranked(self, ranker: LabelRanker) -> Iterator[tuple[Evidence, Tensor | None, Tensor]]:
        for batch, prepared in self._ranked_batches:
            evidence = evidence_of(ranker, self.network, batch.features) if prepared is None else prepared
            yield evidence, logits_for(ranker, self.network, batch.features, evidence), batch.labels

    @torch.no_grad()
    def final(self) -> Metric:
        """The quality of what the network predicts. With a ranker, after :meth:`tune`, for the same parameters."""
        self.network.eval()
        metric = self._metric()
        if self.ranker is not None and self.ranker.is_of_use:
            for evidence, logits, labels in self._tuned:
                metric.update(self.ranker.scores(evidence, logits), places_of(labels, evidence.labels))
            return metric
        for batch in self._batches:
            metric.update(self.network.scores(batch.features), batch.labels)
        return metric


def places_of(labels: Tensor, candidates: Tensor) -> Tensor:
    """Where labels ``[B, P]`` stand among the candidates ``[B, K]``: K where they do not; negative ones stay.

    >>> places_of(torch.tensor([[7, 5, -100]]), torch.tensor([[5, 6, -1]]))
    tensor([[   3,    0, -100]])
    """
    found, places = (labels.unsqueeze(2) == candidates.unsqueeze(1)).max(2)
    places = places.where(found, candidates.shape[1])
    return places.where(labels >= 0, labels)
