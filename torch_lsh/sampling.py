"""ActiveSet: the rows that take part in a step, and how they are chosen."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .config import LSHConfig
from .index import LSHIndex

_LOOKED_UP = 16  # samples of a batch that are looked up where rows are carried over


@dataclass(frozen=True)
class ActiveSet:
    """The active rows of a step: labels and rows found by hashing (H), and uniform random rows (R).

    Attributes:
        rows: ``[A]`` int64 increasing, shared by the batch, or ``[B, A]`` one set per sample, padded with -1.
        is_random: bool, of the shape of ``rows``: which rows belong to R.
        positions: ``[B, P]`` int64: where in ``rows`` (of the sample) each label is; -1 where there is no label.
        num_rows: N, the rows of the layer.
    """

    rows: Tensor
    is_random: Tensor
    positions: Tensor
    num_rows: int

    @property
    def per_sample(self) -> bool:
        return self.rows.dim() == 2

    @property
    def present(self) -> Tensor:
        """bool, of the shape of ``rows``: False at padding."""
        return self.rows >= 0

    def weights(self) -> Tensor:
        """Importance weights, of the shape of ``rows``, float32: 1 for H, ``(N - |H|) / |R|`` for R, 0 for padding.

        ``sum(weights * f(rows))`` is an unbiased estimate of the sum of ``f`` over all N rows, because R is a uniform
        sample of the rows outside of H and H is a fixed set, given the tables.
        """
        return self._weights

    @functools.cached_property
    def _weights(self) -> Tensor:
        present = self.present
        random = self.is_random.sum(-1, keepdim=True)
        fixed = present.sum(-1, keepdim=True) - random
        weight_of_random = (self.num_rows - fixed) / random.clamp(min=1)
        return torch.where(self.is_random, weight_of_random.float(), present.float())


def choose_active_rows(
    index: LSHIndex | None,
    x: Tensor,
    labels: Tensor,
    num_rows: int,
    config: LSHConfig,
    seed: int,
    carried: Tensor | None = None,
) -> ActiveSet:
    """Chooses labels ∪ rows carried over and rows found by hashing, in turn ∪ uniform random rows.

    Args:
        index: tables of the layer's rows; may be None when the configuration leaves no room for rows found by hashing.
        x: ``[B, in]`` the layer's input.
        labels: ``[B, P]`` int64, negative where there is no label; they are always active.
        num_rows: N.
        config: see :class:`LSHConfig`.
        seed: of the random rows.
        carried: ``[n]`` int64: what :func:`hardest_rows` found in the last step, for scope "batch".
    """
    active = config.active_rows(num_rows)
    # A draw of all the rest is no draw: with every row active the weights are 1 and the result is exact.
    num_random = active if active == num_rows else config.random_rows(active)
    per_sample = config.scope == "sample"
    candidates = labels.new_empty(len(labels), 0)
    room = active - num_random
    if room > 0 and len(x) > 0:
        if index is None:
            raise ValueError("index is None, but the configuration wants rows found by hashing")
        if per_sample:
            candidates = index.query(x, room)
        elif carried is None:
            candidates = index.query(x, _share(room, len(x)))
        else:
            # Carried rows are what look-ups of earlier steps found, so each step has to look only some samples up.
            stride = -(-len(x) // _LOOKED_UP)
            some = x[seed % stride :: stride]
            candidates = _in_turn(carried, index.query(some, _share(room // 2, len(some))).T.flatten())
    rows, is_random, positions = ops.select_rows(
        labels, candidates, num_rows, active=active, num_random=num_random, seed=seed, per_sample=per_sample
    )
    return ActiveSet(rows, is_random, positions, num_rows)


def _share(room: int, samples: int) -> int:
    """Rows to look up for each sample: twice its share, because samples of a batch find some of the same rows."""
    return min(room, 2 * math.ceil(room / samples) + 8)


def _in_turn(first: Tensor, second: Tensor) -> Tensor:
    """``[2, n]``: two lists of candidates of equal right."""
    lists = first.new_full((2, max(len(first), len(second))), -1)
    lists[0, : len(first)] = first
    lists[1, : len(second)] = second
    return lists


def hardest_rows(gradient: Tensor, active: ActiveSet, count: int, corrected: bool) -> Tensor:
    """The rows that a step pushed down most: those with the largest sums of positive gradients of their logits.

    For a softmax these are the rows with the largest probability where they are not the label. They change little from
    one batch to the next, and the rows that score highest for a single sample are among them. They were H in
    their own step, so taking them into the next H depends on no draw of that step and leaves estimates unbiased.

    Args:
        gradient: ``[B, A]`` of the logits of an active set that the batch shares.
        active: that set.
        count: rows wanted.
        corrected: gradients of random rows carry their importance weights.

    Returns:
        ``[min(count, A)]`` int64, hardest first.
    """
    total = ops.positive_sums(gradient)
    if corrected:
        total = total / active.weights()
    hardest = total.topk(min(count, len(total)), sorted=False)
    order = (-hardest.values).numpy().argsort()  # much faster than the sort in topk
    return active.rows[hardest.indices[torch.from_numpy(order)]]


def needs_index(config: LSHConfig, num_rows: int) -> bool:
    """Whether a step of such a layer looks rows up by hashing."""
    active = config.active_rows(num_rows)
    return active < num_rows and config.random_rows(active) < active
