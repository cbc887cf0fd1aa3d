"""What a model learns in several processes, beside one process with batches as large as theirs together.

    python benchmarks/distributed_quality.py --processes 2
    python benchmarks/distributed_quality.py --processes 4 --systems "one process" row-sharded

Synthetic data of the shape of Amazon-670K; precision@1 on rows that were held out, some times in a run, and the memory
that one process has for the head: parameters, optimizer state, tables. Processes have one thread each.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh import EmbeddingBag, LSHConfig, LSHLinear
from torch_lsh.benchmarking import harness
from torch_lsh.data import collate_xmc, synthetic_xmc
from torch_lsh.distributed import ShardedLSHLinear, exchange_rows_
from torch_lsh.metrics import PrecisionAtK

SYSTEMS = ("one process", "row exchange", "row-sharded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--labels", type=int, default=670_091, help="outputs of the layer")
    parser.add_argument("--features", type=int, default=135_909)
    parser.add_argument("--train", type=int, default=30_000, help="training rows")
    parser.add_argument("--test", type=int, default=2_000, help="held-out rows")
    parser.add_argument("--batch", type=int, default=256, help="samples of all processes per step")
    parser.add_argument("--active", type=int, default=8192, help="active rows per step")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--evaluations", type=int, default=4, help="per run")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    print(harness.machine(1))
    records: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for system in arguments.systems:
            count = 1 if system == "one process" else arguments.processes
            with tempfile.TemporaryDirectory() as folder:
                work = (count, system, seed, arguments, folder)
                torch.multiprocessing.start_processes(run, work, count, start_method="spawn")
                records.append({"benchmark": "distributed_quality", **torch.load(f"{folder}/record.pt")})
            print(format_record(records[-1]), flush=True)
    harness.write_json(records, arguments.json)


def format_record(record: dict[str, Any]) -> str:
    curve = "  ".join(f"{100 * precision:.2f}" for precision in record["precision"])
    return (
        f"{record['system']} x {record['processes']}, seed {record['seed']}: precision@1 {curve}; "
        f"head {record['head_mb']:.0f} MB per process; {record['seconds']:.0f} s"
    )


def run(rank: int, count: int, system: str, seed: int, arguments: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=count, timeout=datetime.timedelta(minutes=2)
    )
    record = train(rank, count, system, seed, arguments)
    if rank == 0:
        torch.save(record, f"{folder}/record.pt")
    dist.destroy_process_group()


def train(rank: int, count: int, system: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    data, held_out = synthetic_xmc(arguments.train, arguments.test, arguments.features, arguments.labels)
    torch.manual_seed(seed)
    width, config = 128, LSHConfig(active=arguments.active, seed=seed)
    kind = ShardedLSHLinear if system == "row-sharded" else LSHLinear
    head: Any = kind(width, arguments.labels, config=config)
    model: nn.Module = nn.Sequential(
        EmbeddingBag(arguments.features, width, mode="sum"), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), head
    )
    wrapped = model
    if count > 1:
        exchange_rows_(model)
        wrapped = DistributedDataParallel(model)
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=arguments.lr)
    order = torch.cat([torch.randperm(arguments.train) for _ in range(arguments.epochs)])
    steps = [part[rank::count] for part in order.split(arguments.batch) if len(part) == arguments.batch]
    precision, seconds = [], 0.0
    for number, part in enumerate(steps, 1):
        start = time.perf_counter()
        x, y = collate_xmc(data.__getitems__(part.tolist()))
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - start
        if number % -(-len(steps) // arguments.evaluations) == 0 or number == len(steps):
            precision.append(evaluate(model, held_out, arguments.test))
    return {
        "system": system,
        "processes": count,
        "seed": seed,
        "precision": precision,
        "head_mb": head_bytes(head, optimizer) / 1e6,
        "seconds": seconds,
        "rows": arguments.labels,
        "batch": arguments.batch,
        "active": arguments.active,
    }


@torch.no_grad()
def evaluate(model: nn.Module, held_out: Any, count: int) -> float:
    """Precision@1; every process evaluates all rows."""
    model.eval()
    metric = PrecisionAtK((1,))
    for part in torch.arange(count).split(500):
        x, y = collate_xmc(held_out.__getitems__(part.tolist()))
        metric.update(model(x).topk(1).indices, y)
    model.train()
    return metric.compute()[1]


def head_bytes(head: Any, optimizer: torch.optim.Optimizer) -> int:
    """Parameters, optimizer state and tables of this process."""
    values = [value for parameter in head.parameters() for value in (parameter, *optimizer.state[parameter].values())]
    return sum(value.nbytes for value in values if isinstance(value, Tensor)) + head.sampler.tables.nbytes


if __name__ == "__main__":
    main()
