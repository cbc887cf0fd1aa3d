"""The DistributedDataParallel of trainers, which wrap the model themselves, in two processes."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.distributed import exchange_rows_

from .processes import in_processes

D, N, SAMPLES, BATCH = 8, 500, 32, 4


class Model(nn.Module):
    """Prepares itself; the wrapper comes later."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(D, D)
        self.head = LSHLinear(D, N, config=LSHConfig(active=60, carry=0.0))
        exchange_rows_(self)
        self.layouts: list[torch.layout] = []

    def forward(self, x, labels=None):
        logits = self.head(self.trunk(x).relu())
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels)}


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(SAMPLES, D, generator=generator), torch.randint(0, N, (SAMPLES,), generator=generator)
    )


def seen(model: Model) -> dict:
    return {"parameters": [parameter.detach().clone() for parameter in model.parameters()], "layouts": model.layouts}


def lightning(rank: int) -> dict:
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()
            exchange_rows_(self)  # it is this module that is wrapped

        def training_step(self, batch, _):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def on_before_optimizer_step(self, optimizer):
            self.model.layouts.append(self.model.head.weight.grad.layout)

        def configure_optimizers(self):
            return torch_lsh.optim.Adam(self.parameters(), lr=0.05)

    task = Task()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, DataLoader(dataset(), BATCH))
    return seen(task.model)


def accelerate(rank: int) -> dict:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Model()
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.05)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(dataset(), BATCH))
    for x, y in loader:
        with accelerator.accumulate(wrapped):
            accelerator.backward(F.cross_entropy(wrapped(x), y))
            if accelerator.sync_gradients:
                model.layouts.append(model.head.weight.grad.layout)
            optimizer.step()
            optimizer.zero_grad()
    return seen(model)


def transformers(rank: int) -> dict:
    import transformers

    class Watch(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **_):
            model.layouts.append(model.head.weight.grad.layout)

    model = Model()
    folder = Path(os.environ["FOLDER"]) / f"transformers{rank}"
    arguments = transformers.TrainingArguments(
        str(folder),
        use_cpu=True,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=dataset(),
        data_collator=lambda samples: dict(zip(("x", "labels"), map(torch.stack, zip(*samples)))),
        optimizers=(torch_lsh.optim.Adam(model.parameters(), lr=0.05), None),
        callbacks=[Watch()],
    )
    trainer.train()
    return seen(model)


TRAINERS = {
    name: train
    for name, train in (("lightning", lightning), ("accelerate", accelerate), ("transformers", transformers))
    if importlib.util.find_spec(name) is not None
}


class Work:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, rank: int):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            NODE_RANK="0",
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            FOLDER=self.folder,
        )
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29400")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="torch_lsh")
            return {name: train(rank) for name, train in TRAINERS.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return in_processes(Work(str(folder)), 2, folder)


@pytest.mark.parametrize("trainer", ["lightning", "accelerate", "transformers"])
def test_rows_are_exchanged(results, trainer):
    if trainer not in TRAINERS:
        pytest.skip(f"{trainer} is not installed")
    first, second = (result[trainer] for result in results)
    assert first["layouts"] == second["layouts"] == [torch.sparse_coo] * (SAMPLES // BATCH // 2 // 2)
    for one, other, initial in zip(first["parameters"], second["parameters"], Model().parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, initial)
