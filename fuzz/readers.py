"""Damaged files for the readers: XMC, CSV, TSV, JSON lines, plain and compressed; and texts for the hashing of words.

A reader gives rows or raises a ValueError that names the file. What it accepts is what the twin in plain Python reads.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import lzma
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import twins
from mutations import damaged
from torch import Tensor

from torch_lsh.data import HashedText, XMCDataset
from torch_lsh.text import TextFile

XMC = (
    b"3 8 5\n0,2 1:0.5 3:2\n 0:1\n4 7:1e-3 7:-2.25\n",
    b"2 100 3\n1 5:0.12345678 6:1\n0,1,2\n",
    b"1 1 1\n0 0:1\n",
    b"0 5 5\n",
    b"4 3 3\r\n0 1:1\r\n\r\n1\r\n2,1 0:3e5 2:-1\r\n",
)
CSV = (
    b'id,text,label\n1,"good, ""really"" good",pos\n2,dull,neg\n3,"na\xc3\xafve\nsecond line",pos\n',
    b"text,label\r\ngood,pos\r\nbad,neg\r\n",
    b"\xef\xbb\xbftext,label\na,b\n",
)
TSV = (b'label\ttext\npos\t"good" he said\nneg\t"\n',)
JSONL = (
    b'{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n\n{"text": "c", "label": 3}\n',
    json.dumps({"text": "na\u00efve \U0001f642", "label": "p", "more": {"a": [1, 2.5, None]}}).encode() + b"\n",
)
TEXTS = (b"to be, or not to be", "naïve 北京 Ǆ İstanbul ﬀ e\u0301 \U0001f642".encode(), b"a1 2b \xff\xfe c_d-e", b"")

_COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": functools.partial(gzip.compress, mtime=0),
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
_UNREADABLE = "API call failed", "std::", "vector::"


@functools.cache
def folder(process: int) -> Path:
    """A folder in memory for the files of a process."""
    shared = Path("/dev/shm")
    path = Path(tempfile.gettempdir() if not shared.is_dir() else shared) / f"torch_lsh_fuzz_{process}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def make(seed: int) -> tuple[Any, ...]:
    """The file or the texts of a seed, and how they are read."""
    rng = random.Random(seed)
    threads = rng.choice((1, 1, 2, 3))
    kind = rng.choice(("xmc", "xmc", "csv", "tsv", "jsonl", "text"))
    if kind == "text":
        texts = [damaged(rng, rng.choice(TEXTS), TEXTS) for _ in range(rng.choice((0, 1, 2, 5)))]
        return "texts", texts, _settings(rng), threads
    contents = {"xmc": XMC, "csv": CSV, "tsv": TSV, "jsonl": JSONL}[kind]
    content = damaged(rng, rng.choice(contents), contents)
    suffix = ""
    if rng.random() < 0.1:
        suffix = rng.choice([".gz", ".xz"] if kind == "xmc" else list(_COMPRESSED))
        content = _COMPRESSED[suffix](content)
        if rng.random() < 0.5:
            content = damaged(rng, content)
    return f"{'txt' if kind == 'xmc' else kind}{suffix}", content, rng.choice((None, "l2")), threads


def run(kind: str, content: Any, how: Any, threads: int) -> str:
    """Reads a file with the suffix ``kind``, or hashes texts."""
    torch.set_num_threads(threads)
    return hash_text(content, how) if kind == "texts" else read(kind, content, how)


def _settings(rng: random.Random) -> dict[str, Any]:
    return {
        "bits": rng.choice((1, 8, 20, 31)),
        "word_ngrams": rng.choice((1, 2, 3, 16)),
        "char_ngrams": rng.choice((None, (1, 1), (3, 4), (2, 16))),
        "signed": rng.random() < 0.5,
        "tf": rng.choice(("log", "count", "binary")),
        "norm": rng.choice(("l2", None)),
        "seed": rng.choice((0, -(2**63), 2**63 - 1)),
        "split_characters": rng.random() < 0.5,
        "symbols": rng.random() < 0.5,
    }


def read(suffix: str, content: bytes, normalize: str | None = None) -> str:
    """Reads a file of this content.

    Raises:
        AssertionError: the error does not name the file, or the content is not what the twin reads.
    """
    path = folder(os.getpid()) / f"file.{suffix}"
    path.write_bytes(content)
    try:
        if suffix.startswith("txt"):
            dataset = XMCDataset(path, normalize=normalize)
        else:
            for row in TextFile(path):
                row.text.encode()
            return "accepted"
    except ValueError as error:
        message = str(error)
        assert str(path) in message, f"the error does not name the file: {message}"
        assert not any(words in message for words in _UNREADABLE), message
        return "refused"
    if suffix == "txt" and normalize is None:
        return compare(dataset, content)
    return "accepted"


def compare(dataset: XMCDataset, content: bytes) -> str:
    """Compares a data set with what the twin reads."""
    body = content.partition(b"\n")[2]
    if not body or body.isspace():
        return "accepted"
    text = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    counts, features, values, label_counts, labels, _ = twins.parse_xmc(text, 2**31, 2**31)
    rows = dataset.rows
    for one, other in zip((rows.feature_start.diff(), rows.features, rows.values), (counts, features, values)):
        assert torch.equal(one, other), f"{one} and its twin {other} differ"
    ours, theirs = _distinct(rows.labels, rows.label_start.diff()), _distinct(labels, label_counts)
    assert ours == theirs, f"{ours} and its twin {theirs} differ"
    return "compared"


def _distinct(labels: Tensor, counts: Tensor) -> list[list[int]]:
    """The labels of each row; one that occurs twice means what it means once."""
    return [list(dict.fromkeys(of_row.tolist())) for of_row in labels.split(counts.tolist())]


def hash_text(texts: list[bytes], settings: dict[str, Any]) -> str:
    """Hashes texts as the twin does."""
    hashed = HashedText(**settings)
    ours = hashed.csr(texts)
    if sum(map(len, texts)) > 300:
        return "accepted"
    text = torch.frombuffer(bytearray(b"".join(texts)) or bytearray(1), dtype=torch.uint8)[: sum(map(len, texts))]
    offsets = torch.tensor([0, *map(len, texts)]).cumsum(0)
    least, largest = hashed.char_ngrams or (0, 0)
    others = hashed.signed, hashed.tf, hashed.norm is not None, hashed.seed, hashed.split_characters, hashed.symbols
    theirs = twins.hash_text(text, offsets, hashed.bits, hashed.word_ngrams, least, largest, *others)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    return "compared"
