"""What the commands ``inspect`` share: the wide layers of a file, their statistics, a plot."""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import plots
from ..index.config import PartitionConfig
from ..io import is_safetensors, load_archive, load_safetensors
from ..nn import LSHLinear, QuantizedLinear
from ..nn.speedup import NARROW
from ..sampling.stats import LayerStats
from .arguments import positive

_INPUTS = 512
_PLOTTED_KS = (1, 2, 5, 10, 20, 50, 100)


class Inspected(NamedTuple):
    """A layer to inspect.

    Attributes:
        name: Its name in the file.
        layer: The layer.
        inputs: ``[n, in]``; None: recall is not measured.
    """

    name: str
    layer: LSHLinear
    inputs: Tensor | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every kind of file takes."""
    parser.description = (
        "Prints the statistics of the wide layers of a saved XMCClassifier or TextClassifier, or of every wide matrix "
        "of a state_dict (torch.save, safetensors). Recall needs inputs: --data or --inputs. The settings are those "
        "in the file, or else the default ones."
    )
    parser.add_argument("model", help="file of a model or of tensors")
    parser.add_argument("--data", help="file that the model can predict; its hidden activations are the inputs")
    parser.add_argument("--inputs", help="file of one tensor [n, in] (torch.save, safetensors): inputs of the layer")
    parser.add_argument("--layer", help="name of the layer; default: all")
    parser.add_argument("-k", type=positive, default=10, help="measure the recall of the k highest-scoring rows")
    parser.add_argument("--queries", type=positive, default=128, help="inputs to measure recall on")
    parser.add_argument("--json", action="store_true", help="print one JSON object per layer")
    parser.add_argument("--plot", help="file for a plot of bucket loads and recall (needs matplotlib)")


def check(arguments: argparse.Namespace) -> None:
    """Refuses arguments that do not fit together, before any file is read."""
    if arguments.plot is not None:
        plots.check_can_draw(arguments.plot)
    if arguments.data is not None and arguments.inputs is not None:
        raise ValueError("--data and --inputs were both given; wanted one of them")


def random_choice(count: int) -> list[int]:
    """Chooses the rows of a file that become inputs, the same ones in every run."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:_INPUTS].tolist()


# --- layers -----------------------------------------------------------------------------------------------------------


def layer_of_model(output: nn.Module, inputs: Tensor | None, arguments: argparse.Namespace) -> Inspected:
    """Prepares the output layer of a model; without ``inputs``, those of ``--inputs`` are taken."""
    if isinstance(output, QuantizedLinear):
        raise ValueError(f"{arguments.model} holds int8 weights; wanted the model before quantize_")
    assert isinstance(output, nn.Linear)
    layer = output if isinstance(output, LSHLinear) else LSHLinear.from_linear(output)
    return _with_inputs("output", layer, _given_inputs(arguments) if inputs is None else inputs)


def layers_of_tensors(tensors: Any, arguments: argparse.Namespace) -> list[Inspected]:
    """Makes a layer of every wide matrix of a ``state_dict``."""
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{arguments.model} holds a {type(tensors).__name__}; wanted a model or a state_dict")
    if arguments.data is not None:
        raise ValueError("--data needs a saved XMCClassifier or TextClassifier; for other files give --inputs")
    inputs = _given_inputs(arguments)
    found = []
    for name, weight in tensors.items():
        if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
            continue
        if len(weight) < max(NARROW, weight.shape[1] + 1) or arguments.layer not in (None, name):
            continue
        bias = tensors.get(f"{name.removesuffix('weight')}bias") if name.endswith("weight") else None
        found.append(_with_inputs(name, _layer_of(weight, bias), inputs))
    if not found:
        shapes = ", ".join(
            f"{name} {list(value.shape)}" for name, value in tensors.items() if isinstance(value, Tensor)
        )
        wanted = f"a matrix of at least {NARROW} rows" if arguments.layer is None else f"a wide {arguments.layer!r}"
        raise ValueError(f"{arguments.model} has {shapes or 'no tensors'}; wanted {wanted}")
    return found


