"""The active rows of a training step from SimHash tables, in one call."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator
from .select_rows import active_set_like


@operator
def draw_hashed_rows(
    x: Tensor,
    labels: Tensor,
    carried: Tensor | None,
    ids: Tensor,
    counts: Tensor,
    row_codes: Tensor | None,
    projections: Tensor,
    hashes_per_table: int,
    zeros: int,
    min_matches: int,
    vanilla: bool,
    first: int,
    every: int,
    max_candidates: int,
    num_rows: int,
    active: int,
    num_random: int,
    seed: int,
    per_sample: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`query_vectors`, :func:`simhash_codes`, :func:`query_tables` and :func:`select_rows` in one call.

    For a small layer these take longer to call than to run.

    Args:
        x: ``[B, in]`` float32, float64 or bfloat16, of any strides.
        labels, carried: as in :func:`select_rows`.
        ids, counts, row_codes: as in :func:`query_tables`. Codes of at most 8 bits may be packed as bytes, padded with
            0: ``row_codes`` is ``[N, ceil(L / 4)]`` int32 then.
        projections: ``[in + 1 + zeros, L * K]``, as in :func:`simhash_codes`.
        hashes_per_table: K.
        zeros: as in :func:`query_vectors`.
        min_matches, vanilla, max_candidates: as in :func:`query_tables`.
        first, every: looks up the samples ``first, first + every, ...``.
        num_rows, active, num_random, seed, per_sample: as in :func:`select_rows`.

    Returns:
        As :func:`select_rows`.

    >>> import torch
    >>> codes = torch.tensor([[0], [1], [1]], dtype=torch.int32)
    >>> ids, counts = torch.tensor([[[0, -1], [1, 2]]], dtype=torch.int32), torch.tensor([[1, 2]], dtype=torch.int32)
    >>> tables = ids, counts, codes, torch.tensor([[1.0], [0.0]]), 1, 0, 1, False
    >>> draw_hashed_rows(torch.ones(1, 1), torch.tensor([[0]]), None, *tables, 0, 1, 2, 3, 3, 0, 0, False)[0]
    tensor([0, 1, 2])
    """
    return active_set_like(labels, per_sample)
