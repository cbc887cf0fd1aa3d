"""Training a wide layer in several processes: bytes and time of a step, measured, simulated and on paper.

    python benchmarks/distributed.py measure --processes 2 --json out.jsonl
    python benchmarks/distributed.py measure --processes 2 --gbit 1 --json out.jsonl      # as root, on Linux
    python benchmarks/distributed.py model out.jsonl

``measure`` trains in processes of one thread each, and counts what the network interface of process 0 sends. As root,
every process has a network namespace of its own, with a link of ``--gbit``; otherwise all share the loopback interface,
and bytes are those that the processes count themselves. ``model`` takes the constants that ``measure`` wrote and says
what a step costs on 8 to 64 machines with links of 10 and 100 Gbit/s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.benchmarking import harness
from torch_lsh.distributed import ShardedLSHLinear, exchange_rows_
from torch_lsh.distributed.channel import Channel
from torch_lsh.optim.gradients import sum_repeated_rows

SYSTEMS = ("one process", "dense DDP", "row exchange", "row-sharded")
PORT = 29_417
_WARM_UP = 3  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("measure", help="run the systems in processes of this machine")
    measured.add_argument("--processes", type=int, default=2)
    measured.add_argument("--gbit", type=float, help="rate of every process's link; needs root")
    measured.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    measured.add_argument("--rows", type=int, default=670_091, help="outputs of the layer")
    measured.add_argument("--width", type=int, default=128, help="features of an input")
    measured.add_argument("--batch", type=int, default=256, help="samples per process and step")
    measured.add_argument("--active", type=int, default=8192, help="active rows per step")
    measured.add_argument("--steps", type=int, default=10)
    measured.add_argument("--json", help="append the results as JSON lines to this file")
    measured.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    measured.add_argument("--address", help=argparse.SUPPRESS)
    modelled = commands.add_parser("model", help="bytes and time on more machines")
    modelled.add_argument("file", help="what measure wrote with --json")
    arguments = parser.parse_args()
    if arguments.command == "model":
        print_model([json.loads(line) for line in Path(arguments.file).read_text().splitlines()])
    elif arguments.rank is not None:
        work(arguments)
    else:
        measure(arguments)


# --- measure: the processes -------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> None:
    if arguments.gbit is not None and os.geteuid() != 0:
        raise SystemExit("--gbit makes network namespaces; wanted root")
    links = namespaces(arguments.processes, arguments.gbit) if os.geteuid() == 0 else contextlib.nullcontext(None)
    with links as prefixes:
        address = "10.77.0.1" if prefixes else "127.0.0.1"
        command = [sys.executable, __file__, *sys.argv[1:], "--address", address]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0" if prefixes else "lo", "OMP_NUM_THREADS": "1"}
        others = [
            subprocess.Popen([*(prefixes[rank] if prefixes else ()), *command, "--rank", str(rank)], env=environment)
            for rank in range(arguments.processes)
        ]
        try:
            failed = [process.wait() for process in others]
        finally:
            for process in others:
                process.kill()
    if any(failed):
        raise SystemExit(f"exit codes of the processes: {failed}")


@contextlib.contextmanager
def namespaces(count: int, gbit: float | None) -> Iterator[list[list[str]]]:
    """Network namespaces with addresses 10.77.0.1, 2, ... on one switch; yields what to put before a command."""

    def ip(*words: str, at: str | None = None) -> None:
        subprocess.run(["ip", *(("-n", at) if at else ()), *words], check=True)

    def limit(interface: str, at: str) -> None:
        if gbit is not None:
            words = f"qdisc add dev {interface} root tbf rate {gbit * 1e3:.0f}mbit burst 1mb latency 100ms".split()
            subprocess.run(["tc", "-n", at, *words], check=True)

    hub, names = f"torch-lsh-{os.getpid()}-hub", [f"torch-lsh-{os.getpid()}-{rank}" for rank in range(count)]
    try:
        for name in (hub, *names):
            ip("netns", "add", name)
            ip("link", "set", "lo", "up", at=name)
        ip("link", "add", "switch", "type", "bridge", at=hub)
        ip("link", "set", "switch", "up", at=hub)
        for rank, name in enumerate(names):
            ip("link", "add", f"port{rank}", "type", "veth", "peer", "name", "eth0", "netns", name, at=hub)
            ip("link", "set", f"port{rank}", "master", "switch", "up", at=hub)
            ip("address", "add", f"10.77.0.{rank + 1}/24", "dev", "eth0", at=name)
            ip("link", "set", "eth0", "up", at=name)
            limit("eth0", name)
            limit(f"port{rank}", hub)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in (hub, *names):
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


# --- measure: in each process -----------------------------------------------------------------------------------------


def work(arguments: argparse.Namespace) -> None:
    info = harness.machine(1)
    dist.init_process_group(
        "gloo", f"tcp://{arguments.address}:{PORT}", rank=arguments.rank, world_size=arguments.processes
    )
    size = {name: getattr(arguments, name) for name in ("processes", "rows", "width", "batch", "active", "gbit")}
    records = [{**size, "system": name, **train(name, arguments)} for name in arguments.systems]
    records.append({**size, "system": "constants", **constants(arguments)})
    if arguments.rank == 0:
        print(info)
        columns = ("median_ms", "min_ms", "max_ms", "sent_mb", "loss")
        print(harness.table([[r["system"], *(r[c] for c in columns)] for r in records[:-1]], ("system", *columns)))
        print({name: value for name, value in records[-1].items() if name not in size})
        for record in records:
            record.update(benchmark="distributed", machine=info)
        harness.write_json(records, arguments.json)
    dist.destroy_process_group()


def sent_bytes() -> int:
    """What this process's interface sent since it came up."""
    return int(Path("/sys/class/net/eth0/statistics/tx_bytes").read_text()) if has_own_link() else 0


