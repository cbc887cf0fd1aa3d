"""Reads and writes the safetensors format: tensors and text, nothing that could be executed.

A file is the length of the header (8 bytes, little-endian), the header (a JSON object of dtype, shape and place of each
tensor, with ``__metadata__`` of strings) and the tensors' bytes. Files are exchangeable with those of the
`safetensors <https://github.com/huggingface/safetensors>`_ package.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the limit of the format


def save_file(tensors: dict[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors and metadata; the file takes the place of an older one only when whole.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> save_file({"a": torch.arange(3.0)}, path, {"of": "a test"})
    >>> load_file(path)
    ({'a': tensor([0., 1., 2.])}, {'of': 'a test'})
    """
    header: dict[str, Any] = {"__metadata__": metadata or {}}
    end = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.itemsize
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    if len(text) > _LONGEST_HEADER:
        raise ValueError(f"the header is {len(text)} bytes long; the format takes {_LONGEST_HEADER}")
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors.values():
                file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load_file(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        ValueError: the file is cut off, damaged or not of the format.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _LONGEST_HEADER):
                raise ValueError(f"the header should be {length} bytes long, the file is {size}")
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            entries = {name: _entry(name, entry) for name, entry in header.items()}
            # The tensors fill the file without gap or overlap.
            end = 0
            for name, (_, _, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
                if begin != end:
                    raise ValueError(f"{name} begins at {begin}; wanted {end}")
                end = stop
            if 8 + length + end != size:
                raise ValueError(f"the tensors should end at {8 + length + end}, the file at {size}")
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError("the metadata are not strings")
        except (ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError) as error:
            raise ValueError(f"{path} is cut off, damaged or not a safetensors file: {error}") from error
        tensors = {}
        for name, (dtype, shape, begin, stop) in entries.items():
            data = torch.empty(stop - begin, dtype=torch.uint8)
            file.seek(8 + length + begin)
            if file.readinto(data.numpy().data) != stop - begin:
                raise ValueError(f"{path} is cut off in {name}")
            tensors[name] = data.view(dtype).view(shape)
    return tensors, metadata


def _entry(name: str, entry: dict[str, Any]) -> tuple[torch.dtype, list[int], int, int]:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} is of dtype {entry['dtype']}; wanted one of {', '.join(_DTYPES)}")
    dtype, shape, (begin, stop) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, stop)):
        raise ValueError(f"{name} has shape {shape} at {begin} to {stop}; wanted whole numbers")
    if math.prod(shape) * dtype.itemsize != stop - begin:
        raise ValueError(f"{name} has shape {shape} in {stop - begin} bytes")
    return dtype, shape, begin, stop
