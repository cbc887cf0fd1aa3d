"""Learned hashing: the operators of a partition, the family, the index, and a layer that uses it."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
import torch.nn.functional as F
import twins

from torch_lsh import LSHConfig, LSHLinear, PartitionConfig, ops, optim
from torch_lsh.index.families import LearnedPartition, learned
from torch_lsh.index.hash_tables import HashTableIndex
from torch_lsh.index.partition import Partition, PartitionIndex, Route, Routing
from torch_lsh.index.sign_codes import SignCodeIndex

N, D = 4000, 24


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def clustered(rows=N, width=D, clusters=60, queries=900):
    """Rows around some centers, and queries that point to some of these more often than to others, all with a vector
    in common, as activations behind a ReLU have.
    """
    centers = torch.randn(clusters, width)
    weight = centers[torch.randint(clusters, (rows,))] + 0.5 * torch.randn(rows, width)
    popular = (clusters * torch.rand(queries) ** 2).long()
    x = F.relu(centers[popular] + 0.7 * torch.randn(queries, width) + 0.5)
    return weight, 0.3 * torch.randn(rows), x


def built(rows=N, width=D, **settings):
    weight, bias, queries = clustered(rows, width)
    index = PartitionIndex(rows, width, **settings)
    index.build(weight, bias, queries[:600])
    return index, weight, bias, queries[600:]


def stored_tensors(index):
    state = index.state_dict()
    return [*state["family"].values(), *(state[name] for name in Partition._fields)]


def recall(found, weight, bias, x, k=10):
    best = F.linear(x, weight, bias).topk(k).indices
    return (best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean().item()


# --- operators ---


def partition_of(rows, buckets, width, seed=0, bits=1):
    generator = torch.Generator().manual_seed(seed)
    store = Partition.empty(rows, buckets, width, bits)
    codes = torch.randint(256, (rows, bits * width // 8), dtype=torch.uint8, generator=generator)
    factors = torch.randn(rows, 2, generator=generator).bfloat16()
    numbers = torch.randint(buckets, (rows,), dtype=torch.int32, generator=generator)
    return store, torch.arange(rows), numbers, codes, factors


def check_invariants(store, rows, buckets, codes, factors):
    """Every row is once in its bucket, with its codes; blocks are in one chain each."""
    seen_blocks = []
    for bucket in range(len(store.heads)):
        block, used = store.heads[bucket].tolist()
        while block >= 0:
            seen_blocks.append(block)
            ids = store.ids[block]
            if bucket == len(store.heads) - 1:
                used = 0
            else:
                assert used > 0
            assert (ids[used:] == -1).all()
            assert (store.factors[block, 1, used:] == -math.inf).all()
            for position, row in enumerate(ids[:used].tolist()):
                assert buckets[row] == bucket
                assert store.row_buckets[row] == bucket
                assert store.places[row] == 64 * block + position
                place = 2 * (position % 32) + position // 32
                assert torch.equal(store.codes[block, :, place], codes[row])
                assert torch.equal(store.factors[block, :, position], factors[row])
            block, used = int(store.next[block]), 64
    assert sorted(seen_blocks) == list(range(len(store.next)))
    assert (store.ids >= 0).sum() == len(rows)


def numbers_of(codes, bits):
    """What codes ``[n, bits * width / 8]`` stand for: ``[n, width]`` float32."""
    signs = 2.0 * (codes.unsqueeze(2) >> torch.arange(8) & 1).flatten(1).unflatten(1, (bits, -1)) - 1
    return (signs * 2 ** torch.arange(bits).flip(0).unsqueeze(1)).sum(1)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [8, 40])
def test_residual_codes_equal_reference(width, bits):
    for rows in (0, 1, 700):
        x, centers = torch.randn(rows, width), torch.randn(5, width)
        buckets = torch.randint(5, (rows,), dtype=torch.int32)
        x[: rows // 10] = centers[buckets[: rows // 10].long()]  # no residual
        codes, factors = ops.residual_codes(x, centers, buckets, bits)
        expected_codes, expected_factors = twins.residual_codes(x, centers, buckets, bits)
        # the mean square is rounded, so a number between two levels may go to either
        assert (numbers_of(codes, bits) != numbers_of(expected_codes, bits)).sum() <= rows * width // 10_000
        torch.testing.assert_close(factors, expected_factors, rtol=1e-3, atol=1e-6)


def test_residual_codes_of_more_bits_are_nearer():
    x, buckets = torch.randn(500, 128), torch.zeros(500, dtype=torch.int32)
    # the errors of rounding normally distributed numbers that Max, 1960, gives
    for bits, expected in ((1, 0.3634), (2, 0.1188), (3, 0.0374), (4, 0.0115)):
        codes, factors = ops.residual_codes(x, torch.zeros(1, 128), buckets, bits)
        numbers = numbers_of(codes, bits)
        torch.testing.assert_close(factors * (x * numbers).sum(1), x.square().sum(1))
        parallel = (x * numbers).sum(1).square() / (numbers.square().sum(1) * x.square().sum(1))
        assert 1 - parallel.mean().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("rows", "buckets"), [(1, 1), (64, 1), (65, 1), (500, 3), (300, 40)])
def test_update_partition_equals_reference_and_keeps_every_row_once(rows, buckets):
    store, numbers, wanted, codes, factors = partition_of(rows, buckets, 16)
    twin = Partition(*(part.clone() for part in store))
    for step in range(6):
        if step > 0:
            _, _, wanted, codes, factors = partition_of(rows, buckets, 16, seed=step)
        some = torch.randperm(rows)[: 1 + step * rows // 6] if step > 0 else numbers
        if step == 5:
            wanted = torch.full_like(wanted, buckets - 1)  # all buckets but one become empty
            some = numbers
        arguments = (some, wanted[some], codes[some], factors[some])
        moved = ops.update_partition(*store, *arguments)
        assert moved == twins.update_partition(*twin, *arguments)
        for name, mine, other in zip(Partition._fields, store, twin):
            live = store.ids >= 0
            if name == "codes":  # codes of rows that left are not wiped out
                positions = torch.arange(64)
                in_order = 2 * (positions % 32) + positions // 32
                mine, other = mine[:, :, in_order].movedim(1, 2)[live], other[:, :, in_order].movedim(1, 2)[live]
            assert torch.equal(mine, other), name
        current_codes = torch.empty_like(codes)
        current_factors = torch.empty_like(factors)
        for row in range(rows):
            block, position = divmod(int(store.places[row]), 64)
            current_codes[row] = twin.codes[block, :, 2 * (position % 32) + position // 32]
            current_factors[row] = twin.factors[block, :, position]
        assert torch.equal(current_codes[some], codes[some])
        assert torch.equal(current_factors[some], factors[some])
        check_invariants(store, numbers, store.row_buckets.tolist(), current_codes, current_factors)


@pytest.mark.parametrize(("bits", "width"), [(1, 8), (1, 128), (2, 40), (3, 8), (4, 40)])
def test_query_partition_equals_reference(simd_level, width, bits):
    """The operator rounds the query's products, so rows at the edge of the shortlist may differ."""
    for rows, buckets in ((1, 1), (100, 3), (600, 60)):
        store, numbers, wanted, codes, factors = partition_of(rows, buckets, width, bits=bits)
        ops.update_partition(*store, numbers, wanted, codes, factors)
        x, centers, scores = torch.randn(3, width), torch.randn(buckets, width), torch.randn(3, buckets)
        parts = (centers, store.codes, store.factors, store.ids, store.next, store.heads)
        for count in {1, 50}:
            for examined in (1, rows // 3 + 1, rows, 10 * rows):
                found = ops.query_partition(x, scores, *parts, count, examined)
                expected = twins.query_partition(x, scores, *parts, count, examined)
                assert found.dtype is torch.int64
                assert torch.equal((found >= 0).sum(1), (expected >= 0).sum(1))
                assert all(len(set(row)) == len(row) for row in (f[f >= 0].tolist() for f in found))
                same = sum(len(set(a) & set(b) - {-1}) for a, b in zip(found.tolist(), expected.tolist()))
                assert same >= 0.9 * (expected >= 0).sum() - 2


@pytest.mark.parametrize(("bits", "width"), [(1, 8192), (4, 512)])
def test_query_partition_of_wide_rows(simd_level, bits, width):
    """Products are rounded to so few levels that the largest sum fits into 16 bits."""
    store, numbers, wanted, codes, _ = partition_of(200, 2, width, bits=bits)
    codes[7] = 255
    factors = torch.tensor([1.0, 0.0]).expand(200, 2).bfloat16().contiguous()
    ops.update_partition(*store, numbers, wanted, codes, factors)
    x = torch.randn(3, width)
    x[2] = 1.0
    parts = (torch.zeros(2, width), store.codes, store.factors, store.ids, store.next, store.heads)
    arguments = (x, torch.zeros(3, 2), *parts, 40, 200)
    found, expected = ops.query_partition(*arguments), twins.query_partition(*arguments)
    assert found[2, 0] == expected[2, 0] == 7  # whose sum is the largest
    assert sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist())) >= 0.9 * expected.numel()


