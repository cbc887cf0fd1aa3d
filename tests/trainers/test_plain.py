"""A loop of one's own."""

from __future__ import annotations

import torch
from trainers import task


def test_path_and_result():
    model = task.make_model()
    task.train(model, task.make_optimizer(model))
    task.assert_sampled(model)
    task.assert_same(model, task.trained_by_hand())


def test_resume(tmp_path):
    model = task.make_model()
    optimizer = task.make_optimizer(model)
    task.train(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")

    resumed = task.make_model()
    optimizer = task.make_optimizer(resumed)
    saved = torch.load(tmp_path / "run.pt")
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    task.train(resumed, optimizer)
    task.assert_same(resumed, task.trained_by_hand(epochs=2))
