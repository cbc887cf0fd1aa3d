"""LabelRanker: ranks the labels that a row may have by what several sources say of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..data import XMCRows
from .calibration import CALIBRATED_ROWS, Calibration
from .co_occurrence import CoOccurrences
from .committee import Examples, committee, first_value, train_committee
from .dense_label_rows import DenseCentroids, DenseClassifiers
from .label_groups import LabelGroups
from .label_rows import Centroids, LinearClassifiers
from .neighbours import DenseNeighbours, Neighbours, SparseNeighbours, neighbours_from, neighbours_of, with_more_rows
from .rows import Features, Rows, SparseFeatures, num_rows
from .weighting import FeatureWeighting, UnitLength, are_mostly_there

_POWERS = (2.0, 1.0, 4.0)  # of the cosines; the votes with the first one choose the candidates
_FEW = 10  # neighbours whose votes count by themselves, too
_VOTED, _NEAREST = 60, 30  # candidates by votes and by centroids; of so few labels, all are candidates
_ALIKE = 10  # of the latter, those with centroids like the nearest one
_ALIKE_POSTINGS = 1 << 10  # read per row that looks for them
_FREQUENT = 10  # candidates by their number of rows, where centroids that have a feature of the row are fewer
ASKED = 30  # candidates of the large network, for dense rows
_HARD_VOTED, _HARD_NEAREST = 32, 16  # labels by votes and by centroids that classifiers learn to tell apart
_GROUPED_FROM = 5_000  # rows; of fewer, groups of labels tell nothing more
_HARD_POSTINGS = 1 << 11  # read per row that looks for the latter
_SPARED_FROM = 200  # rows of a label; half of them look for no hard labels where rows have one label each
_KEPT_SHARE = 0.9  # of all rows; the hard labels of fewer rows are sought again when more rows join them
_ROWS = 1024  # at a time
_OF_LABELS = ("neighbours", "centroids", "co_occurrences", "groups", "classifiers")  # not all have the middle two
_BEHIND = -50.0  # added to scores of labels that are not candidates


class Evidence(NamedTuple):
    """What is known of the candidates of some rows.

    Attributes:
        labels: ``[B, K]`` int64, -1 where there is none.
        values: ``[B, K, E]``.
        known: ``[B]`` bool, which rows have features that training rows have.
    """

    labels: Tensor
    values: Tensor
    known: Tensor


class _WithoutFeatures(NamedTuple):
    """What is known of labels without a look at the features of a row.

    Rows without known features are as those training rows whose features no other row has: these tell the shares of
    labels, together with one more row, which has the mean of all labels.

    Attributes:
        counts: Of which the others were made.
        frequent: Labels of most rows, the most frequent one last.
        of_unknown: The best labels for rows without known features.
        log_shares: ``[N]``, the logarithms of the shares of such rows that have each label.
    """

    counts: Tensor
    frequent: Tensor
    of_unknown: Tensor
    log_shares: Tensor


class LabelRanker(nn.Module):
    """Candidates from neighbours and centroids, ranked by a committee of small networks.

    The candidates of a row are the labels of its nearest training rows and those with the nearest centroids; for dense
    rows, the best labels of the large network take the place of the latter, where that is trained. What is known of a
    candidate - the votes, the cosine with its centroid, how often it comes with the features, the scores of linear
    classifiers of it and of its groups, its frequency and the logit of the large network, where that is trained - goes
    into small networks, which held-out rows train. So no share of any source needs to be set, and a source that is of
    no use on some data does no harm. Rows without known features have the shares of labels in rows that are such to the
    other ones.

    Args:
        weighting: Of the features.
        neighbours, centroids, co_occurrences, classifiers, groups: Of the same weighed rows; dense rows have no
            co-occurrences, and these and few rows no groups.
        uses_logits: Whether the large network counts.
        compares_labels: Whether labels are compared with the nearest one: those like it are candidates.
    """

    counts: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        weighting: FeatureWeighting | UnitLength,
        neighbours: Neighbours,
        centroids: Centroids | DenseCentroids,
        co_occurrences: CoOccurrences | None,
        classifiers: LinearClassifiers | DenseClassifiers,
        groups: LabelGroups | None,
        uses_logits: bool = True,
        compares_labels: bool = False,
    ) -> None:
        super().__init__()
        self.weighting, self.neighbours, self.uses_logits = weighting, neighbours, bool(uses_logits)
        self.centroids, self.co_occurrences = centroids, co_occurrences
        self.classifiers, self.groups = classifiers, groups
        self.register_buffer("counts", torch.zeros(neighbours.num_labels, dtype=torch.int32))
        self.compares_labels = bool(compares_labels)
        # A value, and how far it is below the best.
        in_pairs = 1 + (co_occurrences is not None) + (groups is not None) + self.uses_logits
        size = 2 * (len(_POWERS) + 1) + 2 * in_pairs + 3 * classifiers.kinds + 1 + self.compares_labels
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        self.rank, self.calibration = committee(size), Calibration()
        self.is_of_use = False  # unless its sources knew labels of the rows by which it was tuned, and found none
        self._hard_labels: Tensor | None = None  # of the first rows; none after loading
        self._of_counts: _WithoutFeatures | None = None

    @classmethod
    def of(
        cls,
        rows: Rows,
        neighbours: int,
        weighting: FeatureWeighting | UnitLength | None = None,
        seed: int = 0,
        uses_logits: bool = True,
    ) -> LabelRanker:
        """A ranker of the labels of rows; :meth:`tune` completes it.

        Args:
            rows: Training rows.
            neighbours: How many of the nearest rows vote.
            weighting: Of the features; None means that the rows decide.
            seed: Of all random choices.
            uses_logits: Whether the large network counts.
        """
        weighting = weighting_of(rows, seed) if weighting is None else weighting
        rows = weighting.rows(rows)  # type: ignore[arg-type]  # it is of the kind of the rows
        near, centroids = neighbours_of(rows, neighbours, unit=True), _centroids_of(rows)
        hard = _hard_labels(rows, near, centroids, seed)
        classifiers = _classifiers_of(rows, hard, seed)
        together, groups = _co_occurrences_of(near.rows()), _groups_of(rows, centroids, seed)
        # Where rows have several labels, neighbours bring those that come with the nearest one.
        compares = isinstance(rows, XMCRows) and near.mostly_one_label and rows.num_labels > _VOTED + _NEAREST
        made = cls(weighting, near, centroids, together, classifiers, groups, uses_logits, compares)
        made._hard_labels = hard
        made.counts = _label_counts(rows)
        return made

    def with_rows(self, rows: Rows, refit: bool, seed: int = 0) -> LabelRanker:
        """A ranker of the labels of more rows, with the committee of this one.

        Args:
            rows: More training rows; they may have more features and labels.
            refit: Whether to train the classifiers again.
            seed: Of all random choices.
        """
        weighting = self.weighting.grown(rows.num_features)
        near = with_more_rows(self.neighbours, weighting.rows(rows))  # type: ignore[arg-type]  # see of()
        everything = near.rows()
        centroids = _centroids_of(everything)
        if refit:
            known = self._hard_labels
            if known is None or len(known) < _KEPT_SHARE * len(near):
                hard = _hard_labels(everything, near, centroids, seed)
            else:
                hard = torch.cat([known, _hard_labels(everything, near, centroids, seed, len(known))])
            classifiers = _classifiers_of(everything, hard, seed)
        else:
            classifiers = self.classifiers.grown(everything.num_labels, everything.num_features)
        together, counts = _co_occurrences_of(everything), _label_counts(everything)
        groups = self.groups
        if groups is not None:
            assert isinstance(everything, XMCRows)
            assert isinstance(centroids, Centroids)
            before = F.pad(self.counts, (0, len(counts) - self.num_labels))
            groups = groups.grown(centroids, (counts > 0) & (before == 0))
            groups = groups.trained(everything, seed) if refit else groups
        own = self.uses_logits, self.compares_labels
        made = LabelRanker(weighting, near, centroids, together, classifiers, groups, *own)
        made.counts = counts
        made.rank, made.mean, made.deviation = self.rank, self.mean.clone(), self.deviation
        # All labels have more rows; where they have about equally many, by far more than the deviation.
        made.mean[self._frequency] += math.log((1 + len(near)) / (1 + len(self.neighbours)))
        made.calibration, made.is_of_use = self.calibration, self.is_of_use
        return made

    def _parts(self) -> Iterator[Any]:
        """What there is of each label."""
        yield from (part for name in _OF_LABELS if (part := getattr(self, name)) is not None)

    def make_room(self, num_labels: int) -> None:
        """Makes room for labels that no row has."""
        for part in self._parts():
            part.make_room(num_labels)
        self.counts = torch.cat([self.counts, self.counts.new_zeros(num_labels - len(self.counts))])

    def configuration(self) -> dict[str, Any]:
        """The arguments of :meth:`empty`, except ``num_labels``, and the kind."""
        found = {name: getattr(self, name) for name in ("weighting", *_OF_LABELS)}
        parts = {name: None if part is None else part.configuration() for name, part in found.items()}
        own = {"uses_logits": self.uses_logits, "compares_labels": self.compares_labels}
        return {"kind": "ranker", **parts, **own, "independent": self.calibration.independent}

    @classmethod
    def empty(
        cls,
        num_labels: int,
        weighting: dict[str, Any],
        neighbours: dict[str, Any],
        centroids: dict[str, Any],
        co_occurrences: dict[str, Any] | None,
        classifiers: dict[str, Any],
        uses_logits: bool,
        groups: dict[str, Any] | None = None,
        compares_labels: bool = False,  # files of earlier versions do not say
        independent: bool = False,
        ranks_unknown: bool = False,  # of earlier versions; nothing asks for it
    ) -> LabelRanker:
        """A ranker of the same sizes as the one that has this configuration."""
        near = neighbours_from(neighbours, num_labels)
        if isinstance(near, DenseNeighbours):  # of sparse rows, too, where most of their entries are there
            dense = DenseCentroids(num_labels, **centroids), None, DenseClassifiers(num_labels, **classifiers)
            made = cls(UnitLength(**weighting), near, *dense, None, uses_logits)
        elif co_occurrences is None:
            raise ValueError("a ranker of sparse rows has no co-occurrences; wanted some")
        else:
            made = cls(
                FeatureWeighting(**weighting),
                near,
                Centroids(num_labels, **centroids),
                CoOccurrences(num_labels, **co_occurrences),
                LinearClassifiers(num_labels, **classifiers),
                None if groups is None else LabelGroups(num_labels, **groups),
                uses_logits,
                compares_labels,
            )
        made.calibration = Calibration(independent)
        return made

    def check(self, num_features: int) -> None:
        """Raises a ValueError where buffers are not those of a ranker for rows of so many features."""
        if not bool((self.counts >= 0).all()) or not bool((self.deviation > 0).all()):
            raise ValueError("counts or deviation holds a number below what it can be")
        self.calibration.check()
        self.weighting.check(num_features)
        for part in self._parts():
            part.check(self.weighting.num_features or num_features)

    @property
    def asks_network(self) -> bool:
        """Whether candidates come from the large network."""
        return self.uses_logits and self.co_occurrences is None

    @property
    def num_labels(self) -> int:
        return len(self.counts)

    @property
    def _frequency(self) -> int:
        """Which value of a candidate is the logarithm of its number of rows."""
        return len(self.mean) - 1 - 2 * self.uses_logits

    def _without_features(self) -> _WithoutFeatures:
        if self._of_counts is None or self._of_counts.counts is not self.counts:  # of many labels, a search takes long
            near, frequent = self.neighbours, self.counts.topk(min(_FREQUENT, self.num_labels)).indices
            alone = near.alone()
            labels = near.labels[alone.repeat_interleave(near.label_start.diff())]
            shares = torch.bincount(labels, minlength=self.num_labels) + self.counts / len(near)
            shares = (shares / (1 + alone.sum())).clamp(min=1e-30)
            best = shares.topk(min(_NEAREST, self.num_labels)).indices
            self._of_counts = _WithoutFeatures(self.counts, frequent.flip(0), best, shares.log())
        return self._of_counts

    @torch.no_grad()
    def prepare(self, features: Features, also: Tensor | None = None) -> Evidence:
        """Finds the candidates of features ``[B, F]`` and what is known of them but for the logits.

        Args:
            features: Sparse CSR or dense.
            also: Labels ``[B, M]`` int64 that are candidates, where :attr:`asks_network`.
        """
        index = (self.neighbours.column_start,) if isinstance(self.neighbours, SparseNeighbours) else ()
        features = self.weighting(features, *index)
        cosines, rows = self.neighbours.search(features)
        sparse = isinstance(features, SparseFeatures)
        known = features.crow_indices().diff() > 0 if sparse else torch.ones(len(rows), dtype=torch.bool)
        start, labels = self.neighbours.label_start, self.neighbours.labels
        weights, voted = _weights(cosines), _VOTED
        if also is None and not self.compares_labels and self.num_labels <= _VOTED + _NEAREST:
            voted = 0
            near = torch.arange(self.num_labels).where(self.counts > 0, -1).repeat(len(rows), 1)
        else:
            nearest = _NEAREST - _ALIKE if self.compares_labels else _NEAREST
            near = self.centroids.search(features, nearest) if also is None else also
            if self.compares_labels:
                assert isinstance(self.centroids, Centroids)
                first = near[:, 0].where(near[:, 0] >= 0, self._without_features().frequent[-1])
                alike = self.centroids.features_of(first)
                near = torch.cat([self.centroids.search(alike, 1 + _ALIKE, _ALIKE_POSTINGS)[:, 1:], near], 1)
            near = _filled(near, self._without_features().frequent)
            if not bool(known.all()):
                near = near.where(known.unsqueeze(1), self._without_features().of_unknown)
        found, votes = ops.label_votes(rows, weights, start, labels, self.num_labels, voted, near)
        voting = rows.clamp(min=0)
        voters = (start[voting + 1] - start[voting]).unsqueeze(2)
        votes = votes / (weights * voters).sum(1, keepdim=True).clamp(min=1e-30)
        none = found < 0
        pairs = self.centroids, self.co_occurrences, self.groups
        sources = [part(features, found) for part in pairs if part is not None]
        likeness = [self.centroids(alike, found).unsqueeze(2)] if self.compares_labels else []
        values = [
            (votes + 1e-4).log(),
            votes,
            *(value for source in sources for value in _and_below_best(source, none)),
            *likeness,
            *(
                value
                for margin in self.classifiers(features, found).clamp(-3, 3)
                for value in (*_and_below_best(margin, none), margin.clamp(min=0).unsqueeze(2))
            ),
            self.counts[found.clamp(min=0)].float().log1p().unsqueeze(2),
        ]
        return Evidence(found, torch.cat(values, 2).masked_fill_(none.unsqueeze(2), 0), known)

    def scores(self, evidence: Evidence, logits: Tensor | None) -> Tensor:
        """Logarithms of the probabilities of the candidates ``[B, K]``; -inf where there is none.

        Args:
            evidence: What :meth:`prepare` found.
            logits: Of the large network, ``[B, K]``, for the candidates; None where they do not count.
        """
        none = evidence.labels < 0
        scores = self.calibration(self._scores(self._with_logits(evidence, logits), none))
        if not bool(evidence.known.all()):
            shares = self._without_features().log_shares[evidence.labels.clamp(min=0)]
            scores = scores.where(evidence.known.unsqueeze(1), shares.masked_fill(none, -torch.inf))
        return scores

    def _scores(self, values: Tensor, none: Tensor) -> Tensor:
        """The scores of evidence ``[B, K, E]``; -inf where there is no candidate."""
        weight, bias, output = (parameter.detach() for parameter in self.rank.parameters())
        return ops.committee_scores(values, none, self.mean, self.deviation, weight, bias, output[0])

    def forward(self, logits: Tensor | None, features: Features) -> Tensor:
        """Scores ``[B, N]`` of all labels for logits ``[B, N]``, None where they do not count, and features ``[B, F]``.

        Those of the candidates are logarithms of probabilities (see :class:`Calibration`). Behind them come the other
        labels, in the order of the logits, or the most frequent ones first where logits do not count.
        """
        also = logits.topk(min(ASKED, logits.shape[1])).indices if self.asks_network and logits is not None else None
        evidence = self.prepare(features, also)
        labels = evidence.labels
        if logits is None:
            logits = self.counts.float().log1p().expand(len(labels), -1)
        scores = self.scores(evidence, logits.gather(1, labels.clamp(min=0))).clamp(min=_BEHIND)
        everything = torch.cat([logits.log_softmax(1) + _BEHIND, logits.new_empty(len(logits), 1)], 1)
        # The last column takes the padding.
        return everything.scatter_(1, labels.masked_fill(labels < 0, logits.shape[1]), scores)[:, :-1]

    @torch.no_grad()
    def tune(
        self, batches: Iterable[tuple[Evidence, Tensor | None, Tensor]], seed: int = 0, knowable: bool = True
    ) -> None:
        """Trains the committee from the beginning, and calibrates its scores.

        Args:
            batches: What :meth:`prepare` returned for rows that no source has seen, the logits of the large network
                ``[B, K]`` for the candidates (None where they do not count), and the labels ``[B, P]`` of the rows,
                negative where there is none.
            seed: Of all random choices.
            knowable: Whether some label of these rows is that of a training row. If none is, the sources are not to
                blame for finding none: all labels may be of a single row, as those of the entries of a catalogue.
        """
        batches = list(batches)
        examples = self._examples(batches)
        known = torch.cat([evidence.known for evidence, *_ in batches])
        self.is_of_use = not knowable or bool(examples.right.any())
        if not bool(known.all()):
            examples = Examples(*(part[known] for part in examples))
        if not bool(examples.right.any()):
            if self.is_of_use:
                self._rank_by_votes()
            return
        self.rank, self.mean, self.deviation = train_committee(examples, seed)
        first = Examples(*(part[:CALIBRATED_ROWS] for part in examples))
        several = any(bool((labels[:, 1:] >= 0).any()) for _, _, labels in batches)
        scores = self._scores(first.values, first.none)
        self.calibration = Calibration.of(scores, first.right, several)

    def _rank_by_votes(self) -> None:
        """Ranks by the votes that choose the candidates: no held-out row tells more."""
        self.rank, self.calibration = first_value(len(self.mean)), Calibration()
        self.mean, self.deviation = torch.zeros_like(self.mean), torch.ones_like(self.deviation)

    def _examples(self, batches: Iterable[tuple[Evidence, Tensor | None, Tensor]]) -> Examples:
        parts = []
        for evidence, logits, labels in batches:
            none = evidence.labels < 0
            right = torch.zeros_like(none)
            rows, _ = places = (labels >= 0).nonzero(as_tuple=True)  # most rows have far fewer labels than one may have
            some, found = (evidence.labels.int()[rows] == labels[places].int().unsqueeze(1)).nonzero(as_tuple=True)
            right[rows[some], found] = True
            parts.append((self._with_logits(evidence, logits), none, right))
        return Examples(*(torch.cat(some) for some in zip(*parts)))

    def _with_logits(self, evidence: Evidence, logits: Tensor | None) -> Tensor:
        """All that is known of the candidates, ``[B, K, E]``."""
        if not self.uses_logits:
            return evidence.values
        assert logits is not None
        return torch.cat([evidence.values, *_and_below_best(logits, evidence.labels < 0)], 2)


def _filled(labels: Tensor, others: Tensor) -> Tensor:
    """Labels ``[B, K]`` with others ``[M]``, the best last, in place of the last -1; one may come twice."""
    full = labels >= 0
    if bool(full.all()):
        return labels
    others = others[-labels.shape[1] :]
    return labels.where(full, F.pad(others, (labels.shape[1] - len(others), 0), value=-1))


def best_of(scores: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best of scores ``[B, K]`` of labels ``[B, K]``: both ``[B, k]``, padded with -inf and -1."""
    padding = (0, max(0, k - scores.shape[1]))
    scores, labels = F.pad(scores, padding, value=-torch.inf), F.pad(labels, padding, value=-1)
    best = scores.topk(k)
    return best.values, labels.gather(1, best.indices)


