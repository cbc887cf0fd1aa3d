"""Twin of draw_hashed_rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .hash import query_vectors, simhash_codes
from .select_rows import select_rows
from .tables import query_tables


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
    buckets = simhash_codes(query_vectors(x[first::every], zeros), projections, hashes_per_table)
    if row_codes is not None and row_codes.shape[1] < ids.shape[0]:
        row_codes = row_codes.view(torch.uint8)[:, : ids.shape[0]].int()  # packed as bytes
    found = query_tables(ids, counts, row_codes, buckets, max_candidates, min_matches, vanilla)
    return select_rows(labels, found, num_rows, active, num_random, seed, per_sample, carried)
