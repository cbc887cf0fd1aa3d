from __future__ import annotations

import pytest
import torch

from torch_lsh import ops, reference


def random_buckets(rows, tables, bits):
    return torch.randint(0, 1 << bits, (rows, tables), dtype=torch.int32)


def contents(ids, counts, table, bucket):
    return ids[table, bucket, : counts[table, bucket]].tolist()


def assert_same_tables(a, b):
    (ids, counts), (other_ids, other_counts) = a, b
    assert torch.equal(counts, other_counts)
    used = torch.arange(ids.shape[2]) < counts.unsqueeze(2)
    assert torch.equal(ids[used], other_ids[used])


@pytest.mark.parametrize("bucket_size", [1, 4, 100])
@pytest.mark.parametrize(("rows", "tables", "bits"), [(0, 2, 3), (1, 1, 0), (200, 5, 4), (300, 1, 0)])
def test_build_equals_reference(threads, rows, tables, bits, bucket_size):
    row_buckets = random_buckets(rows, tables, bits)
    ids, counts = ops.build_tables(row_buckets, bits, bucket_size, 7)
    expected_ids, expected_counts = reference.build_tables(row_buckets, bits, bucket_size, 7)
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


@pytest.mark.parametrize("bucket_size", [1, 3, 64])
def test_update_equals_reference(threads, bucket_size):
    row_buckets = random_buckets(150, 4, 3)
    ids, counts = ops.build_tables(row_buckets, 3, bucket_size, 7)
    twin = ids.clone(), counts.clone(), row_buckets.clone()
    for seed in range(5):
        torch.manual_seed(seed)
        rows = torch.randperm(150)[:60]
        buckets = random_buckets(60, 4, 3)
        changed = int((row_buckets[rows] != buckets).sum())
        assert int(ops.update_tables(ids, counts, row_buckets, rows, buckets, 7)) == changed
        assert int(reference.update_tables(*twin, rows, buckets, 7)) == changed
        assert_same_tables((ids, counts), twin[:2])
        assert torch.equal(row_buckets[rows], buckets)
        assert torch.equal(row_buckets, twin[2])


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
        assert torch.equal(found, reference.query_tables(*tables, codes, buckets, max_candidates))


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


def test_opcheck():
    row_buckets = random_buckets(20, 3, 2)
    ids, counts = ops.build_tables(row_buckets, 2, 4, 0)
    torch.library.opcheck(torch.ops.torch_lsh.build_tables, (row_buckets, 2, 4, 0))
    rows = torch.tensor([3, 5])
    update = (ids, counts, row_buckets, rows, random_buckets(2, 3, 2), 0)
    torch.library.opcheck(torch.ops.torch_lsh.update_tables, update)
    for codes in (None, row_buckets):
        torch.library.opcheck(torch.ops.torch_lsh.query_tables, (ids, counts, codes, random_buckets(5, 3, 2), 6))


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
        (lambda: ops.build_tables(ROW_BUCKETS, 2, 0, 0), "bucket_size is 0; wanted at least 1"),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([0, 4]), 1), "buckets holds 4; wanted 0 to 3"),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([0, 0, 0]), 1), r"buckets has shape \[1, 3\]; wanted 2"),
        (lambda: ops.query_tables(IDS, COUNTS[:, :3].contiguous(), None, int32([0, 0]), 1), "counts has shape"),
        (
            lambda: ops.query_tables(IDS, COUNTS, int32([0]), int32([0, 0]), 1),
            r"row_codes has shape \[1, 1\]; wanted 2",
        ),
        (lambda: ops.query_tables(IDS, COUNTS, None, int32([0, 0]), 0), "max_candidates is 0; wanted at least 1"),
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
