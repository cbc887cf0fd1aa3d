"""A classifier with very many classes in Lightning: trains, is interrupted, and resumes bit for bit.

    pip install lightning
    python examples/lightning_head.py

Two lines differ from any other LightningModule: ``sparsify_`` and the optimizer. The data is made here: a hidden linear
map gives every sample its class.
"""

from __future__ import annotations

import argparse
import tempfile

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch_lsh

FEATURES, WIDTH = 64, 128


class Classifier(lightning.LightningModule):
    def __init__(self, classes: int) -> None:
        super().__init__()
        model = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
        self.model = torch_lsh.sparsify_(model)  # 1

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        x, y = batch
        logits = self.model(x)  # exact in eval() mode, and never a tensor of all classes
        self.log_dict({"loss": F.cross_entropy(logits, y), "precision@1": (logits.argmax(-1) == y).float().mean()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch_lsh.optim.AdamW(self.parameters(), lr=3e-3)  # 2


def make_data(classes: int, samples: int, used_classes: int = 1_000) -> tuple[DataLoader, DataLoader]:
    """Samples around the centres of their classes; only some classes occur."""
    generator = torch.Generator().manual_seed(0)
    used = torch.randperm(classes, generator=generator)[:used_classes]
    centres = torch.randn(used_classes, FEATURES, generator=generator)
    numbers = torch.randint(used_classes, (samples,), generator=generator)
    x = centres[numbers] + 0.3 * torch.randn(samples, FEATURES, generator=generator)
    y = used[numbers]
    held_out = samples // 10
    train = TensorDataset(x[held_out:], y[held_out:])
    return DataLoader(train, 256, shuffle=True), DataLoader(TensorDataset(x[:held_out], y[:held_out]), 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    train, validation = make_data(arguments.classes, arguments.samples)
    with tempfile.TemporaryDirectory() as folder:
        options = {"accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": folder}
        options |= {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        options |= {"gradient_clip_val": 1.0}

        torch.manual_seed(0)
        first = lightning.Trainer(max_epochs=arguments.epochs // 2, **options)
        first.fit(Classifier(arguments.classes), train, validation)
        first.save_checkpoint(f"{folder}/half.ckpt")

        second = lightning.Trainer(max_epochs=arguments.epochs, **options)
        module = Classifier(arguments.classes)
        # weights_only=False: a checkpoint of Lightning holds more than tensors.
        second.fit(module, train, validation, ckpt_path=f"{folder}/half.ckpt", weights_only=False)
    print({name: round(value.item(), 3) for name, value in second.callback_metrics.items()})
    print(module.model[2].stats())


if __name__ == "__main__":
    main()
