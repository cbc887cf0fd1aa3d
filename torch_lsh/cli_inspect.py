"""The part of the command line that looks inside: what the hash tables of a saved layer find."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import io as safetensors
from .data import XMCDataset, collate_xmc
from .index.config import PartitionConfig
from .models import TextClassifier, XMCClassifier
from .models.xmc import FORMAT as XMC_FORMAT
from .models.xmc import check_can_write, read_archive
from .nn import LSHLinear, QuantizedLinear
from .sampling.stats import LayerStats
from .text import TextFile
from .text.classifier import FORMAT as TEXT_FORMAT
from .text.cli import column_options, is_text_model

_NARROW = 4096  # rows; narrower layers are dense in practice
_INPUTS = 512
_READ_TEXTS = 65_536  # of which the inputs are drawn, because files may be in the order of their labels
_PLOTTED_KS = (1, 2, 5, 10, 20, 50, 100)


class Inspected(NamedTuple):
    name: str
    layer: LSHLinear
    inputs: Tensor | None  # [n, in]


def inspect(arguments: argparse.Namespace) -> int:
    if arguments.plot is not None:
        check_can_write(Path(arguments.plot))
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError("--plot needs matplotlib: pip install matplotlib")
    if arguments.data is not None and arguments.inputs is not None:
        raise ValueError("--data and --inputs were both given; wanted one of them")
    found = _layers(arguments)
    if arguments.layer is not None:
        names = [name for name, *_ in found]
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
        plot(found, arguments.queries, arguments.plot)
    return 0


def _layers(arguments: argparse.Namespace) -> list[Inspected]:
    """The wide layers of the file, with some inputs where there is something that gives them."""
    path, inputs = arguments.model, None if arguments.inputs is None else _read_inputs(arguments.inputs)
    if is_text_model(path):
        tensors, metadata = safetensors.load_file(path)
        if metadata.get("format") != TEXT_FORMAT:
            return _of_tensors(tensors, inputs, arguments)
        text_model = TextClassifier.load(path)
        output = text_model.network_.output
        if output is None:
            raise ValueError(f"{path} is a linear model: its classes are columns of the features, no rows to hash")
        return [_inspected(output, arguments, inputs, lambda: _inputs_of_texts(text_model, arguments))]
    content = read_archive(Path(path))
    if not isinstance(content, dict) or content.get("format") != XMC_FORMAT:
        for key in ("weights", "state_dict", "model"):  # of checkpoints
            if isinstance(content, dict) and isinstance(content.get(key), Mapping):
                content = content[key]
        return _of_tensors(content, inputs, arguments)
    model = XMCClassifier.load(path)
    return [_inspected(model.output, arguments, inputs, lambda: _inputs_of_rows(model, arguments))]


def _inspected(output: nn.Module, arguments: argparse.Namespace, inputs: Tensor | None, from_data: Any) -> Inspected:
    if isinstance(output, QuantizedLinear):
        raise ValueError(f"{arguments.model} holds int8 weights; wanted the model as it was before quantize_")
    assert isinstance(output, nn.Linear)
    layer = output if isinstance(output, LSHLinear) else LSHLinear.from_linear(output)
    if arguments.data is not None:
        inputs = from_data()
    return _checked("output", layer, inputs)


def _checked(name: str, layer: LSHLinear, inputs: Tensor | None) -> Inspected:
    if inputs is not None and (inputs.dim() != 2 or inputs.shape[1] != layer.in_features):
        raise ValueError(f"the inputs have shape {list(inputs.shape)}; {name} takes [n, {layer.in_features}]")
    if inputs is not None:
        known = inputs = inputs.to(layer.weight.dtype)
        if isinstance(layer.config.index, PartitionConfig):  # recall is measured on other inputs than it learns from
            known, inputs = inputs[::2], inputs[1::2]
        layer.sampler.keep_queries(known)
    return Inspected(name, layer, inputs)


def _of_tensors(tensors: Any, inputs: Tensor | None, arguments: argparse.Namespace) -> list[Inspected]:
    """Every wide matrix of a ``state_dict``."""
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{arguments.model} holds a {type(tensors).__name__}; wanted a model or a state_dict")
    if arguments.data is not None:
        raise ValueError("--data needs a saved XMCClassifier or TextClassifier; for other files give --inputs")
    found = []
    for name, weight in tensors.items():
        if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
            continue
        if len(weight) < max(_NARROW, weight.shape[1] + 1) or arguments.layer not in (None, name):
            continue
        bias = tensors.get(f"{name.removesuffix('weight')}bias") if name.endswith("weight") else None
        if not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]:
            bias = None
        with torch.device("meta"):
            linear = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
        linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.to(weight.dtype).contiguous(), requires_grad=False)
        found.append(_checked(name, LSHLinear.from_linear(linear), inputs))
    if not found:
        shapes = ", ".join(
            f"{name} {list(value.shape)}" for name, value in tensors.items() if isinstance(value, Tensor)
        )
        wanted = f"a matrix of at least {_NARROW} rows" if arguments.layer is None else f"a wide {arguments.layer!r}"
        raise ValueError(f"{arguments.model} has {shapes or 'no tensors'}; wanted {wanted}")
    return found


def _read_inputs(path: str) -> Tensor:
    content: Any
    if is_text_model(path):
        tensors = list(safetensors.load_file(path)[0].values())
        content = tensors[0] if len(tensors) == 1 else tensors
    else:
        content = read_archive(Path(path))
    if not isinstance(content, Tensor) or content.dim() != 2 or not content.is_floating_point() or len(content) == 0:
        raise ValueError(f"{path} does not hold one tensor [n, in] of floating point numbers")
    return content


@torch.no_grad()
def _inputs_of_rows(model: XMCClassifier, arguments: argparse.Namespace) -> Tensor:
    dataset = XMCDataset(arguments.data, normalize=arguments.normalize)
    if len(dataset) == 0 or dataset.num_features != model.num_features:
        raise ValueError(
            f"{arguments.data} has {len(dataset)} rows of {dataset.num_features} features; "
            f"wanted some of {model.num_features}"
        )
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:_INPUTS]
    return model.hidden(collate_xmc([dataset[row] for row in rows.tolist()])[0])


@torch.no_grad()
def _inputs_of_texts(model: TextClassifier, arguments: argparse.Namespace) -> Tensor:
    rows = TextFile(arguments.data, arguments.text, label=None)
    texts = [row.text for row in itertools.islice(rows, _READ_TEXTS)]
    if not texts:
        raise ValueError(f"{arguments.data} has no texts")
    some = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:_INPUTS]
    crow, col, values = model.features_.csr([texts[number] for number in some.tolist()])
    return model.network_.hidden(*model.network_.rows(crow, col, values))


def plot(layers: list[Inspected], queries: int, path: str) -> None:
    """Bucket loads and, where there are inputs, recall by k: one column per layer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(layers), figsize=(5 * len(layers), 7), squeeze=False)
    for (name, layer, inputs), (loads_axis, recall_axis) in zip(layers, axes.T):
        index = layer.sampler.tables
        loads = None if index is None else index.bucket_loads()
        if index is not None and loads is not None:
            size = index.bucket_size
            longest = 8 * (size or math.ceil(loads.double().mean().item()))  # the last bar stands for all beyond
            loads_axis.hist(loads.flatten().clamp(max=longest).numpy(), bins=60, log=True)
            if size is not None:
                loads_axis.axvline(size, color="black", linestyle="--", label="bucket size")
                loads_axis.legend()
        loads_axis.set(title=name, xlabel="rows that belong to a bucket", ylabel="buckets")
        if inputs is None:
            recall_axis.text(0.5, 0.5, "no inputs: give --data or --inputs", ha="center", va="center")
            recall_axis.set_axis_off()
            continue
        ks = [k for k in _PLOTTED_KS if k <= layer.out_features]
        curve = [layer.stats(inputs, k=k, queries=queries) for k in ks]
        for label, estimates in _curves(curve).items():
            means, errors = zip(*estimates)
            recall_axis.errorbar(ks, means, yerr=errors, marker="o", capsize=3, label=label)
        recall_axis.set(xscale="log", ylim=(0, 1.02), xlabel="k", ylabel="recall@k")
        recall_axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _curves(stats: list[LayerStats]) -> dict[str, list[Any]]:
    curves = {"among active rows": [one.recall for one in stats], "one look-up": [one.lookup_recall for one in stats]}
    return {label: estimates for label, estimates in curves.items() if None not in estimates}


def add_commands(commands: Any, data: argparse.ArgumentParser, positive: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        parents=[data, column_options()],
        help="what the hash tables of a saved model find, and how full they are",
        description="Prints the stats of the wide layers of a saved XMCClassifier or TextClassifier, or of every wide "
        "matrix of a state_dict (torch.save, safetensors). Recall needs inputs: --data or --inputs. Settings are those "
        "that the model was trained with, where the file holds them, else the default ones.",
    )
    parser.add_argument("model")
    parser.add_argument("--data", help="file that the model can predict; its hidden activations are the inputs")
    parser.add_argument("--inputs", help="file of a tensor [n, in] (torch.save, safetensors): inputs of the layer")
    parser.add_argument("--layer", help="name of the layer; default: all")
    parser.add_argument("-k", type=positive, default=10, help="recall is that of the k best rows")
    parser.add_argument("--queries", type=positive, default=128, help="inputs that recall is measured on")
    parser.add_argument("--json", action="store_true", help="one JSON object per layer")
    parser.add_argument("--plot", help="file to draw bucket loads and recall to (needs matplotlib)")
    parser.set_defaults(run=inspect)