def test_query_partition_visits_buckets_in_the_order_of_their_scores(simd_level):
    store, numbers, _, codes, factors = partition_of(1000, 1000, 8)
    ops.update_partition(*store, numbers, numbers.int(), codes, factors)
    scores = torch.randn(3, 1000)
    scores[2] = 1.0  # among equals the lower bucket
    parts = (torch.zeros(1000, 8), store.codes, store.factors, store.ids, store.next, store.heads)
    for examined in (1, 10, 124, 126, 500, 999, 1000):
        found = ops.query_partition(torch.randn(3, 8), scores, *parts, 1000, examined)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :examined]
        assert torch.equal(found[:, :examined].sort(1).values, best.sort(1).values)
        assert (found[:, examined:] == -1).all()


def test_operators_of_a_partition_refuse_bad_input():
    store, numbers, wanted, codes, factors = partition_of(100, 4, 16)
    before = [part.clone() for part in store]
    update = (numbers, wanted, codes, factors)
    for position, value, message in (
        (0, numbers + 1, "rows\\[99\\] is 100; wanted 0 to 99"),
        (1, wanted + 4, "buckets holds .*; wanted 0 to 3"),
        (2, codes[:, :1].contiguous(), "row_codes has shape \\[100, 1\\]; wanted 2 in dimension 1"),
        (3, factors.float(), "row_factors has dtype Float; wanted BFloat16"),
    ):
        arguments = list(update)
        arguments[position] = value
        with pytest.raises(RuntimeError, match=message):
            ops.update_partition(*store, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(before, store))
    with pytest.raises(RuntimeError, match="next holds 501; wanted -1 to 4"):
        ops.update_partition(*store._replace(next=store.next + 500), *update)
    query = [torch.randn(2, 16), torch.randn(2, 4), torch.randn(4, 16), *store[:5], 7, 50]
    for position, value, message in (
        (0, torch.randn(2, 32), "x has shape \\[2, 32\\]; wanted 1 to 4 bits per column in the 2 bytes of a code"),
        (1, torch.randn(2, 5), "scores has shape \\[2, 5\\]; wanted 4 in dimension 1"),
        (8, 0, "max_candidates is 0; wanted 1 to"),
        (9, 0, "examined is 0; wanted 1 to"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.query_partition(*query[:position], value, *query[position + 1 :])
    wide = partition_of(1, 1, 17480, bits=4)[0]
    with pytest.raises(RuntimeError, match="x has 17480 columns; wanted at most 17476 with 4 bits"):
        ops.query_partition(torch.randn(1, 17480), torch.randn(1, 1), torch.randn(1, 17480), *wide[:5], 1, 1)
    with pytest.raises(RuntimeError, match="wanted a multiple of 8 columns"):
        ops.residual_codes(torch.randn(2, 7), torch.randn(1, 7), torch.zeros(2, dtype=torch.int32), 1)
    with pytest.raises(RuntimeError, match="buckets holds 1; wanted 0 to 0"):
        ops.residual_codes(torch.randn(2, 8), torch.randn(1, 8), torch.ones(2, dtype=torch.int32), 1)
    for bits in (0, 5):
        with pytest.raises(RuntimeError, match=f"bits is {bits}; wanted 1 to 4"):
            ops.residual_codes(torch.randn(2, 8), torch.randn(1, 8), torch.zeros(2, dtype=torch.int32), bits)


def test_search_is_a_query_whose_buckets_are_scored_by_codes(simd_level, threads):
    index, weight, bias, x = built()

    def shared(found, expected):
        return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist())) / expected.numel()

    index.examined = N
    assert shared(index.search(x, 100, N), index.query(x, 100)) > 0.99  # the same estimates of all rows
    index.examined = 500
    assert shared(index.search(x, 20, 500), index.query(x, 20)) > 0.9
    assert recall(index.search(x, 100, 500), weight, bias, x) > recall(index.query(x, 100), weight, bias, x) - 0.05
    found = index.search(x[:3], 600, 500)
    assert (found[:, :500] >= 0).all()
    assert torch.equal(index.search(x[:3], 30, 500), found[:, :30])  # best first
    assert index.search(x[:0], 5, 5).shape == (0, 5)
    assert (index.search(torch.full((1, D), math.nan), 5, 5) >= 0).all()


