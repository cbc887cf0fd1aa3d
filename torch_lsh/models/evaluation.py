"""Metrics of a network's rankings of labelled rows, without excluded pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..metrics import PROPENSITY_CONSTANTS, RankingMetrics, propensities
from .neighbours import Neighbours
from .network import Network
from .ranker import LabelRanker

Propensities = Tensor | str | None


class Rankings:
    """Gathers :class:`torch_lsh.metrics.RankingMetrics` of the rows of a data set, batch after batch.

    Args:
        names: Metrics.
        ks: The values of k.
        propensities: ``[N]``; None where no metric needs them.
        excluded: ``[E, 2]`` pairs of row and label that do not count as predicted; None means none.
        num_labels: Labels that the network knows; those from here on count as wrong, and are counted.

    Raises:
        ValueError: An argument does not fit.
    """

    def __init__(
        self,
        names: Sequence[str],
        ks: Sequence[int],
        propensities: Tensor | None,
        excluded: Tensor | None,
        num_labels: int,
    ) -> None:
        self._metrics = RankingMetrics(names, ks, propensities)
        self._num_labels, self._deepest, self._unknown = num_labels, max(ks), 0
        self._excluded = None if excluded is None else _by_row(excluded)

    def depth(self, begin: int, end: int) -> int:
        """How many labels to rank for the rows from ``begin`` to before ``end``."""
        some = self._excluded_of(begin, end)
        most = 0 if some is None or len(some) == 0 else int(torch.bincount(some[:, 0]).max())
        return min(self._deepest + most, self._num_labels)

    def update(self, best: Tensor, labels: Tensor, begin: int) -> None:
        """Adds the rows from ``begin`` on.

        Args:
            best: ``[B, K]``, the best labels, K = :meth:`depth`.
            labels: ``[B, P]``, negative where there is none.
            begin: Number of the first row in the data set.
        """
        best = torch.nn.functional.pad(best, (0, max(0, self._deepest - best.shape[1])), value=-1)
        self._metrics.update(best, labels, self._excluded_of(begin, begin + len(best)))
        self._unknown += int((labels >= self._num_labels).sum())

    def compute(self) -> dict[str, float]:
        """The metrics by name; ``"labels_unknown"`` is how many labels the network does not know, if there are any."""
        return {**self._metrics.compute(), **({"labels_unknown": self._unknown} if self._unknown else {})}

    def _excluded_of(self, begin: int, end: int) -> Tensor | None:
        if self._excluded is None:
            return None
        first, last = torch.searchsorted(self._excluded[:, 0].contiguous(), torch.tensor([begin, end])).tolist()
        return self._excluded[first:last] - torch.tensor([begin, 0])


def _by_row(pairs: Tensor) -> Tensor:
    """Pairs ``[E, 2]`` without repetitions, in the order of the rows."""
    if pairs.dim() != 2 or pairs.shape[1] != 2 or pairs.is_floating_point() or bool((pairs < 0).any()):
        raise ValueError(
            f"excluded has shape {tuple(pairs.shape)} and dtype {pairs.dtype}; wanted pairs [E, 2] of row and label"
        )
    return pairs.long().unique(dim=0)


def propensities_for(names: Sequence[str], given: Propensities, network: Network) -> Tensor | None:
    """The propensities that metrics need.

    Args:
        names: The metrics.
        given: ``[N]``; or the origin of the data, a key of :data:`torch_lsh.metrics.PROPENSITY_CONSTANTS`, which makes
            them of the label counts that the network keeps. None means ``"other"``.
        network: The network.

    Raises:
        ValueError: The origin is not known, or the network keeps no counts.
    """
    if isinstance(given, Tensor) or not any(name.startswith("ps") for name in names):
        return given if isinstance(given, Tensor) else None
    kept = _training_counts(network)
    if kept is None:
        raise ValueError(
            f"propensities is {given!r}, and the model keeps no label counts; wanted [N], of "
            "torch_lsh.metrics.propensities"
        )
    return propensities_of(*kept, given)


def propensities_of(label_counts: Tensor, num_rows: int, origin: str | None = None) -> Tensor:
    """The propensities of labels with the constants of data of an origin; None means ``"other"``.

    Raises:
        ValueError: The origin is not known.
    """
    constants = PROPENSITY_CONSTANTS.get(origin or "other")
    if constants is None:
        raise ValueError(f"propensities is {origin!r}; wanted [N] or one of {', '.join(PROPENSITY_CONSTANTS)}")
    return propensities(label_counts, num_rows, *constants)


def _training_counts(network: Network) -> tuple[Tensor, int] | None:
    """How many training rows have each label, and how many there are; None where the network keeps no rows."""
    mixture = network.mixture
    if mixture is None:
        return None
    sources = [mixture.neighbours] if isinstance(mixture, LabelRanker) else list(mixture.sources)
    near = next((source for source in sources if isinstance(source, Neighbours)), None)
    if near is None or len(near.labels) == 0:
        return None
    # Counts are those of all rows, of which the neighbours may be a random choice.
    return mixture.counts, round(len(near) * int(mixture.counts.sum()) / len(near.labels))
