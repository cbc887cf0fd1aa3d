"""What a model is worth on held-out rows after some seconds of training."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import LSHConfig
from ..nn import LSHLinear
from ..nn.linear import lsh_layers
from ..random_stream import same_random_stream
from .trials import Settings, TrainingTrial

Model = nn.Module | Callable[[LSHConfig], nn.Module]


@dataclass
class TrainingTask:
    """How to train and to judge a model; see :func:`torch_lsh.autotune` for the fields."""

    model: Model
    batches: Iterable[Any]
    held_out: Iterable[Any]
    optimizer: Callable[..., torch.optim.Optimizer]
    forward: Callable[[nn.Module, Any], tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor]
    metric: Callable[[Any, Any], Tensor]
    clock: Callable[[], float]

    def made(self, config: LSHConfig) -> nn.Module:
        """The model with these settings, as it was before training."""
        if not isinstance(self.model, nn.Module):
            return self.model(config)
        model = copy.deepcopy(self.model)
        tuned_layer(model).reconfigure(config)
        return model

    def run(self, settings: Settings, seconds: float) -> TrainingTrial:
        """Trains for so many seconds, at least one step, and judges."""
        with same_random_stream(), torch.enable_grad():
            model = self.made(settings.config)
            optimizer = self.optimizer(model.parameters(), lr=settings.lr)
            batches = _endless(self.batches)
            model.train()
            batch = next(batches)
            steps, started = 0, self.clock()
            while steps == 0 or self.clock() - started < seconds:
                optimizer.zero_grad()
                self.loss(*self.forward(model, batch)).backward()
                optimizer.step()
                batch = next(batches)
                steps += 1
            spent = self.clock() - started
            values = self.judge(model)
        return TrainingTrial(settings, steps, spent, values)

    @torch.no_grad()
    def judge(self, model: nn.Module) -> Tensor:
        """The metric of held-out rows ``[n]`` float32, -inf where it is not a number."""
        model.eval()
        values = [self.metric(*self.forward(model, batch)).detach().reshape(-1).float() for batch in self.held_out]
        return torch.cat(values).nan_to_num_(-math.inf, -math.inf, -math.inf)

    def judged_within(self, config: LSHConfig, seconds: float) -> TrainingTask:
        """The same task with as many of the held-out batches as can be judged in that time, at least one."""
        with same_random_stream():
            model = self.made(config)
        model.eval()
        kept: list[Any] = []
        started = time.perf_counter()
        with torch.no_grad():
            for batch in self.held_out:
                kept.append(batch)
                self.metric(*self.forward(model, batch))
                if time.perf_counter() - started >= seconds:
                    break
        if not kept:
            raise ValueError("held_out has no batch; wanted some")
        return replace(self, held_out=kept)


def tuned_layer(model: nn.Module) -> LSHLinear:
    """The widest LSHLinear of a model."""
    return max(lsh_layers(model).values(), key=lambda layer: layer.out_features)


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        count = 0
        for batch in batches:
            yield batch
            count += 1
        if count == 0:
            raise ValueError("batches has no batch, or cannot be iterated twice; wanted a DataLoader or a list")