@pytest.mark.parametrize("bits", [1, 2])
def test_search_partition_equals_reference_with_fewer_bits_per_bucket(simd_level, bits):
    store, numbers, wanted, codes, factors = partition_of(600, 60, 40, bits=2)
    ops.update_partition(*store, numbers, wanted, codes, factors)
    routing = Routing.of(torch.randn(40, 40) / 6, torch.randn(60, 40), torch.randn(60), bits)
    parts = (torch.randn(60, 40), store.codes, store.factors, store.ids, store.next, store.heads)
    x = torch.randn(5, 40)
    for examined in (100, 600):
        found = ops.search_partition(x, *routing, *parts, 50, examined)
        expected = twins.search_partition(x, *routing, *parts, 50, examined)
        shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist())]
        assert sum(shared) >= 0.9 * expected.numel()
    for bad in (routing.codes.repeat(1, 3, 1), routing.codes[:, :-1].contiguous()):
        with pytest.raises(RuntimeError, match=r"bucket_codes has shape .*; wanted 1 to 2 times 5 bytes per code"):
            ops.search_partition(x, routing.query_map, bad, routing.factors, *parts, 50, 100)


def test_routes_score_buckets_by_centers_or_by_what_was_learned(monkeypatch):
    index, weight, bias, x = built(compared=4)
    assert index.routes() == [Route(True, 2), Route(False, 2)]
    monkeypatch.setattr("torch_lsh.index.partition._MANY_BUCKETS", 4)
    assert index.routes() == [Route(True, 2), Route(True, 1), Route(False, 2), Route(False, 1)]
    found = {}
    for route in index.routes():
        found[route] = index.search(x, 100, 400, route)
        assert recall(found[route], weight, bias, x) > 0.8
    assert len({tuple(rows.flatten().tolist()) for rows in found.values()}) == 4
    assert torch.equal(index.search(x, 100, 400), found[Route()])
    assert [str(route) for route in (Route(), Route(False, 1))] == ["learned directions, 2 bits", "centers, 1 bit"]
    with pytest.raises(RuntimeError, match="the index was not built"):
        PartitionIndex(N, D).search(x, 1, 1)


