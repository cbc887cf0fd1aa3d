"""The task that every trainer is given: a small model with a wide head, and batches in a fixed order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch_lsh

CLASSES, WIDTH, BATCH, STEPS = 2_000, 8, 8, 3  # STEPS per epoch
LEARNING_RATE = 0.05
# As trainers take them. The step of Adam does not shrink with the gradient; SGD compares runs that round differently.
ADAM = (torch_lsh.optim.Adam, {"lr": LEARNING_RATE})
SGD = (torch_lsh.optim.SGD, {"lr": 1.0})


def make_model(active: int = 100) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))
    config = torch_lsh.LSHConfig(active=active, rehash=torch_lsh.FixedInterval(2, touches=1))
    return torch_lsh.sparsify_(model, config, filter_fn=lambda module, name: name == "2")


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    kind, options = ADAM
    return kind(model.parameters(), **options)


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH * STEPS, WIDTH, generator=generator)
    return TensorDataset(x, torch.randint(CLASSES, (BATCH * STEPS,), generator=generator))


def batches() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(samples(), batch_size=BATCH)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The plain loop, for an epoch."""
    for x, y in batches():
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def trained_by_hand(epochs: int = 1) -> nn.Sequential:
    """What a trainer's model must equal, bit for bit; a checkpoint is taken between epochs."""
    model = make_model()
    optimizer = make_optimizer(model)
    for epoch in range(epochs):
        if epoch > 0:
            model.state_dict()
        train(model, optimizer)
    return model


def assert_same(model: nn.Module, wanted: nn.Module) -> None:
    for (name, parameter), other in zip(wanted.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def assert_close(model: nn.Module, wanted: nn.Module) -> None:
    for (name, parameter), other in zip(wanted.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other, parameter, msg=lambda text, name=name: f"{name}: {text}")


def assert_sampled(model: nn.Module, draws: int = STEPS) -> None:
    """Every step drew its rows, and the head's gradients were row-sparse: some rows never moved."""
    (head,) = (module for module in model.modules() if isinstance(module, torch_lsh.LSHLinear))
    assert head.sampler.draws == draws
    moved = (head.weight != make_model()[2].weight).any(1)
    assert 0 < moved.sum() < CLASSES
