"""Files that survive what happens to files: written whole or not at all, read without executing anything in them.

Two containers hold tensors. A *safetensors* file is the length of the header (8 bytes, little-endian), the header (a
JSON object with dtype, shape and place of each tensor, and ``__metadata__`` of strings) and the bytes of the tensors;
the `safetensors <https://github.com/huggingface/safetensors>`_ package reads and writes the same files. An *archive* is
what :func:`torch.save` writes: a zip file of tensors and settings.

Both carry CRC-32 checksums, which are compared before anything is used: archives those of zip files, safetensors files
one of the whole file in their metadata. Numbers in a file are compared with its size before memory is taken for them.
docs/reliability.md says what is promised.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import glob
import gzip
import json
import lzma
import math
import os
import pickle
import secrets
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, nn

if sys.platform != "win32":
    import fcntl

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "I8": torch.int8,
}
_FLOATING = (torch.float32, torch.float64, torch.bfloat16)
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors format
_LARGEST = 2**63 - 1  # number of elements that a tensor can have
_NO_CHECKSUM = "00000000"  # stands for the checksum while it is computed
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError)  # what a bad header raises
_BLOCK = 1 << 24  # bytes read at a time for a checksum

FilePath = str | os.PathLike[str]


# --- reading text -----------------------------------------------------------------------------------------------------

_MARKS = {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"} | {
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # in this order: one is the beginning of another
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


def byte_order_mark(beginning: bytes) -> str | None:
    """Returns the encoding that the first bytes of a file name with a byte order mark."""
    return next((encoding for mark, encoding in _MARKS.items() if beginning.startswith(mark)), None)


def opener_of(path: FilePath) -> Callable[..., Any]:
    """Returns the function that opens a file, by its name: one of gzip, lzma or bz2, or open."""
    return _OPENERS.get(Path(path).suffix.lower(), open)


def is_damage(error: BaseException) -> bool:
    """Whether an error of a decompressor is about the content of the file: an OSError may be about the disk."""
    return not isinstance(error, OSError) or error.errno is None


#: What gzip, lzma and bz2 raise where a file is damaged or cut off; see :func:`is_damage`.
DECOMPRESSION_ERRORS = (EOFError, lzma.LZMAError, zlib.error, OSError)


# --- writing whole files ----------------------------------------------------------------------------------------------


def check_can_write(path: FilePath, replaceable: str | None = None) -> None:
    """Raises the error that writing the file would end in: makes a temporary file beside it, and removes it.

    Call it before hours of work, not after.

    Args:
        path: The file that will be written.
        replaceable: The format of files that may be replaced, of whatever version; empty files always may. None means
            any file.

    Raises:
        FileNotFoundError: The folder of the file does not exist.
        IsADirectoryError: The path is a folder.
        FileExistsError: A file exists that is none of ours, or is no file (a device, a pipe).
        OSError: No file can be made in the folder.

    >>> check_can_write("no/such/folder/model.pt")
    Traceback (most recent call last):
    FileNotFoundError: no/such/folder/model.pt cannot be written: there is no folder no/such/folder
    """
    path = Path(path)
    _check_place(path)
    if replaceable is not None and path.exists() and path.stat().st_size > 0:
        found = format_of(path)
        if found is None or found.split("/")[0] != replaceable.split("/")[0]:
            holds = "is not a file of torch_lsh" if found is None else f"has the format {found}"
            raise FileExistsError(
                f"{path} exists and {holds}, so it is not overwritten; wanted a new name, or a file of the format "
                f"{replaceable}"
            )
    temporary = _temporary(path)
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror} in folder {path.parent}") from error
    temporary.unlink()


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder")
    if path.exists() and not path.is_file():  # a rename would put a file in place of /dev/null
        raise FileExistsError(f"{path} cannot be written: it is a device or a pipe; wanted a file")


def _temporary(path: Path) -> Path:
    """A name of which no other process thinks, beside a file or what a link points to; with the suffix of the file."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp{path.suffix}")


