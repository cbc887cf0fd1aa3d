"""Runs a function in several processes that know each other."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def in_processes(work: Callable[[int], Any], count: int, folder: Path) -> list[Any]:
    """What ``work(rank)`` returns in each of ``count`` processes."""
    # A process is forked off a server that has imported everything. It imports the module of ``work``, and the others
    # are forked off it: all start at once.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["torch_lsh", "pytest"])
    torch.multiprocessing.start_processes(_first, (work, count, str(folder)), 1, start_method="forkserver")
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(count)]


def _first(number: int, work: Callable[[int], Any], count: int, folder: str) -> None:
    torch.multiprocessing.start_processes(_process, (work, count, folder), count, start_method="fork")


def _process(rank: int, work: Callable[[int], Any], count: int, folder: str) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=timeout)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
