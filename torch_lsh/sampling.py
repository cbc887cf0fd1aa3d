"""ActiveSet: the rows that take part in a step, and how they are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .config import LSHConfig
from .index import LSHIndex


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
        present = self.present
        random = self.is_random.sum(-1, keepdim=True)
        fixed = present.sum(-1, keepdim=True) - random
        weight_of_random = (self.num_rows - fixed) / random.clamp(min=1)
        return torch.where(self.is_random, weight_of_random.float(), present.float())


def choose_active_rows(
    index: LSHIndex | None, x: Tensor, labels: Tensor, num_rows: int, config: LSHConfig, seed: int
) -> ActiveSet:
    """Chooses labels ∪ rows found by hashing ∪ uniform random rows.

    Args:
        index: tables of the layer's rows; may be None when the configuration leaves no room for rows found by hashing.
        x: ``[B, in]`` the layer's input.
        labels: ``[B, P]`` int64, negative where there is no label; they are always active.
        num_rows: N.
        config: see :class:`LSHConfig`.
        seed: of the random rows.
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
        # Twice each sample's share: samples of a batch find some of the same rows.
        share = room if per_sample else min(room, 2 * math.ceil(room / len(x)) + 8)
        candidates = index.query(x, share)
    rows, is_random, positions = ops.select_rows(
        labels, candidates, num_rows, active=active, num_random=num_random, seed=seed, per_sample=per_sample
    )
    return ActiveSet(rows, is_random, positions, num_rows)


def needs_index(config: LSHConfig, num_rows: int) -> bool:
    """Whether a step of such a layer looks rows up by hashing."""
    active = config.active_rows(num_rows)
    return active < num_rows and config.random_rows(active) < active
