from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops


def random_buckets(rows, tables, bits):
    return torch.randint(0, 1 << bits, (rows, tables), dtype=torch.int32)


def contents(ids, counts, table, bucket):
    return ids[table, bucket, : counts[table, bucket]].tolist()


def assert_same_tables(a, b):
    (ids, counts), (other_ids, other_counts) = a, b
    assert torch.equal(counts, other_counts)
    used = torch.arange(ids.shape[2]) < counts.unsqueeze(2)
    assert torch.equal(ids[used], other_ids[used])


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("bucket_size", [1, 4, 100])
@pytest.mark.parametrize(("rows", "tables", "bits"), [(0, 2, 3), (1, 1, 0), (200, 5, 4), (300, 1, 0)])
def test_build_equals_reference(threads, rows, tables, bits, bucket_size, fifo):
    row_buckets = random_buckets(rows, tables, bits)
    ids, counts = ops.build_tables(row_buckets, bits, bucket_size, 7, fifo)
    expected_ids, expected_counts = twins.build_tables(row_buckets, bits, bucket_size, 7, fifo)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(counts, expected_counts)


def test_every_row_is_in_its_buckets_where_there_is_room():
    row_buckets = random_buckets(500, 3, 4)
    ids, counts = ops.build_tables(row_buckets, 4, 500, 0)
    for table in range(3):
        for bucket in range(16):
            expected = (row_buckets[:, table] == bucket).nonzero().flatten().tolist()
            assert sorted(contents(ids, counts, table, bucket)) == expected


def test_an_overfull_bucket_keeps_a_uniform_sample():
    """Each of 40 rows stays in a bucket of 10 in a quarter of 2000 tables: 5 standard errors are 0.05."""
    ids, counts = ops.build_tables(torch.zeros(40, 2000, dtype=torch.int32), 0, 10, 0)
    assert counts.eq(10).all()
    share = torch.bincount(ids.flatten(), minlength=40) / 2000
    assert (share - 0.25).abs().max() < 0.05


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("bucket_size", [1, 3, 64])
def test_update_and_insert_equal_reference(threads, bucket_size, fifo):
    row_buckets = random_buckets(300, 4, 3)
    ids, counts = ops.build_tables(row_buckets, 3, bucket_size, 7, fifo)
    twin = ids.clone(), counts.clone(), row_buckets.clone()
    for seed in range(3):
        torch.manual_seed(seed)
        labels, queries = torch.randint(-1, 300, (6, 2)), random_buckets(6, 4, 3)
        inserted = ops.insert_labels(ids, counts, queries, labels, 300, 7, fifo)
        assert inserted == twins.insert_labels(*twin[:2], queries, labels, 300, 7, fifo)
        assert_same_tables((ids, counts), twin[:2])
        rows = torch.randperm(300)[:130]
        buckets = random_buckets(130, 4, 3)
        changed = int((row_buckets[rows] != buckets).sum())
        assert int(ops.update_tables(ids, counts, row_buckets, rows, buckets, 7, fifo)) == changed
        assert int(twins.update_tables(*twin, rows, buckets, 7, fifo)) == changed
        assert_same_tables((ids, counts), twin[:2])
        assert torch.equal(row_buckets[rows], buckets)
        assert torch.equal(row_buckets, twin[2])


def test_a_full_fifo_bucket_keeps_the_latest_in_order():
    row_buckets = torch.tensor([[0], [0], [0], [1], [1]], dtype=torch.int32)
    ids, counts = ops.build_tables(row_buckets, 1, 3, 0, True)
    before = contents(ids, counts, 0, 0)
    assert sorted(before) == [0, 1, 2]
    for row in (4, 3):
        ops.update_tables(ids, counts, row_buckets, torch.tensor([row]), torch.zeros(1, 1).int(), 0, True)
    assert contents(ids, counts, 0, 0) == [before[-1], 4, 3]
    ops.update_tables(ids, counts, row_buckets, torch.tensor([4]), torch.ones(1, 1).int(), 0, True)
    assert contents(ids, counts, 0, 0) == [before[-1], 3]


