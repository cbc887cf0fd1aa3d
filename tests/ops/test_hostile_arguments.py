"""Arguments that nobody passes on purpose: sizes whose products overflow, tables that contradict each other, more than
fits into memory. Each is an error that says which argument, before anything is allocated or changed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
import twins

from torch_lsh import ops

HUGE = 2**62


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def tables(buckets=4, size=2):
    return torch.zeros(1, buckets, size, dtype=torch.int32), torch.zeros(1, buckets, dtype=torch.int32)


def partition():
    """Nine rows in two buckets: codes, factors, ids, next, heads, places, row_buckets."""
    store = [
        torch.zeros(3, 2, 64, dtype=torch.uint8),
        torch.zeros(3, 2, 64).bfloat16(),
        torch.full((3, 64), -1, dtype=torch.int32),
        int32(1, 2, -1),
        int32([-1, 0], [-1, 0], [0, 0]),
        torch.full((9,), -1, dtype=torch.int32),
        torch.zeros(9, dtype=torch.int32),
    ]
    update(store, torch.arange(9), torch.arange(9).int() % 2)
    return store


def update(store, rows, buckets):
    codes, factors = torch.zeros(len(rows), 2, dtype=torch.uint8), torch.zeros(len(rows), 2).bfloat16()
    return ops.update_partition(*store, rows, buckets, codes, factors)


def hadamard(dimension, hashes):
    return ops.cross_polytope_codes(torch.randn(2, 8), torch.ones(2, 3, 8), torch.zeros(0, 12), dimension, hashes)


def hash_text(**changed):
    text, settings = (
        torch.frombuffer(bytearray(b"a b"), dtype=torch.uint8),
        {"word": 1, "least": 0, "most": 0} | changed,
    )
    return ops.hash_text(
        text,
        torch.tensor([0, 3]),
        8,
        settings["word"],
        settings["least"],
        settings["most"],
        False,
        "log",
        True,
        0,
        False,
        False,
    )


def query_partition(**changed):
    store = partition()
    counts = {"max_candidates": 3, "examined": 3} | changed
    return ops.query_partition(torch.randn(1, 16), torch.randn(1, 2), torch.zeros(2, 16), *store[:5], **counts)


def nearest_rows(k, candidates):
    start, index, value = torch.tensor([0, 1]), int32(0), torch.ones(1)
    return ops.nearest_rows(start, index.long(), value, start, index, value, start, index, value, k, candidates, 10)


CALLS = {
    "insert_labels, buckets without room": (
        lambda: ops.insert_labels(*tables(size=0), int32([0]), torch.tensor([[1]]), 9, 0),
        r"ids has shape \[1, 4, 0\]; wanted at least one bucket with room for one row",
    ),
    "insert_labels, rows beyond int32": (
        lambda: ops.insert_labels(*tables(), int32([0]), torch.tensor([[2**32]]), 2**33, 0),
        "num_rows is 8589934592; wanted 0 to 2147483647",
    ),
    "update_tables, buckets without room": (
        lambda: ops.update_tables(*tables(size=0), int32([0]), torch.tensor([0]), int32([1]), 0),
        r"ids has shape \[1, 4, 0\]",
    ),
    "build_tables, more than an address space": (
        lambda: ops.build_tables(torch.zeros(2, 300, dtype=torch.int32), 30, 2**31 - 1, 0),
        r"build_tables\(\[2, 300\] Int, 30, 2147483647, 0, False\) needs more memory than there is",
    ),
    "query_tables, candidates": (
        lambda: ops.query_tables(*tables(), None, int32([0]), HUGE),
        f"max_candidates is {HUGE}; wanted 1 to 2147483647",
    ),
    "cross_polytope_codes, hashes whose bits overflow": (
        lambda: hadamard(2, HUGE),
        f"hashes_per_table is {HUGE}; wanted 1 to 15",
    ),
    "dwta_codes, hashes whose bits overflow": (
        lambda: ops.dwta_codes(torch.randn(2, 9), torch.zeros(6, 8, dtype=torch.int64), HUGE, 0),
        f"hashes_per_table is {HUGE}; wanted 1 to 10",
    ),
    "build_tables without data, buckets that overflow": (
        lambda: ops.build_tables(int32([0]).to("meta"), 70, 1, 0),
        "bucket_bits is 70; wanted 0 to 30",
    ),
    "residual_codes without data, bits that overflow": (
        lambda: ops.residual_codes(*(x.to("meta") for x in (torch.ones(1, 8), torch.ones(1, 8), int32(0))), HUGE),
        f"bits is {HUGE}; wanted 1 to 4",
    ),
    "hadamard_codes without data, no hashes": (
        lambda: ops.hadamard_codes(*(torch.ones(2, 3, 2, device="meta"),) * 3, 0),
        "hashes_per_table is 0; wanted 1 to 30",
    ),
    "hash_text, word n-grams": (lambda: hash_text(word=2**40), "word_ngrams is 1099511627776; wanted 0 to 64"),
    "hash_text, character n-grams": (lambda: hash_text(least=1, most=2**40), "char_min and char_max are 1 and 1099511"),
    "parse_xmc, features beyond int32": (
        lambda: ops.parse_xmc(torch.frombuffer(bytearray(b"0 4294967297:1\n"), dtype=torch.uint8), 2**33, 1),
        "num_features is 8589934592; wanted 0 to 2147483647",
    ),
    "parse_xmc, labels beyond int32": (
        lambda: ops.parse_xmc(torch.frombuffer(bytearray(b"4294967297\n"), dtype=torch.uint8), 1, 2**33),
        "num_labels is 8589934592; wanted 0 to 2147483647",
    ),
    "query_partition, examined": (lambda: query_partition(examined=2**63 - 1), "examined is 9223372036854775807"),
    "query_partition, candidates": (lambda: query_partition(max_candidates=HUGE), f"max_candidates is {HUGE}"),
    "nearest_rows, candidates": (lambda: nearest_rows(1, HUGE), f"candidates is {HUGE}; wanted 1 to 2147483647"),
    "select_rows, rows": (
        lambda: ops.select_rows(torch.tensor([[1]]), torch.tensor([[2]]), 2**63 - 1, 2, 0, 0, False),
        "num_rows is 9223372036854775807; wanted 1 to 2147483647",
    ),
    "probe_codes, changes that overflow": (
        lambda: ops.probe_codes(
            int32([0]), torch.empty(1, 1, 2**40, 0, dtype=torch.int32), torch.empty(1, 1, 2**40, 0), HUGE
        ),
        f"probes is {HUGE}; wanted 1 to 2147483647",
    ),
    "probe_codes, negative costs": (
        lambda: ops.probe_codes(int32([0]), torch.ones(1, 1, 1, 1, dtype=torch.int32), -torch.ones(1, 1, 1, 1), 2),
        "costs holds -1; wanted at least 0",
    ),
    "rows_topk, results": (
        lambda: ops.rows_topk(torch.randn(1, 2), torch.randn(3, 2), None, torch.tensor([[0]]), HUGE),
        f"k is {HUGE}; wanted 1 to 2147483647",
    ),
    "product, operands repeated without memory": (
        lambda: ops.product(torch.ones(1, 1).expand(2**40, 1), torch.ones(1, 1).expand(1, 2**40)),
        r"product\(\[1099511627776, 1\] Float, \[1, 1099511627776\] Float, None\) needs more memory than there is",
    ),
    "gather_rows, a result too large": (
        lambda: ops.gather_rows(torch.zeros(1, 2**24), torch.zeros(2**23, dtype=torch.int64)),
        r"gather_rows\(\[1, 16777216\] Float, \[8388608\] Long, None\) needs more memory than there is",
    ),
    "linear_softmax_loss_backward, one dimension": (
        lambda: ops.linear_softmax_loss_backward(
            torch.ones(1, 1), torch.ones(1), torch.ones(2), torch.ones(3, 2), torch.tensor([0]), True
        ),
        r"x has shape \[2\]; wanted 2 dimension",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_error_names_the_argument(name):
    call, message = CALLS[name]
    with pytest.raises(RuntimeError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda store: store[2][0].fill_(2**30), r"ids\[0, 4\] is 1073741824; wanted 0 to 8"),
        (lambda store: store[2][0].fill_(-7), r"ids\[0, 4\] is -7; wanted 0 to 8"),
        (lambda store: store[3].fill_(2**30), "next holds 1073741824; wanted -1 to 2"),
        (lambda store: store[4][0].fill_(77), "heads holds block 77 with 77 rows"),
        (lambda store: store[5].fill_(2**31 - 1), "row 0 is at place 2147483647 of bucket 0"),
        (lambda store: store[5].fill_(100), r"places\[0\] is 100; wanted the place of row 0 in ids"),
        (lambda store: store[6].fill_(5), "row 0 is at place 0 of bucket 5"),
    ],
)
def test_a_partition_that_contradicts_itself(change, message):
    store = partition()
    change(store)
    if "ids[0, 4]" in message.replace("\\", ""):
        store[2][0, 0] = 0  # the row that is moved is where it should be, the one that fills its gap is not
    with pytest.raises(RuntimeError, match=message):
        update(store, torch.tensor([0]), int32(1))


@pytest.mark.parametrize("shape", [(2**62, 0), (2**40, 0)])
def test_many_rows_of_nothing_take_no_time(shape):
    x, nothing = torch.empty(shape), torch.empty(0, 0)
    assert ops.simhash_codes(x, nothing, 1).shape == shape
    assert ops.simhash_products(x, nothing).shape == shape
    assert ops.hadamard_products(x, torch.ones(1, 3, 8), nothing).shape == shape
    assert ops.dwta_codes(x, torch.empty(0, 8, dtype=torch.int64), 1, 0).shape == shape
    assert ops.sampled_dot(x, torch.empty(1, 0), torch.empty(shape, dtype=torch.int64)).shape == shape
    wide = torch.empty(0, shape[0], dtype=torch.int64)
    assert ops.select_rows(torch.tensor([[1]]), wide, 9, 4, 0, 0, False)[0].tolist() == [1]


@pytest.mark.parametrize("fifo", [False, True])
def test_update_tables_with_repeated_rows_is_as_in_the_twin(fifo):
    generator = torch.Generator().manual_seed(0)
    for size in (1, 3, 20):
        row_buckets = torch.randint(4, (20, 3), dtype=torch.int32, generator=generator)
        state = (*ops.build_tables(row_buckets, 2, size, 0, fifo), row_buckets)
        rows = torch.randint(20, (50,), generator=generator)
        buckets = torch.randint(4, (50, 3), dtype=torch.int32, generator=generator)
        ours, theirs = ([tensor.clone() for tensor in state] for _ in range(2))
        moved = ops.update_tables(*ours, rows, buckets, 0, fifo)
        assert moved == twins.update_tables(*theirs, rows, buckets, 0, fifo)
        assert all(map(torch.equal, ours, theirs))


def test_ids_that_are_no_rows_do_not_spoil_later_look_ups():
    ids, counts = torch.full((1, 1, 8), -(2**31), dtype=torch.int32), int32([8])
    assert ops.query_tables(ids, counts, None, int32([0]), 4).tolist() == [[-1] * 4]
    ids[0, 0] = torch.arange(8)
    found = ops.query_tables(ids, counts, None, int32([0]), 8)
    assert sorted(found[0].tolist()) == list(range(8))


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer needs terabytes of addresses")
def test_a_call_that_runs_out_of_memory_leaves_nothing_behind():
    """Sets of rows are kept by threads between calls; one that is left filled would be written past its end."""
    program = """
        import resource, torch
        from torch_lsh import ops
        torch.set_num_threads(1)
        labels, candidates = torch.tensor([[1], [40]]), torch.tensor([[4, 2, 7], [1, 30, 8]])
        small = labels, candidates, 50, 20, 5, 0, False
        expected = [part.clone() for part in ops.select_rows(*small)]
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        for seed in range(2):
            try:
                ops.select_rows(labels, torch.arange(10**6).view(1, -1), 2**31 - 1, 2**31 - 1, 5, seed, False)
            except RuntimeError as error:
                assert "select_rows([2, 1] Long, [1, 1000000] Long, 2147483647" in str(error), error
                assert "needs more memory than there is" in str(error), error
            else:
                raise SystemExit("did not run out of memory")
            assert all(map(torch.equal, ops.select_rows(*small), expected))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
