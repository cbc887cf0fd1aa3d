"""Whether sampled training of a layer is faster than dense training, measured on this machine."""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import LSHConfig
from ..optim import SGD
from ..random_stream import same_random_stream
from ..rehash import ExponentialBackoff
from .feedforward import DownProjection, LSHSequential
from .linear import LSHLinear

# Narrower layers stay dense without a measurement: their dense step takes less time than the look-ups of a sampled one.
NARROW = 4096
# The dense step is measured on at most this many rows, and its time is scaled: it is proportional to the rows.
_MEASURED_ROWS = 32_768
_BATCH = 128
_WARM_UP, _REPETITIONS = 2, 5

_log = logging.getLogger("torch_lsh")


def pays(linear: nn.Linear, config: LSHConfig | None = None) -> bool:
    """Returns whether a training step of ``linear`` is faster as an :class:`LSHLinear`.

    Layers of fewer than 4,096 outputs stay dense without a measurement. A measurement takes some tenths of a second,
    once per shape and configuration.

    >>> pays(nn.Linear(128, 100))
    False
    """
    return why_dense(linear, config) is None


def why_dense(linear: nn.Linear, config: LSHConfig | None = None) -> str | None:
    """Returns why a training step of ``linear`` is no faster as an :class:`LSHLinear`; None: it is faster.

    >>> why_dense(nn.Linear(128, 100))
    'has 100 outputs; wanted at least 4,096'
    """
    config = config if config is not None else LSHConfig()
    reason = _why_narrow(linear, config)
    if reason is not None:
        return reason
    measured = linear_speedup(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        _without_policy(config),
        torch.get_num_threads(),
    )
    if _decide(f"nn.Linear({linear.in_features}, {linear.out_features})", measured):
        return None
    return f"trains no faster by samples: {measured:.2f} times as fast on this machine"


def block_pays(up: nn.Linear, down: nn.Linear, config: LSHConfig | None = None) -> bool:
    """Returns whether a training step of ``up -> activation -> down`` is faster as an :class:`LSHSequential`.

    Blocks of fewer than 4,096 hidden neurons stay dense without a measurement.

    >>> block_pays(nn.Linear(128, 512), nn.Linear(512, 128))
    False
    """
    config = config if config is not None else LSHConfig()
    if _why_narrow(up, config) is not None or down.weight.device.type != "cpu":
        return False
    measured = block_speedup(
        up.in_features, up.out_features, down.out_features, _without_policy(config), torch.get_num_threads()
    )
    return _decide(f"block of {up.out_features} hidden neurons", measured)


@functools.lru_cache(maxsize=256)
def linear_speedup(in_features: int, out_features: int, bias: bool, config: LSHConfig, threads: int) -> float:
    """Measures the time of a dense training step, divided by that of a sampled one.

    Plain SGD updates both, so that the comparison is one of the layers. A dense Adam would add to the dense time. The
    layers have at most 32,768 rows, and the dense time is scaled to ``out_features``.
    """
    rows = min(out_features, _MEASURED_ROWS)
    config = replace(config, active=min(config.active_rows(out_features), rows))

    def seconds(layer: nn.Linear) -> float:
        labels = torch.randint(rows, (_BATCH,), device="cpu")
        return _step_seconds(layer, in_features, lambda logits: F.cross_entropy(logits, labels))

    with same_random_stream(), torch.inference_mode(False), torch.enable_grad():
        dense_seconds = seconds(nn.Linear(in_features, rows, bias, device="cpu")) * out_features / rows
        return dense_seconds / seconds(LSHLinear(in_features, rows, bias, device="cpu", config=config))


@functools.lru_cache(maxsize=256)
def block_speedup(in_features: int, hidden: int, out_features: int, config: LSHConfig, threads: int) -> float:
    """Measures a block with ``hidden`` neurons as :func:`linear_speedup` does a layer."""
    neurons = min(hidden, _MEASURED_ROWS)
    config = replace(config, active=min(config.active_rows(hidden), neurons))

    def seconds(block: nn.Sequential) -> float:
        return _step_seconds(block, in_features, lambda output: output.square().mean())

    with same_random_stream(), torch.inference_mode(False), torch.enable_grad():
        up, down = nn.Linear(in_features, neurons, device="cpu"), nn.Linear(neurons, out_features, device="cpu")
        dense_seconds = seconds(nn.Sequential(up, nn.ReLU(), down)) * hidden / neurons
        sampled = LSHSequential(LSHLinear.from_linear(up, config), nn.ReLU(), DownProjection.from_linear(down))
        return dense_seconds / seconds(sampled)


def _why_narrow(linear: nn.Linear, config: LSHConfig) -> str | None:
    """Why sampling cannot pay; None: it can."""
    rows = linear.out_features
    if rows < NARROW:
        return f"has {rows:,} outputs; wanted at least {NARROW:,}"
    if linear.weight.device.type != "cpu":
        return f"is on {linear.weight.device}; wanted cpu"
    return "has as many active rows as outputs; set LSHConfig(active=...)" if config.active_rows(rows) >= rows else None


def _without_policy(config: LSHConfig) -> LSHConfig:
    """Replaces the re-hash policy, which need not be hashable; no re-hash is due in so few steps."""
    return replace(config, rehash=ExponentialBackoff())


def _decide(what: str, speedup: float) -> bool:
    _log.info(
        "%s: a sampled training step is %.2f times as fast as a dense one: %s",
        what,
        speedup,
        "worth swapping" if speedup > 1.0 else "not worth swapping",
    )
    return speedup > 1.0


def _step_seconds(module: nn.Module, in_features: int, loss_of: Callable[[Tensor], Tensor]) -> float:
    """Returns the median time of a training step."""
    optimizer = SGD(module.parameters(), lr=1e-3)
    x = torch.randn(_BATCH, in_features, device="cpu")
    seconds = []
    for _ in range(_WARM_UP + _REPETITIONS):
        start = time.perf_counter()
        loss_of(module(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UP:])