def test_fifo_tables_leave_out_different_rows():
    ids, _ = ops.build_tables(torch.zeros(100, 50, dtype=torch.int32), 0, 10, 0, True)
    assert ids.unique().numel() > 90


@pytest.mark.parametrize("fifo", [False, True])
def test_inserted_labels_are_found_by_their_queries(fifo):
    row_buckets = random_buckets(400, 5, 6)
    ids, counts = ops.build_tables(row_buckets, 6, 16, 0, fifo)
    queries, labels = random_buckets(10, 5, 6), torch.arange(10).view(10, 1)
    before = ops.query_tables(ids, counts, None, queries, 40)
    missed = (before != labels).all(1)
    assert missed.sum() > 3
    assert int(ops.insert_labels(ids, counts, queries, labels, 400, 0, fifo)) == missed.sum()
    first = ops.query_tables(ids, counts, None, queries, 40)[:, :1]
    assert torch.equal(first[missed], labels[missed])  # in all tables, so first by frequency
    assert int(ops.insert_labels(ids, counts, queries, labels, 400, 0, fifo)) == 0


def test_a_row_that_was_inserted_where_it_moves_to_is_held_once():
    row_buckets = torch.tensor([[0], [0]], dtype=torch.int32)
    ids, counts = ops.build_tables(row_buckets, 1, 4, 0)
    ops.insert_labels(ids, counts, torch.ones(1, 1).int(), torch.tensor([[1]]), 2, 0)
    ops.update_tables(ids, counts, row_buckets, torch.tensor([1]), torch.ones(1, 1).int(), 0)
    assert contents(ids, counts, 0, 1) == [1]
    assert contents(ids, counts, 0, 0) == [0]


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize(("min_matches", "vanilla"), [(1, True), (2, False), (3, False), (1, False)])
def test_query_of_several_probes_equals_reference(threads, simd_level, probes, min_matches, vanilla):
    row_codes = random_buckets(300, 6, 3)
    tables = ops.build_tables(row_codes, 3, 8, 1)
    buckets = torch.randint(-1, 8, (20, 6, probes), dtype=torch.int32)
    buckets[:, :, 0].clamp_(min=0)
    for codes, wanted in ((None, 7), (None, 500), (row_codes, 5)):
        arguments = (*tables, codes, buckets, wanted, min_matches, vanilla)
        assert torch.equal(ops.query_tables(*arguments), twins.query_tables(*arguments))


def test_query_of_other_codes_equals_reference(threads, simd_level):
    tables = ops.build_tables(random_buckets(300, 6, 3), 3, 8, 1)
    for words in (1, 5):
        row_codes, query_codes = random_buckets(300, words, 30), random_buckets(20, words, 30)
        arguments = (*tables, row_codes, random_buckets(20, 6, 3), 7, 1, False, query_codes)
        assert torch.equal(ops.query_tables(*arguments), twins.query_tables(*arguments))


def test_threshold_and_vanilla_choose_what_they_say():
    row_buckets = random_buckets(400, 8, 2)
    tables = ops.build_tables(row_buckets, 2, 400, 0)
    queries = random_buckets(20, 8, 2)
    shared = (queries.unsqueeze(1) == row_buckets).sum(2)
    for rows, counts in zip(ops.query_tables(*tables, None, queries, 400, 4), shared):
        there = rows[rows >= 0]
        assert set(there.tolist()) == set((counts >= 4).nonzero().flatten().tolist())
        assert counts[there].tolist() == counts[there].sort(descending=True).values.tolist()
    few = ops.query_tables(*tables, None, queries, 30, 1, True)
    assert (few >= 0).all()
    for rows, buckets in zip(few, queries):
        assert rows.unique().numel() == 30
        # a bucket holds some 100 rows, so the 30 first ones come from one table
        assert (row_buckets[rows] == buckets).all(0).any()


def test_updated_tables_hold_what_built_ones_hold_where_there_is_room():
    row_buckets = random_buckets(300, 3, 3)
    ids, counts = ops.build_tables(row_buckets, 3, 300, 0)
    rows = torch.randperm(300)[:200]
    ops.update_tables(ids, counts, row_buckets, rows, random_buckets(200, 3, 3), 0)
    rebuilt = ops.build_tables(row_buckets, 3, 300, 0)
    for table in range(3):
        for bucket in range(8):
            assert sorted(contents(ids, counts, table, bucket)) == contents(*rebuilt, table, bucket)


