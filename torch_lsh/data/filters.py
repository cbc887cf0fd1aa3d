"""Filter files of the extreme classification repository: pairs of row and label that predictions must not hold."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from ..io import DECOMPRESSION_ERRORS, is_damage, opener_of


def filter_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str, str]]:
    """Yields row, label as text, and place (``"filter.txt, line 3"``) of each line ``row label``.

    Raises:
        ValueError: A line has another form, or the compressed file is damaged: file, line and reason.
    """
    line, place = 0, os.fspath(path)
    try:
        with opener_of(path)(path, "rt", encoding="utf-8-sig", errors="replace") as file:
            for line, text in enumerate(file, 1):
                place = f"{path}, line {line}"
                words = text.split(maxsplit=1)
                if not words:
                    continue
                if len(words) != 2 or not (words[0].isascii() and words[0].isdigit() and len(words[0]) < 19):
                    raise ValueError(f"{place}: the line is {text.rstrip()!r:.50}; wanted 'row label'")
                yield int(words[0]), words[1].rstrip(), place
    except DECOMPRESSION_ERRORS as error:
        if not is_damage(error):
            raise
        raise ValueError(
            f"{path}, line {line + 1} or later: the compressed file is damaged or cut off ({error})"
        ) from error


def read_filter(path: str | os.PathLike[str]) -> Tensor:
    r"""Reads a filter file (``filter_labels_test.txt``): lines of a row and a label, both numbers from 0.

    Args:
        path: The file, plain, ``.gz``, ``.xz`` or ``.bz2``.

    Returns:
        ``[E, 2]`` int64 pairs of row and label.

    Raises:
        ValueError: A line has another form: file, line and reason.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "filter_labels_test.txt"
    >>> _ = path.write_text("0 17\n2 5\n")
    >>> read_filter(path)
    tensor([[ 0, 17],
            [ 2,  5]])
    """
    pairs = []
    for row, label, place in filter_lines(path):
        if not (label.isascii() and label.isdigit() and len(label) < 19):
            raise ValueError(f"{place}: the label is {label!r:.50}; wanted a number from 0")
        pairs.append((row, int(label)))
    return torch.tensor(pairs, dtype=torch.int64, device="cpu").reshape(-1, 2)
