"""Quality of rankings: precision, recall, nDCG, their propensity-scored forms, coverage and MRR, all at k.

The definitions are those of the extreme classification repository (http://manikvarma.org/downloads/XC/XMLRepository.html).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PROPENSITY_CONSTANTS = {"amazon": (0.6, 2.6), "wikipedia": (0.5, 0.4), "other": (0.55, 1.5)}
"""a and b of :func:`propensities` by the origin of a data set, as the repository uses them."""


class RankingMetrics:
    r"""Metrics of the best k classes per row, gathered batch by batch.

    Rows without labels are left out of every mean: no prediction of theirs could be right. A label that a row names
    twice counts once. With :math:`h_r` = 1 if the class at rank r is a label of the row and 0 otherwise, and P labels:

    ============ =======================================================================================================
    precision@k  :math:`\sum_{r \le k} h_r / k`, also for rows with fewer than k labels
    recall@k     :math:`\sum_{r \le k} h_r / P`
    ndcg@k       :math:`\sum_{r \le k} h_r / \log_2(r + 1)`, divided by its largest value
    mrr@k        :math:`1 / r` of the first hit, 0 if it is not among the best k
    coverage@k   share of the labels that occur at all which are found at least once
    psp@k        precision@k with hits weighted by 1 / propensity, divided by its largest value over the whole set
    psrecall@k   recall@k, likewise
    psndcg@k     ndcg@k, likewise
    ============ =======================================================================================================

    The propensity-scored forms are of Jain, Prabhu and Varma, "Extreme multi-label loss functions for recommendation,
    tagging, ranking & other missing label applications", KDD 2016.

    Args:
        names: Metrics, without "@k".
        ks: The values of k.
        propensities: ``[N]``, a propensity per class, from :func:`propensities`; needed by the propensity-scored
            metrics. Labels beyond N (labels that training did not know) count as the rarest label.

    Raises:
        ValueError: A name is not known, a k is not positive, or propensities are missing or not in (0, 1].

    >>> metric = RankingMetrics(("precision", "ndcg", "mrr"), (1, 3))
    >>> metric.update(torch.tensor([[4, 2, 7]]), torch.tensor([[7, 2, -100]]))
    >>> {name: round(value, 3) for name, value in metric.compute().items()}
    {'precision@1': 0.0, 'precision@3': 0.667, 'ndcg@1': 0.0, 'ndcg@3': 0.693, 'mrr@1': 0.0, 'mrr@3': 0.5}
    """

    def __init__(
        self,
        names: Sequence[str] = ("precision",),
        ks: Sequence[int] = (1, 3, 5),
        propensities: Tensor | None = None,
    ) -> None:
        if isinstance(names, str) or len(names) == 0 or not set(names) <= set(METRIC_NAMES):
            raise ValueError(f"names is {names!r}; wanted some of {', '.join(METRIC_NAMES)}")
        if len(ks) == 0 or min(ks) < 1:
            raise ValueError(f"ks is {tuple(ks)}; wanted positive numbers")
        if propensities is None and any(name in _SCORED for name in names):
            raise ValueError(f"propensities is None; wanted [N] for {', '.join(n for n in names if n in _SCORED)}")
        self.names, self.ks = tuple(names), tuple(ks)
        self._inverse = None if propensities is None else _inverse(propensities)
        self._at = torch.tensor(self.ks, device="cpu") - 1
        self._sums = {name: torch.zeros(2, len(self.ks), dtype=torch.float64, device="cpu") for name in self.names}
        # [1 + len(ks), N]: labels that occur, and labels found among the best k
        self._seen = torch.zeros(1 + len(self.ks), 0, dtype=torch.bool, device="cpu")

    def update(self, classes: Tensor, labels: Tensor, excluded: Tensor | None = None) -> None:
        """Adds rows.

        Args:
            classes: ``[B, k]`` int64, best first, negative where nothing was found; k at least ``max(ks)``.
            labels: ``[B, P]`` int64, negative where there is none.
            excluded: ``[E, 2]`` int64 pairs of row (of this batch) and class that do not count as predicted; the
                classes behind move up, so ``classes`` should hold as many more as a row has excluded ones.

        Raises:
            ValueError: The shapes do not fit.
        """
        if excluded is not None:
            classes = without_excluded(classes, excluded)
        deepest = max(self.ks)
        if classes.dim() != 2 or classes.shape[1] < deepest:
            raise ValueError(f"classes has shape {tuple(classes.shape)}; wanted [B, k] with k >= {deepest}")
        if labels.dim() != 2 or len(labels) != len(classes):
            raise ValueError(f"labels has shape {tuple(labels.shape)}; wanted [{len(classes)}, P]")
        labelled = (labels >= 0).any(1)
        batch = _Batch(classes[labelled, :deepest], _without_repeats(labels[labelled]), self._inverse)
        for name in self.names:
            if name == "coverage":
                self._cover(batch)
            else:
                self._sums[name] += torch.stack([part[:, self._at].sum(0) for part in _METRICS[name](batch)])

    def compute(self) -> dict[str, float]:
        """The metrics as ``{"precision@1": ...}``; NaN if no row had a label."""
        result = {}
        for name in self.names:
            found, possible = self._covered() if name == "coverage" else self._sums[name]
            for k, value in zip(self.ks, (found / possible).tolist()):
                result[f"{name}@{k}"] = value
        return result

    def _cover(self, batch: _Batch) -> None:
        largest = int(batch.labels.max()) if batch.labels.numel() else -1
        if largest >= self._seen.shape[1]:
            self._seen = torch.nn.functional.pad(self._seen, (0, largest + 1 - self._seen.shape[1]))
        self._seen[0, batch.labels[batch.labels >= 0]] = True
        for found, k in zip(self._seen[1:], self.ks):
            found[batch.classes[:, :k][batch.hits[:, :k] > 0]] = True

    def _covered(self) -> tuple[Tensor, Tensor]:
        occurring, *found = self._seen.sum(1, dtype=torch.float64)
        return torch.stack(found), occurring.expand(len(self.ks))


class PrecisionAtK(RankingMetrics):
    """Precision at k alone, by k.

    Args:
        ks: The values of k.

    >>> metric = PrecisionAtK((1, 3))
    >>> metric.update(torch.tensor([[4, 2, 7]]), torch.tensor([[7, 2, -100]]))
    >>> metric.compute()
    {1: 0.0, 3: 0.6666666666666666}
    """

    def __init__(self, ks: Sequence[int] = (1, 3, 5)) -> None:
        super().__init__(("precision",), ks)

    def compute(self) -> dict[int, float]:  # type: ignore[override]  # keyed by k, having one metric
        """Precision by k; NaN if no row had a label."""
        return dict(zip(self.ks, super().compute().values()))


def propensities(label_counts: Tensor, num_rows: int, a: float = 0.55, b: float = 1.5) -> Tensor:
    r"""Estimates how likely each label is to be noted where it applies.

    :math:`p_l = 1 / (1 + C e^{-a \log(n_l + b)})` with :math:`C = (\log n - 1)(b + 1)^a`, n training rows and
    :math:`n_l` of them with label l (Jain, Prabhu and Varma, KDD 2016).

    Args:
        label_counts: ``[N]``, training rows with each label.
        num_rows: Training rows.
        a: Exponent; :data:`PROPENSITY_CONSTANTS` has a and b of known data.
        b: Offset.

    Returns:
        ``[N]`` float64, in (0, 1].

    >>> propensities(torch.tensor([0, 10, 1000]), num_rows=1000).round(decimals=3)
    tensor([0.1130, 0.2820, 0.8210], dtype=torch.float64)
    """
    scale = max(0.0, math.log(num_rows) - 1) * (b + 1) ** a if num_rows > 0 else 0.0
    return 1 / (1 + scale * (label_counts.double() + b) ** -a)


def without_excluded(classes: Tensor, excluded: Tensor) -> Tensor:
    """Removes excluded pairs from rankings, as a filter file asks.

    Args:
        classes: ``[B, k]`` int64, best first, negative where nothing was found.
        excluded: ``[E, 2]`` int64 pairs of row and class.

    Returns:
        ``[B, k]``: the remaining classes in their order, then -1.

    >>> without_excluded(torch.tensor([[4, 2, 7], [2, 1, 0]]), torch.tensor([[0, 2], [1, 2]]))
    tensor([[ 4,  7, -1],
            [ 1,  0, -1]])
    """
    if classes.dim() != 2 or excluded.dim() != 2 or excluded.shape[1] != 2:
        raise ValueError(
            f"classes and excluded have shapes {tuple(classes.shape)} and {tuple(excluded.shape)}; "
            "wanted [B, k] and [E, 2]"
        )
    if classes.numel() == 0 or len(excluded) == 0:
        return classes
    stride = int(torch.maximum(classes.max(), excluded[:, 1].max())) + 1
    pairs = torch.arange(len(classes), device="cpu").unsqueeze(1) * stride + classes
    gone = torch.isin(pairs, excluded[:, 0] * stride + excluded[:, 1]) & (classes >= 0)
    return classes.masked_fill(gone, -1).gather(1, gone.to(torch.uint8).argsort(dim=1, stable=True))


# --- one batch --------------------------------------------------------------------------------------------------------


class _Batch:
    """Rows that have labels, and what several metrics need of them.

    Attributes:
        hits: ``[B, K]`` float64, 1 where the class at a rank is a label.
        gains: ``[B, K]`` the same, times 1 / propensity.
        ideal: ``[B, K]`` the gains of the best ranking, the rarest labels first.
        num_labels: ``[B, 1]``.
        discount: ``[K]``, 1 / log2(rank + 1).
    """

    def __init__(self, classes: Tensor, labels: Tensor, inverse: Tensor | None) -> None:
        self.classes, self.labels = classes, labels
        known = (classes.unsqueeze(2) == labels.unsqueeze(1)) & (classes >= 0).unsqueeze(2)
        self.hits = known.any(2).double()
        self.num_labels = (labels >= 0).sum(1, keepdim=True).double()
        ranks = torch.arange(1, classes.shape[1] + 1, dtype=torch.float64, device="cpu")
        self.ranks, self.discount = ranks, 1 / torch.log2(ranks + 1)
        if inverse is not None:
            rarest = len(inverse) - 1  # the weight of labels that are not in the list
            self.gains = self.hits * inverse[classes.clamp(0, rarest)]
            weights = torch.where(labels >= 0, inverse[labels.clamp(0, rarest)], 0.0)
            best = weights.sort(1, descending=True).values[:, : len(ranks)]
            self.ideal = torch.nn.functional.pad(best, (0, len(ranks) - best.shape[1]))

    def largest_dcg(self) -> Tensor:
        """``[B, K]``: the discounted gain of the first k ranks if all were hits, as far as the row has labels."""
        reachable = torch.minimum(self.num_labels, self.ranks).long() - 1
        return self.discount.cumsum(0)[reachable]


def _precision(batch: _Batch) -> tuple[Tensor, Tensor]:
    return batch.hits.cumsum(1) / batch.ranks, torch.ones_like(batch.hits)


def _recall(batch: _Batch) -> tuple[Tensor, Tensor]:
    return batch.hits.cumsum(1) / batch.num_labels, torch.ones_like(batch.hits)


def _ndcg(batch: _Batch) -> tuple[Tensor, Tensor]:
    return (batch.hits * batch.discount).cumsum(1) / batch.largest_dcg(), torch.ones_like(batch.hits)


def _mrr(batch: _Batch) -> tuple[Tensor, Tensor]:
    return (batch.hits / batch.ranks).cummax(1).values, torch.ones_like(batch.hits)


def _psp(batch: _Batch) -> tuple[Tensor, Tensor]:
    return batch.gains.cumsum(1) / batch.ranks, batch.ideal.cumsum(1) / batch.ranks


def _psrecall(batch: _Batch) -> tuple[Tensor, Tensor]:
    return batch.gains.cumsum(1) / batch.num_labels, batch.ideal.cumsum(1) / batch.num_labels


def _psndcg(batch: _Batch) -> tuple[Tensor, Tensor]:
    largest = batch.largest_dcg()
    return (batch.gains * batch.discount).cumsum(1) / largest, (batch.ideal * batch.discount).cumsum(1) / largest


# Each gives what is reached and what could be, [B, K] per row and rank; a metric is the quotient of their sums.
_METRICS: dict[str, Callable[[_Batch], tuple[Tensor, Tensor]]] = {
    "precision": _precision,
    "recall": _recall,
    "ndcg": _ndcg,
    "mrr": _mrr,
    "psp": _psp,
    "psrecall": _psrecall,
    "psndcg": _psndcg,
}
_SCORED = ("psp", "psrecall", "psndcg")
METRIC_NAMES = (*_METRICS, "coverage")
"""The metrics of :class:`RankingMetrics`."""


def _inverse(propensities: Tensor) -> Tensor:
    """1 / propensity, and the largest of it once more for labels beyond the list."""
    if propensities.dim() != 1 or len(propensities) == 0 or not bool(((propensities > 0) & (propensities <= 1)).all()):
        raise ValueError(f"propensities has shape {tuple(propensities.shape)}; wanted [N] numbers in (0, 1]")
    inverse = 1 / propensities.double()
    return torch.cat([inverse, inverse.max().view(1)])


def _without_repeats(labels: Tensor) -> Tensor:
    """Labels ``[B, P]`` in any order, each once per row, -1 in the other places."""
    ordered = labels.sort(1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(repeated | (ordered < 0), -1)
