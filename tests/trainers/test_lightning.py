"""Lightning: automatic and manual optimization, Fabric."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from trainers import task

lightning = pytest.importorskip("lightning.pytorch")
fabric = pytest.importorskip("lightning.fabric")

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|tensorboardX|isinstance|log_every_n|GPU|LeafSpec):")


class Module(lightning.LightningModule):
    def __init__(self, automatic: bool = True) -> None:
        super().__init__()
        self.model = task.make_model()
        self.automatic_optimization = automatic

    def training_step(self, batch, index):
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self):
        return task.make_optimizer(self.model)


def trainer(folder, **arguments):
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
def test_path_and_result(automatic, tmp_path):
    module = Module(automatic)
    trainer(tmp_path, max_epochs=1).fit(module, task.batches())
    task.assert_sampled(module.model)
    task.assert_same(module.model, task.trained_by_hand())


def test_resume(tmp_path):
    first = trainer(tmp_path, max_epochs=1)
    first.fit(Module(), task.batches())
    first.save_checkpoint(tmp_path / "run.ckpt")
    resumed = Module()
    trainer(tmp_path, max_epochs=2).fit(resumed, task.batches(), ckpt_path=tmp_path / "run.ckpt", weights_only=False)
    task.assert_same(resumed.model, task.trained_by_hand(epochs=2))


def fabric_parts():
    runner = fabric.Fabric(accelerator="cpu", devices=1)
    model = task.make_model()
    return runner, *runner.setup(model, task.make_optimizer(model))


def train_in_fabric(runner, model, optimizer):
    for x, y in runner.setup_dataloaders(task.batches()):
        runner.backward(F.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()


def test_fabric():
    runner, model, optimizer = fabric_parts()
    train_in_fabric(runner, model, optimizer)
    task.assert_sampled(model)
    task.assert_same(model, task.trained_by_hand())


def test_fabric_resumes(tmp_path):
    runner, model, optimizer = fabric_parts()
    train_in_fabric(runner, model, optimizer)
    runner.save(tmp_path / "run.ckpt", {"model": model, "optimizer": optimizer})

    runner, model, optimizer = fabric_parts()
    runner.load(tmp_path / "run.ckpt", {"model": model, "optimizer": optimizer})
    train_in_fabric(runner, model, optimizer)
    task.assert_same(model, task.trained_by_hand(epochs=2))