def weighting_of(rows: Rows, seed: int = 0) -> FeatureWeighting | UnitLength:
    """A weighting of the features that suits the rows."""
    if isinstance(rows, XMCRows) and not are_mostly_there(rows):
        return FeatureWeighting.choose(rows, seed)
    return UnitLength.of(rows)


def _centroids_of(rows: Rows) -> Centroids | DenseCentroids:
    return Centroids.of(rows) if isinstance(rows, XMCRows) else DenseCentroids.of(rows)


def _co_occurrences_of(rows: Rows) -> CoOccurrences | None:
    return CoOccurrences.of(rows) if isinstance(rows, XMCRows) else None


def _groups_of(rows: Rows, centroids: Centroids | DenseCentroids, seed: int) -> LabelGroups | None:
    if not isinstance(rows, XMCRows) or num_rows(rows) < _GROUPED_FROM:
        return None
    assert isinstance(centroids, Centroids)
    return LabelGroups.of(rows, centroids, seed)


def _classifiers_of(rows: Rows, hard: Tensor, seed: int) -> LinearClassifiers | DenseClassifiers:
    return (
        LinearClassifiers.of(rows, hard, seed) if isinstance(rows, XMCRows) else DenseClassifiers.of(rows, hard, seed)
    )


def _label_counts(rows: Rows) -> Tensor:
    return torch.bincount(rows.labels, minlength=rows.num_labels).int()