def test_damaged_partitions_are_refused():
    index, _, _, x = built()
    store = index.state_dict()
    for name, value in (("next", torch.arange(len(store["next"])).int()), ("heads", store["heads"] + 10_000)):
        damaged = copy.deepcopy(index)
        damaged.state_dict()[name].copy_(value)
        for query in (lambda one=damaged: one.search(x, 5, N), lambda one=damaged: one.query(x, 5)):
            with pytest.raises(RuntimeError, match="heads or next holds a block that is out of range or in two chains"):
                query()


# --- family ---


def test_codes_are_the_nearest_centers_of_the_nearest_group(threads):
    rows = clustered()[0]
    family = LearnedPartition(D, 6)
    family.fit(rows)
    codes = family.buckets(rows).long()
    group = torch.cdist(rows, family.coarse).argmin(1)
    assert ((family.first[group] <= codes) & (codes < family.first[group + 1])).float().mean() > 0.999
    distances = torch.cdist(rows, family.centers)
    of_group = [distances[i, family.first[g] : family.first[g + 1]].min() for i, g in enumerate(group)]
    torch.testing.assert_close(distances.gather(1, codes[:, None])[:, 0], torch.stack(of_group), atol=1e-3, rtol=1e-3)
    # k-means: much nearer than to as many random rows
    random = torch.cdist(rows, rows[torch.randperm(N)[:64]]).min(1).values
    assert distances.gather(1, codes[:, None]).square().mean() < 0.85 * random.square().mean()


