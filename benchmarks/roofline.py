"""Every operator of a training step against what the machine allows.

    python benchmarks/roofline.py --json out.jsonl

The peaks are taken in the same run: floating-point operations per second of a large product or one with a small
operand, by BLAS or by torch_lsh.ops.product, whichever is fastest, and bytes per second of a sum over an array far
larger than the caches. A virtual machine's bandwidth can change by half within seconds, with where its cores happen to
run; so that sum is taken before and after each operator that memory bounds, and all three anew, up to ten times, if the
sums differ by a tenth. The bound of an operator is its operations over the one or its bytes over the other, whichever
is given, where bytes are those that it must move if every row comes from memory once. Rows are drawn anew for every
call, so nothing that it reads is in the cache by accident. What it writes goes to memory that the call before has used,
part of which is still in the cache, and memory may write while it reads, which a sum does not show: an operator that
writes can exceed its bound. The embedding bag's gradient, the largest such result, is measured a second time with the
results of eight calls kept, so that nothing of it is in the cache, which is nearer to a training step: each line is
then read before it is written, and the bound does not count that. (Stores past the cache would save it, and the
optimizer would pay.)

Look-ups are bound by cache misses instead: a query touches a count and ``bucket_size / 16`` lines of ids per table and
the codes of each row that it ranks; the bound is their number over the rate at which the machine serves independent
random lines, which is measured by a gather of single lines.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch

from torch_lsh import ops
from torch_lsh.benchmarking import harness
from torch_lsh.index.hash_tables import HashTableIndex

ROUNDS = 21


def median_seconds(run: Callable[[], Any]) -> float:
    return statistics.median(harness.in_turn({"": run}, ROUNDS)[""])


def product_flops(m: int, k: int, n: int, dtype: torch.dtype) -> float:
    a, b, out = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype), torch.empty(m, n, dtype=dtype)
    seconds = median_seconds(lambda: torch.mm(a, b, out=out))
    if dtype is torch.float32:
        seconds = min(seconds, median_seconds(lambda: ops.product(a, b)))
    return 2 * m * k * n / seconds


def peak_flops(dtype: torch.dtype) -> float:
    return max(product_flops(2048, 2048, 2048, dtype), product_flops(4096, 256, 256, dtype))


def random_lines(rows: int, count: int) -> float:
    """Independent random cache lines per second."""
    table = torch.empty(rows, 16)
    ops.prefer_huge_pages(table)
    table.fill_(1)
    return count / median_seconds(lambda: ops.gather_rows(table, torch.randint(rows, (count,))))


def embedding_bag(arguments: argparse.Namespace, report_bytes: Callable[[str, Callable[[], Any], float], None]) -> None:
    """The input layer, 75 features a sample. Tables take turns, or half of one would be in a cache of 32 MiB."""
    features, width, batch, nonzeros = arguments.features, arguments.width, arguments.batch, 75 * arguments.batch
    tables = [torch.empty(features, width) for _ in range(8)]
    for weight in tables:
        ops.prefer_huge_pages(weight)  # as the layer does
        weight.normal_()
    crow, values, grad = torch.arange(0, nonzeros + 1, 75), torch.rand(nonzeros), torch.randn(batch, width)
    columns = [torch.randint(features, (nonzeros,)) for _ in range(ROUNDS + 2)]
    weights, column = itertools.cycle(tables), itertools.cycle(columns)
    csr, results = nonzeros * (8 + 4), batch * width * 4
    report_bytes(
        "embedding_bag",
        lambda: ops.embedding_bag(next(weights), crow, next(column), values),
        nonzeros * width * 4 + csr + results,
    )

    touched = statistics.mean(len(column.unique()) for column in columns)
    gradient = touched * (width * 4 + 8)
    kept: collections.deque[Any] = collections.deque()

    def backward() -> None:
        kept.append(torch.ops.torch_lsh.embedding_bag_backward(grad, crow, next(column), values))

    for name, most in (("embedding_bag_backward", 1), (" to memory out of the cache", 8)):
        kept = collections.deque(maxlen=most)
        for _ in range(most + 2):  # memory that is new to the process is slow
            backward()
        report_bytes(name, backward, gradient + csr + results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=670_091)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--active", type=int, default=8192)
    parser.add_argument("--features", type=int, default=135_909)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows, width, batch, active = arguments.rows, arguments.width, arguments.batch, arguments.active
    info = harness.machine(arguments.threads)
    print(info)
    flops, bfloat16_flops = peak_flops(torch.float32), peak_flops(torch.bfloat16)
    bandwidth = harness.MemoryBandwidth()
    lines = random_lines(rows * 8, 1 << 16)
    print(
        f"peaks: {flops / 1e9:.0f} GFLOP/s, {bandwidth.now() / 1e9:.1f} GB/s, {lines / 1e6:.0f} million random lines/s;"
        f" bfloat16 {bfloat16_flops / 1e9:.0f} GFLOP/s"
    )
    torch.manual_seed(0)
    records: list[dict[str, Any]] = []

    def report(name: str, seconds: float, bound: float, kind: str) -> None:
        records.append(
            {
                "operator": name,
                "median_ms": seconds * 1e3,
                "bound_ms": bound * 1e3,
                "share": bound / seconds,
                "by": kind,
            }
        )

    def report_bytes(name: str, run: Callable[[], Any], size: float) -> None:
        seconds, peak = bandwidth.around(lambda: median_seconds(run))
        report(name, seconds, size / peak, f"bytes, {peak / 1e9:.0f} GB/s")

    def drawn() -> torch.Tensor:
        return torch.randperm(rows)[:active].sort().values

    table, *moments = (torch.empty(rows, width) for _ in range(3))
    for tensor in (table, *moments):
        ops.prefer_huge_pages(tensor)  # as layers and optimizers do
        tensor.normal_().abs_()
    x = torch.randn(batch, width)
    draws = [drawn() for _ in range(ROUNDS + 2)]
    turn = iter([])

    def rows_of_turn() -> torch.Tensor:
        nonlocal turn
        row = next(turn, None)
        if row is None:
            turn = iter(draws)
            row = next(turn)
        return row

    # dense products of an active set: the rows are next to each other already
    near = torch.randn(active, width)
    product = median_seconds(lambda: torch.mm(x, near.T))
    work = 2 * batch * active * width
    report("product of near rows (BLAS)", product, work / flops, "operations")
    gathered = median_seconds(lambda: ops.gather_matmul(x, table, None, rows_of_turn()))
    report("gather_matmul", gathered, work / flops, "operations")
    records[-1]["of_blas"] = product / gathered
    positions, shares = torch.randint(active, (batch, 1)), torch.ones(batch, 1)

    def fused_loss(x: torch.Tensor, flops: float, name: str) -> None:
        loss = median_seconds(lambda: ops.linear_softmax_loss(x, table, None, rows_of_turn(), None, positions, shares))
        report(f"linear_softmax_loss{name}", loss, work / flops, "operations")
        _, slopes, scale = ops.linear_softmax_loss(x, table, None, draws[0], None, positions, shares)
        backward = median_seconds(lambda: ops.linear_softmax_loss_backward(slopes, scale, x, table, rows_of_turn()))
        report(f"linear_softmax_loss_backward{name}", backward, 2 * work / flops, "operations")

    fused_loss(x, flops, "")
    fused_loss(x.bfloat16(), bfloat16_flops, ", bfloat16")

    report_bytes("gather_rows", lambda: ops.gather_rows(table, rows_of_turn()), 2 * active * width * 4)
    gradient = torch.randn(active, width)
    step = (1e-3, 0.9, 0.999, 1e-8, 0.0, 1.0, 1.0, False, False)
    report_bytes(
        "row_sparse_adam_",
        lambda: ops.row_sparse_adam_(table, *moments, rows_of_turn(), gradient, None, *step),
        7 * active * width * 4,  # reads four arrays, writes three
    )
    embedding_bag(arguments, report_bytes)
    index = HashTableIndex(rows, width, mips=False)
    index.build(table)
    hashed = ops.gather_rows(table, draws[0])
    augmented = torch.cat([hashed, torch.zeros(active, 1)], 1)
    report(
        "simhash_codes",
        median_seconds(lambda: index.family.codes(augmented)),
        2 * active * (width + 1) * index.num_tables * index.hashes_per_table / flops,
        "operations",
    )
    candidates = 32
    queries = [torch.randn(batch, width) for _ in range(ROUNDS + 2)]
    query_turn = iter(queries)
    per_table = 1 + index.bucket_size / 16
    per_row = index.num_tables * 4 / 64 + 0.5  # the codes of a row begin anywhere in a line
    misses = batch * (index.num_tables * per_table + 8 * candidates * per_row)
    report("query", median_seconds(lambda: index.query(next(query_turn), candidates)), misses / lines, "random lines")
    label, candidate = torch.randint(rows, (batch, 5)), torch.randint(rows, (2, active // 2))
    report(
        "select_rows",
        median_seconds(lambda: ops.select_rows(label, candidate, rows, active, active // 10, 0, False)),
        2 * active / lines,  # a bit set for each row when it comes and when it is read
        "random lines",
    )
    header = ("operator", "median ms", "bound ms", "share of bound", "bound by")
    print(
        harness.table([[r[k] for k in ("operator", "median_ms", "bound_ms", "share", "by")] for r in records], header)
    )
    print(f"gather_matmul runs at {product / gathered:.0%} of the speed of the product of near rows")
    harness.write_json([{"benchmark": "roofline", "machine": info, **record} for record in records], arguments.json)


if __name__ == "__main__":
    main()
