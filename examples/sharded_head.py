"""A head whose rows are spread over processes: each owns its rows, their hash tables and their optimizer state.

    torchrun --nproc-per-node 2 examples/sharded_head.py --checkpoint run
    torchrun --nproc-per-node 4 examples/sharded_head.py --checkpoint run

The second run goes on where the first ended, with another number of processes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh.distributed import ShardedLSHLinear, exchange_rows_

FEATURES, WIDTH = 64, 128


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128, help="samples per process and step")
    parser.add_argument("--checkpoint", help="folder to resume from, if it is there, and to save to")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    head = ShardedLSHLinear(WIDTH, arguments.classes)
    model = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), head)
    exchange_rows_(model)  # so that DistributedDataParallel leaves the rows alone
    wrapped = DistributedDataParallel(model)
    optimizer = torch_lsh.optim.AdamW(model.parameters(), lr=3e-3)
    if arguments.checkpoint and Path(arguments.checkpoint).exists():
        state = state_of(model, optimizer)
        dcp.load(state, checkpoint_id=arguments.checkpoint)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    centres = torch.randn(1_000, FEATURES, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1 + rank)
    start = time.perf_counter()
    for _ in range(arguments.steps):
        y = torch.randint(len(centres), (arguments.batch,), generator=generator)
        x = centres[y] + 0.3 * torch.randn(arguments.batch, FEATURES, generator=generator)
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    milliseconds = (time.perf_counter() - start) / arguments.steps * 1e3

    model.eval()
    precision = (model(x).argmax(-1) == y).float().mean()  # every process ranks its rows; the owner of a sample merges
    if arguments.checkpoint:
        dcp.save(state_of(model, optimizer), checkpoint_id=arguments.checkpoint)
    if rank == 0:
        print(f"{count} processes, {milliseconds:.1f} ms per step, precision@1 of the last batch {precision:.2f}")
        print(f"each holds {len(head.weight):,} of {arguments.classes:,} rows")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
