"""Every operator again in plain PyTorch: the oracle of the tests, and the documentation of what each one computes.

Same names and arguments as in :mod:`torch_lsh.ops`; clarity before speed.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import operator
import unicodedata

import numpy as np
import torch
from torch import Tensor


def gather_rows(table: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return table[rows].to(dtype or table.dtype)


def gather_matmul(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    logits = x @ weight[rows].T
    return logits if bias is None else logits + bias[rows]


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return a @ b if bias is None else a @ b + bias.unsqueeze(1)


def sampled_dot(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    products = (x.unsqueeze(1) * table[rows.clamp(min=0)]).sum(2)
    return products.masked_fill(rows < 0, 0)


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
    """Draws its random rows from PyTorch's generator: the same distribution as the operator, other rows."""
    if per_sample:
        sets = [
            select_rows(labels[b : b + 1], candidates[b : b + 1], num_rows, active, num_random, seed + b, False)
            for b in range(len(labels))
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        rows, is_random, log_weights = (
            pad([one[part] for one in sets], batch_first=True, padding_value=padding)
            for part, padding in ((0, -1), (1, False), (3, -math.inf))
        )
        return rows, is_random, torch.cat([positions for _, _, positions, _ in sets]), log_weights

    fixed = {int(label) for label in labels.flatten() if label >= 0}
    kinds = ([] if carried is None else carried.tolist(), candidates.T.flatten().tolist())
    for candidate in itertools.chain.from_iterable(itertools.zip_longest(*kinds, fillvalue=-1)):
        if len(fixed) >= active - num_random:
            break
        if candidate >= 0:
            fixed.add(candidate)
    rest = torch.tensor([row for row in range(num_rows) if row not in fixed], dtype=torch.int64)
    wanted = min(max(num_random, active - len(fixed)), len(rest)) if num_random > 0 else 0
    drawn = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:wanted]]
    rows = torch.tensor(sorted(fixed), dtype=torch.int64)
    rows, order = torch.cat([rows, drawn]).sort()
    is_random = order >= len(fixed)
    positions = torch.where(labels < 0, -1, torch.searchsorted(rows, labels.clamp(min=0)))
    log_weights = torch.zeros(len(rows))
    if wanted > 0:
        log_weights[is_random] = math.log((num_rows - len(fixed)) / wanted)
    return rows, is_random, positions, log_weights


