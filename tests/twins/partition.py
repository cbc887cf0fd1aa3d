from __future__ import annotations

import torch
from torch import Tensor

from .sketch import places_of_codes


def residual_codes(x: Tensor, centers: Tensor, buckets: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    difference = x - centers[buckets.long()]
    step = (1.5958, 0.9957, 0.5860, 0.3352)[bits - 1] * difference.square().mean(1, keepdim=True).sqrt()
    top = 2**bits - 1
    levels = (difference / step + (top + 1) / 2).nan_to_num(top).clamp(0, top).long()
    planes = levels.unsqueeze(1) >> torch.arange(bits).flip(0).unsqueeze(1) & 1
    codes = (planes.unflatten(2, (-1, 8)) << torch.arange(8)).sum(3).flatten(1).to(torch.uint8)
    return codes, difference.square().sum(1) / (difference * (2 * levels - top)).sum(1).clamp(min=1e-30)


def update_partition(
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    places: Tensor,
    row_buckets: Tensor,
    rows: Tensor,
    buckets: Tensor,
    row_codes: Tensor,
    row_factors: Tensor,
) -> Tensor:
    """Row by row."""

    def write(place: int, row: int, code: Tensor, factor: Tensor) -> None:
        block, position = divmod(place, 64)
        codes[block, :, places_of_codes(torch.tensor(position))] = code
        factors[block, :, position] = factor
        ids[block, position] = row

    def remove(row: int) -> None:
        bucket, place = int(row_buckets[row]), int(places[row])
        block, used = heads[bucket].tolist()
        last = int(ids[block, used - 1])
        if last != row:
            code = codes[block, :, places_of_codes(torch.tensor(used - 1))].clone()
            write(place, last, code, factors[block, :, used - 1].clone())
            places[last] = place
        ids[block, used - 1] = -1
        factors[block, :, used - 1] = torch.tensor([0, -torch.inf])
        heads[bucket, 1] = used - 1
        if used == 1:
            after = int(next[block])
            heads[bucket] = torch.tensor([after, 0 if after < 0 else 64])
            next[block], heads[-1, 0] = heads[-1, 0].clone(), block

    def insert(row: int, bucket: int) -> None:
        block, used = heads[bucket].tolist()
        if block < 0 or used == 64:
            free, used = int(heads[-1, 0]), 0
            heads[-1, 0], next[free] = next[free].clone(), block
            block = free
        heads[bucket] = torch.tensor([block, used + 1])
        places[row], row_buckets[row] = 64 * block + used, bucket

    moved = 0
    for row, bucket, code, factor in zip(rows.tolist(), buckets.tolist(), row_codes, row_factors):
        if places[row] < 0 or row_buckets[row] != bucket:
            moved += 1
            if places[row] >= 0:
                remove(row)
            insert(row, bucket)
        write(int(places[row]), row, code, factor)
    return torch.tensor(moved)


def query_partition(
    x: Tensor,
    scores: Tensor,
    centers: Tensor,
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    max_candidates: int,
    examined: int,
) -> Tensor:
    """Without the rounding of the products with signs, so estimates that are close may rank differently."""
    in_order = codes[:, :, places_of_codes(torch.arange(64))].movedim(1, 2)  # [blocks, 64, bits * width / 8]
    signs = 2 * (in_order.unsqueeze(3) >> torch.arange(8) & 1).flatten(2) - 1.0
    bits = signs.shape[2] // x.shape[1]
    levels = (signs.unflatten(2, (bits, -1)) * 2 ** torch.arange(bits).flip(0).unsqueeze(1)).sum(2)
    found = torch.full((len(x), max_candidates), -1)
    for i, query in enumerate(x):
        seen, rows, estimates = 0, [], []
        for bucket in scores[i].sort(descending=True, stable=True).indices.tolist():
            if seen >= examined:
                break
            block, used = heads[bucket].tolist()
            while block >= 0:
                products = levels[block, :used] @ query
                rows.append(ids[block, :used])
                estimates.append(
                    products * factors[block, 0, :used] + factors[block, 1, :used] + centers[bucket] @ query
                )
                seen, used, block = seen + used, 64, int(next[block])
        if rows:
            best = torch.cat(estimates).sort(descending=True, stable=True).indices[:max_candidates]
            found[i, : len(best)] = torch.cat(rows)[best].long()
    return found


def search_partition(
    x: Tensor,
    query_map: Tensor,
    bucket_codes: Tensor,
    bucket_factors: Tensor,
    centers: Tensor,
    codes: Tensor,
    factors: Tensor,
    ids: Tensor,
    next: Tensor,
    heads: Tensor,
    max_candidates: int,
    examined: int,
) -> Tensor:
    """Without the rounding of products with signs, of rows and of directions."""
    query = x @ query_map.T
    in_order = bucket_codes[:, :, places_of_codes(torch.arange(64))].movedim(1, 2).flatten(0, 1)
    signs = 2 * (in_order.unsqueeze(2) >> torch.arange(8) & 1).flatten(1) - 1.0
    bits = signs.shape[1] // query.shape[1]
    levels = (signs.unflatten(1, (bits, -1)) * 2 ** torch.arange(bits).flip(0).unsqueeze(1)).sum(1)
    scores = query @ levels.T * bucket_factors[:, 0].flatten().float() + bucket_factors[:, 1].flatten().float()
    count = min(len(centers), scores.shape[1])
    heads = torch.cat([heads[:count], heads[-1:]])
    scores, centers = scores[:, :count], centers[:count]
    return query_partition(query, scores, centers, codes, factors, ids, next, heads, max_candidates, examined)
