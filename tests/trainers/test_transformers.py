"""Hugging Face: Trainer, accelerate, PEFT, trl."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainers import task

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")


class WithLoss(nn.Module):
    """What Trainer expects of a model: called with the columns of the data set, it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = task.make_model()

    def forward(self, x, labels):
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def train(folder, epochs, resume=False, **arguments):
    module = WithLoss()
    trainer = transformers.Trainer(
        module,
        transformers.TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            per_device_train_batch_size=task.BATCH,
            num_train_epochs=epochs,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            save_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **arguments,
        ),
        train_dataset=[{"x": x, "labels": y} for x, y in task.samples()],
        optimizer_cls_and_kwargs=(task.torch_lsh.optim.Adam, {"lr": task.LEARNING_RATE}),
    )
    trainer._get_train_sampler = lambda *_: None  # no shuffling
    trainer.train(resume_from_checkpoint=resume)
    return module.model


def test_trainer(tmp_path):
    model = train(tmp_path, epochs=1)
    task.assert_sampled(model)
    task.assert_same(model, task.trained_by_hand())


def test_trainer_resumes(tmp_path):
    train(tmp_path, epochs=1)
    resumed = train(tmp_path, epochs=2, resume=True)
    task.assert_same(resumed, task.trained_by_hand(epochs=2))


def test_accelerate(tmp_path):
    def prepared():
        accelerator = accelerate.Accelerator(cpu=True)
        model = task.make_model()
        return accelerator, *accelerator.prepare(model, task.make_optimizer(model), task.batches())

    def train(accelerator, model, optimizer, loader):
        for x, y in loader:
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()

    accelerator, *parts = prepared()
    train(accelerator, *parts)
    task.assert_sampled(parts[0])
    task.assert_same(parts[0], task.trained_by_hand())
    accelerator.save_state(tmp_path)

    accelerator, *parts = prepared()
    accelerator.load_state(tmp_path)
    train(accelerator, *parts)
    task.assert_same(parts[0], task.trained_by_hand(epochs=2))
