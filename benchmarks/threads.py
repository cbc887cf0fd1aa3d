"""Speed of a training step by number of cores: measured with one and two, modelled for more.

    python benchmarks/threads.py --memory-bandwidth 300

Every operator of the step is timed alone, with one thread and with two. Inside of the step PyTorch's profiler tells the
time of all operators from the rest. The rest is called serial: Python, autograd, dispatch. The operators take longer
in the step than alone, because its caches are colder; this time is called shared.

The model divides the time of an operator by the number of cores or of its tasks, whichever is smaller, and bounds it
from below by its bytes over the bandwidth: one core's times the number of cores, up to the machine's. It ignores
what threads cost each other (wake-ups, shared caches); the measured column shows how much that is.

The last line shows what a second core gives to work without a serial part, in the same run: two independent training
processes of one thread each, a matrix product, passes over memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from torch_lsh import ops
from torch_lsh.benchmarking import harness
from torch_lsh.benchmarking.step import make_step
from torch_lsh.benchmarking.systems import LSH
from torch_lsh.index.hash_tables import HashTableIndex

CORES = (1, 2, 8, 32, 64)
LARGEST_CACHE = 32 << 20  # what is smaller goes from one operator to the next without memory
LOOKED_UP = 4  # samples, where rows are carried over


@dataclass
class Part:
    """An operator of the step: how many tasks it can be split into, and the bytes that it moves from memory."""

    name: str
    run: Callable[[], Any]
    tasks: int
    bytes: float


def gradient_tasks(batch: int, active: int, width: int) -> int:
    """What the backward splits into, at most: parts of 16 samples, of each partial gradient that fits in the cache."""
    partial_gradients = -(-active // 512) if batch * width <= 1 << 16 else 1
    return partial_gradients * max(1, batch // 16)


def parts_of(rows: int, width: int, batch: int, active: int) -> list[Part]:
    table, first, second = (torch.empty(rows, width) for _ in range(3))
    bias, bias_first, bias_second = (torch.empty(rows) for _ in range(3))
    for tensor in (table, first, second, bias, bias_first, bias_second):
        ops.prefer_huge_pages(tensor)
        tensor.normal_().abs_()
    layer = LSH(nn.Linear(width, rows), 1e-3, active).layer
    x, positions, shares = torch.randn(batch, width), torch.randint(active, (batch, 1)), torch.ones(batch, 1)
    layer.sample(x, torch.randint(rows, (batch, 1)))
    index = layer.sampler.tables
    assert isinstance(index, HashTableIndex)

    def drawn() -> torch.Tensor:
        return torch.randint(rows, (active,)).sort().values.unique()

    draws = [drawn() for _ in range(16)]
    count = min(map(len, draws))
    draws = [draw[:count] for draw in draws]
    turn = [0]

    def next_rows() -> torch.Tensor:
        turn[0] += 1
        return draws[turn[0] % len(draws)]

    positions.clamp_(max=count - 1)
    _, slopes, scale = ops.linear_softmax_loss(x, table, bias, draws[0], None, positions, shares)
    gradient = torch.randn(count, width)
    labels, candidates = torch.randint(rows, (batch, 1)), torch.randint(rows, (LOOKED_UP, active // LOOKED_UP // 2))
    carried = torch.randint(rows, (active // 2,))
    pushed, touches = torch.rand(count), torch.zeros(rows, dtype=torch.uint8)
    log_weights = torch.where(torch.rand(count) < 0.1, 6.0, 0.0)  # a tenth of the rows are random
    row_bytes = 4.0 * width * active
    logit_bytes = 4.0 * batch * active if 4 * batch * active > LARGEST_CACHE else 0.0
    lines = index.num_tables * (1 + index.bucket_size / 16) * 64
    step = (1e-3, 0.9, 0.999, 1e-8, 0.0, 1.0, 1.0, False, False)
    return [
        Part(
            f"look-up of {LOOKED_UP} samples",
            lambda: index.query(x[:LOOKED_UP], active // LOOKED_UP // 2),
            LOOKED_UP,
            LOOKED_UP * lines,
        ),
        Part(
            "choice of rows",
            lambda: ops.select_rows(labels, candidates, rows, active, active // 10, 0, False, carried),
            1,
            0,
        ),
        Part(
            "loss",
            lambda: ops.linear_softmax_loss(x, table, bias, next_rows(), log_weights, positions, shares, batch),
            -(-active // 48),
            row_bytes + 3 * logit_bytes,
        ),
        Part(
            "gradients",
            lambda: ops.linear_softmax_loss_backward(slopes, scale, x, table, next_rows()),
            gradient_tasks(batch, active, width),
            2 * row_bytes + 2 * logit_bytes,
        ),
        Part("rows to carry over", lambda: ops.largest_rows(pushed, draws[0], count // 2, log_weights), 1, 0),
        Part(
            "Adam",
            lambda: ops.row_sparse_adam_(table, first, second, next_rows(), gradient, None, *step),
            -(-active // 128),
            6 * row_bytes,
        ),
        Part(
            "Adam, bias",
            lambda: ops.row_sparse_adam_(bias, bias_first, bias_second, next_rows(), pushed, None, *step),
            -(-active // 128),
            6.0 * 64 * active,
        ),
        Part("touched rows", lambda: torch.ops.torch_lsh.count_touches_(touches, next_rows()), 1, 0),
    ]


def seconds_by_threads(run: Callable[[], Any], threads: set[int], turns: int = 6, calls: int = 10) -> dict[int, float]:
    """Medians with each number of threads, which take turns of some calls."""

    def with_threads(number: int) -> Callable[[], Any]:
        def call() -> Any:
            torch.set_num_threads(number)
            return run()

        return call

    seconds = harness.in_turn({str(number): with_threads(number) for number in threads}, turns, calls=calls)
    return {int(number): statistics.median(each) for number, each in seconds.items()}


def make_training_step(rows: int, width: int, batch: int, active: int) -> Callable[[], Any]:
    torch.manual_seed(0)
    return make_step(LSH(nn.Linear(width, rows), 1e-3, active), rows, width, batch)


def train_when_told(connection: Connection, sizes: tuple[int, int, int, int]) -> None:
    """A process of its own: trains for as many seconds as it is told and says what each step took; at 0 it ends."""
    torch.set_num_threads(1)
    step = make_training_step(*sizes)
    step()
    connection.send([])
    while seconds := connection.recv():
        took: list[float] = []
        while sum(took) < seconds:
            before = time.perf_counter()
            step()
            took.append(time.perf_counter() - before)
        connection.send(took)


def speedup_of_two_processes(sizes: tuple[int, int, int, int], turns: int = 12, seconds: float = 0.5) -> float:
    """Steps per second of two processes at once over those of one alone, in turn; each has one thread."""
    context = multiprocessing.get_context("spawn")
    connections = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        context.Process(target=train_when_told, args=(theirs, sizes), daemon=True).start()
        theirs.close()  # so that the end of the process is seen here
        connections.append(ours)

    def steps_of(some: list[Any]) -> list[float]:
        for connection in some:
            connection.send(seconds)
        return [took for connection in some for took in connection.recv()]

    for connection in connections:
        connection.recv()
    steps_of(connections)
    alone: list[float] = []
    both: list[float] = []
    for turn in range(turns):
        alone += steps_of([connections[turn % 2]])
        both += steps_of(connections)
    for connection in connections:
        connection.send(0)
    return 2 * statistics.median(alone) / statistics.median(both)


def without_serial_part() -> dict[str, Callable[[], Any]]:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return {"a matrix product": lambda: ops.product(a, b), "passes over memory": harness.MemoryBandwidth().now}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=670_091, help="outputs of the layer")
    parser.add_argument("--width", type=int, default=128, help="features of an input")
    parser.add_argument("--batch", type=int, default=256, help="samples per step")
    parser.add_argument("--active", type=int, default=8192, help="active rows per step")
    parser.add_argument("--memory-bandwidth", type=float, default=300, help="GB/s of the modelled machine")
    parser.add_argument("--turns", type=int, default=6, help="that each number of threads takes")
    parser.add_argument("--calls", type=int, default=10, help="of a turn")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    info = harness.machine()
    here = min(2, os.cpu_count() or 1)
    torch.set_num_threads(1)
    one_core = harness.MemoryBandwidth().now()
    print(info, f"bandwidth of one core {one_core / 1e9:.1f} GB/s", sep="\n")
    sizes = (arguments.rows, arguments.width, arguments.batch, arguments.active)
    turns, calls = arguments.turns, arguments.calls
    step = make_training_step(*sizes)
    whole = seconds_by_threads(step, {1, here}, 5 * turns // 2, calls)
    torch.set_num_threads(1)
    in_all, inside = harness.profiled(step, calls)
    parts = parts_of(*sizes)
    alone = {part.name: seconds_by_threads(part.run, {1, here}, turns, calls) for part in parts}
    serial = in_all - inside
    shared = max(0.0, whole[1] - sum(part[1] for part in alone.values()) - serial)

    def modelled(part: Part, cores: int) -> float:
        bandwidth = min(cores * one_core, max(one_core, arguments.memory_bandwidth * 1e9))
        return max(alone[part.name][1] / min(cores, part.tasks), part.bytes / bandwidth)

    records: list[dict[str, Any]] = []
    for part in parts:
        model = {str(cores): modelled(part, cores) * 1e3 for cores in CORES}
        records.append({"part": part.name, "measured": alone[part.name][here] * 1e3, "model": model})
    model = {str(cores): shared * 1e3 / cores for cores in CORES}
    records.append({"part": "beyond them, shared", "measured": shared * 1e3 / here, "model": model})
    records.append({"part": "serial", "measured": serial * 1e3, "model": {str(c): serial * 1e3 for c in CORES}})
    total = {str(c): sum(record["model"][str(c)] for record in records) for c in CORES}
    records.append({"part": "step", "measured": whole[here] * 1e3, "model": total})
    table = [[r["part"], r["measured"], *(r["model"][str(cores)] for cores in CORES)] for r in records]
    print(harness.table(table, ("milliseconds", f"measured, {here}", *(f"model, {cores}" for cores in CORES))))
    for cores in CORES[1:]:
        largest = max(records[:-1], key=lambda record: record["model"][str(cores)])
        print(f"{cores} cores: {total['1'] / total[str(cores)]:.2f} times one core; most of it: {largest['part']}")
    speedups = {"the step": whole[1] / whole[here], "two processes": speedup_of_two_processes(sizes, 2 * turns)}
    for name, run in without_serial_part().items():
        seconds = seconds_by_threads(run, {1, here}, calls=2)
        speedups[name] = seconds[1] / seconds[here]
    print(f"measured, {here} cores: " + ", ".join(f"{name} {times:.2f} times" for name, times in speedups.items()))
    records.append({"part": "speed-up", **speedups})
    harness.write_json([{"benchmark": "threads", "machine": info, **r} for r in records], arguments.json)


if __name__ == "__main__":
    main()
