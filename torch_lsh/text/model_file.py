"""The file of a text classifier: that of its network, with the hashing of texts and the labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..io import FilePath
from ..models import model_file
from ..models.network import Network, WideNetwork
from . import previous_format
from .columns import Columns
from .hashed_text import HashedText
from .linear import LinearNetwork

FORMAT = "torch_lsh.TextClassifier/3"


class SavedModel(NamedTuple):
    """What the file of a fitted classifier holds.

    Attributes:
        settings: Arguments of the classifier.
        features: How texts are hashed.
        columns: Which hashed columns are features.
        network: The trained network.
        classes: The labels.
        multilabel: Whether a text may have several labels.
        multi_hot: Whether labels were given as zeros and ones.
        threshold: Probability from which on a label is predicted (multi-label).
        history: A dict per epoch.
    """

    settings: dict[str, Any]
    features: HashedText
    columns: Columns
    network: Network
    classes: list[Any]
    multilabel: bool
    multi_hot: bool
    threshold: float
    history: list[dict[str, float]]


def save(model: SavedModel, path: FilePath) -> None:
    """Writes a model, whole or not at all."""
    network = model.network
    content = {**model._asdict(), "features": model.features.get_params(), "network": model_file.describe(network)}
    del content["columns"]
    tensors = {"columns": model.columns.columns, "idf": model.columns.idf}
    model_file.save(network, content, path, FORMAT, tensors)


def describe_run(network: Network, features: HashedText) -> dict[str, Any]:
    """What a checkpoint has to agree with."""
    return {**model_file.describe(network), "hashing": features.get_params()}


def load(path: FilePath, mmap: bool) -> SavedModel:
    """Reads a model. Nothing in the file is executed.

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
        return SavedModel(
            model["settings"],
            hashed,
            columns,
            network,
            model["classes"],
            bool(model["multilabel"]),
            bool(model["multi_hot"]),
            float(model["threshold"]),
            model["history"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error
