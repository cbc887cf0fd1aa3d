"""Files that survive what happens to files: written whole or not at all, read without executing anything in them.

Two containers hold tensors. A *safetensors* file is the length of the header (8 bytes, little-endian), the header (a
JSON object with dtype, shape and place of each tensor, and ``__metadata__`` of strings) and the bytes of the tensors;
the `safetensors <https://github.com/huggingface/safetensors>`_ package reads and writes the same files. An *archive* is
what :func:`torch.save` writes: a zip file of tensors and settings.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
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
    "I8": torch.int8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors format

FilePath = str | os.PathLike[str]


# --- writing whole files ----------------------------------------------------------------------------------------------


def check_can_write(path: FilePath) -> None:
    """Raises the error that writing the file would end in, as far as the path tells.

    Call it before hours of work, not after.

    Raises:
        FileNotFoundError: The folder of the file does not exist.
        IsADirectoryError: The path is a folder.

    >>> check_can_write("no/such/folder/model.pt")
    Traceback (most recent call last):
    FileNotFoundError: no/such/folder/model.pt cannot be written: there is no folder no/such/folder
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder")


@contextlib.contextmanager
def replacing(path: FilePath) -> Iterator[Path]:
    """Replaces a file only when the new one is whole.

    Args:
        path: The file to write.

    Yields:
        A temporary path beside it, with the same suffix. It takes the name ``path`` when the block ends, and is removed
        when the block raises.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with replacing(path) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> path.read_text()
    'whole'
    """
    check_can_write(path)
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.tmp{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


# --- archives ---------------------------------------------------------------------------------------------------------


def save_archive(content: dict[str, Any], path: FilePath) -> None:
    """Writes tensors and settings with :func:`torch.save`, whole or not at all.

    Args:
        content: A dict with its format under the key ``"format"``.
        path: The file.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's words for a full disk
            raise OSError(f"{path} could not be written (is the disk full?): {error}") from error


def load_archive(path: FilePath, wanted_format: str | None = None) -> Any:
    """Reads what :func:`torch.save` wrote. Nothing in the file is executed.

    Args:
        path: The file.
        wanted_format: What the content must hold under ``"format"``; None accepts any content.

    Raises:
        ValueError: The file is damaged, holds more than tensors and settings, or has another format.
    """
    with open(path, "rb") as file:  # an OSError is not about the content
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # torch.load ignores the checksums
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            content = torch.load(path, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:  # torch's message advises to execute what is in the file
            raise ValueError(f"{path} was not written by torch_lsh: it holds more than tensors and settings") from error
        except Exception as error:  # zipfile and torch raise many kinds
            raise ValueError(f"{path} is damaged or was not written by torch_lsh: {error}") from error
    if wanted_format is not None and (not isinstance(content, dict) or content.get("format") != wanted_format):
        raise ValueError(f"{path} is not of the format {wanted_format}")
    return content


# --- safetensors ------------------------------------------------------------------------------------------------------


def is_safetensors(path: FilePath) -> bool:
    """Whether the file begins as a safetensors file does; archives do not.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def save_safetensors(tensors: dict[str, Tensor], path: FilePath, metadata: dict[str, str] | None = None) -> None:
    """Writes tensors and metadata, whole or not at all.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> save_safetensors({"a": torch.arange(3.0)}, path, {"of": "a test"})
    >>> load_safetensors(path)
    ({'a': tensor([0., 1., 2.])}, {'of': 'a test'})
    """
    header: dict[str, Any] = {"__metadata__": metadata or {}}
    end = 0
    # The widest numbers first: each tensor then begins at a multiple of its item size, as mapped memory has to.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
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
        raise ValueError(f"the header has {len(text)} bytes; wanted at most {_LONGEST_HEADER}")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)


def load_safetensors(path: FilePath, mmap: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors and the metadata of a file.

    Args:
        path: The file.
        mmap: Map the file to memory: pages are read when they are used, and processes share them. What is written to
            the tensors stays in this process. The file must not be overwritten in place meanwhile; replacing it, as
            :func:`save_safetensors` does, is safe.

    Raises:
        ValueError: The file is cut off, damaged or not a safetensors file.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        try:
            length, entries, metadata = _read_header(file, size)
        except (ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError) as error:
            raise ValueError(f"{path} is cut off, damaged or not a safetensors file: {error}") from error
        if mmap:
            return _mapped(path, size, 8 + length, entries), metadata
        tensors = {}
        for name, (dtype, shape, begin, stop) in entries.items():
            data = torch.empty(stop - begin, dtype=torch.uint8)
            file.seek(8 + length + begin)
            if file.readinto(data.numpy().data) != stop - begin:
                raise ValueError(f"{path} is cut off in {name}")
            tensors[name] = data.view(dtype).view(shape)
    return tensors, metadata


def _mapped(path: FilePath, size: int, start: int, entries: dict[str, _Entry]) -> dict[str, Tensor]:
    """The tensors of a file, ``start`` bytes behind its beginning, in memory that is mapped to it."""
    content = torch.from_file(os.fspath(path), shared=False, size=size, dtype=torch.uint8)
    tensors = {}
    for name, (dtype, shape, begin, stop) in entries.items():
        data = content[start + begin : start + stop]
        if (start + begin) % dtype.itemsize != 0:  # of another program
            data = data.clone()
        tensors[name] = data.view(dtype).view(shape)
    return tensors


_Entry = tuple[torch.dtype, list[int], int, int]  # dtype, shape, first byte and the one after the last


def _read_header(file: Any, size: int) -> tuple[int, dict[str, _Entry], dict[str, str]]:
    """Reads and checks the header of a file of ``size`` bytes: its length, the tensors' places, the metadata."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size, _LONGEST_HEADER):
        raise ValueError(f"the header should have {length} bytes, but the file has {size}")
    header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    end = 0  # tensors fill the file without gap or overlap
    for name, (_, _, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise ValueError(f"{name} begins at {begin}; wanted {end}")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"the tensors should end at {8 + length + end}, but the file ends at {size}")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata are not strings")
    return length, entries, metadata


def _entry(name: str, entry: dict[str, Any]) -> _Entry:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} has dtype {entry['dtype']}; wanted one of {', '.join(_DTYPES)}")
    dtype, shape, (begin, stop) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, stop)):
        raise ValueError(f"{name} has shape {shape} at {begin} to {stop}; wanted whole numbers")
    if math.prod(shape) * dtype.itemsize != stop - begin:
        raise ValueError(f"{name} has shape {shape} in {stop - begin} bytes")
    return dtype, shape, begin, stop