def test_rows_that_are_compared_with_all_groups_are_with_the_nearest_center(threads):
    rows = clustered()[0]
    apart, together = LearnedPartition(D, 6), LearnedPartition(D, 6, compared=16)
    distance = []
    for family in (apart, together):
        family.fit(rows)
        distances = torch.cdist(rows, family.centers[: family.num_centers])
        distance.append(distances.gather(1, family.buckets(rows).long()[:, None])[:, 0])
    is_farther = distance[1] > 1.001 * distances.min(1).values
    assert is_farther.float().mean() < 0.02
    assert (distance[1][is_farther].square() <= together.near).all()  # so it was not looked for
    assert distance[1].square().mean() < 0.97 * distance[0].square().mean()
    assert together.buckets(rows).unique().numel() == together.num_centers > 50


def tight_clusters(count, of_each=60):
    centers = 3 * torch.randn(count, D)
    of_row = torch.arange(count).repeat(of_each)
    return centers[of_row] + 0.2 * torch.randn(len(of_row), D), of_row, centers


def test_a_state_without_a_tensor_is_refused_before_anything_changes():
    family = LearnedPartition(D, 4, compared=4)
    family.fit(clustered()[0])
    other = LearnedPartition(D, 4, compared=4)
    state = {name: tensor for name, tensor in family.state_dict().items() if name != "near"}
    with pytest.raises(ValueError, match="near is missing"):
        other.load_state_dict(state)
    assert not other.centers.any()


def test_each_tight_cluster_gets_a_bucket_of_its_own(threads):
    rows, of_row, _ = tight_clusters(150)
    family = LearnedPartition(D, 8, compared=16)
    family.fit(rows)
    assert 150 <= family.num_centers < 256
    buckets = family.buckets(rows)
    assert int(buckets.max()) < family.num_centers
    clusters_of_bucket = torch.unique(torch.stack([buckets, of_row]), dim=1)[0].bincount()
    assert (clusters_of_bucket == 1).float().mean() > 0.97
    assert not family.centers[family.num_centers :].any()


def test_buckets_without_a_center_are_not_scored():
    rows, _, centers = tight_clusters(150)
    index = PartitionIndex(len(rows), D, hashes_per_table=10, compared=16)
    x = centers.repeat(4, 1) + 0.5 * torch.randn(600, D)
    index.build(rows, None, x)
    assert index.family.num_buckets == 1024
    assert index.family.num_centers < 512
    assert recall(index.search(x[:100], 60, 120), rows, None, x[:100]) > 0.97
    other = PartitionIndex(len(rows), D, hashes_per_table=10, compared=16)
    other.load_state_dict(index.state_dict())
    assert torch.equal(other.search(x, 60, 120), index.search(x, 60, 120))
    moved = torch.arange(0, len(rows), 7)
    rows[moved] = rows[moved.flip(0)].clone()
    other.update(rows, None, moved)
    assert recall(other.search(x[:100], 60, 120), rows, None, x[:100]) > 0.97


def test_scores_of_the_buckets_that_most_queries_visit_are_learned(monkeypatch):
    weight, _, queries = clustered()
    family = LearnedPartition(D, 7, compared=4)
    family.fit(weight)
    buckets = family.buckets(weight).long()[(queries @ weight.T).topk(20).indices]
    monkeypatch.setattr(learned, "_CONTESTED", 64)
    family.fit_queries(queries, buckets)
    moved = (family.directions != family.centers).any(1)
    assert int(moved.sum()) == 64
    assert moved[buckets].float().mean() > 0.9
    first, before = (scores.argmax(1, keepdim=True) for scores in (family.scores(queries), queries @ family.centers.T))
    assert (buckets[:, :10] == first).float().mean() > (buckets[:, :10] == before).float().mean()