def has_own_link() -> bool:
    return os.environ["GLOO_SOCKET_IFNAME"] == "eth0"


def train(system: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps of one system; every process has samples of its own."""
    torch.manual_seed(0)
    width, config = arguments.width, LSHConfig(active=arguments.active)
    sharded = system == "row-sharded"
    head: nn.Module = (ShardedLSHLinear if sharded else LSHLinear)(width, arguments.rows, config=config)
    model: nn.Module = nn.Sequential(nn.Linear(width, width), nn.ReLU(), head)
    exchange = exchange_rows_(model) if system in ("row exchange", "row-sharded") else None
    if system != "one process":
        model = DistributedDataParallel(model)
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(arguments.rank)
    seconds, sent, loss = [], 0, torch.zeros(())
    for _ in range(_WARM_UP + arguments.steps):
        x = torch.randn(arguments.batch, width, generator=generator)
        y = torch.randint(0, arguments.rows, (arguments.batch,), generator=generator)
        dist.barrier()
        before, counted, start = sent_bytes(), own_count(exchange, head), time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the dense system is dense on purpose
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        sent = sent_bytes() - before if has_own_link() else own_count(exchange, head) - counted
    return {**harness.summary(seconds[_WARM_UP:]), "sent_mb": sent / 1e6, "loss": loss.item()}


def own_count(exchange: Any, head: nn.Module) -> int:
    counted = [one.bytes_sent for one in (exchange, getattr(head, "channel", None)) if one is not None]
    return sum(counted)


def constants(arguments: argparse.Namespace) -> dict[str, float]:
    """What the model needs beside the time of one process."""
    channel, small, count = Channel(), torch.zeros(64), 64
    latency = statistics.median(harness.in_turn({"": lambda: channel.gather(small)}, 50)[""])
    many = [small] * count, [[torch.empty_like(small) for _ in range(channel.size)] for _ in range(count)]
    burst = statistics.median(harness.in_turn({"": lambda: channel.gather_into(*many)}, 20)[""])
    large = torch.zeros(1 << 21)
    seconds = statistics.median(harness.in_turn({"": lambda: channel.gather(large)}, 5)[""])
    rows = torch.randint(0, arguments.rows, (8 * arguments.active,))
    values = torch.randn(len(rows), arguments.width)
    merge = statistics.median(harness.in_turn({"": lambda: sum_repeated_rows(rows, values, arguments.rows)}, 5)[""])
    return {
        "latency_us": latency * 1e6,
        "message_us": burst / (count * (channel.size - 1)) * 1e6,
        "goodput_gbit": 8e-9 * (channel.size - 1) * large.nbytes / (seconds - latency),
        "merge_ns_per_row": merge / len(rows) * 1e9,
    }


def draw(axis: Any, records: list[dict[str, Any]]) -> None:
    """Milliseconds per step, a bar per system and link."""
    names = [f"{r['system']}, {r['gbit']} Gbit/s" if r["gbit"] else r["system"] for r in records]
    axis.barh(names[::-1], [r["median_ms"] for r in records][::-1])
    axis.set(xscale="log", xlabel="milliseconds per training step")


# --- model ------------------------------------------------------------------------------------------------------------


class Model:
    """Bytes that a machine sends per step, and the time of a step.

    Two kinds of collectives. DistributedDataParallel's sums go around in a ring: a machine sends twice the bytes, in
    ``2 * (n - 1)`` messages, each of which waits for the one before. Messages of this library go to all others at once:
    a round takes the time of the first, and for every other one the time to send and receive it. The rate is that of
    the link, or what gloo reached through TCP with one core of this machine, if that is less. Network and computation
    do not overlap. A process of a row-sharded layer computes for the samples of all, 1 / n of the rows: as much as one
    process alone.

    Args:
        records: of ``measure``, with and without ``--gbit``. Computation is that of the fewest processes.
    """

    def __init__(self, records: list[dict[str, Any]]) -> None:
        fewest = min(record["processes"] for record in records)
        records = [record for record in records if record["processes"] == fewest]
        constants = [record for record in records if record["system"] == "constants"]
        self.fastest = max(record["goodput_gbit"] for record in constants)
        free = {record["system"]: record for record in records if record["gbit"] is None}
        self.latency, self.message = (free["constants"][name] * 1e-3 for name in ("latency_us", "message_us"))
        self.merge = statistics.median(record["merge_ns_per_row"] for record in constants) * 1e-6
        slow = [record for record in constants if record["gbit"] is not None and record["gbit"] <= self.fastest / 2]
        self.share = statistics.median([record["goodput_gbit"] / record["gbit"] for record in slow] or [1.0])
        self.one = free["one process"]
        dense = free.get("dense DDP", self.one)
        self.dense = dense["median_ms"] - 8 * dense["sent_mb"] / self.fastest  # without the exchange

    def step(self, system: str, machines: int, gbit: float | None, gloo: bool = True) -> tuple[float, float, float]:
        """MB sent, milliseconds of network and of computation; without ``gloo`` at the rate of the link."""
        rows, width, batch, active = (self.one[name] for name in ("rows", "width", "batch", "active"))
        others, alone = machines - 1, self.one["median_ms"]
        # Bytes and messages to each of the others, in how many rounds; and computation.
        bytes_, messages, rounds, computation = {
            "dense DDP": (0, 0, 0, self.dense),
            # Counts of rows; then rows and values of weight and bias.
            "row exchange": (active * (4 * width + 4 + 2 * 8), 5, 2, alone + self.merge * machines * active),
            # Inputs and labels, sums, their gradients, gradients of the inputs.
            "row-sharded": (batch * (8 * width + 28), 4, 4, alone),
        }[system]
        in_ring = (rows if system == "dense DDP" else 0) + width  # rows of the layer and of the one before
        sent = others * bytes_ + 2 * others / machines * in_ring * (width + 1) * 4
        waits = (rounds + 2 * others) * self.latency + max(0, messages * others - rounds) * self.message
        link = float("inf") if gbit is None else gbit * self.share
        rate = min(link, self.fastest) if gloo else link
        return sent / 1e6, sent * 8e-6 / rate + waits, computation


def print_model(records: list[dict[str, Any]]) -> None:
    model = Model(records)
    print(f"one machine: {model.one['median_ms']:.1f} ms; merge: {model.merge * 1e6:.0f} ns per row")
    print(f"gloo: {model.latency:.2f} ms for the first message of a round, {model.message:.3f} ms for each other one,")
    print(f"{model.share:.0%} of the rate of a slow link, {model.fastest:.1f} Gbit/s at most")
    print("\nmeasured beside predicted; more processes than cores compute one after the other")
    table: list[list[Any]] = []
    for record in records:
        if record["system"] in SYSTEMS[1:]:
            sent, network, computation = model.step(record["system"], record["processes"], record["gbit"])
            predicted = network + computation * max(1, record["processes"] / record["machine"]["cores"])
            place = (record["gbit"] or "none", record["processes"], record["system"])
            shortest = record["min_ms"]
            table.append([*place, record["sent_mb"], sent, record["median_ms"], shortest, predicted])
    columns = ("limit Gbit/s", "processes", "system", "MB sent", "predicted", "step ms", "min", "predicted")
    print(harness.table(table, columns))
    print("\npredicted, at the rate of the link and at that of gloo here")
    table = []
    for gbit in (10, 100):
        for machines in (8, 16, 32, 64):
            for system in SYSTEMS[1:]:
                sent, network, computation = model.step(system, machines, gbit, gloo=False)
                _, by_gloo, _ = model.step(system, machines, gbit)
                row = [gbit, machines, system, sent, network, computation]
                for step in (network + computation, by_gloo + computation):
                    row += [step, machines * model.one["median_ms"] / step]
                table.append(row)
    columns = ("Gbit/s", "machines", "system", "MB sent", "network ms", "compute ms", "step ms", "times one machine")
    print(harness.table(table, (*columns, "gloo: step ms", "times one machine")))


if __name__ == "__main__":
    main()
