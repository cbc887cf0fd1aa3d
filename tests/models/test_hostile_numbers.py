"""Every number in the header of a model file, replaced by numbers that mean nothing, or too much.

The file is refused with a ValueError that names it, or the model predicts, looks up and trains.
"""

from __future__ import annotations

import functools
import json
import math
import resource

import pytest
import torch
import torch.nn.functional as F

from torch_lsh import (
    Drift,
    ExponentialBackoff,
    FixedInterval,
    HashTableConfig,
    LSHConfig,
    PartitionConfig,
    SignCodeConfig,
)
from torch_lsh.data import XMCDataset
from torch_lsh.io import load_safetensors, save_safetensors
from torch_lsh.models import TextClassifier, XMCClassifier

HOSTILE = [-1, 0, 2.5, 10**9, 2**63, 10**400, math.inf, math.nan]
TABLES = HashTableConfig(hashes_per_table=2, num_tables=3, bucket_size=8, sketch_bits=32)
CONFIGS = {
    "backoff": LSHConfig(active=20, index=TABLES, rehash=ExponentialBackoff(initial=2)),
    "defaults": LSHConfig(index=HashTableConfig(probes=2), rehash=FixedInterval(2)),
    "drift": LSHConfig(active=0.5, index=PartitionConfig(hashes_per_table=2, probes=5), rehash=Drift()),
    "sign codes": LSHConfig(active=20, index=SignCodeConfig(), rehash=Drift(minimum=1, every=1)),
}


@functools.cache
def dataset(folder):
    path = folder / "train.txt"
    path.write_text("4 8 40\n0,2 1:0.5 3:2\n1 0:1\n39 7:1 2:3\n5 4:1\n")
    return XMCDataset(path)


def numbers(content, path=()):
    """The places of all numbers in what JSON holds, other than the record of the training."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, (dict, list)) and key != "history":
            yield from numbers(value, (*path, key))
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            yield (*path, key)


def replaced(content, path, value):
    content = json.loads(json.dumps(content))
    functools.reduce(lambda part, key: part[key], path[:-1], content)[path[-1]] = value
    return content


def use_xmc(path, folder):
    model = XMCClassifier.load(path)
    model.predict(dataset(folder), k=1)
    layer, x = model.output, torch.ones(3, model.output.in_features)
    layer.topk(x, 2, exact=False)
    F.cross_entropy(layer.train()(x), torch.arange(3)).backward()
    layer.rehash()


def use_text(path, folder):
    TextClassifier.load(path).top_k(["a fine film"], 1)


def check_every_number(path, use, folder):
    """Returns how many files were refused, and how many worked."""
    tensors, metadata = load_safetensors(path)
    content = json.loads(metadata["model"])
    made, refused, worked, failures = folder / "made", 0, 0, []
    for place in numbers(content):
        for value in HOSTILE:
            text = json.dumps(replaced(content, place, value))
            save_safetensors(tensors, made, {**metadata, "model": text})
            try:
                use(made, folder)
            except Exception as error:
                refused += 1
                if not isinstance(error, ValueError) or str(made) not in str(error):
                    failures.append(f"{'.'.join(map(str, place))} = {value!s:.20}: {error!r:.200}")
            else:
                worked += 1
    assert not failures, "\n".join(failures)
    return refused, worked


@pytest.fixture
def little_memory():
    """At most 3 GB more address space than there is now: what asks for more fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 3 * 10**9, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_number_of_a_wide_model(name, tmp_path, little_memory, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)  # hundreds of files
    torch.manual_seed(0)
    model = XMCClassifier(8, 40, 8, config=CONFIGS[name])
    model.fit(dataset(tmp_path), epochs=1, batch_size=2, neighbours=2, progress=False)
    model.save(tmp_path / "model")
    refused, worked = check_every_number(tmp_path / "model", use_xmc, tmp_path)
    assert refused > 50
    assert worked > 10


def test_every_number_of_a_text_model(tmp_path, little_memory, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)
    TextClassifier().fit(["a fine film", "good fun", "dull and long", "bad"] * 3, [*"ppnn"] * 3).save(
        tmp_path / "model"
    )
    refused, worked = check_every_number(tmp_path / "model", use_text, tmp_path)
    assert refused > 20
    assert worked > 10


def test_an_index_out_of_proportion_is_refused(tmp_path):
    """Each number is in its range, but not their product."""
    config = LSHConfig(index=HashTableConfig(num_tables=4000, bucket_size=2**31 - 1))
    XMCClassifier(8, 40, 8, config=config).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model does not hold .* takes 34359.* bytes; wanted at most 1076363264"):
        XMCClassifier.load(tmp_path / "model")


def test_labels_beyond_the_weights_take_no_memory(tmp_path, little_memory):
    """Not even where the state of a sampler of so many rows would be gigabytes."""
    XMCClassifier(8, 40, 8, config=CONFIGS["drift"]).save(tmp_path / "model")
    tensors, metadata = load_safetensors(tmp_path / "model")
    text = json.dumps({**json.loads(metadata["model"]), "num_labels": 10**9})
    save_safetensors(tensors, tmp_path / "made", {**metadata, "model": text})
    with pytest.raises(ValueError, match=r"output\.\w+ has shape \[40.*\]; wanted \[1000000000"):
        XMCClassifier.load(tmp_path / "made")
