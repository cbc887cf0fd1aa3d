"""The active rows of a training step."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import operator


def active_set_like(labels: Tensor, per_sample: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An active set without data."""
    count = torch.library.get_ctx().new_dynamic_size()
    shape = (labels.shape[0], count) if per_sample else (count,)
    return (
        labels.new_empty(shape),
        labels.new_empty(shape, dtype=torch.bool),
        torch.empty_like(labels),
        labels.new_empty(shape, dtype=torch.float32),
    )


@operator
def select_rows(
    labels: Tensor,
    candidates: Tensor,
    num_rows: int,
    active: int,
    num_random: int,
    seed: int,
    per_sample: bool,
    carried: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Selects active rows: labels, then candidates, then uniform random rows, without repetition.

    1. All labels.
    2. Candidates, until ``active - num_random`` rows are selected. Carried and retrieved candidates take turns,
       beginning with a carried one. The retrieved ones come rank by rank: the best of every list, then the second of
       every list, and so on.
    3. Random rows, drawn without replacement from the rest, until ``active`` rows are selected: at least ``num_random``
       of them, even if there are too many labels, and none if ``num_random`` is 0.

    Args:
        labels: ``[B, P]`` int64; negative: no label.
        candidates: ``[C, M]`` int64: C lists, best first; negative: no candidate. With ``per_sample`` C is B.
        num_rows: N, the rows of the layer.
        active: rows wanted, 1 to N.
        num_random: 0 to ``active``.
        seed: determines the random rows.
        per_sample: selects one set per sample rather than one for the batch.
        carried: ``[n]`` int64: more candidates, best first; not with ``per_sample``.

    Returns:
        ``rows``: ``[A]`` or ``[B, A]`` int64, increasing; sets of samples are padded with -1.
        ``is_random``: bool of the same shape.
        ``positions``: ``[B, P]`` int64, the place of each label in ``rows``; -1 for no label.
        ``log_weights``: float32 of the shape of ``rows``, logarithms of the number of rows that each row stands for: a
        random one for ``(N - fixed) / random`` rows, any other for itself, padding for none.

    >>> rows, is_random, positions, log_weights = select_rows(
    ...     torch.tensor([[7]]), torch.tensor([[3, 7, 5]]), 10, active=2, num_random=0, seed=0, per_sample=False
    ... )
    >>> rows, positions
    (tensor([3, 7]), tensor([[1]]))
    """
    return active_set_like(labels, per_sample)


@operator
def draw_rows(
    labels: Tensor, order: Tensor | None, cumulative: Tensor, active: int, seed: int, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws active rows with given weights, in addition to the labels, without repetition.

    As many rows are drawn as labels leave of ``active``; drawn labels and rows drawn twice count once. A row heavy
    enough to be drawn more than once on average is taken for certain. The weights of the others are laid end to end and
    cut into strata of equal length; each stratum is drawn from once. So the probability of every row is known exactly.

    Args:
        labels: ``[B, P]`` int64; negative: no label.
        order: ``[N]`` int64, the rows in decreasing order of weight; None: ``0 .. N - 1``.
        cumulative: ``[N + 1]`` float64, the cumulative sums of the weights in that order, from 0 up.
        active: rows wanted, 1 to N.
        seed: determines the draw.
        per_sample: draws one set per sample rather than one for the batch.

    Returns:
        ``rows``, ``is_random``, ``positions``: as from :func:`select_rows`.
        ``inclusion``: float32 of the shape of ``rows``: the probability that the row is drawn, 1 for
        labels and padding.

    >>> cumulative = torch.tensor([0.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    >>> rows, is_random, positions, inclusion = draw_rows(torch.tensor([[3]]), None, cumulative, 3, 0, False)
    >>> rows[0], inclusion[0]
    (tensor(0), tensor(1.))

    Cochran, *Sampling Techniques*, 1977 (stratified sampling with probability proportional to size).
    """
    return active_set_like(labels, per_sample)