def _weights(cosines: Tensor) -> Tensor:
    """Votes ``[B, k, W]`` of neighbours: powers of their cosines, and those of the nearest few."""
    cosines = cosines.clamp(min=0)
    weights = torch.stack([*(cosines.pow(power) for power in _POWERS), cosines], 2)
    weights[:, _FEW:, -1] = 0
    return weights


def _and_below_best(values: Tensor, none: Tensor) -> list[Tensor]:
    """Values ``[B, K]`` and how far each is below the best of its row, both ``[B, K, 1]``; 0 where there is none."""
    best = values.masked_fill(none, -torch.inf).amax(1, keepdim=True)
    return [values.masked_fill(none, 0).unsqueeze(2), (values - best).masked_fill(none, 0).unsqueeze(2)]


def _features_between(rows: XMCRows, begin: int, end: int) -> SparseFeatures:
    """The features of rows of unit length, from one of them to before another."""
    start = rows.feature_start[begin : end + 1]
    entries = slice(int(start[0]), int(start[-1]))
    return SparseFeatures(start - start[0], rows.features[entries].long(), rows.values[entries], unit=True)


def _hard_labels(
    rows: Rows, neighbours: Neighbours, centroids: Centroids | DenseCentroids, seed: int, begin: int = 0
) -> Tensor:
    """Labels that the rows from ``begin`` on may be mistaken for, were they not among the training rows.

    Returns:
        ``[rows - begin, M]`` int32, padded with -1.
    """
    wanted = _look_for_hard_labels(neighbours, seed)
    wanted[:begin] = False
    if isinstance(neighbours, DenseNeighbours):
        hard = torch.full((len(neighbours), _HARD_VOTED), -1, dtype=torch.int32)
        for some, cosines, near in neighbours.alike(wanted):
            # Those by centroids take as long as the search among rows, and add nothing.
            hard[some] = _hard_by_votes(neighbours, some, cosines, near, near.new_empty(len(some), 0))
        return hard[begin:]
    assert isinstance(rows, XMCRows)
    assert isinstance(centroids, Centroids)
    assert isinstance(neighbours, SparseNeighbours)
    chosen = wanted.nonzero()[:, 0]
    compared = rows if len(chosen) == len(neighbours) else rows.take(chosen)
    search = neighbours.search_of_many()
    hard = torch.full((len(neighbours), _HARD_VOTED + _HARD_NEAREST), -1, dtype=torch.int32)
    for first, some in zip(range(0, len(chosen), _ROWS), chosen.split(_ROWS)):
        features = _features_between(compared, first, first + len(some))
        also = centroids.search(features, _HARD_NEAREST, _HARD_POSTINGS)
        hard[some] = _hard_by_votes(neighbours, some, *search(features), also)
    return hard[begin:]


