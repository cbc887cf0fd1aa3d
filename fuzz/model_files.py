"""Model files and checkpoints: damaged bytes, and whole files with other settings and tensors in them.

Loading gives a model that predicts, or raises a ValueError that names the file.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import values
from mutations import changed_value, damaged
from readers import folder
from torch import Tensor

from torch_lsh.data import XMCDataset
from torch_lsh.io import load_safetensors, save_safetensors
from torch_lsh.models import TextClassifier, XMCClassifier


class Kind(NamedTuple):
    """A kind of file: its bytes, and what is done with one."""

    content: bytes
    use: Callable[[Path], object]


@functools.cache
def kinds() -> dict[str, Kind]:
    """Small files of every kind."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    path, checkpoint = folder(os.getpid()) / "whole", folder(os.getpid()) / "checkpoint"
    text = TextClassifier().fit(["a fine film", "good fun", "dull and long", "bad"] * 3, [*"ppnn"] * 3)
    text.save(path)
    found = {"text": Kind(path.read_bytes(), _use_text)}
    dataset = _dataset()
    model = XMCClassifier(8, 40, 8)
    model.fit(dataset, epochs=1, batch_size=2, checkpoint=checkpoint, progress=False)
    found["checkpoint"] = Kind(checkpoint.read_bytes(), _use_checkpoint)
    model.save(path)
    found["xmc"] = Kind(path.read_bytes(), _use_xmc)
    model.fit(dataset, epochs=1, batch_size=2, neighbours=2, progress=False)
    model.save(path)
    found["mixture"] = Kind(path.read_bytes(), _use_xmc)
    model.fit(dataset, epochs=1, batch_size=2, neighbours=2, validation=dataset, progress=False)
    model.save(path)
    found["ranker"] = Kind(path.read_bytes(), _use_xmc)
    dense = torch.randn(12, 8), torch.arange(12)
    model = XMCClassifier(8, 40, 8, dense_input=True)
    model.fit(dense, epochs=1, neighbours=2, validation=dense, progress=False)
    model.save(path)
    found["ranker of dense rows"] = Kind(path.read_bytes(), _use_xmc)
    return found


@functools.cache
def _dataset() -> XMCDataset:
    path = folder(os.getpid()) / "train.txt"
    path.write_text("4 8 40\n0,2 1:0.5 3:2\n1 0:1\n39 7:1 2:3\n5 4:1\n")
    return XMCDataset(path)


def _use_text(path: Path) -> None:
    TextClassifier.load(path).top_k(["a fine film"], 1)


def _use_xmc(path: Path) -> None:
    model = XMCClassifier.load(path)
    model.predict(torch.ones(3, model.num_features) if model.dense_input else _dataset(), k=1)


def _use_checkpoint(path: Path) -> None:
    XMCClassifier(8, 40, 8).fit(_dataset(), epochs=1, batch_size=2, checkpoint=path, progress=False)


def make(seed: int) -> tuple[str, bytes]:
    """The file of a seed, and the kind that it should be."""
    rng = random.Random(seed)
    name = rng.choice(sorted(kinds()))
    content = kinds()[name].content
    if rng.random() < 0.4:
        return name, damaged(rng, content, [kind.content for kind in kinds().values()])
    path = folder(os.getpid()) / "made"
    if name != "checkpoint":
        _write_other_model(rng, content, path)
    else:
        torch.save(_changed_content(rng, torch.load(io.BytesIO(content), weights_only=True)), path)
    return name, path.read_bytes()


def run(name: str, content: bytes) -> str:
    """Loads a file, and predicts with what is in it, or resumes it."""
    path = folder(os.getpid()) / "model"
    path.write_bytes(content)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            kinds()[name].use(path)
    except ValueError as error:
        if str(path) not in str(error):
            raise AssertionError(f"the error does not name the file: {error}") from error
        return "refused"
    return "accepted"


def _write_other_model(rng: random.Random, content: bytes, path: Path) -> None:
    path.write_bytes(content)
    tensors, metadata = load_safetensors(path)
    if rng.random() < 0.7:
        model = changed_value(rng, json.loads(metadata["model"]))
        metadata["model"] = json.dumps(model)
    else:
        tensors = _changed_content(rng, tensors)
    tensors = tensors if isinstance(tensors, dict) else {}
    tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    try:
        save_safetensors(tensors, path, metadata)
    except (KeyError, RuntimeError, TypeError):  # a dtype or a layout that has no place in such a file
        path.write_bytes(content[:-1])


def _changed_content(rng: random.Random, content: Any) -> Any:
    """Nested dicts, lists and tensors with one thing in them changed."""
    if isinstance(content, Tensor):
        return values.changed(rng, content).detach().clone()
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        if rng.random() < 0.1:
            return {name: value for name, value in content.items() if name != key}
        return {**content, key: _changed_content(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.9:
        at = rng.randrange(len(content))
        return [*content[:at], _changed_content(rng, content[at]), *content[at + 1 :]]
    return changed_value(rng, content)