@contextlib.contextmanager
def replacing(path: FilePath) -> Iterator[Path]:
    """Replaces a file only when the new one is whole and on the disk.

    At every instant, that of a power failure included, ``path`` is the old file or the new one: the new content is
    forced to the disk under another name (``fsync``), renamed, and then the folder is forced to the disk.

    Args:
        path: The file to write. Where it is a symbolic link, what it points to is replaced.

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
    _check_place(Path(path))
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    try:
        yield temporary
        _force_to_disk(temporary)
        os.replace(temporary, target)
        _force_to_disk(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _force_to_disk(path: Path) -> None:
    """Returns when a file, or the names in a folder, would survive a power failure."""
    if path.is_dir() and sys.platform == "win32":
        return  # folders cannot be opened there; NTFS journals renames
    descriptor = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sole_writer(path: FilePath) -> Iterator[None]:
    """Makes this process the only one that writes a file, for as long as the block lasts.

    The lock (``flock``) is on a file beside it, ``.NAME.lock``, and ends with the process however that ends. Temporary
    files that a killed writer left behind are removed. Windows has no such lock; there, nothing is locked or removed.

    Raises:
        BlockingIOError: Another process is at it.
    """
    if sys.platform == "win32":
        yield
        return
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{target.name}.lock")
    file = _locked(lock, path)
    try:
        left_behind = f".{glob.escape(target.stem)}.{'[0-9a-f]' * 16}.tmp{glob.escape(target.suffix)}"
        for left in target.parent.glob(left_behind):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is locked: whoever waits for it finds another file, and tries again
        file.close()


def _locked(lock: Path, path: FilePath) -> IO[str]:
    while True:
        file = open(lock, "a")  # noqa: SIM115  # the lock lasts as long as the file is open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                return file
        except BlockingIOError:
            file.close()
            raise BlockingIOError(
                f"{path} is being written by another run; wanted a file of its own for every run"
            ) from None
        except FileNotFoundError:
            pass  # removed in between
        file.close()


# --- formats ----------------------------------------------------------------------------------------------------------


def format_of(path: FilePath) -> str | None:
    """Returns the format that a file of ours names, such as ``torch_lsh.TextClassifier/3``; None: it is none of ours.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        if is_safetensors(path):
            with open(path, "rb") as file:
                found: Any = _read_header(file, os.stat(path).st_size).metadata.get("format")
        else:
            found = _mapped_archive(path).get("format")
    except _MALFORMED:
        return None
    return found if isinstance(found, str) and found.startswith("torch_lsh.") else None


def check_format(path: FilePath, found: object, wanted: str) -> None:
    """Raises a ValueError, which says what the file is, unless ``found`` is the format ``wanted``."""
    if found != wanted:
        holds = "names no format" if found is None else f"has the format {found!s:.60}"
        raise ValueError(f"{path} {holds}; wanted {wanted}")


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
    if is_safetensors(path):
        check_format(path, format_of(path), wanted_format or "an archive of torch.save")
    content = _checked_archive(path, mmap=False)
    if wanted_format is not None:
        check_format(path, content.get("format") if isinstance(content, dict) else None, wanted_format)
    return content


def _mapped_archive(path: FilePath) -> Any:
    """The content of an archive, tensors read when they are used."""
    return _checked_archive(path, mmap=True)


