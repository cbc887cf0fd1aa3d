"""The best classes of a very wide layer: PyTorch, exact top-k, 8-bit weights, approximate top-k."""

from __future__ import annotations

import copy
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import LSHLinear, QuantizedLinear
from . import harness

K = 5
System = Callable[[Tensor], tuple[Tensor, Tensor]]
APPROXIMATE = "layer.topk exact=False"
# Its codes fit into the last-level cache, from which the weights of the systems that take turns drive them.
ALONE = "layer.topk exact=False, alone"


class Int8Product:
    """PyTorch's matrix product of int8 numbers: inputs are rounded per sample, which costs precision."""

    def __init__(self, layer: QuantizedLinear) -> None:
        self._weight = layer.weight_int8.T
        self._scale, self._bias = layer.scale, layer.bias

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = x.abs().amax(1, keepdim=True) / 127
        sums = torch._int_mm((x / scale).round().to(torch.int8), self._weight)
        logits = sums.float().mul_(self._scale).mul_(scale)
        if self._bias is not None:
            logits += self._bias
        best = logits.topk(K)
        return best.values, best.indices


def systems_of(linear: nn.Linear) -> dict[str, System]:
    """Functions of float32 inputs; the bfloat16 ones convert them, which counts."""
    half = copy.deepcopy(linear).bfloat16()
    layer, layer_half = LSHLinear.from_linear(linear).eval(), LSHLinear.from_linear(half).eval()
    quantised = QuantizedLinear.from_linear(linear).eval()
    return {
        "F.linear + topk": lambda x: F.linear(x, linear.weight, linear.bias).topk(K),
        "F.linear + topk bf16": lambda x: F.linear(x.bfloat16(), half.weight, half.bias).topk(K),
        "int8 mm + topk": Int8Product(quantised),
        "layer.topk": lambda x: layer.topk(x, K),
        "layer.topk bf16": lambda x: layer_half.topk(x.bfloat16(), K),
        "layer.topk int8": lambda x: quantised.topk(x, K),
        APPROXIMATE: lambda x: layer.topk(x, K, exact=False),
    }


def _next_of(system: System, inputs: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    return system(next(inputs))


@torch.no_grad()
def measure(
    systems: dict[str, System], pool: Tensor, batches: Sequence[int], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Measures every system at every batch size; returns a record for each.

    The systems take turns on the same inputs. The approximate one runs once more by itself.

    Args:
        systems: by name.
        pool: ``[n, in]``, the inputs to take from.
        batches: batch sizes.
        rounds: at most, per batch size, and at least 5.
        seconds: that a batch size may take.
    """
    records: list[dict[str, Any]] = []
    for batch in batches:
        starts = range(0, max(1, len(pool) - batch + 1), batch)
        runs: dict[str, Callable[[], Any]] = {}
        for name, system in systems.items():
            inputs = itertools.cycle([pool[start : start + batch].contiguous() for start in starts])
            runs[name] = functools.partial(_next_of, system, inputs)
        begin = time.perf_counter()
        for run in runs.values():
            run()
        affordable = int(seconds / (time.perf_counter() - begin))
        seconds_of = harness.in_turn(runs, max(5, min(rounds, affordable)), warm_up=1)
        seconds_of[ALONE] = harness.in_turn({ALONE: runs[APPROXIMATE]}, rounds)[ALONE]
        for name, taken in seconds_of.items():
            p99 = sorted(taken)[min(len(taken) - 1, int(0.99 * len(taken)))] * 1e3
            records.append({"system": name, "batch": batch, **harness.summary(taken), "p99_ms": p99})
    for record in records:
        dense = "F.linear + topk bf16" if "bf16" in record["system"] else "F.linear + topk"
        reference = next(r for r in records if r["batch"] == record["batch"] and r["system"] == dense)
        record["speedup"] = reference["median_ms"] / record["median_ms"]
    return records


def draw(axis: Any, records: list[dict[str, Any]]) -> None:
    """Median milliseconds by batch size, a line per system."""
    for name in dict.fromkeys(record["system"] for record in records):
        mine = [record for record in records if record["system"] == name]
        axis.plot([r["batch"] for r in mine], [r["median_ms"] for r in mine], marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel=f"milliseconds for the best {K} classes")
    axis.legend()
