"""The file of a text classifier: that of its network, with the hashing of texts and the labels."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..io import FilePath
from ..models import model_file
from ..models.network import Network, WideNetwork
from . import previous_format
from .columns import Columns
from .fitted import FittedText
from .hashed_text import HashedText
from .linear import LinearNetwork

FORMAT = "torch_lsh.TextClassifier/3"


def save(settings: dict[str, Any], fitted: FittedText, path: FilePath) -> None:
    """Writes a model and the arguments of its classifier, whole or not at all."""
    network = fitted.network
    content = {
        **fitted._asdict(),
        "settings": settings,
        "features": fitted.features.get_params(),
        "network": model_file.describe(network),
    }
    del content["columns"]
    # Weights of columns have the name that they had when all were inverse document frequencies.
    tensors = {"columns": fitted.columns.columns, "idf": fitted.columns.weights}
    model_file.save(network, content, path, FORMAT, tensors)


def describe_run(network: Network, features: HashedText) -> dict[str, Any]:
    """What a checkpoint has to agree with."""
    smoothing = network.label_smoothing if isinstance(network, (LinearNetwork, WideNetwork)) else 0.0
    return {**model_file.describe(network), "label_smoothing": smoothing, "hashing": features.get_params()}


def load(path: FilePath, mmap: bool) -> tuple[dict[str, Any], FittedText]:
    """Reads the arguments of a classifier, and its model. Nothing in the file is executed.

    Raises:
        ValueError: The file is cut off, damaged or holds no such model.
    """
    tensors, model, format = model_file.load(path, (FORMAT, previous_format.FORMAT), mmap)
    try:
        if format == previous_format.FORMAT:
            tensors, model = previous_format.converted(tensors, model)
        features = dict(model["features"])
        if features["char_ngrams"] is not None:
            features["char_ngrams"] = tuple(features["char_ngrams"])
        hashed = HashedText(**features)
        columns = Columns(tensors.pop("columns"), tensors.pop("idf"), hashed.num_features)
        description = model["network"]
        sizes = len(columns), len(model["classes"])
        network: Network
        with torch.device("meta"):
            if description["hidden"] == 0:
                network = LinearNetwork(*sizes, binary=bool(model["multilabel"]))
            else:
                network = WideNetwork(*sizes, description["hidden"], **model_file.arguments(description))
        model_file.restore(network, description, tensors, check=not mmap)
        temperature = float(model.get("temperature", 1.0))
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; wanted a positive number")
        return model["settings"], FittedText(
            hashed,
            columns,
            network,
            model["classes"],
            bool(model["multilabel"]),
            bool(model["multi_hot"]),
            float(model["threshold"]),
            temperature,
            model["history"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error
