"""The file of a wide model: tensors as safetensors, settings as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..config import LSHConfig
from ..index.config import INDEX_CONFIGS
from ..io import FilePath, assign_weights, load_safetensors, save_safetensors
from ..nn import LSHLinear, QuantizedLinear
from ..rehash import Drift, ExponentialBackoff, FixedInterval
from .mixture import Mixture
from .neighbours import DenseNeighbours, SparseNeighbours
from .network import Network, WideNetwork
from .ranker import LabelRanker

_MIXTURES: dict[str, type[Mixture] | type[LabelRanker]] = {"mixture": Mixture, "ranker": LabelRanker}
# Bytes that the index of a file may take: what SLIDE's tables take for a row is a sixth of it.
_INDEX_BYTES, _INDEX_BYTES_PER_ROW = 1 << 30, 1 << 16
_POLICIES = {policy.__name__: policy for policy in (FixedInterval, ExponentialBackoff, Drift)}


# --- files ------------------------------------------------------------------------------------------------------------


def save(
    network: Network, content: dict[str, Any], path: FilePath, format: str, tensors: dict[str, Tensor] | None = None
) -> None:
    """Writes the tensors of a network and what is to be known of it, whole or not at all.

    A network that does not count is left out; :meth:`Network.complete` initialises one in its place.

    Args:
        network: The network.
        content: What JSON holds.
        path: The file.
        format: Name and version of the format.
        tensors: Further ones.
    """
    all_tensors = {**(tensors or {}), **_what_counts(network).state_dict()}
    save_safetensors(all_tensors, path, {"format": format, "model": json.dumps(content)})


def _what_counts(network: Network) -> nn.Module:
    """The network; or its mixture alone, under the same name, where that does without the logits."""
    mixture = network.mixture
    return network if mixture is None or mixture.uses_logits else nn.ModuleDict({"mixture": mixture})


def load(path: FilePath, formats: Sequence[str], mmap: bool = False) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Reads tensors, content and format. Nothing in the file is executed.

    Args:
        path: The file.
        formats: Names and versions of the formats that it may have, the newest first.
        mmap: Map the file to memory; tensors are then read when they are used.

    Raises:
        ValueError: The file is cut off, damaged, of another format, or (unless mapped) holds a NaN or an infinity.
    """
    tensors, metadata = load_safetensors(path, formats, mmap)
    try:
        for name, tensor in tensors.items():
            if not mmap and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} holds a NaN or an infinity")
        return tensors, json.loads(metadata["model"]), metadata["format"]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error


# --- networks ---------------------------------------------------------------------------------------------------------


def describe(network: Network) -> dict[str, Any]:
    """The arguments that make such a network, and what :func:`restore` needs to know beside the tensors.

    Raises:
        ValueError: The re-hash policy is of a class that files do not hold.
    """
    description: dict[str, Any] = {
        "num_features": network.num_features,
        "num_labels": network.num_labels,
        "hidden": 0,
        "mixture": None if network.mixture is None else network.mixture.configuration(),
    }
    if isinstance(network, WideNetwork):
        output = network.output
        description.update(
            hidden=len(network.input_bias),
            dense_input=network.dense_input,
            activation=network.activation,
            sampled=isinstance(output, LSHLinear),
            config=config_to_dict(output.config) if isinstance(output, LSHLinear) else None,
            quantized=isinstance(output, QuantizedLinear),
        )
    return description


def arguments(description: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a :class:`WideNetwork` in what :func:`describe` returned."""
    found = {name: description[name] for name in ("sampled", "dense_input", "activation")}
    return {**found, "config": config_from_dict(description["config"])}


def restore(network: Network, description: dict[str, Any], tensors: dict[str, Tensor], check: bool) -> None:
    """Gives a network that was made from a description what it had when it was saved.

    Args:
        network: The network, made on the meta device.
        description: What :func:`describe` returned.
        tensors: The tensors of the file.
        check: Whether to look at every number of the mixture.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: The parts do not fit each other.
    """
    labels = network.num_labels
    if isinstance(network, WideNetwork) and description["quantized"]:
        network.output = QuantizedLinear(len(network.input_bias), labels)
    if description["mixture"] is not None:
        with torch.device("meta"):
            network.mixture = _empty_mixture(description["mixture"], network)
    counted = _what_counts(network)
    if counted is network and network.dense_input:
        tensors = {"scale": torch.ones(()), **tensors}  # files of earlier versions have none, nor a calibration
    if isinstance(network.mixture, LabelRanker):
        tensors = {"mixture.calibration.line": torch.tensor([1.0, 0.0]), **tensors}
    assign_weights(counted, tensors)
    if isinstance(network, WideNetwork) and isinstance(network.output, LSHLinear):
        _check_index(network.output)
    if network.mixture is not None and check:
        network.mixture.check(network.num_features)
    for parameter in network.parameters():
        parameter.requires_grad_()
    network.eval()


def _check_index(output: LSHLinear) -> None:
    """Raises a ValueError where the index, which the first look-up builds, would be out of proportion to the layer."""
    size = output.config.index.nbytes(output.out_features, output.in_features)
    most = _INDEX_BYTES + _INDEX_BYTES_PER_ROW * output.out_features
    if size > most:
        raise ValueError(f"index is {output.config.index!r}, which takes {size} bytes; wanted at most {most}")


def _empty_mixture(configuration: dict[str, Any], network: Network) -> Mixture | LabelRanker:
    configuration = dict(configuration)
    mixture = _MIXTURES[configuration.pop("kind")].empty(network.num_labels, **configuration)
    dense = isinstance(network, WideNetwork) and network.dense_input
    # A ranker scales sparse rows to dense ones where it knows how many features they have.
    scaled = isinstance(mixture, LabelRanker) and mixture.weighting.num_features is not None
    wrong = SparseNeighbours if dense else DenseNeighbours
    if any(isinstance(part, wrong) for part in mixture.modules()) and (dense or not scaled):
        raise ValueError("the mixture takes rows of another kind than the network")
    return mixture


# --- settings of the output layer -------------------------------------------------------------------------------------


def config_to_dict(config: LSHConfig) -> dict[str, Any]:
    """The settings of an output layer in types that files hold.

    Raises:
        ValueError: The re-hash policy is of a class that files do not hold.
    """
    policy = config.rehash
    if type(policy).__name__ not in _POLICIES:
        raise ValueError(f"rehash is {policy!r}; wanted one of {', '.join(_POLICIES)}, which files can hold")
    content = asdict(config)
    content["index"] = {"kind": type(config.index).__name__, **content["index"]}
    content["rehash"] = {"policy": type(policy).__name__, **asdict(policy)}  # type: ignore[call-overload]
    return content


def config_from_dict(content: dict[str, Any] | None) -> LSHConfig | None:
    """The settings of which :func:`config_to_dict` made ``content``.

    Raises:
        KeyError, TypeError, ValueError: It is of another form.
    """
    if content is None:
        return None
    content = dict(content)
    policy, index = dict(content.pop("rehash")), dict(content.pop("index"))
    return LSHConfig(
        **content,
        rehash=_POLICIES[policy.pop("policy")](**policy),
        index=INDEX_CONFIGS[index.pop("kind")](**index),
    )
