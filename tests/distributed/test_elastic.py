"""A run that torchrun restarts after a crash equals one that never stopped."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.distributed import ShardedLSHLinear, exchange_rows_

from .processes import in_processes

D, N, B, STEPS, CRASH = 8, 500, 6, 6, 3


class TwoHeads(nn.Module):
    """A whole head, whose rows are exchanged, and a sharded one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LSHConfig(active=60, rehash=torch_lsh.FixedInterval(2))
        self.trunk = nn.Linear(D, D)
        self.whole, self.sharded = LSHLinear(D, N, config=config), ShardedLSHLinear(D, N, config=config)

    def forward(self, x: torch.Tensor):
        hidden = self.trunk(x).relu()
        return self.whole(hidden), self.sharded(hidden)


class State:
    """Model and optimizer of a run, and their checkpoints."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.model = TwoHeads()
        exchange_rows_(self.model)
        self.wrapper = DistributedDataParallel(self.model)
        self.optimizer = torch_lsh.optim.Adam(self.model.parameters(), lr=0.05)

    def get(self) -> dict:
        return dict(zip(("model", "optimizer"), get_state_dict(self.wrapper, self.optimizer)))

    def save(self, step: int) -> None:
        dcp.save(self.get(), checkpoint_id=f"{self.folder}/{step}")

    def load(self) -> int:
        """Loads the latest checkpoint; returns the number of steps it stands for."""
        steps = [int(name) for name in os.listdir(self.folder) if os.path.exists(f"{self.folder}/{name}/.metadata")]
        if not steps:
            return 0
        state = self.get()
        dcp.load(state, checkpoint_id=f"{self.folder}/{max(steps)}")
        set_state_dict(
            self.wrapper, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        return max(steps)


def train(folder: str, crash: bool) -> list[torch.Tensor]:
    rank, state = dist.get_rank(), State(folder)
    for step in range(state.load(), STEPS):
        generator = torch.Generator().manual_seed(10 * step + rank)
        x, y = torch.randn(B, D, generator=generator), torch.randint(0, N, (B,), generator=generator)
        loss = sum(F.cross_entropy(logits, y) for logits in state.wrapper(x))
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        if crash and step == CRASH and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os._exit(1)
        if step % 2 == 1:
            state.save(step + 1)
    return [parameter.detach() for parameter in state.model.parameters()]


def life(folder: str) -> tuple[str, list[torch.Tensor]]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        return os.environ["TORCHELASTIC_RESTART_COUNT"], train(folder, crash=True)
    finally:
        dist.destroy_process_group()


class Straight:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, rank: int):
        return train(self.folder, crash=False)


def test_a_restarted_run_equals_one_that_never_stopped(tmp_path, monkeypatch):
    # In a store that both lives share, gloo finds the addresses of the first.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    for name in ("straight", "crashed", "store"):
        (tmp_path / name).mkdir()
    straight = in_processes(Straight(f"{tmp_path}/straight"), 2, tmp_path / "store")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    crashed = elastic_launch(config, life)(f"{tmp_path}/crashed")
    for rank in range(2):
        restarts, parameters = crashed[rank]
        assert restarts == "1"
        for one, other in zip(parameters, straight[rank], strict=True):
            assert torch.equal(one, other)
