"""The best labels of rows: among all, or within a permitted or without an excluded set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .network import Network
from .ranker import ASKED, Evidence, LabelRanker, best_of
from .rows import Features, as_tensor


class LabelFilter:
    """The labels that predictions may hold.

    Args:
        allowed: Labels that alone are allowed: ``[A]`` for all rows, or a list for each row, or ``[rows, A]`` padded
            with negative numbers; None means all.
        excluded: Labels that are not, in the same forms; None means none.
        num_labels: N.
        rows: Number of rows.

    Raises:
        ValueError: The labels are of another form or out of range.

    >>> LabelFilter(None, [[0], [2, 1]], 3, 2).mask(0, 2)
    tensor([[False,  True,  True],
            [ True, False, False]])
    """

    def __init__(self, allowed: Any, excluded: Any, num_labels: int, rows: int) -> None:
        self.num_labels = num_labels
        self._allowed = _padded("allowed", allowed, num_labels, rows)
        self._excluded = _padded("excluded", excluded, num_labels, rows)

    def mask(self, begin: int, end: int) -> Tensor:
        """Which labels the rows from ``begin`` to before ``end`` may have, ``[end - begin, N]``, or ``[1, N]``."""
        mask = torch.ones(1, self.num_labels, dtype=torch.bool)
        if self._allowed is not None:
            mask = self._members(self._allowed, begin, end)
        if self._excluded is not None:
            mask = mask & ~self._members(self._excluded, begin, end)
        return mask

    def _members(self, labels: Tensor, begin: int, end: int) -> Tensor:
        labels = labels if len(labels) == 1 else labels[begin:end]
        members = torch.zeros(len(labels), self.num_labels + 1, dtype=torch.bool)  # the last column takes the padding
        return members.scatter_(1, labels.masked_fill(labels < 0, self.num_labels), True)[:, :-1]


def _padded(name: str, labels: Any, num_labels: int, rows: int) -> Tensor | None:
    """Labels as ``[1, A]`` for all rows or ``[rows, A]``, padded with -1."""
    if labels is None:
        return None
    if isinstance(labels, (list, tuple)) and any(isinstance(some, (list, tuple, set)) for some in labels):
        width = max(len(some) for some in labels)
        labels = [list(some) + [-1] * (width - len(some)) for some in labels]
    elif isinstance(labels, (set, frozenset, range)):
        labels = list(labels)
    try:
        padded = as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} is {labels!r:.50}; wanted label numbers") from None
    if padded.numel() == 0:
        padded = padded.long()
    are_whole = padded.dtype is not torch.bool and not padded.is_floating_point()
    if not are_whole or (padded.dim() != 1 and padded.shape[:-1] != (rows,)):
        raise ValueError(
            f"{name} has shape {tuple(padded.shape)} and dtype {padded.dtype}; wanted label numbers for all rows, or "
            f"for each of {rows} rows"
        )
    if padded.numel() > 0 and int(padded.max()) >= num_labels:
        raise ValueError(f"{name} holds label {int(padded.max())}; wanted 0 to {num_labels - 1}")
    if padded.dim() == 1 and padded.numel() > 0 and int(padded.min()) < 0:
        raise ValueError(f"{name} holds label {int(padded.min())}; wanted 0 to {num_labels - 1}")
    return padded.long() if padded.dim() == 2 else padded.long().unsqueeze(0)


@torch.no_grad()
def best_labels(
    network: Network, features: Tensor, k: int, labels: LabelFilter | None = None, begin: int = 0
) -> tuple[Tensor, Tensor]:
    """Finds the labels of each row with the highest scores, exactly.

    Args:
        network: The network.
        features: ``[B, F]``, sparse CSR or dense.
        k: Labels per row.
        labels: Which labels are allowed; None means all.
        begin: Number of the first row among those of ``labels``.

    Returns:
        Scores (float32) and labels (int64), both ``[B, k]``, best first; -inf and -1 where fewer are allowed.
    """
    if network.mixture is None and labels is None:
        found = network(features).topk(k)
        return found.values.float(), found.indices
    if labels is None and (ranked := ranked_labels(network, features, k)) is not None:
        return ranked
    values, best = [], []
    for block in torch.arange(features.shape[0]).split(network.rows_at_a_time):
        first, end = int(block[0]), int(block[-1]) + 1
        scores = network.scores(features if end - first == features.shape[0] else rows_between(features, first, end))
        if labels is not None:
            scores = scores.masked_fill(~labels.mask(begin + first, begin + end), -torch.inf)
        found = scores.topk(k)
        values.append(found.values)
        best.append(found.indices.masked_fill(found.values == -torch.inf, -1))
    return torch.cat(values), torch.cat(best)


def ranked_labels(network: Network, features: Features, k: int) -> tuple[Tensor, Tensor] | None:
    """The best labels that a ranker finds without a look at all of them: logarithms of probabilities, and labels.

    Returns:
        Both ``[B, k]``, best first; None without a ranker, and where it has fewer than ``k`` candidates for a row.
    """
    if not isinstance(network.mixture, LabelRanker):
        return None
    evidence = evidence_of(network.mixture, network, features)
    if bool(((evidence.labels >= 0).sum(1) < k).any()):
        return None
    logits = logits_for(network.mixture, network, features, evidence)
    return best_of(network.mixture.scores(evidence, logits), evidence.labels, k)


def evidence_of(ranker: LabelRanker, network: Network, features: Features) -> Evidence:
    """The candidates of features ``[B, F]``, and what is known of them but for the network's logits."""
    return ranker.prepare(features, network.best_of(features, ASKED) if ranker.asks_network else None)


def logits_for(ranker: LabelRanker, network: Network, features: Features, evidence: Evidence) -> Tensor | None:
    """The network's logits ``[B, K]`` of the candidates, where they count."""
    return network.logits_of(features, evidence.labels).float() if ranker.uses_logits else None


def rows_between(features: Tensor, begin: int, end: int) -> Tensor:
    """Some rows of a strided or sparse CSR matrix."""
    if features.layout is torch.strided:
        return features[begin:end]
    crow = features.crow_indices()[begin : end + 1]
    entries = slice(int(crow[0]), int(crow[-1]))
    return torch.sparse_csr_tensor(
        crow - crow[0],
        features.col_indices()[entries],
        features.values()[entries],
        (end - begin, features.shape[1]),
        check_invariants=False,
    )