def _hard_by_votes(neighbours: Neighbours, rows: Tensor, cosines: Tensor, near: Tensor, also: Tensor) -> Tensor:
    """Labels of the rows near to some, other than these themselves, and others ``[R, A]``: ``[R, M]`` int32."""
    itself = near == rows.unsqueeze(1)
    weights = cosines.clamp(min=0).square().masked_fill(itself, 0).unsqueeze(2).contiguous()
    labels = neighbours.label_start, neighbours.labels, neighbours.num_labels
    return ops.label_votes(near.masked_fill(itself, -1), weights, *labels, _HARD_VOTED, also)[0].int()


def _look_for_hard_labels(neighbours: Neighbours, seed: int) -> Tensor:
    """Which rows look for hard labels, ``[rows]`` bool: all but half of those whose labels are those of many rows.

    As many rows have such a label, half of the others tell it apart. Where rows have several labels, all are needed.
    """
    count, labels = len(neighbours), neighbours.labels.long()
    if not neighbours.mostly_one_label:
        return torch.ones(count, dtype=torch.bool)
    rare = torch.bincount(labels, minlength=neighbours.num_labels) < _SPARED_FROM
    chosen = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    row = torch.repeat_interleave(neighbours.label_start.diff())
    chosen[row[rare[labels]]] = True
    return chosen
