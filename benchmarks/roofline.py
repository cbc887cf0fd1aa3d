"""Every operator of a training step beside its bound: what the machine allows.

    python benchmarks/roofline.py --json out.jsonl

The bound of an operator is its floating-point operations over the peak rate or its bytes over the bandwidth, whichever
limits it. Bytes assume that every row comes from memory once; rows are drawn anew for every call, so none is cached.

Peaks are measured in the same run:

- operations: matrix products of 4096 x 256 x 256 by torch_lsh.ops.product, in turn with each operator, since the clock
  of a core moves by a tenth within minutes: the median over the turns of the fastest of four. If BLAS is faster in
  its best call, by this factor more;
- bandwidth: a sum over an array far larger than the caches. A virtual machine's bandwidth can halve within seconds, so
  it is measured before and after each operator that memory bounds, and all three are repeated, up to ten times, until
  the two agree within a tenth;
- cache misses: a gather of single random lines.

A look-up is bound by cache misses. A query touches a count and ``bucket_size / 16`` lines of ids per table, and the
codes of each row that it ranks.

A whole training step at 670,091 x 128, batch 256 and 8,192 active rows, on two cores of Zen 4 (117 GFLOP/s each, by FMA
on registers alone): three products of 0.54 GFLOP take 6.9 ms. To that come 2.1 million exponentials (0.16 ms, 9 cycles
a vector of 16), two gathers of 4 MB (0.2 ms each), 29 MB of an Adam step (0.7 ms), and the choice of rows.

The bound of the loss counts its product alone. A core of Zen 5 (4 GHz, two vectors of 16 multiply-adds a cycle: 258
GFLOP/s) takes 1.04 ms for its half of that, and, by a thread alone:

- 0.07 ms for exponentials, 4.2 cycles a vector: they take the same units of the core as the product;
- 0.09 ms to gather rows. Each is on a page of its own, which a virtual machine whose host has pages of 4 KiB looks up
  in two tables, 54 cycles a row; a core stops until it has, so that no product hides it;
- 0.03 ms more for the product when the lines of its results are in no cache;
- 0.05 ms to call an operator of PyTorch after another one has filled the caches: ``torch.add`` of 8 numbers takes as
  long then. This and what the operator itself does in one thread leaves a second core idle.

On two cores of an Intel Xeon with AMX (395 to 440 GFLOP/s) the same product of rows that are next to each other has
0.71 to 0.75 of the peak in MKL: results of 8 MB leave the second-level cache, and a line is read before it is written.
The loss has 0.64 to 0.68 and its backward 0.66 to 0.69. With AMX, products take a tenth of that, and what is left is
memory: the loss in bfloat16 reads rows of 4 MB and writes slopes of 4 MB, 0.35 ms at 34 GB/s with the lines that are
read before.

An operator that writes can exceed its bound: part of its output stays in the cache, and memory writes while it reads.
The gradient of the embedding bag, the largest output, is therefore measured a second time with eight results kept, so
that none is cached, as in a training step. Each line is then read before it is written, which the bound does not count.
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_lsh import ops
from torch_lsh.benchmarking import harness
from torch_lsh.index.hash_tables import HashTableIndex

ROUNDS = 21


def median_seconds(run: Callable[[], Any]) -> float:
    return statistics.median(harness.in_turn({"": run}, ROUNDS)[""])


class PeakRate:
    """Floating-point operations per second of the fastest matrix product, in ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._operands = torch.randn(4096, 256, dtype=dtype), torch.randn(256, 256, dtype=dtype)
        self._operations = 2 * 4096 * 256 * 256
        large = torch.randn(2048, 2048, dtype=dtype)
        out = torch.empty(4096, 256, dtype=dtype)
        # One after the other: threads of BLAS that wait for work would slow down the other.
        of_blas = self._operations / self._fastest(lambda: torch.mm(*self._operands, out=out))
        of_blas = max(of_blas, 2 * 2048**3 / self._fastest(lambda: torch.mm(large, large)))
        ours = self._operations / self._fastest(lambda: ops.product(*self._operands))
        self._lead = max(1.0, of_blas / ours)
        self.best = self._lead * ours
        self._turns: list[float] = []

    @staticmethod
    def _fastest(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
        return min(harness.in_turn({"": run}, rounds)[""])

    def rate_of_product(self) -> float:
        """On the instruction set in use. The fastest of some counts: the first finds their data in no cache."""
        return self._operations / self._fastest(lambda: ops.product(*self._operands), 4)

    def take_turn(self) -> None:
        """Takes turns with an operator."""
        self._turns.append(self.rate_of_product())

    def of_turns(self) -> float:
        """The median rate of the turns since the last call."""
        turns, self._turns = self._turns, []
        return self._lead * statistics.median(turns)


def random_lines(rows: int, count: int) -> float:
    """Independent random cache lines per second."""
    table = torch.empty(rows, 16)
    ops.prefer_huge_pages(table)
    table.fill_(1)
    return count / median_seconds(lambda: ops.gather_rows(table, torch.randint(rows, (count,))))


class Report:
    """Measures operators and collects each with its bound.

    Args:
        rows: of the layer.
        active: rows of a step, drawn anew for every call.
    """

    def __init__(self, rows: int, active: int) -> None:
        self.records: list[dict[str, Any]] = []
        self.peaks = {dtype: PeakRate(dtype) for dtype in (torch.float32, torch.bfloat16)}
        self._bandwidth = harness.MemoryBandwidth()
        self.lines = random_lines(rows * 8, 1 << 16)
        print(
            f"peaks: {self.peaks[torch.float32].best / 1e9:.0f} GFLOP/s, {self._bandwidth.now() / 1e9:.1f} GB/s, "
            f"{self.lines / 1e6:.0f} million random lines/s; "
            f"bfloat16 {self.peaks[torch.bfloat16].best / 1e9:.0f} GFLOP/s"
        )
        torch.manual_seed(0)
        self.draws = [torch.randperm(rows)[:active].sort().values for _ in range(ROUNDS + 2)]
        self._turn = itertools.cycle(self.draws)

    def next_rows(self) -> Tensor:
        return next(self._turn)

    def _add(self, name: str, seconds: float, bound: float, kind: str) -> None:
        times = {"median_ms": seconds * 1e3, "bound_ms": bound * 1e3}
        self.records.append({"operator": name, **times, "share": bound / seconds, "by": kind})

    def by_operations(
        self, name: str, run: Callable[[], Any], operations: float, dtype: torch.dtype = torch.float32
    ) -> float:
        """Measures an operator that arithmetic bounds; returns its seconds."""
        peak = self.peaks[dtype]
        seconds = statistics.median(harness.in_turn({"peak": peak.take_turn, "": run}, ROUNDS)[""])
        rate = peak.of_turns()
        self._add(name, seconds, operations / rate, f"operations, {rate / 1e9:.0f} GFLOP/s")
        return seconds

    def by_bytes(self, name: str, run: Callable[[], Any], size: float) -> None:
        """Measures an operator that bandwidth bounds."""
        seconds, peak = self._bandwidth.around(lambda: median_seconds(run))
        self._add(name, seconds, size / peak, f"bytes, {peak / 1e9:.0f} GB/s")

    def by_lines(self, name: str, run: Callable[[], Any], misses: float) -> None:
        """Measures an operator that cache misses bound."""
        self._add(name, median_seconds(run), misses / self.lines, "random lines")

    def __str__(self) -> str:
        keys = ("operator", "median_ms", "bound_ms", "share", "by")
        header = ("operator", "median ms", "bound ms", "share of bound", "bound by")
        return harness.table([[record[key] for key in keys] for record in self.records], header)


def products(report: Report, x: Tensor, table: Tensor) -> None:
    """Logits of the active rows, and the loss on them; the dense product has its rows next to each other already."""
    active, (batch, width) = len(report.draws[0]), x.shape
    work = 2 * batch * active * width
    near = torch.randn(active, width)
    dense = report.by_operations("product of near rows (BLAS)", lambda: torch.mm(x, near.T), work)
    gathered = report.by_operations(
        "gather_matmul", lambda: ops.gather_matmul(x, table, None, report.next_rows()), work
    )
    report.records[-1]["of_blas"] = dense / gathered
    positions, shares = torch.randint(active, (batch, 1)), torch.ones(batch, 1)
    for dtype in (torch.float32, torch.bfloat16):
        suffix = "" if dtype is torch.float32 else ", bfloat16"
        fused_loss(report, suffix, x.to(dtype), table, (None, positions, shares), work)


def fused_loss(report: Report, suffix: str, x: Tensor, table: Tensor, target: tuple[Any, ...], work: float) -> None:
    report.by_operations(
        f"linear_softmax_loss{suffix}",
        lambda: ops.linear_softmax_loss(x, table, None, report.next_rows(), *target),
        work,
        x.dtype,
    )
    _, slopes, scale = ops.linear_softmax_loss(x, table, None, report.draws[0], *target)
    report.by_operations(
        f"linear_softmax_loss_backward{suffix}",
        lambda: ops.linear_softmax_loss_backward(slopes, scale, x, table, report.next_rows()),
        2 * work,
        x.dtype,
    )


def levels(report: Report, x: Tensor, table: Tensor) -> list[dict[str, Any]]:
    """The loss and its backward in float32 and bfloat16, in turn, on every instruction set that this CPU runs.

    Beside the share of the CPU's peak: that of the rate of float32 products on the same instruction set.
    """
    active, (batch, width) = len(report.draws[0]), x.shape
    target = (None, torch.randint(active, (batch, 1)), torch.ones(batch, 1))
    work = {"loss": 2 * batch * active * width, "backward": 4 * batch * active * width}
    peak = report.peaks[torch.float32]
    records = []
    for level in harness.simd_levels():
        own: list[float] = []  # rates of products
        runs: dict[str, Callable[[], Any]] = {"peak": peak.take_turn}
        runs["own"] = lambda own=own: own.append(peak.rate_of_product())
        passes = {dtype: Pass(report, x.to(dtype), table, target) for dtype in (torch.float32, torch.bfloat16)}
        for dtype, of_dtype in passes.items():
            runs |= {f"loss {dtype}": of_dtype.forward, f"backward {dtype}": of_dtype.backward}
        runs = {name: functools.partial(_on_level, "" if name == "peak" else level, run) for name, run in runs.items()}
        seconds = harness.in_turn(runs, 5 if level == "scalar" else ROUNDS, warm_up=1)
        ops.use_simd_level(level)
        rate = peak.of_turns()
        record: dict[str, Any] = {"level": level, "bfloat16_products": harness.bfloat16_products()}
        for part in work:
            single, half = (statistics.median(seconds[f"{part} {d}"]) for d in (torch.float32, torch.bfloat16))
            record[part] = single * 1e3
            record[f"{part}_share"] = work[part] / rate / single
            record[f"{part}_share_of_level"] = work[part] / statistics.median(own) / single
            record[f"{part}_bfloat16"] = half * 1e3
            record[f"{part}_bfloat16_to_float32"] = half / single
        records.append(record)
    ops.use_simd_level("")
    return records


class Pass:
    """A loss, and the backward pass from it: as in a step, what the one wrote is in cache for the other."""

    def __init__(self, report: Report, x: Tensor, table: Tensor, target: tuple[Any, ...]) -> None:
        self._report, self._x, self._table, self._target = report, x, table, target

    def forward(self) -> None:
        self._rows = self._report.next_rows()
        arguments = self._x, self._table, None, self._rows, *self._target
        _, self._slopes, self._scale = ops.linear_softmax_loss(*arguments)

    def backward(self) -> None:
        ops.linear_softmax_loss_backward(self._slopes, self._scale, self._x, self._table, self._rows)
        del self._slopes, self._scale


def _on_level(level: str, run: Callable[[], None]) -> None:
    ops.use_simd_level(level)
    run()


def table_of_levels(records: list[dict[str, Any]]) -> str:
    header = ("level", "bfloat16 products in")
    for part in ("loss", "backward"):
        header += (f"{part}, ms", "share of float32 peak", "of the level's", "bfloat16, ms", "of float32's time")
    return harness.table([list(record.values()) for record in records], header)


def rows_and_optimizer(report: Report, table: Tensor, moments: list[Tensor]) -> None:
    active, width = len(report.draws[0]), table.shape[1]
    report.by_bytes("gather_rows", lambda: ops.gather_rows(table, report.next_rows()), 2 * active * width * 4)
    gradient = torch.randn(active, width)
    step = (1e-3, 0.9, 0.999, 1e-8, 0.0, 1.0, 1.0, False, False)
    report.by_bytes(
        "row_sparse_adam_",
        lambda: ops.row_sparse_adam_(table, *moments, report.next_rows(), gradient, None, *step),
        7 * active * width * 4,  # reads four arrays, writes three
    )


def embedding_bag(report: Report, features: int, width: int, batch: int) -> None:
    """The input layer, 75 features a sample. Tables take turns, or half of one would be in a cache of 32 MiB."""
    nonzeros = 75 * batch
    tables = [torch.empty(features, width) for _ in range(8)]
    for weight in tables:
        ops.prefer_huge_pages(weight)  # as the layer does
        weight.normal_()
    crow, values, grad = torch.arange(0, nonzeros + 1, 75), torch.rand(nonzeros), torch.randn(batch, width)
    columns = [torch.randint(features, (nonzeros,)) for _ in range(ROUNDS + 2)]
    weights, column = itertools.cycle(tables), itertools.cycle(columns)
    csr, results = nonzeros * (8 + 4), batch * width * 4
    report.by_bytes(
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
        report.by_bytes(name, backward, gradient + csr + results)


def look_ups(report: Report, table: Tensor, batch: int, candidates: int = 32) -> None:
    rows, width = table.shape
    active = len(report.draws[0])
    index = HashTableIndex(rows, width, mips=False)
    index.build(table)
    augmented = torch.cat([ops.gather_rows(table, report.draws[0]), torch.zeros(active, 1)], 1)
    report.by_operations(
        "simhash_codes",
        lambda: index.family.codes(augmented),
        2 * active * (width + 1) * index.num_tables * index.hashes_per_table,
    )
    queries = itertools.cycle([torch.randn(batch, width) for _ in range(ROUNDS + 2)])
    per_table = 1 + index.bucket_size / 16
    per_row = index.num_tables * 4 / 64 + 0.5  # the codes of a row begin anywhere in a line
    misses = batch * (index.num_tables * per_table + 8 * candidates * per_row)
    report.by_lines("query", lambda: index.query(next(queries), candidates), misses)
    labels, candidate = torch.randint(rows, (batch, 5)), torch.randint(rows, (2, active // 2))
    report.by_lines(
        "select_rows",
        lambda: ops.select_rows(labels, candidate, rows, active, active // 10, 0, False),
        2 * active,  # a bit set for each row when it comes and when it is read
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=670_091, help="outputs of the layer")
    parser.add_argument("--width", type=int, default=128, help="features of an input")
    parser.add_argument("--batch", type=int, default=256, help="samples per step")
    parser.add_argument("--active", type=int, default=8192, help="active rows per step")
    parser.add_argument("--features", type=int, default=135_909, help="rows of the embedding bag")
    parser.add_argument("--levels-only", action="store_true", help="only the loss, by instruction set")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    rows, width, batch = arguments.rows, arguments.width, arguments.batch
    info = harness.machine(arguments.threads)
    print(info)
    report = Report(rows, arguments.active)
    table, *moments = (torch.empty(rows, width) for _ in range(3))
    for tensor in (table, *moments):
        ops.prefer_huge_pages(tensor)  # as layers and optimizers do
        tensor.normal_().abs_()
    x = torch.randn(batch, width)
    products(report, x, table)
    of_levels = levels(report, x, table)
    if arguments.levels_only:
        print(table_of_levels(of_levels))
        return
    rows_and_optimizer(report, table, moments)
    embedding_bag(report, arguments.features, width, batch)
    look_ups(report, table, batch)
    print(report)
    print(table_of_levels(of_levels))
    of_blas = next(record["of_blas"] for record in report.records if "of_blas" in record)
    print(f"gather_matmul runs at {of_blas:.0%} of the speed of the product of near rows")
    harness.write_json(
        [{"benchmark": "roofline", "machine": info, **record} for record in report.records + of_levels],
        arguments.json,
    )


if __name__ == "__main__":
    main()