def _checked_archive(path: FilePath, mmap: bool) -> Any:
    with open(path, "rb") as file:  # an OSError is not about the content
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive, os.stat(path).st_size)
                damaged = None if mmap else archive.testzip()  # torch.load ignores the checksums
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            content = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
            _check_extents(content)
        except pickle.UnpicklingError as error:  # torch's message advises to execute what is in the file
            raise ValueError(f"{path} was not written by torch_lsh: it holds more than tensors and settings") from error
        except MemoryError:
            raise
        except Exception as error:  # zipfile and torch raise many kinds
            raise ValueError(f"{path} is damaged or was not written by torch_lsh: {error}") from error
    return content


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuses what would grow when it is read: torch.save compresses nothing."""
    total = 0
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} is compressed; wanted an archive without compression")
        total += member.file_size
    if total > size:
        raise ValueError(f"the members should have {total} bytes, but the file has {size}")


def _check_extents(content: Any) -> None:
    """Refuses tensors with more elements than their storage: strides of 0 make a petabyte of a byte."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            if item.layout is not torch.strided or item.device.type != "cpu":
                raise ValueError(f"a tensor is {item.layout} on {item.device}; wanted torch.strided on cpu")
            if item.nbytes > item.untyped_storage().nbytes():
                raise ValueError(f"a tensor of shape {list(item.shape)} has {item.untyped_storage().nbytes()} bytes")
        elif isinstance(item, (dict, list, tuple, set)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def assign_weights(module: nn.Module, weights: dict[str, Any]) -> None:
    """Makes the tensors of a file those of ``module``, which keeps their dtypes.

    Args:
        module: On any device; its own tensors are dropped.
        weights: What ``module.state_dict()`` returned.

    Raises:
        ValueError: A tensor cannot be one of the module.
        RuntimeError: Names differ.
    """
    # Not state_dict(), which may take memory in proportion to shapes that no tensor has yet been compared with.
    own: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    own.update(module.named_buffers(remove_duplicate=False))
    for name in own.keys() & weights.keys():
        given, dtype = weights[name], own[name].dtype
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} is a {type(given).__name__}; wanted a tensor")
        fits = given.dtype in _FLOATING if dtype in _FLOATING else given.dtype is dtype
        if not fits or not given.is_contiguous():
            raise ValueError(f"{name} has dtype {given.dtype} and strides {given.stride()}; wanted {dtype}, contiguous")
        if given.shape != own[name].shape:
            raise ValueError(f"{name} has shape {list(given.shape)}; wanted {list(own[name].shape)}")
    found = {given.dtype for given in weights.values() if given.dtype in _FLOATING}
    if len(found) > 1 and not any(tensor.dtype is torch.int8 for tensor in own.values()):
        raise ValueError(f"weights have dtypes {', '.join(sorted(map(str, found)))}; wanted one")
    module.load_state_dict(weights, assign=True)


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

    The metadata get an entry ``crc32``: the checksum of the file with eight zeros in its place.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> save_safetensors({"a": torch.arange(3.0)}, path, {"of": "a test"})
    >>> load_safetensors(path)
    ({'a': tensor([0., 1., 2.])}, {'of': 'a test'})
    """
    header: dict[str, Any] = {"__metadata__": {"crc32": _NO_CHECKSUM, **(metadata or {})}}
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
    head = struct.pack("<Q", len(text)) + text
    checksum = zlib.crc32(head)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            file.write(head)
            for tensor in tensors.values():
                data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data
                checksum = zlib.crc32(data, checksum)
                file.write(data)
            file.seek(head.index(_NO_CHECKSUM.encode()))
            file.write(f"{checksum:08x}".encode())
            file.flush()
        except OSError as error:
            raise OSError(error.errno, f"{path} could not be written: {error.strerror}") from error


def load_safetensors(
    path: FilePath, formats: Sequence[str] = (), mmap: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors and the metadata of a file.

    A checksum in the metadata, as :func:`save_safetensors` writes it, is compared and left out of the result.

    Args:
        path: The file.
        formats: What the metadata may hold under ``"format"``, the newest first, which must have a checksum. None of
            them means any file; other programs write no checksum.
        mmap: Map the file to memory: pages are read when they are used, and processes share them, so the checksum is
            not compared. What is written to the tensors stays in this process. The file must not be overwritten in
            place meanwhile; replacing it, as :func:`save_safetensors` does, is safe.

    Raises:
        ValueError: The file is cut off, damaged, not a safetensors file or of another format.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            check_format(path, format_of(path), formats[0] if formats else "a safetensors file")
        file.seek(0)
        try:
            header = _read_header(file, size)
            found = header.metadata.get("format")
            if not mmap:
                _check_checksum(file, header, needed=found in formats[:1])
        except _MALFORMED as error:
            raise ValueError(f"{path} is cut off, damaged or not a safetensors file: {error}") from error
        if formats and found not in formats:
            check_format(path, found, formats[0])
        if mmap:
            tensors = _mapped(path, size, header)
        else:
            tensors = {name: _read_tensor(path, file, header, name) for name in header.entries}
    return tensors, {name: value for name, value in header.metadata.items() if name != "crc32"}


_Entry = tuple[torch.dtype, list[int], int, int]  # dtype, shape, first byte and the one after the last


class _Header(NamedTuple):
    head: bytes  # all bytes before those of the tensors
    entries: dict[str, _Entry]
    metadata: dict[str, str]


def _read_tensor(path: FilePath, file: IO[bytes], header: _Header, name: str) -> Tensor:
    dtype, shape, begin, stop = header.entries[name]
    data = torch.empty(stop - begin, dtype=torch.uint8, device="cpu")
    file.seek(len(header.head) + begin)
    if file.readinto(data.numpy().data) != stop - begin:  # type: ignore[attr-defined]  # binary files have it
        raise ValueError(f"{path} is cut off in {name}")
    return data.view(dtype).view(shape)


def _mapped(path: FilePath, size: int, header: _Header) -> dict[str, Tensor]:
    """The tensors of a file in memory that is mapped to it."""
    content = torch.from_file(os.fspath(path), shared=False, size=size, dtype=torch.uint8)
    tensors = {}
    for name, (dtype, shape, begin, stop) in header.entries.items():
        first = len(header.head) + begin
        data = content[first : len(header.head) + stop]
        if first % dtype.itemsize != 0:  # as other programs may write it
            data = data.clone()
        tensors[name] = data.view(dtype).view(shape)
    return tensors


def _read_header(file: IO[bytes], size: int) -> _Header:
    """Reads and checks the header of a file of ``size`` bytes."""
    head = file.read(8)
    (length,) = struct.unpack("<Q", head)
    if length > min(size, _LONGEST_HEADER):
        raise ValueError(f"the header should have {length} bytes, but the file has {size}")
    head += file.read(length)
    header = json.loads(head[8:])
    metadata = header.pop("__metadata__", {})
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    end = 0  # tensors fill the file without gap or overlap
    for name, (_, _, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise ValueError(f"{name} begins at {begin}; wanted {end}")
        end = stop
    if len(head) + end != size:
        raise ValueError(f"the tensors should end at {len(head) + end}, but the file ends at {size}")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata are not strings")
    return _Header(head, entries, metadata)


def _check_checksum(file: IO[bytes], header: _Header, needed: bool) -> None:
    """Compares the checksum in the metadata with that of the file; reads ``file`` from its present place."""
    written = header.metadata.get("crc32")
    if written is None:
        if needed:
            raise ValueError("the metadata have no crc32")
        return
    place = b'"crc32":"%s"' % written.encode()
    if len(written) != len(_NO_CHECKSUM) or header.head.count(place) != 1:
        raise ValueError(f"crc32 is {written!r:.20}; wanted one checksum of 8 digits")
    checksum = zlib.crc32(header.head.replace(place, b'"crc32":"%s"' % _NO_CHECKSUM.encode()))
    while block := file.read(_BLOCK):
        checksum = zlib.crc32(block, checksum)
    if f"{checksum:08x}" != written:
        raise ValueError(f"the checksum is {checksum:08x}, but crc32 is {written}")


def _entry(name: str, entry: dict[str, Any]) -> _Entry:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} has dtype {entry['dtype']}; wanted one of {', '.join(_DTYPES)}")
    dtype, shape, (begin, stop) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, stop)):
        raise ValueError(f"{name} has shape {shape} at {begin} to {stop}; wanted whole numbers")
    if math.prod(max(1, number) for number in shape) > _LARGEST:  # 0 times 2**70 is little, but no shape
        raise ValueError(f"{name} has shape {shape!s:.60}; wanted at most {_LARGEST} elements")
    if math.prod(shape) * dtype.itemsize != stop - begin:
        raise ValueError(f"{name} has shape {shape} in {stop - begin} bytes")
    return dtype, shape, begin, stop