def test_rows_without_room_leave_and_come_back():
    row_buckets = torch.zeros(20, 1, dtype=torch.int32)
    ids, counts = ops.build_tables(row_buckets, 1, 4, 0)
    outside = next(row for row in range(20) if row not in contents(ids, counts, 0, 0))
    moved = ops.update_tables(ids, counts, row_buckets, torch.tensor([outside]), torch.ones(1, 1, dtype=torch.int32), 0)
    assert int(moved) == 1
    assert counts.tolist() == [[4, 1]]
    assert contents(ids, counts, 0, 1) == [outside]


@pytest.mark.parametrize("max_candidates", [1, 5, 300])
@pytest.mark.parametrize("bucket_size", [1, 8, 64])
def test_query_equals_reference(threads, simd_level, bucket_size, max_candidates):
    row_codes = random_buckets(200, 6, 3)
    tables = ops.build_tables(row_codes, 3, bucket_size, 1)
    buckets = random_buckets(30, 6, 3)
    for codes in (None, row_codes):
        found = ops.query_tables(*tables, codes, buckets, max_candidates)
        assert found.shape == (30, max_candidates)
        assert torch.equal(found, twins.query_tables(*tables, codes, buckets, max_candidates))


def test_query_returns_the_most_frequent_rows_first():
    row_buckets = random_buckets(400, 8, 2)
    tables = ops.build_tables(row_buckets, 2, 400, 0)
    queries = random_buckets(20, 8, 2)
    shared = (queries.unsqueeze(1) == row_buckets).sum(2)
    for rows, counts in zip(ops.query_tables(*tables, None, queries, 50), shared):
        assert rows.unique().numel() == 50
        assert counts[rows].tolist() == counts.sort(descending=True).values[:50].tolist()


def test_query_by_distance_returns_the_closest_codes_first():
    row_codes = random_buckets(400, 8, 2)
    tables = ops.build_tables(row_codes, 2, 400, 0)
    queries = random_buckets(20, 8, 2)
    bits = torch.tensor([0, 1, 1, 2])
    distances = bits[queries.unsqueeze(1) ^ row_codes].sum(2)
    reached = (queries.unsqueeze(1) == row_codes).any(2)
    for rows, distance, can in zip(ops.query_tables(*tables, row_codes, queries, 50), distances, reached):
        assert rows.unique().numel() == 50
        assert distance[rows].tolist() == distance[can].sort().values[:50].tolist()


def test_query_leaves_out_ids_of_no_row():
    row_codes = torch.zeros(3, 2, dtype=torch.int32)
    ids, counts = ops.build_tables(row_codes, 0, 4, 0)
    ids[0, 0, 1], ids[1, 0, 2], ids[1, 0, 0] = 3, -5, 10**9
    found = ops.query_tables(ids, counts, row_codes, torch.zeros(1, 2, dtype=torch.int32), 9)
    assert sorted(found[0].tolist()) == [-1] * 6 + [0, 1, 2]


def test_equals_are_drawn_from_all_tables_and_entries():
    """Rows 0..63 share bucket 0 of all queries' only table; the one returned first must not always be the same."""
    row_buckets = torch.arange(64, dtype=torch.int32).view(64, 1) // 8
    tables = ops.build_tables(row_buckets, 3, 8, 0)
    first = ops.query_tables(*tables, None, torch.arange(8, dtype=torch.int32).view(8, 1), 1).flatten()
    assert (first % 8).unique().numel() > 2


def test_empty_batches_and_buckets():
    ids, counts = ops.build_tables(torch.zeros(1, 2, dtype=torch.int32), 2, 3, 0)
    assert ops.query_tables(ids, counts, None, torch.zeros(0, 2, dtype=torch.int32), 4).shape == (0, 4)
    assert ops.query_tables(ids, counts, None, torch.ones(1, 2, dtype=torch.int32), 2).tolist() == [[-1, -1]]


