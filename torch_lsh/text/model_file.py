"""The file of a text classifier: weights as safetensors, settings and labels as JSON in its header."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch

from ..io import FilePath, load_safetensors, save_safetensors
from .hashed_text import HashedText
from .neighbours import TextNeighbours
from .network import DENSE_CLASSES, TextNetwork

FORMAT = "torch_lsh.TextClassifier/2"


class SavedModel(NamedTuple):
    """What the file of a fitted classifier holds.

    Attributes:
        settings: Arguments of the classifier.
        features: How texts are hashed.
        network: The trained network.
        classes: The labels, sorted.
        multilabel: Whether a text may have several labels.
        multi_hot: Whether labels were given as zeros and ones.
        threshold: Probability from which on a label is predicted (multi-label).
        history: A dict per epoch.
    """

    settings: dict[str, Any]
    features: HashedText
    network: TextNetwork
    classes: list[Any]
    multilabel: bool
    multi_hot: bool
    threshold: float
    history: list[dict[str, float]]


def save(model: SavedModel, path: FilePath) -> None:
    """Writes a model, whole or not at all."""
    network, neighbours = model.network, model.network.neighbours
    content = {
        **model._asdict(),
        "features": model.features.get_params(),
        "columns": len(network.columns),
        "hidden": 0 if network.output is None else network.features.embedding_dim,
        "neighbours": None if neighbours is None else neighbours.settings(),
    }
    del content["network"]
    save_safetensors(network.state_dict(), path, {"format": FORMAT, "model": json.dumps(content)})


def load(path: FilePath) -> SavedModel:
    """Reads a model. Nothing in the file is executed.

    Raises:
        ValueError: The file is cut off, damaged or holds no such model.
    """
    tensors, metadata = load_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is of the format {metadata.get('format')!r}; wanted {FORMAT!r}")
    try:
        model = json.loads(metadata["model"])
        features = {"split_characters": False, **model["features"]}  # files of 0.1 lack it
        if features["char_ngrams"] is not None:
            features["char_ngrams"] = tuple(features["char_ngrams"])
        hashed = HashedText(**features)
        classes = len(model["classes"])
        sizes = hashed.num_features, model["columns"], classes, model["hidden"]
        with torch.device("meta"):
            network = TextNetwork(*sizes, sampled=classes > DENSE_CLASSES)
            if model["neighbours"] is not None:
                network.neighbours = TextNeighbours(model["columns"], classes, **model["neighbours"])
        network.load_state_dict(tensors, assign=True)
        network.index_columns()
        if network.neighbours is not None:
            network.neighbours.index_rows()
        return SavedModel(
            model["settings"],
            hashed,
            network.eval(),
            model["classes"],
            bool(model["multilabel"]),
            bool(model["multi_hot"]),
            float(model["threshold"]),
            model["history"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error