@pytest.mark.parametrize("compared", [1, 4])
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_fewer_rows_than_centers(rows, compared):
    family = LearnedPartition(D, 5, compared)
    x = torch.randn(rows, D)
    family.fit(x)
    codes = family.buckets(x)
    assert int(codes.max()) < 32
    nearest = torch.cdist(x, family.centers).min(1).values
    assert (nearest < 0.01).float().mean() >= min(1, 8 / rows)  # every row is one, or some have no other beside them


def test_the_way_to_the_buckets_is_learned():
    """For queries that it was not trained on, too."""
    weight, _, queries = clustered()
    family = LearnedPartition(D, 7)
    family.fit(weight)
    buckets = family.buckets(weight).long()[(queries @ weight.T).topk(50).indices]
    taught, held_out = slice(0, 600), slice(600, None)

    def found(probes):
        looked_up = family.scores(queries[held_out]).topk(probes).indices
        return (buckets[held_out, :10].unsqueeze(2) == looked_up.unsqueeze(1)).any(2).float().mean()

    before = found(1), found(4)
    family.fit_queries(queries[taught], buckets[taught])
    assert found(1) > 1.1 * before[0]
    assert 1 - found(4) < 0.7 * (1 - before[1])


# --- index ---


def test_finds_more_than_data_independent_hashing_with_half_of_the_rows():
    weight, bias, queries = clustered(20_000, 64, 300)
    learned = PartitionIndex(20_000, 64)
    learned.build(weight, bias, queries[:600])
    x = queries[600:]
    found = recall(learned.query(x, 100), weight, bias, x)
    assert found > 0.9
    for settings in ({"hash": "simhash"}, {"hash": "dwta"}, {"hash": "cross_polytope"}, {"mips": False}):
        other = HashTableIndex(20_000, 64, **settings)
        other.build(weight, bias)
        assert recall(other.query(x, 200), weight, bias, x) < found


def test_finds_as_much_as_sign_codes_of_all_rows_in_half_of_the_rows():
    weight, bias, queries = clustered(20_000, 64, 300)
    learned, sketch = PartitionIndex(20_000, 64), SignCodeIndex(20_000, 64)
    learned.build(weight, bias, queries[:600])
    sketch.build(weight, bias, queries[:600])
    x = queries[600:]
    for count in (15, 25, 40):
        found = recall(learned.query(x, count), weight, bias, x)
        assert found >= recall(sketch.query(x, 2 * count), weight, bias, x) > 0.7


def test_few_long_rows_have_buckets_of_their_own(monkeypatch, threads):
    monkeypatch.setattr("torch_lsh.index.partition._FITTED_ROWS", 2000)
    weight, x = torch.randn(20_000, 16), torch.randn(200, 16)
    weight[::100] *= 4.0
    index = PartitionIndex(20_000, 16, probes=30)  # less than a tenth
    index.build(weight)
    assert recall(index.query(x, 200), weight, None, x) > 0.9


def test_examining_all_rows_leaves_the_error_of_the_codes_only():
    index, weight, bias, x = built(probes=10_000)
    assert index.examined == N
    assert recall(index.query(x, 200), weight, bias, x) > 0.97
    assert torch.equal(index.query(x, N).sort(1).values, torch.arange(N).expand(len(x), N))


def test_candidates_come_best_first():
    index, weight, bias, x = built()
    found = index.query(x, 500)
    scores = F.linear(x, weight, bias).gather(1, found)
    means = scores.view(len(x), 5, 100).mean((0, 2))
    assert (means.diff() < 0).all()
    assert torch.equal(index.query(x, 50), found[:, :50])


@pytest.mark.parametrize("rows", [1, 2, 70, 1000])
def test_sizes(rows):
    weight, x = torch.randn(rows, 5), torch.randn(40, 5)
    index = PartitionIndex(rows, 5)
    index.build(weight, None, x)
    found = index.query(x, rows + 3)
    assert found.shape == (40, rows + 3)
    assert torch.equal(found[:, :rows].sort(1).values, torch.arange(rows).expand(40, rows))
    assert (found[:, rows:] == -1).all()
    assert index.query(x[:0], 3).shape == (0, 3)


