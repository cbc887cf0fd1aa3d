"""Files of the previous format of text classifiers, in the form of the present one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data import XMCRows
from ..models.mixture import Mixture
from ..models.neighbours import neighbours_of

FORMAT = "torch_lsh.TextClassifier/2"


def converted(tensors: dict[str, Tensor], model: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and content as the present version writes them.

    Raises:
        KeyError, TypeError, ValueError: The file holds no such model.
    """
    classes, hidden = len(model["classes"]), model["hidden"]
    own = {name: value for name, value in tensors.items() if not name.startswith("neighbours.")}
    own["input.weight"] = own.pop("features.weight")
    if hidden > 0:
        own["input_bias"] = own.pop("bias")
    network = {
        "hidden": hidden,
        "mixture": None,
        "dense_input": False,
        "activation": "none",
        "sampled": "output._extra_state" in own,
        "config": None,
        "quantized": False,
    }
    settings = model["neighbours"]
    if settings is not None:
        names = ("row_start", "columns", "values", "label_start", "labels")
        of_rows = {name: tensors[f"neighbours.{name}"] for name in names}
        of_rows["feature_start"], of_rows["features"] = of_rows.pop("row_start"), of_rows.pop("columns")
        rows = XMCRows(**of_rows, num_features=len(own["columns"]), num_labels=classes)
        neighbours = neighbours_of(rows, settings["k"], settings["power"])
        counts = torch.bincount(rows.labels, minlength=classes)
        mixture = Mixture([neighbours], counts, settings["share"])
        network["mixture"] = mixture.configuration()
        own.update({f"mixture.{name}": value for name, value in mixture.state_dict().items()})
    features = {"split_characters": False, **model["features"]}
    return own, {**model, "network": network, "features": features}