def test_tallies_of_different_sizes_share_a_thread():
    for tables, bucket_size in [(1, 5), (2, 4), (3, 64), (1, 1), (4, 33)]:
        row_buckets = torch.zeros(bucket_size, tables, dtype=torch.int32)
        ids, counts = ops.build_tables(row_buckets, 0, bucket_size, 0)
        found = ops.query_tables(ids, counts, None, torch.zeros(2, tables, dtype=torch.int32), bucket_size)
        assert found.sort(1).values.tolist() == [list(range(bucket_size))] * 2


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


IDS, COUNTS, ROW_BUCKETS = torch.zeros(2, 4, 3, dtype=torch.int32), int32([0] * 4, [0] * 4), int32([0, 0], [1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.build_tables(int32([4, 0]), 2, 3, 0), "row_buckets holds 4; wanted 0 to 3"),
        (lambda: ops.build_tables(int32([-1, 0]), 2, 3, 0), "row_buckets holds -1; wanted 0 to 3"),
        (lambda: ops.build_tables(ROW_BUCKETS.long(), 2, 3, 0), "row_buckets has dtype Long; wanted Int"),
        (lambda: ops.build_tables(ROW_BUCKETS, 31, 3, 0), "bucket_bits is 31; wanted 0 to 30"),
        (lambda: ops.build_tables(ROW_BUCKETS, 2, 0, 0), "bucket_size is 0; wanted 1 to 2147483647"),
        (lambda: ops.insert_labels(IDS, COUNTS, int32([0, 0]), torch.tensor([[2]]), 2, 0), "labels holds 2"),
        (lambda: ops.insert_labels(IDS, COUNTS, int32([0, 4]), torch.tensor([[1]]), 2, 0), "buckets holds 4"),
        (lambda: ops.insert_labels(IDS, COUNTS, int32([0, 0]), torch.tensor([[1], [1]]), 2, 0), "labels has shape"),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([0, 0]), 1, 0), "min_matches is 0; wanted at least 1"),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([0, -1]), 1), "buckets holds -1; wanted 0 to 3"),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([[0], [4]]), 1), "buckets holds 4; wanted 0 to 3"),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([[], []]), 1), "wanted at least one probe"),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32(0, 0), 1), r"wanted \[B, L\] or \[B, L, P\]"),
        (
            lambda: ops.query_tables(IDS, COUNTS, None, int32([0, 0]), 1, 1, False, int32([0])),
            "query_codes is given without row_codes",
        ),
        (
            lambda: ops.query_tables(IDS, COUNTS, ROW_BUCKETS, int32([0, 0]), 1, 1, False, int32([0])),
            "query_codes has shape",
        ),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([0, 4]), 1), "buckets holds 4; wanted 0 to 3"),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([0, 0, 0]), 1), r"buckets has shape \[1, 3\]; wanted 2"),
        (lambda: ops.query_tables(IDS, COUNTS[:, :3].contiguous(), None, int32([0, 0]), 1), "counts has shape"),
        (
            lambda: ops.query_tables(IDS, COUNTS, int32([0]), int32([0, 0]), 1),
            r"row_codes has shape \[1, 1\]; wanted 2",
        ),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([0, 0]), 0), "max_candidates is 0; wanted 1 to 2147483647"),
        (
            lambda: ops.update_tables(IDS, COUNTS, ROW_BUCKETS, torch.tensor([2]), int32([0, 0]), 0),
            r"rows\[0\] is 2; wanted 0 to 1",
        ),
        (
            lambda: ops.update_tables(IDS, COUNTS, ROW_BUCKETS, torch.tensor([0, 1]), int32([0, 0]), 0),
            "buckets has shape",
        ),
        (
            lambda: ops.update_tables(IDS, COUNTS, ROW_BUCKETS, torch.tensor([0]), int32([0, 9]), 0),
            "buckets holds 9; wanted 0 to 3",
        ),
        (
            lambda: ops.update_tables(IDS, COUNTS, ROW_BUCKETS + 4, torch.tensor([0]), int32([0, 0]), 0),
            "row_buckets holds 4; wanted 0 to 3",
        ),
    ],
)
def test_operators_name_the_bad_argument(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
    assert IDS.eq(0).all()
    assert COUNTS.eq(0).all()
