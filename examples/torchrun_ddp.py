"""A wide head in DistributedDataParallel: processes exchange the rows that they touched.

    torchrun --nproc-per-node 2 examples/torchrun_ddp.py

One line differs from the loop of one process that uses ``torch_lsh``: ``exchange_rows_``. Every process has samples of
its own.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh.distributed import exchange_rows_

FEATURES, WIDTH = 64, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128, help="samples per process and step")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()

    model = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, arguments.classes))
    model = torch_lsh.sparsify_(model, filter_fn=lambda module, name: name == "2")
    exchange = exchange_rows_(model)
    wrapped = DistributedDataParallel(model)
    optimizer = torch_lsh.optim.AdamW(model.parameters(), lr=3e-3)

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
    precision = (model(x).argmax(-1) == y).float().mean()
    sent, dense = exchange.bytes_sent / arguments.steps / 1e6, model[2].weight.nbytes / 1e6
    if rank == 0:
        print(f"{count} processes, {milliseconds:.1f} ms per step, precision@1 of the last batch {precision:.2f}")
        print(f"{sent:.2f} MB sent per step and process; the dense gradient has {dense:.1f} MB")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
