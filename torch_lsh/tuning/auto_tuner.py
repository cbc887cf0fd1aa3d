"""AutoTuner: tunes layers again when they find too little."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ..nn import LSHLinear
from ..nn.linear import lsh_layers
from .lookups import LEAST_INPUTS, tune_lookups

logger = logging.getLogger("torch_lsh")

_KEPT_STEPS = 4  # steps before a measurement whose inputs are kept for it


class AutoTuner:
    """Tunes the LSH layers of a model again when they find too little: call :meth:`step` after ``optimizer.step()``.

    Every ``every`` steps the recall of each layer is measured on inputs of the last steps, as
    :meth:`torch_lsh.LSHLinear.stats` does. If it is below the target by more than ``tolerance`` and its standard error,
    :func:`torch_lsh.autotune` searches for a few seconds within the layer's own hash family, and the layer takes the
    settings it finds. The choice depends on times, so runs with an AutoTuner do not repeat each other bit by bit.

    Args:
        model: a module; all LSH layers in it are watched (:meth:`torch_lsh.LSHLinear.watch`) until :meth:`detach`.
        target_recall: as for :func:`torch_lsh.autotune`.
        every: steps between two measurements.
        tolerance: by how much recall may miss the target.
        k: the number of best rows.
        queries: inputs per measurement.
        seconds: for a search.

    Raises:
        ValueError: an argument does not fit, or there is no LSH layer.

    >>> model = nn.Sequential(LSHLinear(8, 5_000))
    >>> tuner = AutoTuner(model, target_recall=0.9, every=100)
    >>> tuner.step()
    False
    """

    def __init__(
        self,
        model: nn.Module,
        target_recall: float = 0.9,
        *,
        every: int = 1000,
        tolerance: float = 0.05,
        k: int = 10,
        queries: int = 64,
        seconds: float = 5.0,
    ) -> None:
        if not 0 < target_recall < 1 or not 0 <= tolerance < target_recall:
            raise ValueError(
                f"target_recall is {target_recall} and tolerance {tolerance}; wanted 0 <= tolerance < target_recall < 1"
            )
        for name, number in (("every", every), ("k", k), ("queries", queries), ("seconds", seconds)):
            if not number > 0:
                raise ValueError(f"{name} is {number}; wanted more than 0")
        self._layers = lsh_layers(model)
        self.target_recall, self.every, self.tolerance = target_recall, every, tolerance
        self.k, self.queries, self.seconds = k, queries, seconds
        self._inputs: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._steps = 0
        for layer in self._layers.values():
            if layer.sampler.stopwatch is None:
                layer.watch()

    def step(self) -> bool:
        """Counts one training step, and measures when it is time.

        Returns:
            Whether a layer was given other settings.
        """
        self._steps += 1
        if -self._steps % self.every >= _KEPT_STEPS:
            return False
        for name, layer in self._layers.items():
            watched = layer.sampler.watched_inputs
            if watched is not None:
                self._inputs[name].append(watched)
        if self._steps % self.every:
            return False
        tuned = [self._tune(name, layer) for name, layer in self._layers.items()]
        self._inputs = {name: [] for name in self._layers}
        return any(tuned)

    def _tune(self, name: str, layer: LSHLinear) -> bool:
        steps = self._inputs[name][-_KEPT_STEPS:]
        if not steps or layer.config.sampler != "lsh":
            return False
        batch_size, inputs = len(steps[-1]), torch.cat(steps)
        recall = layer.stats(inputs, k=self.k, queries=self.queries, batch_size=batch_size, seed=self._steps).recall
        assert recall is not None
        logger.debug("recall@%d of %s is %.3f", self.k, name, recall.mean)
        if not recall.mean + recall.error < self.target_recall - self.tolerance or len(inputs) < LEAST_INPUTS:
            return False
        logger.info("recall@%d of %s fell to %.3f (target: %.3f)", self.k, name, recall.mean, self.target_recall)
        before = layer.config
        tune_lookups(
            layer,
            inputs,
            self.target_recall,
            k=self.k,
            batch_size=batch_size,
            seconds=self.seconds,
            hashes=[layer.config.index.name],
            apply=True,
        )
        return layer.config != before

    def detach(self) -> None:
        """Stops watching the layers."""
        for layer in self._layers.values():
            layer.watch(False)
