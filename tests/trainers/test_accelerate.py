"""accelerate."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from trainers import task

accelerate = pytest.importorskip("accelerate")


def prepared():
    accelerator = accelerate.Accelerator(cpu=True)
    model = task.make_model()
    return accelerator, *accelerator.prepare(model, task.make_optimizer(model), task.batches())


def train(accelerator, model, optimizer, loader):
    for x, y in loader:
        accelerator.backward(F.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()


def test_path_and_result():
    accelerator, *parts = prepared()
    train(accelerator, *parts)
    task.assert_sampled(parts[0])
    task.assert_same(parts[0], task.trained_by_hand())


def test_resume(tmp_path):
    accelerator, *parts = prepared()
    train(accelerator, *parts)
    accelerator.save_state(tmp_path)

    accelerator, *parts = prepared()
    accelerator.load_state(tmp_path)
    train(accelerator, *parts)
    task.assert_same(parts[0], task.trained_by_hand(epochs=2))