def draw_rows(
    labels: Tensor, order: Tensor | None, cumulative: Tensor, active: int, seed: int, per_sample: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if per_sample:
        sets = [
            draw_rows(of_sample.unsqueeze(0), order, cumulative, active, _random_bits(seed, b), False)
            for b, of_sample in enumerate(labels)
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        rows, is_random, inclusion = (
            pad([chosen[i] for chosen in sets], batch_first=True, padding_value=padding)
            for i, padding in ((0, -1), (1, False), (3, 1.0))
        )
        return rows, is_random, torch.cat([chosen[2] for chosen in sets]), inclusion

    num_rows = len(cumulative) - 1
    row_of = list(range(num_rows)) if order is None else order.tolist()
    total = cumulative.tolist()
    inclusion_of = {int(label): (1.0, False) for label in labels.flatten() if label >= 0}
    wanted = active - len(inclusion_of)
    certain = 0
    while certain < wanted:
        weight, rest = total[certain + 1] - total[certain], total[-1] - total[certain]
        if (wanted - certain) * weight < rest:
            break
        inclusion_of.setdefault(row_of[certain], (1.0, True))
        certain += 1
    strata = wanted - certain
    for stratum in range(strata):
        length = (total[-1] - total[certain]) / strata
        point = total[certain] + (stratum + (_random_bits(seed, stratum) >> 11) * 2.0**-53) * length
        rank = min(bisect.bisect_right(total, point, certain + 1), num_rows) - 1
        first, last = ((total[end] - total[certain]) / length for end in (rank, rank + 1))
        missed = 1.0
        for which in range(math.floor(first), math.floor(last) + 1):
            missed *= 1 - max(0.0, min(last, which + 1) - max(first, which))
        inclusion_of.setdefault(row_of[rank], (1 - missed, True))
    rows = torch.tensor(sorted(inclusion_of), dtype=torch.int64)
    inclusion = torch.tensor([inclusion_of[row][0] for row in rows.tolist()], dtype=torch.float32)
    is_random = torch.tensor([inclusion_of[row][1] for row in rows.tolist()], dtype=torch.bool)
    positions = torch.where(labels < 0, -1, torch.searchsorted(rows, labels.clamp(min=0)))
    return rows, is_random, positions, inclusion


_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """splitmix64's output function, as in csrc/random.h."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _random_bits(seed: int, counter: int) -> int:
    return _mix((_mix(seed & _MASK) + counter) & _MASK)


def _random_below(seed: int, counter: int, bound: int) -> int:
    return (_random_bits(seed, counter) * bound) >> 64


def _pack(hashes: Tensor, hashes_per_table: int, bits: int) -> Tensor:
    """Codes ``[n, L]`` of hashes ``[n, L * K]``, each of ``bits`` bits, the first in the lowest bits."""
    shifts = bits * torch.arange(hashes_per_table)
    return (hashes.long().unflatten(1, (-1, hashes_per_table)) << shifts).sum(2).int()


def simhash_codes(x: Tensor, projections: Tensor, hashes_per_table: int) -> Tensor:
    return _pack(x.float() @ projections > 0, hashes_per_table, bits=1)


def _to_dense(crow: Tensor, col: Tensor, values: Tensor, in_features: int) -> Tensor:
    dense = values.new_zeros(len(crow) - 1, in_features)
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1), crow.diff())
    return dense.index_put_((rows, col), values, accumulate=True)


def dwta_codes(x: Tensor, bins: Tensor, hashes_per_table: int, seed: int) -> Tensor:
    values = x.float()[:, bins]
    present = (values != 0) & ~values.isnan()
    # The first of the largest among those present: lexicographic by (value, -position).
    masked = values.masked_fill(~present, -float("inf"))
    is_best = present & (masked == masked.amax(2, keepdim=True))
    winners = torch.where(present.any(2), is_best.int().argmax(2), -1)
    attempts = 100
    for row in winners:
        original = row.tolist()
        for h, winner in enumerate(original):
            if winner < 0:
                donors = (original[_random_below(seed, h * attempts + a, len(original))] for a in range(attempts))
                row[h] = next((donor for donor in donors if donor >= 0), 0)
    return _pack(winners, hashes_per_table, bits=3)


def simhash_products(x: Tensor, projections: Tensor) -> Tensor:
    return x @ projections


def _walsh_hadamard(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def hadamard_products(x: Tensor, signs: Tensor, rest: Tensor) -> Tensor:
    size = signs.shape[2]
    head = torch.nn.functional.pad(x[:, :size], (0, max(0, size - x.shape[1])))
    h = _walsh_hadamard(size)
    blocks = [(((head * first) @ h * second) @ h * third) @ h / size for first, second, third in signs]
    return torch.cat([*blocks, x.new_empty(len(x), 0)], 1)[:, : rest.shape[1]] + x[:, size:] @ rest


def hadamard_codes(x: Tensor, signs: Tensor, rest: Tensor, hashes_per_table: int) -> Tensor:
    return _pack(hadamard_products(x, signs, rest) > 0, hashes_per_table, bits=1)


def cross_polytope_codes(x: Tensor, signs: Tensor, rest: Tensor, dimension: int, hashes_per_table: int) -> Tensor:
    products = hadamard_products(x, signs, rest).unflatten(1, (-1, dimension))
    best = products.abs().argmax(2, keepdim=True)  # the first among equals
    vertices = 2 * best + (products.gather(2, best) < 0)
    return _pack(vertices.squeeze(2), hashes_per_table, bits=(2 * dimension).bit_length() - 1)


def probe_codes(codes: Tensor, flips: Tensor, costs: Tensor, probes: int) -> Tensor:
    out = torch.full((*codes.shape, probes), -1, dtype=torch.int32)
    for row, table in itertools.product(*map(range, codes.shape)):
        code = int(codes[row, table])
        choices = [
            [(0.0, 0), *((cost, flip) for cost, flip in zip(*alternatives) if cost < math.inf and flip != 0)]
            for alternatives in zip(costs[row, table].tolist(), flips[row, table].tolist())
        ]
        sets = sorted(itertools.product(*choices), key=lambda chosen: sum(sorted(cost for cost, _ in chosen)))
        for p, chosen in enumerate(sets[:probes]):
            out[row, table, p] = code ^ functools.reduce(operator.xor, (flip for _, flip in chosen), 0)
    return out


def _insert(bucket: list[int], row: int, bucket_size: int, table_seed: int, fifo: bool, forced: bool = False) -> None:
    """In a full bucket the row to go first is at the front: the one of the highest priority number, or the oldest."""
    full = len(bucket) == bucket_size
    if full and not (fifo or forced) and _random_bits(table_seed, row) >= _random_bits(table_seed, bucket[0]):
        return
    if fifo:
        bucket[:] = [*bucket[int(full) :], row]
        return
    if full:
        bucket[0] = row
    else:
        bucket.append(row)
    if len(bucket) == bucket_size:
        worst = max(range(bucket_size), key=lambda i: _random_bits(table_seed, bucket[i]))
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
        table_seed = _random_bits(seed, table)
        buckets: list[list[int]] = [[] for _ in range(num_buckets)]
        start = _random_below(table_seed, 0, num_rows) if fifo else 0
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
                _insert(target, row, ids.shape[2], _random_bits(seed, table), fifo)
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
                _insert(rows, label, ids.shape[2], _random_bits(seed, table), fifo, forced=True)
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
            salt = _mix((salt + number) & _MASK)
        first_table = _random_below(salt, 0, num_tables)
        seen: dict[int, int] = {}  # keeps the order of first sight
        for p, i in itertools.product(range(len(probes[0])), range(num_tables)):
            if vanilla and len(seen) >= max_candidates:
                break
            table = (first_table + i) % num_tables
            number = probes[table][p]
            if number < 0 or number in probes[table][:p]:
                continue
            rows = _load(ids, counts, table, number)
            first = _random_below(salt, table + 1, len(rows))
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


def coalesce_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    unique, inverse = rows.unique(return_inverse=True)
    return unique, values.new_zeros(len(unique), *values.shape[1:]).index_add_(0, inverse, values)


def embedding_bag(weight: Tensor, crow: Tensor, col: Tensor, values: Tensor | None = None) -> Tensor:
    sample = torch.repeat_interleave(crow.diff())
    rows = weight[col] if values is None else weight[col] * values.unsqueeze(1)
    return weight.new_zeros(len(crow) - 1, weight.shape[1]).index_add(0, sample, rows)


def _random_words(seed: int, rows: Tensor, width: int) -> Tensor:
    """``[A, width]`` 32-bit numbers: the rounding of a row is a function of seed, row and column."""
    words = torch.empty(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows.tolist()):
        mixed = (seed * 0x9E3779B97F4A7C15 & _MASK) ^ (row * 0xBF58476D1CE4E5B9 & _MASK)
        key = (mixed ^ (mixed >> 32)) & 0xFFFFFFFF
        for j in range(width):
            x = key ^ (j * 0x9E3779B1 & 0xFFFFFFFF)
            x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
            x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
            words[i, j] = x ^ (x >> 16)
    return words


def _rounded(values: Tensor, dtype: torch.dtype, random: Tensor | None) -> Tensor:
    """``values`` in ``dtype``: in bfloat16 up or down by 16 random bits, or to nearest where ``random`` is None."""
    if dtype is not torch.bfloat16 or random is None:
        return values.to(dtype)
    raised = (values.contiguous().view(torch.int32) + (random & 0xFFFF).int()) & ~0xFFFF
    return torch.where(values.isfinite(), raised.view(torch.float32), values).to(torch.bfloat16)


def _rounding_words(seed: int, rows: Tensor, like: Tensor) -> Tensor | None:
    return None if seed < 0 else _random_words(seed, rows, like[0].numel()).view(len(rows), *like.shape[1:])


def row_sparse_adam_(
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    rows: Tensor,
    gradient: Tensor,
    decays: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    bias_correction1: float,
    bias_correction2: float,
    decoupled: bool,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    exact = torch.promote_types(parameter.dtype, torch.float32)
    p, m, v = (x[rows].to(exact) for x in (parameter, first, second))
    if decays is not None:
        shape = (-1,) + (1,) * (parameter.dim() - 1)
        m, v, p = (x * decays[:, i].to(x.dtype).view(shape) for i, x in enumerate((m, v, p)))
    g = (gradient if factor is None else gradient @ factor).to(exact) * (-1 if maximize else 1)
    if decoupled:
        p = p * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    p = p - lr / bias_correction1 * m / (v.sqrt() / bias_correction2**0.5 + eps)
    words = _rounding_words(seed, rows, parameter)
    parameter[rows] = _rounded(p, parameter.dtype, words)
    first[rows] = _rounded(m, first.dtype, None if words is None else words >> 16)
    second[rows] = _rounded(
        v, second.dtype, None if words is None else (words >> 8) ^ (words * 0x85EBCA6B & 0xFFFFFFFF) >> 16
    )


def _weights_and_slope(
    parameter: Tensor, rows: Tensor, gradient: Tensor, factor: Tensor | None, weight_decay: float, maximize: bool
) -> tuple[Tensor, Tensor]:
    p = parameter[rows].to(torch.promote_types(parameter.dtype, torch.float32))
    g = (gradient if factor is None else gradient @ factor).to(p.dtype)
    return p, (-g if maximize else g) + weight_decay * p


def row_sparse_sgd_(
    parameter: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    gradient: Tensor,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    p, g = _weights_and_slope(parameter, rows, gradient, factor, weight_decay, maximize)
    words = _rounding_words(seed, rows, parameter)
    step = g
    if momentum_buffer is not None:
        velocity = momentum * momentum_buffer[rows].to(p.dtype) + (1 - dampening) * g
        momentum_buffer[rows] = _rounded(velocity, momentum_buffer.dtype, None if words is None else words >> 16)
        step = g + momentum * velocity if nesterov else velocity
    parameter[rows] = _rounded(p - lr * step, parameter.dtype, words)


def row_sparse_adagrad_(
    parameter: Tensor,
    squares: Tensor,
    rows: Tensor,
    gradient: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    p, g = _weights_and_slope(parameter, rows, gradient, factor, weight_decay, maximize)
    words = _rounding_words(seed, rows, parameter)
    total = squares[rows].to(p.dtype) + g * g
    squares[rows] = _rounded(total, squares.dtype, None if words is None else words >> 16)
    parameter[rows] = _rounded(p - lr * g / (total.sqrt() + eps), parameter.dtype, words)


def sampled_softmax_loss(
    logits: Tensor, log_weights: Tensor | None, positions: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    log_z = (logits if log_weights is None else logits + log_weights).logsumexp(1)
    at_labels = logits.gather(1, positions.clamp(min=0))
    subtracted = log_z.masked_fill(log_z == math.inf, math.nan).unsqueeze(1)  # as in PyTorch's loss
    loss = (shares * (subtracted - at_labels)).masked_fill(positions < 0, 0).sum(1)
    return loss, log_z.detach()


def labels_weigh_one(log_weights: Tensor, positions: Tensor) -> Tensor:
    log_weights = log_weights.expand(len(positions), -1).clone()
    for weights, own in zip(log_weights, positions):
        weights[own[own >= 0]] = 0
    return log_weights


def linear_softmax_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    log_weights: Tensor | None,
    positions: Tensor,
    shares: Tensor,
    divisor: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    active, dtype = weight[rows].to(x.dtype), shares.dtype
    logits = x.to(dtype) @ active.to(dtype).T
    if bias is not None:
        logits = logits + bias[rows].to(dtype)
    largest = (logits if log_weights is None else logits + log_weights).amax(1, keepdim=True)
    if log_weights is not None:
        log_weights = labels_weigh_one(log_weights, positions)
    loss, _ = sampled_softmax_loss(logits, log_weights, positions, shares)
    powers = ((logits if log_weights is None else logits + log_weights) - largest).exp()
    total = powers.sum(1, keepdim=True)
    present = shares.masked_fill(positions < 0, 0)
    slopes = present.sum(1, keepdim=True) * powers
    slopes = slopes.scatter_add(1, positions.clamp(min=0), -present * total)
    scale = 1 / total.squeeze(1)
    if divisor is not None:
        loss, scale = loss.sum() / divisor, scale / divisor
    return loss, slopes.T.contiguous(), scale


def linear_softmax_loss_backward(
    slopes: Tensor, factors: Tensor, x: Tensor, weight: Tensor, rows: Tensor, needs_weight: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradient, dtype = slopes * factors, slopes.dtype
    rounded, active, x = gradient.to(x.dtype).to(dtype), weight[rows].to(x.dtype).to(dtype), x.to(dtype)
    of_weight = rounded @ x if needs_weight else active[:0]
    return rounded.T @ active, of_weight, gradient.sum(1), gradient.clamp(min=0).sum(1)


def positive_sums(gradient: Tensor) -> Tensor:
    return gradient.clamp(min=0).sum(0)


def largest_rows(values: Tensor, rows: Tensor, count: int, log_weights: Tensor | None = None) -> Tensor:
    if log_weights is not None:
        values = values * (-log_weights).exp()
    return rows[values.argsort(descending=True, stable=True)[:count]]


# --- inference ------------------------------------------------------------------------------------------------------


def linear_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return rows_topk(x, weight, bias, torch.arange(len(weight)).expand(len(x), -1), k, scale)


def rows_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    logits = x.to(dtype) @ weight.to(dtype).T
    if scale is not None:
        logits = logits * scale
    if bias is not None:
        logits = logits + bias.to(dtype)
    values, classes = x.new_full((len(x), k), -math.inf, dtype=dtype), torch.full((len(x), k), -1)
    for b, candidates in enumerate(rows):
        # A stable sort puts NaN first and keeps the lower class first among equals.
        mine = candidates[candidates >= 0].sort().values
        best = logits[b, mine].sort(descending=True, stable=True)
        count = min(k, len(mine))
        values[b, :count], classes[b, :count] = best.values[:count], mine[best.indices[:count]]
    return values, classes


def sketch_candidates(x: Tensor, codes: Tensor, factors: Tensor, num_rows: int, count: int) -> Tensor:
    """Without the rounding of the products with signs, so estimates that are close may rank differently."""
    row = torch.arange(64)
    in_order = codes[:, :, 2 * (row % 32) + row // 32]  # [blocks, width / 8, 64]
    bits = in_order.movedim(1, 2).flatten(0, 1).unsqueeze(2) >> torch.arange(8) & 1
    signs = 2.0 * bits.flatten(1) - 1
    scores = (x @ signs.T) * factors[:, 0].flatten().float() + factors[:, 1].flatten().float()
    return scores[:, :num_rows].topk(count, dim=1).indices.sort(dim=1).values


def residual_codes(x: Tensor, centers: Tensor, buckets: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    difference = x - centers[buckets.long()]
    step = (1.5958, 0.9957, 0.5860, 0.3352)[bits - 1] * difference.square().mean(1, keepdim=True).sqrt()
    top = 2**bits - 1
    levels = (difference / step + (top + 1) / 2).nan_to_num(top).clamp(0, top).long()
    planes = levels.unsqueeze(1) >> torch.arange(bits).flip(0).unsqueeze(1) & 1
    codes = (planes.unflatten(2, (-1, 8)) << torch.arange(8)).sum(3).flatten(1).to(torch.uint8)
    return codes, difference.square().sum(1) / (difference * (2 * levels - top)).sum(1).clamp(min=1e-30)


def _places_of_codes(positions: Tensor) -> Tensor:
    """Where in a block of codes the rows at some positions are."""
    return 2 * (positions % 32) + positions // 32


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
        codes[block, :, _places_of_codes(torch.tensor(position))] = code
        factors[block, :, position] = factor
        ids[block, position] = row

    def remove(row: int) -> None:
        bucket, place = int(row_buckets[row]), int(places[row])
        block, used = heads[bucket].tolist()
        last = int(ids[block, used - 1])
        if last != row:
            code = codes[block, :, _places_of_codes(torch.tensor(used - 1))].clone()
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
    in_order = codes[:, :, _places_of_codes(torch.arange(64))].movedim(1, 2)  # [blocks, 64, bits * width / 8]
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


def nearest_rows(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    row_start: Tensor,
    row_columns: Tensor,
    row_values: Tensor,
    column_start: Tensor,
    column_rows: Tensor,
    column_values: Tensor,
    k: int,
    candidates: int,
    max_postings: int,
) -> tuple[Tensor, Tensor]:
    """Sums in float64, so that rows with nearly equal ones may come in another order."""
    num_rows, num_columns = len(row_start) - 1, len(column_start) - 1
    matrix = torch.zeros(num_rows, num_columns, dtype=torch.float64)
    of_entry = torch.repeat_interleave(torch.arange(num_rows), row_start.diff())
    matrix[of_entry, row_columns.long()] = row_values.double()
    counts = column_start.diff()
    best = torch.full((len(crow) - 1, k), -torch.inf)
    indices = torch.full((len(crow) - 1, k), -1)
    for i, (begin, end) in enumerate(itertools.pairwise(crow.tolist())):
        columns, weights = col[begin:end], values[begin:end].double()
        sums = torch.zeros(num_rows, dtype=torch.float64)
        touched = torch.zeros(num_rows, dtype=torch.bool)
        postings = 0
        for j in counts[columns].argsort(stable=True).tolist():
            column, count = int(columns[j]), int(counts[columns[j]])
            if postings > 0 and postings + count > max_postings:
                break
            postings += count
            run = slice(int(column_start[column]), int(column_start[column + 1]))
            rows = column_rows[run].long()
            sums[rows] += weights[j] * column_values[run].double()
            touched[rows] = True
        found = touched.nonzero()[:, 0]
        found = found[sums[found].argsort(descending=True, stable=True)][:candidates].sort().values
        products = matrix[found][:, columns] @ weights
        order = products.argsort(descending=True, stable=True)[:k]
        best[i, : len(order)] = products[order].float()
        indices[i, : len(order)] = found[order]
    return best, indices


# --- data -----------------------------------------------------------------------------------------------------------


def parse_xmc(text: Tensor, num_features: int, num_labels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
    """Of well-formed lines only: what is malformed, and how it is reported, is defined by the operator."""
    feature_counts, features, values, label_counts, labels = [], [], [], [], []
    for line in bytes(text.tolist()).decode().removesuffix("\n").split("\n") if len(text) else []:
        words = line.split()
        has_labels = len(words) > 0 and line[0] not in " \t\r" and ":" not in words[0]
        of_row = [int(label) for label in words.pop(0).split(",")] if has_labels else []
        labels += of_row
        label_counts.append(len(of_row))
        feature_counts.append(len(words))
        for word in words:
            feature, value = word.split(":")
            features.append(int(feature))
            values.append(float(value))
    return (
        torch.tensor(feature_counts, dtype=torch.int64),
        torch.tensor(features, dtype=torch.int32),
        torch.tensor(values, dtype=torch.float32),
        torch.tensor(label_counts, dtype=torch.int64),
        torch.tensor(labels, dtype=torch.int32),
        "",
    )


def _words(text: bytes) -> list[tuple[str, int, int]]:
    """Lower-case words with their bounds in bytes. Needs a Python with the Unicode version of the C++ tables."""
    words: list[tuple[str, int, int]] = []
    inside = False
    position = 0
    # An invalid byte becomes a lone surrogate, which is no word character and of which one stands for one byte.
    for character in text.decode("utf-8", "surrogateescape"):
        size = len(character.encode("utf-8", "surrogateescape"))
        is_word = unicodedata.category(character)[0] in "LMN"
        if is_word:
            word, begin = words.pop()[:2] if inside else ("", position)
            words.append((word + character.lower()[0], begin, position + size))
        inside = is_word
        position += size
    return words


def word_spans(text: Tensor) -> Tensor:
    spans = [[begin, end] for _, begin, end in _words(bytes(text.tolist()))]
    return torch.tensor(spans, dtype=torch.int64).view(-1, 2)


def hash_text(
    text: Tensor,
    offsets: Tensor,
    bits: int,
    word_ngrams: int,
    char_min: int,
    char_max: int,
    is_signed: bool,
    tf: str,
    normalized: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    def chain(kind: int, items: list[int]) -> int:
        state = _random_bits(seed, kind)
        for item in items:
            state = ((state ^ item) * 0x9E3779B97F4A7C15) & _MASK
        return state

    weigh = {"count": float, "log": lambda count: 1 + math.log(count), "binary": lambda _: 1.0}[tf]
    crow, col, values = [0], [], []
    for begin, end in itertools.pairwise(offsets.tolist()):
        words = [list(map(ord, word)) for word, _, _ in _words(bytes(text[begin:end].tolist()))]
        hashes = [chain(1, word) for word in words]
        features = list(hashes) if word_ngrams > 0 else []
        for n in range(2, word_ngrams + 1):
            features += [chain(n, hashes[i : i + n]) for i in range(len(hashes) - n + 1)]
        for word in words:
            marked = [0x110000, *word, 0x110001]
            for n in range(char_min, char_max + 1) if char_max > 0 else ():
                features += [chain(0, marked[i : i + n]) for i in range(len(marked) - n + 1)]
        counts: dict[int, int] = {}
        for feature in map(_mix, features):
            column = feature >> (64 - bits)
            counts[column] = counts.get(column, 0) + (-1 if is_signed and feature & 1 else 1)
        row = [(column, count) for column, count in sorted(counts.items()) if count != 0]
        weights = np.array([math.copysign(weigh(abs(count)), count) for _, count in row], np.float32)
        if normalized and row:
            squares = 0.0
            for weight in weights.astype(float).tolist():
                squares += weight * weight
            weights = (weights.astype(float) / math.sqrt(squares)).astype(np.float32)
        col += [column for column, _ in row]
        values += weights.tolist()
        crow.append(len(col))
    return torch.tensor(crow), torch.tensor(col, dtype=torch.int64), torch.tensor(values, dtype=torch.float32)
