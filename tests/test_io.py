"""The safetensors format, beside the package of that name where it is installed."""

from __future__ import annotations

import json
import struct

import pytest
import torch

from torch_lsh.io import load_safetensors, save_safetensors

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.arange(3, dtype=torch.int64),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "half": torch.tensor([1.5, 2.0], dtype=torch.bfloat16),
    "t": torch.arange(6, dtype=torch.int32).view(2, 3).T,
}


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def test_round_trip(tmp_path):
    save_safetensors(TENSORS, tmp_path / "a", {"key": "välue"})
    tensors, metadata = load_safetensors(tmp_path / "a")
    assert same(tensors, TENSORS)
    assert metadata == {"key": "välue"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # no temporary file is left


def test_files_are_those_of_the_package(tmp_path):
    package = pytest.importorskip("safetensors.torch")
    save_safetensors(TENSORS, tmp_path / "ours", {"key": "value"})
    assert same(package.load_file(tmp_path / "ours"), TENSORS)
    package.save_file({k: v.contiguous() for k, v in TENSORS.items()}, tmp_path / "theirs", {"key": "value"})
    tensors, metadata = load_safetensors(tmp_path / "theirs")
    assert same(tensors, TENSORS)
    assert metadata == {"key": "value"}


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"{", b"", "Expecting property name"),
        (b"[]", b"", "cut off, damaged"),
        (b"\xff", b"", "cut off, damaged"),
        ({"a": 1}, b"", "cut off, damaged"),
        ({"a": entry("I3")}, b"1234", "a has dtype I3"),
        ({"a": entry(shape=(2,))}, b"1234", r"a has shape \[2\] in 4 bytes"),
        ({"a": entry(shape=(-1,), offsets=(4, 0))}, b"1234", "wanted whole numbers"),
        ({"a": entry(shape=(True,))}, b"1234", "wanted whole numbers"),
        ({"a": entry(offsets=(4, 8))}, b"12345678", "a begins at 4; wanted 0"),
        ({"a": entry(), "b": entry()}, b"1234", "b begins at 0; wanted 4"),
        ({"a": entry()}, b"123", "should end at"),
        ({"a": entry()}, b"12345", "should end at"),
        ({"__metadata__": {"a": 1}}, b"", "the metadata are not strings"),
    ],
)
def test_damaged_files(tmp_path, header, data, words):
    with pytest.raises(ValueError, match=words):
        load_safetensors(write(tmp_path / "a", header, data))


def test_every_shorter_file_is_refused(tmp_path):
    save_safetensors({"a": torch.ones(3)}, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for size in range(len(content)):
        (tmp_path / "a").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut off, damaged"):
            load_safetensors(tmp_path / "a")


def test_a_header_longer_than_the_file(tmp_path):
    with pytest.raises(ValueError, match="cut off, damaged"):
        load_safetensors(write(tmp_path / "a", {}, length=2**60))
