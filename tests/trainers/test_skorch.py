"""skorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from trainers import task

skorch = pytest.importorskip("skorch")


def network(epochs):
    return skorch.NeuralNetClassifier(
        task.make_model,
        criterion=nn.CrossEntropyLoss,
        optimizer=task.ADAM[0],
        lr=task.LEARNING_RATE,
        batch_size=task.BATCH,
        max_epochs=epochs,
        train_split=None,
        verbose=0,
    )


def test_path_and_result():
    x, y = task.samples().tensors
    net = network(1).fit(x, y)
    task.assert_sampled(net.module_)
    task.assert_same(net.module_, task.trained_by_hand())
    assert torch.equal(torch.from_numpy(net.predict(x)), net.module_.eval()(x).argmax(-1))


def test_resume(tmp_path):
    x, y = task.samples().tensors
    files = {"f_params": tmp_path / "model.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    network(1).fit(x, y).save_params(**files)
    resumed = network(1).initialize()
    resumed.load_params(**files)
    resumed.partial_fit(x, y)
    task.assert_same(resumed.module_, task.trained_by_hand(epochs=2))