def test_without_queries_and_with_few():
    weight, bias, queries = clustered()
    for sample in (None, queries[:0], queries[:1], queries[:3]):
        index = PartitionIndex(N, D)
        index.build(weight, bias, sample)
        assert math.isnan(index.learned_recall)
        assert index.learned_from == (0 if sample is None else len(sample))
        assert recall(index.query(queries[600:], 400), weight, bias, queries[600:]) > 0.5


@pytest.mark.parametrize("compared", [1, 4])
def test_results_do_not_depend_on_the_number_of_threads(compared):
    results = []
    for threads in (1, 2):
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        index, weight, bias, x = built(compared=compared)
        rows = torch.arange(0, N, 7)
        weight[rows] += 0.3 * torch.randn(len(rows), D)
        index.update(weight, bias, rows)
        results.append((index.query(x, 100), *stored_tensors(index)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("compared", [1, 4])
def test_update_moves_rows_to_where_they_would_be_hashed(compared):
    index, weight, bias, x = built(compared=compared)
    fresh = copy.deepcopy(index)
    rows = torch.randperm(N)[:500]
    weight[rows], bias[rows] = torch.randn(500, D), torch.randn(500)
    before = index.state_dict()["row_buckets"].clone()
    moved = index.update(weight, bias, rows)
    after = index.state_dict()["row_buckets"]
    assert moved == (after != before).sum() > 300
    fresh.rehash(weight, bias)
    assert torch.equal(after, fresh.state_dict()["row_buckets"])
    assert torch.equal(index.query(x, 300), fresh.query(x, 300))
    assert index.update(weight, bias, rows) == 0
    assert index.update(weight, bias, rows[:0]) == 0


def test_drift_counts_the_rows_whose_bucket_changed():
    index, weight, bias, _ = built()
    rows = torch.arange(200)
    assert index.drift(weight, bias, rows) == 0.0
    weight[:100] = -weight[:100]
    share = index.drift(weight, bias, rows)
    assert share == index.update(weight, bias, rows) / 200 > 0.3
    assert index.drift(weight, bias, rows) == 0.0
    assert index.drift(weight, bias, rows[:0]) == 0.0


def test_recall_is_that_of_the_first_rows_found():
    index, weight, bias, x = built()
    assert index.recall(weight, bias, x) == pytest.approx(recall(index.query(x, 100), weight, bias, x))


def test_outdated_when_recall_falls_or_queries_come():
    weight, bias, queries = clustered()
    index = PartitionIndex(N, D, probes=6)
    index.build(weight, bias, queries[:100])
    assert index.outdated(weight, bias, None) is None
    assert index.outdated(weight, bias, queries[:120]) is None
    assert "there are 868 queries to learn from, after 75" in index.outdated(weight, bias, queries)
    index.build(weight, bias, queries)
    assert index.learned_recall > 0.6
    assert index.outdated(weight, bias, queries) is None
    changed = clustered()[0]  # of which the index knows nothing
    reason = index.outdated(changed, bias, queries)
    assert reason.startswith(f"recall fell from {index.learned_recall:.3f} to 0.")


@pytest.mark.parametrize("compared", [1, 4])
def test_what_is_not_finite(compared):
    weight, bias, queries = clustered()
    weight[3, 2], weight[7, 1], bias[9] = math.nan, math.inf, -math.inf
    queries[5, 0] = math.nan
    before = weight.clone(), bias.clone(), queries.clone()
    index = PartitionIndex(N, D, compared=compared)
    index.build(weight, bias, queries)
    for mine, other in zip((weight, bias, queries), before):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
    x = queries[[5, 6, 7]].clone()
    x[1, 0] = math.inf
    found = index.query(x, 50)
    assert ((found >= -1) & (found < N)).all()
    usual = index.query(queries[8:40], 400)
    finite = weight.clone(), bias.clone()
    finite[0][[3, 7]], finite[1][9] = 0.0, -10.0
    assert recall(usual, *finite, queries[8:40]) > 0.8
    index.update(weight, bias, torch.arange(20))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PartitionIndex(5, 4, probes=0), "probes is 0; wanted a positive int"),
        (lambda: PartitionIndex(5, 4, compared=0), "compared is 0; wanted a positive int"),
        (lambda: LearnedPartition(4, 2, compared=0), "compared is 0; wanted at least 1"),
        (lambda: LearnedPartition(0, 3), "in_features is 0; wanted at least 1"),
        (lambda: LearnedPartition(4, 21), "hashes_per_table is 21; wanted 1 to 20"),
        (
            lambda: LearnedPartition(4, 3).buckets(torch.randn(2, 5)),
            r"x has shape \[2, 5\], .* wanted \[n, 4\] float32",
        ),
        (
            lambda: LearnedPartition(4, 3).fit_queries(torch.randn(2, 4), torch.zeros(3, 1, dtype=torch.int64)),
            r"buckets has shape \[3, 1\]; wanted \[2, k\]",
        ),
        (
            lambda: LearnedPartition(4, 3).load_state_dict(LearnedPartition(4, 4).state_dict()),
            r"first has shape|centers has shape|coarse has shape",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- a layer ---


def trained(steps, layer=None, optimizer=None, first=0, rows=6000, **settings):
    if layer is None:
        layer = LSHLinear(D, rows, config=LSHConfig(active=300, index=PartitionConfig(), **settings))
        optimizer = optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        y = torch.randint(40, (96,), generator=generator)
        x = F.one_hot(y % D, D) + 0.3 * torch.randn(96, D, generator=generator)
        loss = F.cross_entropy(layer(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return layer, optimizer, losses


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_layer_trains_and_learns_anew(scope, caplog):
    with caplog.at_level(logging.INFO, "torch_lsh"):
        layer, _, losses = trained(120, scope=scope)
    assert losses[-1] < 0.6 * losses[0]
    assert isinstance(layer.sampler.tables, PartitionIndex)
    reasons = [record.message for record in caplog.records]
    assert any("anew: there are" in reason and "queries to learn from, after" in reason for reason in reasons)
    assert layer.sampler.tables.learned_from > 500
    assert layer.sampler.state_dict()["queries"].shape == (1024, D)


def with_rehashes(layer, rehashes):
    """Moves the schedule: the recall of learned buckets is measured at the 2nd, 4th, 8th, 16th, 32nd ... re-hash."""
    layer.sampler.load_state_dict({**layer.sampler.state_dict(), "rehashes": rehashes})
    layer.rehash(full=True)


def test_layer_learns_anew_when_recall_falls(caplog):
    layer, optimizer, _ = trained(100)
    with_rehashes(layer, 13)
    index = layer.sampler.tables
    learned_recall, family = index.learned_recall, index.family
    caplog.clear()
    with torch.no_grad(), caplog.at_level(logging.INFO, "torch_lsh"):
        family.directions, family.offsets = -family.directions, -family.offsets  # the worst buckets first
        layer.rehash()
        assert not caplog.records  # not measured at the 15th
        layer.rehash()
    assert f"recall fell from {learned_recall:.3f} to 0." in caplog.text
    assert index.learned_recall == learned_recall > 0.9  # the same weights and queries
    caplog.clear()
    with_rehashes(layer, 30)
    layer.rehash()
    assert not caplog.records  # measured at the 32nd, and as good as it was
    trained(5, layer, optimizer, first=150)


def test_dense_optimizers_hash_all_rows_and_learn_no_more_often():
    layer = LSHLinear(D, 6000, config=LSHConfig(active=300, index=PartitionConfig()))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    trained(30, layer, optimizer)
    with_rehashes(layer, 4)  # recall is not measured at the next ones
    centers, weight = layer.sampler.tables.family.centers, layer.weight.detach().clone()
    layer.rehash()
    assert layer.sampler.tables.family.centers is centers
    with torch.no_grad():
        layer.weight[:50] = -3 * layer.weight[:50]
        layer.rehash()
    assert layer.sampler.tables.family.centers is centers
    assert layer.sampler.tables.drift(layer.weight.detach(), layer.bias.detach(), torch.arange(6000)) == 0.0
    assert layer.sampler.tables.drift(weight, layer.bias.detach(), torch.arange(50)) > 0.0


def test_evaluation_does_not_add_queries():
    layer, _, _ = trained(10)
    kept = layer.sampler.state_dict()["queries"].clone()
    layer.eval()
    layer.sample(torch.randn(50, D))
    assert torch.equal(layer.sampler.state_dict()["queries"], kept)
