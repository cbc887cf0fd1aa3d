"""ActiveSet: the rows that take part in a step, and how they are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..config import LSHConfig
from ..index.base import Index
from .label_counts import LabelCounts, log_uniform

_LOOKED_UP = 4  # samples of a batch that are looked up where rows are carried over; 2 to 16 reach the same precision


@dataclass(eq=False, slots=True)  # not frozen, as that takes microseconds to make
class ActiveSet:
    """The active rows of a step: labels and rows found by hashing (H), and random rows (R).

    Attributes:
        rows: ``[A]`` int64 increasing, shared by the batch, or ``[B, A]`` one set per sample, padded with -1.
        is_random: bool, of the shape of ``rows``: whether a row belongs to R.
        positions: ``[B, P]`` int64: the place of each label in ``rows`` (of the sample); -1 where there is no label.
        num_rows: N, the rows of the layer.
        inclusion: given where R is not a uniform sample: the probability of each row to be in the set, given the
            labels; float32, 1 for H and padding. Of the shape of ``rows``, or ``[B, A]`` where it differs between
            samples that share the rows.
        known_log_weights: the result of :meth:`log_weights`, where it came with the rows.
    """

    rows: Tensor
    is_random: Tensor
    positions: Tensor
    num_rows: int
    inclusion: Tensor | None = None
    known_log_weights: Tensor | None = None

    @property
    def per_sample(self) -> bool:
        return self.rows.dim() == 2

    @property
    def present(self) -> Tensor:
        """bool, of the shape of ``rows``; False for padding."""
        return self.rows >= 0

    def weights(self) -> Tensor:
        """Importance weights, float32, of the shape of ``rows`` or ``inclusion``.

        1 for H, 0 for padding, and ``(N - |H|) / |R|`` for R, or the inverse of ``inclusion`` where that is given.
        ``sum(weights * f(rows))`` is an unbiased estimate of the sum of ``f`` over all N rows (Horvitz & Thompson
        1952): given the tables, H is a fixed set, and R is drawn from the other rows with known probabilities.
        """
        if self.inclusion is not None:
            return self.present / self.inclusion
        present = self.present
        random = self.is_random.sum(-1, keepdim=True)
        fixed = present.sum(-1, keepdim=True) - random
        weight_of_random = (self.num_rows - fixed) / random.clamp(min=1)
        return torch.where(self.is_random, weight_of_random.float(), present.float())

    def log_weights(self) -> Tensor:
        """Logarithms of :meth:`weights`, float32."""
        return self.weights().log() if self.known_log_weights is None else self.known_log_weights

    def even_log_weights(self) -> Tensor:
        """Logarithms of weights ``N / A``, as if all A active rows were drawn uniformly.

        float32, of the shape of ``rows``; 0 for padding.
        """
        if not self.per_sample:
            return torch.full(
                self.rows.shape, math.log(self.num_rows / max(1, len(self.rows))), dtype=torch.float32, device="cpu"
            )
        present = self.present
        return (present * (self.num_rows / present.sum(-1, keepdim=True).clamp(min=1))).log()


@dataclass(frozen=True)
class Budget:
    """How many rows of which kind a step takes: what follows from the settings once and for all steps.

    Attributes:
        num_rows: N.
        active: rows of a set.
        num_random: of them, uniform random rows at least.
        sampler: see :class:`torch_lsh.LSHConfig`.
        per_sample: whether every sample has a set of its own.
        num_carried: the hardest rows of a step that are candidates for the next, where samples share a set.
        needs_index: whether a training step looks rows up in an index.
    """

    num_rows: int
    active: int
    num_random: int
    sampler: str
    per_sample: bool
    num_carried: int
    needs_index: bool

    @classmethod
    def of(cls, config: LSHConfig, num_rows: int) -> Budget:
        """The budget of a layer of ``num_rows`` rows with these settings."""
        active = config.active_rows(num_rows)
        # With every row active nothing is left to chance: weights are 1, and the result is exact.
        every_row_is_random = active == num_rows or config.sampler == "uniform"
        num_random = active if every_row_is_random else config.random_rows(active)
        return cls(
            num_rows,
            active,
            num_random,
            sampler=config.sampler,
            per_sample=config.scope == "sample",
            num_carried=math.ceil(config.carry * active),
            needs_index=config.sampler == "lsh" and num_random < active,
        )


def choose_active_rows(
    index: Index | None,
    x: Tensor,
    labels: Tensor,
    budget: Budget,
    seed: int,
    carried: Tensor | None = None,
    counts: LabelCounts | None = None,
    insert_labels: bool = False,
) -> ActiveSet:
    """Chooses the active rows: labels, carried rows and rows found by hashing in turn, and uniform random rows.

    With another sampler than "lsh": labels, and what that sampler draws.

    Args:
        index: finds rows; None is allowed where settings or labels leave no room for such rows.
        x: ``[B, in]``, the layer's input.
        labels: ``[B, P]`` int64, negative where there is no label; they are always active.
        budget: how many rows.
        seed: of the random rows.
        carried: ``[n]`` int64, the hardest rows of the last step, where the budget has carried rows.
        counts: label counts, for samplers "frequency" and "in_batch".
        insert_labels: insert labels into the buckets of their queries, where a look-up missed them.

    Raises:
        ValueError: ``index`` or ``counts`` is None, but the settings need it.
    """
    num_rows, active, num_random = budget.num_rows, budget.active, budget.num_random
    sampler, per_sample = budget.sampler, budget.per_sample
    batch, room = x.shape[0], active - num_random
    if sampler == "in_batch":
        return _labels_of_the_batch(labels, num_rows, _needed(counts))
    if sampler in ("log_uniform", "frequency") and active < num_rows:
        order, cumulative = (None, log_uniform(num_rows))
        if sampler == "frequency":
            order, cumulative = _needed(counts).tables()
        rows, is_random, positions, inclusion = ops.draw_rows(labels, order, cumulative, active, seed, per_sample)
        return ActiveSet(rows, is_random, positions, num_rows, inclusion)
    candidates: Tensor | None = None
    if index is None and batch > 0 and labels.numel() < room:
        raise ValueError("index is None, but the settings want rows found by hashing")
    if index is None or room == 0 or batch == 0:
        carried = None
    else:
        first, every, share = 0, 1, room
        if per_sample:
            carried = None
        elif carried is None or budget.num_carried == 0:
            carried = None
            share = _share(room, batch)
        else:
            # Look-ups of earlier steps found the carried rows, so this step needs to look up a few samples only.
            every = -(-batch // _LOOKED_UP)
            first = seed % every
            share = _share(room // 2, -(-(batch - first) // every))
        tables = index.simhash_tables
        if tables is not None and not insert_labels and index.stopwatch is None:
            rows, is_random, positions, log_weights = ops.draw_hashed_rows(
                x, labels, carried, *tables, first, every, share, num_rows, active, num_random, seed, per_sample
            )
            return ActiveSet(rows, is_random, positions, num_rows, known_log_weights=log_weights)
        some = slice(first, None, every)
        candidates = _look_up(index, x[some], share, labels[some] if insert_labels else None, seed)
    rows, is_random, positions, log_weights = ops.select_rows(
        labels,
        labels.new_empty(len(labels), 0) if candidates is None else candidates,
        num_rows,
        active=active,
        num_random=num_random,
        seed=seed,
        per_sample=per_sample,
        carried=carried,
    )
    return ActiveSet(rows, is_random, positions, num_rows, known_log_weights=log_weights)


def _look_up(index: Index, x: Tensor, count: int, labels: Tensor | None, seed: int) -> Tensor:
    """Candidates ``[B, M]``, of which the first ones are taken where there are too many."""
    candidates = index.query(x, count, labels)
    if index.best_first:
        return candidates
    # In order of row numbers, the first ones would always be those with small numbers: each list starts elsewhere.
    generator = torch.Generator().manual_seed(seed)
    width = candidates.shape[1]
    starts = torch.randint(width, (len(candidates), 1), generator=generator, device="cpu")
    return candidates.gather(1, (starts + torch.arange(width, device="cpu")) % width)


def _needed(counts: LabelCounts | None) -> LabelCounts:
    if counts is None:
        raise ValueError("counts is None, but the sampler needs them")
    return counts


def _labels_of_the_batch(labels: Tensor, num_rows: int, counts: LabelCounts) -> ActiveSet:
    """The labels of all samples; the labels of the others are a sample's random negatives.

    A row that is a label of a share p of all samples is one of B - 1 independent samples with probability
    ``1 - (1 - p) ** (B - 1)`` (the correction of Yi et al. 2019, for rows that are held once). A row that is nobody's
    label is never drawn, so the sum that is estimated leaves it out.
    """
    rows, is_random, positions, _ = ops.select_rows(
        labels, labels.new_empty(0, 0), num_rows, active=1, num_random=0, seed=0, per_sample=False
    )
    others = max(1, len(labels) - 1)
    by_others = -torch.expm1(others * torch.log1p(-counts.share(rows)))
    inclusion = by_others.clamp(min=1e-30).float().repeat(len(labels), 1)
    # Padding scatters into an extra column, which is cut off.
    column = positions.masked_fill(positions < 0, len(rows))
    inclusion = torch.cat([inclusion, inclusion.new_ones(len(labels), 1)], 1).scatter_(1, column, 1.0)[:, :-1]
    return ActiveSet(rows, is_random, positions, num_rows, inclusion)


def _share(room: int, samples: int) -> int:
    """Rows to look up for each sample: twice its share, because look-ups of a batch overlap."""
    return min(room, 2 * -(-room // samples) + 8)


def labels_leave_room(labels: Tensor, budget: Budget) -> bool:
    """Whether the labels ``[B, P]`` of a batch leave room for rows found by hashing."""
    room = budget.active - budget.num_random
    return budget.per_sample or labels.numel() < room or len(labels[labels >= 0].unique()) < room
