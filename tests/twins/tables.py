from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .random_numbers import MASK, mix, random_below, random_bits


def _insert(bucket: list[int], row: int, bucket_size: int, table_seed: int, fifo: bool, forced: bool = False) -> None:
    """In a full bucket the row to go first is at the front: the one of the highest priority number, or the oldest."""
    full = len(bucket) == bucket_size
    if full and not (fifo or forced) and random_bits(table_seed, row) >= random_bits(table_seed, bucket[0]):
        return
    if fifo:
        bucket[:] = [*bucket[int(full) :], row]
        return
    if full:
        bucket[0] = row
    else:
        bucket.append(row)
    if len(bucket) == bucket_size:
        worst = max(range(bucket_size), key=lambda i: random_bits(table_seed, bucket[i]))
        bucket[0], bucket[worst] = bucket[worst], bucket[0]


def _remove(bucket: list[int], row: int, fifo: bool) -> None:
    if row in bucket and fifo:
        bucket.remove(row)
    elif row in bucket:
        bucket[bucket.index(row)] = bucket[-1]
        bucket.pop()


def _load(ids: Tensor, counts: Tensor, table: int, bucket: int) -> list[int]:
    return ids[table, bucket, : counts[table, bucket]].tolist()


def _store(ids: Tensor, counts: Tensor, table: int, bucket: int, rows: list[int]) -> None:
    ids[table, bucket, : len(rows)] = torch.tensor(rows, dtype=torch.int32)
    counts[table, bucket] = len(rows)


def build_tables(
    row_buckets: Tensor, bucket_bits: int, bucket_size: int, seed: int, fifo: bool = False
) -> tuple[Tensor, Tensor]:
    (num_rows, num_tables), num_buckets = row_buckets.shape, 1 << bucket_bits
    ids = torch.full((num_tables, num_buckets, bucket_size), -1, dtype=torch.int32)
    counts = torch.zeros((num_tables, num_buckets), dtype=torch.int32)
    for table in range(num_tables):
        table_seed = random_bits(seed, table)
        buckets: list[list[int]] = [[] for _ in range(num_buckets)]
        start = random_below(table_seed, 0, num_rows) if fifo else 0
        for row in [*range(start, num_rows), *range(start)]:
            _insert(buckets[row_buckets[row, table]], row, bucket_size, table_seed, fifo)
        for bucket, rows in enumerate(buckets):
            _store(ids, counts, table, bucket, rows)
    return ids, counts


def update_tables(
    ids: Tensor,
    counts: Tensor,
    row_buckets: Tensor,
    rows: Tensor,
    buckets: Tensor,
    seed: int,
    fifo: bool = False,
) -> Tensor:
    moved = 0
    for table in range(ids.shape[0]):
        for row, new in zip(rows.tolist(), buckets[:, table].tolist()):
            old = int(row_buckets[row, table])
            if old == new:
                continue
            source, target = (_load(ids, counts, table, bucket) for bucket in (old, new))
            _remove(source, row, fifo)
            if row not in target:
                _insert(target, row, ids.shape[2], random_bits(seed, table), fifo)
            _store(ids, counts, table, old, source)
            _store(ids, counts, table, new, target)
            row_buckets[row, table] = new
            moved += 1
    return torch.tensor(moved)


def insert_labels(
    ids: Tensor, counts: Tensor, buckets: Tensor, labels: Tensor, num_rows: int, seed: int, fifo: bool = False
) -> Tensor:
    missing = [
        (sample, label)
        for sample, of_sample in enumerate(labels.tolist())
        for label in of_sample
        if label >= 0
        and not any(label in _load(ids, counts, table, bucket) for table, bucket in enumerate(buckets[sample].tolist()))
    ]
    for sample, label in missing:
        for table, bucket in enumerate(buckets[sample].tolist()):
            rows = _load(ids, counts, table, bucket)
            if label not in rows:
                _insert(rows, label, ids.shape[2], random_bits(seed, table), fifo, forced=True)
            _store(ids, counts, table, bucket, rows)
    return torch.tensor(len(missing))


def query_tables(
    ids: Tensor,
    counts: Tensor,
    row_codes: Tensor | None,
    buckets: Tensor,
    max_candidates: int,
    min_matches: int = 1,
    vanilla: bool = False,
    query_codes: Tensor | None = None,
) -> Tensor:
    num_tables = ids.shape[0]
    out = torch.full((len(buckets), max_candidates), -1)
    for sample, probes in enumerate(buckets.view(len(buckets), num_tables, -1).tolist()):
        own = [of_table[0] for of_table in probes]
        salt = 0
        for number in own:
            salt = mix((salt + number) & MASK)
        first_table = random_below(salt, 0, num_tables)
        seen: dict[int, int] = {}  # keeps the order of first sight
        for p, i in itertools.product(range(len(probes[0])), range(num_tables)):
            if vanilla and len(seen) >= max_candidates:
                break
            table = (first_table + i) % num_tables
            number = probes[table][p]
            if number < 0 or number in probes[table][:p]:
                continue
            rows = _load(ids, counts, table, number)
            first = random_below(salt, table + 1, len(rows))
            for row in rows[first:] + rows[:first]:
                seen[row] = seen.get(row, 0) + 1
        best = [row for row in seen if seen[row] >= min_matches]
        if not vanilla:
            best.sort(key=lambda row: -seen[row])
            if row_codes is not None:
                codes = row_codes.tolist()
                mine = own if query_codes is None else query_codes[sample].tolist()
                distance = {row: sum((a ^ b).bit_count() for a, b in zip(codes[row], mine)) for row in best}
                best = sorted(best[: 8 * max_candidates], key=distance.__getitem__)
        best = best[:max_candidates]
        out[sample, : len(best)] = torch.tensor(best, dtype=torch.int64)
    return out
