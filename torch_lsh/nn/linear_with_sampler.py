"""LinearWithSampler: what a layer's users ask of its sampler, applied to the layer's parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .. import ops
from ..sampling.sampler import Sampler
from ..sampling.stats import LayerStats
from ..stopwatch import part
from .paths import Paths


class LinearWithSampler(nn.Module):
    """A linear layer, or some rows of one, with a sampler of its rows: a base of :class:`torch_lsh.LSHLinear`.

    Attributes:
        in_features: size of an input sample.
        out_features: N, the number of classes.
        weight: ``[rows, in_features]``.
        bias: ``[rows]`` or None.
        sampler: draws the rows of a step.
        paths: counts which way results took.
    """

    in_features: int
    out_features: int
    weight: Tensor
    bias: Any  # a Tensor or None, which nn.Linear does not say
    sampler: Sampler
    paths: Paths

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Both parameters, faster than as attributes."""
        parameters = self._parameters
        if "weight" in parameters and "bias" in parameters:
            return parameters["weight"], parameters["bias"]  # type: ignore[return-value]  # the weight is not None
        return self.weight, self.bias  # the result of a parametrization, or of pruning

    @property
    def scheduled(self) -> bool:
        """Whether a :class:`torch_lsh.RehashScheduler` decides when to re-hash."""
        return self.sampler.scheduled

    @scheduled.setter
    def scheduled(self, scheduled: bool) -> None:
        self.sampler.scheduled = scheduled

    def rehash(self, full: bool = False, touches: int = 1) -> int:
        """Brings the hash tables in step with the weights; see :meth:`torch_lsh.sampling.sampler.Sampler.rehash`."""
        return self.sampler.rehash(self.weight, self.bias, full, touches)

    def drift(self, sample: int = 256, touches: int = 1, seed: int = 0) -> float:
        """The share of hash codes that changed; see :meth:`torch_lsh.sampling.sampler.Sampler.drift`."""
        return self.sampler.drift(self.weight, self.bias, sample, touches, seed)

    def set_label_counts(self, counts: Tensor, samples: int | None = None) -> None:
        """Gives label counts; see :meth:`torch_lsh.sampling.sampler.Sampler.set_label_counts`."""
        self.sampler.set_label_counts(counts, samples)

    def watch(self, on: bool = True) -> None:
        """Starts or ends the instruments of :meth:`stats`; see :meth:`torch_lsh.sampling.sampler.Sampler.watch`."""
        self.sampler.watch(on)

    def stats(
        self, inputs: Tensor | None = None, *, k: int = 10, queries: int = 64, batch_size: int = 256, seed: int = 0
    ) -> LayerStats:
        """What the layer finds and costs now; see :meth:`torch_lsh.sampling.sampler.Sampler.stats` for the arguments.

        >>> import torch, torch_lsh
        >>> layer = torch_lsh.LSHLinear(16, 5_000)
        >>> stats = layer.stats(torch.randn(100, 16), k=5)
        >>> 0 <= stats.recall.mean <= 1, stats.queries, stats.stale_rows
        (True, 64, None)
        """
        self.check_can_sample(self.weight if inputs is None else inputs)
        stats = self.sampler.stats(
            self.weight, self.bias, inputs, k=k, queries=queries, batch_size=batch_size, seed=seed
        )
        return replace(stats, paths=dict(self.paths.counts))

    def check_can_sample(self, input: Tensor) -> None:
        """Raises an error if there is no sampled path for ``input`` ``[*, in_features]``."""
        raise NotImplementedError

    def active_logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """``[B, A]`` logits of the active rows ``[A]`` or ``[B, A]`` for ``x`` ``[B, in]``; differentiable."""
        with part(self.sampler.stopwatch, "logits"):
            if rows.dim() == 1:
                return ops.gather_matmul(x, self.weight, self.bias, rows)
            logits = ops.sampled_dot(x.contiguous(), self.weight, rows)
            if self.bias is not None:
                bias = ops.gather_rows(self.bias, rows.clamp(min=0).flatten()).view_as(rows)
                logits = logits + bias.to(logits.dtype) * (rows >= 0)
            return logits
