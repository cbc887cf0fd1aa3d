"""Kills training processes at random moments, and compares what they end with bit by bit.

    python fuzz/kill_trials.py --kills 20 --json out.jsonl

Three kinds of runs get SIGKILL so many times each. Whatever is killed is started again with the same command:

* ``train``: ``python -m torch_lsh train`` with a checkpoint, which it resumes from. Ends with the model of a run that
  nobody disturbed.
* ``train-text``: begins anew. Until the new model is written, its file is the old model, whole.
* ``ddp``: two ranks under DistributedDataParallel with torch.distributed.checkpoint; either rank is killed, and the
  other one with it, as torchrun does. Ends with the parameters of an undisturbed run.

The exit status is 1 if any run ended with other bits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh.data import synthetic_xmc
from torch_lsh.data.xmc import write_xmc
from torch_lsh.distributed import exchange_rows_
from torch_lsh.io import load_safetensors

Tensors = dict[str, Tensor]


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Run:
    """Processes that end together.

    Attributes:
        folder: What they write to.
        commands: One for each process; ``LIFE`` in it stands for the number of the start.
        model: The file that is there before, and that the run replaces at its end; None means that there is none.
    """

    def __init__(self, folder: Path, commands: list[list[str]], model: Path | None = None) -> None:
        self.folder, self.commands, self.model = folder, commands, model
        self.lives = 0
        self.old = None if model is None else model.read_bytes()

    def start(self) -> list[subprocess.Popen[bytes]]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.lives += 1
        commands = [[word.replace("LIFE", str(self.lives)) for word in command] for command in self.commands]
        with open(self.folder / "log", "ab") as log:
            return [subprocess.Popen(command, stdout=log, stderr=log, env=environment) for command in commands]

    def finish(self) -> float:
        """Runs to the end, undisturbed; returns the processor time until the model was written, or until the end."""
        before = None if self.model is None else self.model.stat().st_ino
        processes, written, spent = self.start(), None, 0.0
        while any(process.poll() is None for process in processes):
            spent = max(spent, sum(map(processor_seconds, processes)))
            if written is None and self.model is not None and self.model.stat().st_ino != before:
                written = spent
            time.sleep(0.01)
        if any(process.returncode for process in processes):
            raise RuntimeError((self.folder / "log").read_text())
        return spent if written is None else written

    def is_killed(self, after: float) -> bool:
        """Starts the processes, and kills them after some seconds of processor time unless they have ended before."""
        processes = self.start()
        while all(process.poll() is None for process in processes) and sum(map(processor_seconds, processes)) < after:
            time.sleep(0.005)
        while (alive := [process for process in processes if process.poll() is None]) and len(alive) < len(processes):
            time.sleep(0.005)  # the other ones end by themselves
        for process in random.sample(alive, len(alive)):
            process.send_signal(signal.SIGKILL)
        codes = [process.wait() for process in processes]
        if any(code not in (0, -signal.SIGKILL) for code in codes) and not alive:
            raise RuntimeError((self.folder / "log").read_text())
        return bool(alive)

    def found(self) -> Tensors | None:
        """The model after a kill, and puts the old one back; None: it is the old one, or there is none yet."""
        if self.model is None or self.model.read_bytes() == self.old:
            return None
        tensors, _ = load_safetensors(self.model)  # refuses what is not whole
        assert self.old is not None
        self.model.write_bytes(self.old)
        return tensors


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """What a process has used so far: unlike the time that passed, it does not depend on what runs beside it."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def startup_seconds() -> float:
    """The processor time of imports."""
    process = subprocess.Popen([sys.executable, "-c", "import torch_lsh.models"])
    spent = 0.0
    while process.poll() is None:
        spent = max(spent, processor_seconds(process))
        time.sleep(0.01)
    return spent


def trials(name: str, kills: int, make: Callable[[Path], Run], result: Callable[[Path], Tensors]) -> dict[str, Any]:
    """Kills runs until there were so many kills before a model was written; compares every run that reaches its end."""
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder, "straight")
        straight.mkdir()
        run = make(straight)
        startup = len(run.commands) * startup_seconds()
        seconds, expected = run.finish(), result(straight)
        killed = late = ended = wrong = 0
        while killed < kills:
            disturbed = Path(folder, f"run{ended}")
            disturbed.mkdir()
            run = make(disturbed)
            while killed < kills and run.is_killed(random.uniform(startup, max(startup, seconds))):
                found = run.found()
                killed, late = killed + (found is None), late + (found is not None)
                wrong += found is not None and not same(found, expected)
            run.finish()  # what is left, or nothing
            ended += 1
            wrong += not same(result(disturbed), expected)
            print(f"{name}: {killed} kills, {ended} runs at their end, {wrong} with other bits", file=sys.stderr)
    return {"trials": name, "kills": killed, "kills after the model": late, "runs": ended, "other bits": wrong}