def _layer_of(weight: Tensor, bias: Any) -> LSHLinear:
    """Makes a layer that shares the tensors; a bias of another shape is left out."""
    has_bias = isinstance(bias, Tensor) and bias.shape == weight.shape[:1]
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], len(weight), bias=has_bias)
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if has_bias:
        linear.bias = nn.Parameter(bias.to(weight.dtype).contiguous(), requires_grad=False)
    return LSHLinear.from_linear(linear)


def _with_inputs(name: str, layer: LSHLinear, inputs: Tensor | None) -> Inspected:
    if inputs is not None and (inputs.dim() != 2 or inputs.shape[1] != layer.in_features):
        raise ValueError(f"the inputs have shape {list(inputs.shape)}; {name} takes [n, {layer.in_features}]")
    if inputs is not None:
        known = inputs = inputs.to(layer.weight.dtype)
        if isinstance(layer.config.index, PartitionConfig):  # recall is measured on other inputs
            known, inputs = inputs[::2], inputs[1::2]
        layer.sampler.keep_queries(known)
    return Inspected(name, layer, inputs)


def _given_inputs(arguments: argparse.Namespace) -> Tensor | None:
    path = arguments.inputs
    if path is None:
        return None
    content: Any
    if is_safetensors(path):
        tensors = list(load_safetensors(path)[0].values())
        content = tensors[0] if len(tensors) == 1 else tensors
    else:
        content = load_archive(path)
    if not isinstance(content, Tensor) or content.dim() != 2 or not content.is_floating_point() or len(content) == 0:
        raise ValueError(f"{path} does not hold one tensor [n, in] of floating point numbers")
    return content


# --- output -----------------------------------------------------------------------------------------------------------


def show(found: list[Inspected], arguments: argparse.Namespace) -> int:
    """Prints the statistics of the layers, and draws them where ``--plot`` is given."""
    if arguments.layer is not None:
        names = [inspected.name for inspected in found]
        found = [inspected for inspected in found if inspected.name == arguments.layer]
        if not found:
            raise ValueError(f"--layer is {arguments.layer!r}; {arguments.model} has {', '.join(names)}")
    for name, layer, inputs in found:
        layer.rehash(full=True)
        stats = layer.stats(inputs, k=min(arguments.k, layer.out_features), queries=arguments.queries)
        if arguments.json:
            print(json.dumps({"layer": name, "k": stats.k, **stats.as_dict()}))
        else:
            print(f"{name}: {layer}\n{stats}\n")
    if arguments.plot is not None:
        loads = [functools.partial(_draw_loads, one) for one in found]
        recalls = [functools.partial(_draw_recall, one, arguments.queries) for one in found]
        plots.draw(arguments.plot, *loads, *recalls, columns=len(found))
    return 0


def _draw_loads(inspected: Inspected, axis: Any) -> None:
    index = inspected.layer.sampler.tables
    loads = None if index is None else index.bucket_loads()
    if index is not None and loads is not None:
        size = index.bucket_size
        longest = 8 * (size or math.ceil(loads.double().mean().item()))  # the last bar stands for all beyond
        axis.hist(loads.flatten().clamp(max=longest).numpy(), bins=60, log=True)
        if size is not None:
            axis.axvline(size, color="black", linestyle="--", label="bucket size")
            axis.legend()
    axis.set(title=inspected.name, xlabel="rows per bucket", ylabel="buckets")


def _draw_recall(inspected: Inspected, queries: int, axis: Any) -> None:
    _, layer, inputs = inspected
    if inputs is None:
        axis.text(0.5, 0.5, "no inputs: give --data or --inputs", ha="center", va="center")
        axis.set_axis_off()
        return
    ks = [k for k in _PLOTTED_KS if k <= layer.out_features]
    for label, estimates in _curves([layer.stats(inputs, k=k, queries=queries) for k in ks]).items():
        means, errors = zip(*estimates)
        axis.errorbar(ks, means, yerr=errors, marker="o", capsize=3, label=label)
    axis.set(xscale="log", ylim=(0, 1.02), xlabel="k", ylabel="recall@k")
    axis.legend()


def _curves(stats: list[LayerStats]) -> dict[str, list[Any]]:
    curves = {"among active rows": [one.recall for one in stats], "one look-up": [one.lookup_recall for one in stats]}
    return {label: estimates for label, estimates in curves.items() if None not in estimates}