# --- the command line -------------------------------------------------------------------------------------------------


def torch_lsh_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "torch_lsh", *map(str, arguments)]


def train_run(folder: Path) -> Run:
    data, _ = synthetic_xmc(3000, 0, 2000, 5000)
    write_xmc(data, folder / "train.txt")
    files = [folder / "train.txt", "--model", folder / "model.pt", "--checkpoint", folder / "run.pt"]
    options = ["--epochs", 8, "--batch-size", 50, "--hidden", 64, "--checkpoint-every", 7, "--quiet"]
    return Run(folder, [torch_lsh_command("train", *files, *options)])


def train_result(folder: Path) -> Tensors:
    return load_safetensors(folder / "model.pt")[0]


def train_text_run(folder: Path) -> Run:
    generator = random.Random(0)
    words = [f"word{i}" for i in range(20_000)]
    texts = (" ".join(generator.choices(words, k=20)) for _ in range(4000))
    rows = (f"{text},{text.split()[0][4:].zfill(5)[-3:]}\n" for text in texts)
    (folder / "train.csv").write_text("text,label\n" + "".join(rows))
    model = folder / "model.safetensors"
    command = ["train-text", folder / "train.csv", "--model", model, "--epochs", 6, "--hidden", 64, "--quiet"]
    Run(folder, [torch_lsh_command(*command, "--seed", 1, "--epochs", 1)]).finish()
    return Run(folder, [torch_lsh_command(*command)], model)


def train_text_result(folder: Path) -> Tensors:
    return load_safetensors(folder / "model.safetensors")[0]


# --- two ranks --------------------------------------------------------------------------------------------------------

_STEPS, _EVERY, _RANKS = 60, 4, 2


def ddp_run(folder: Path) -> Run:
    command = [sys.executable, __file__, "--folder", str(folder), "--store", f"{folder}/storeLIFE", "--rank"]
    return Run(folder, [[*command, str(rank)] for rank in range(_RANKS)])


def ddp_result(folder: Path) -> Tensors:
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(_RANKS)]
    return {f"{rank}.{name}": value for rank, tensors in enumerate(ranks) for name, value in tensors.items()}


def ddp_rank(rank: int, folder: Path, store: str) -> None:
    """One process of a run that resumes from its latest checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = torch_lsh.LSHLinear(32, 3000, config=torch_lsh.LSHConfig(active=300, rehash=torch_lsh.FixedInterval(5)))
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), head)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=_RANKS)
    exchange_rows_(model)
    wrapper = DistributedDataParallel(model)
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.01)
    done = [int(path.name) for path in folder.glob("[0-9]*") if (path / ".metadata").exists()]
    first = torch.tensor(max(done, default=0))
    dist.broadcast(first, 0)  # a rank may have looked before the other's last life had quite ended
    if first > 0:
        state = dict(zip(("model", "optimizer"), get_state_dict(wrapper, optimizer)))
        dcp.load(state, checkpoint_id=str(folder / str(int(first))))
        set_state_dict(wrapper, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for step in range(int(first), _STEPS):
        generator = torch.Generator().manual_seed(_RANKS * step + rank)
        x, y = torch.randn(16, 32, generator=generator), torch.randint(3000, (16,), generator=generator)
        F.cross_entropy(wrapper(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % _EVERY == 0:
            state = dict(zip(("model", "optimizer"), get_state_dict(wrapper, optimizer)))
            dcp.save(state, checkpoint_id=str(folder / str(step + 1)))
    with torch_lsh.io.replacing(folder / f"rank{rank}.pt") as temporary:
        torch.save(dict(model.named_parameters()), temporary)
    dist.destroy_process_group()


KINDS = {
    "train": (train_run, train_result),
    "train-text": (train_text_run, train_text_result),
    "ddp": (ddp_run, ddp_result),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        ddp_rank(arguments.rank, arguments.folder, arguments.store)
        return 0
    random.seed(arguments.seed)
    wrong = 0
    for name in arguments.kinds:
        found = trials(name, arguments.kills, *KINDS[name])
        wrong += found["other bits"]
        print(json.dumps(found), flush=True)
        if arguments.json:
            with open(arguments.json, "a") as file:
                file.write(json.dumps(found) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
