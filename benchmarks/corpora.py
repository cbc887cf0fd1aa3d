"""Data sets on disk: the folder that TORCH_LSH_DATA names, and readers of what benchmarks take from it."""

from __future__ import annotations

import lzma
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from torch_lsh.data import XMCDataset

DATA = Path(os.environ.get("TORCH_LSH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def check_present(names: Sequence[str]) -> None:
    """Checks that XMC data sets are there.

    Raises:
        FileNotFoundError: A data set is not in the folder that TORCH_LSH_DATA names.
    """
    for name in names:
        for split in ("train", "test"):
            path = DATA / name / f"{split}.txt.xz"
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist; wanted the folder of {name} in TORCH_LSH_DATA")


def read_xmc(name: str) -> tuple[XMCDataset, XMCDataset]:
    """Reads the training and the test set of an XMC data set, without rows that have no label.

    Word counts of citeulike-t become log(1 + count). Rows of other data sets are scaled to unit length.
    """
    check_present([name])
    splits = []
    for split in ("train", "test"):
        counts = name == "citeulike-t"
        rows = XMCDataset(DATA / name / f"{split}.txt.xz", normalize=None if counts else "l2").rows
        if counts:
            rows = rows._replace(values=rows.values.log1p())
        splits.append(XMCDataset.from_rows(rows.take((rows.label_start.diff() > 0).nonzero()[:, 0])))
    return splits[0], splits[1]


def read_words(folder: str | Path, split: str) -> list[str]:
    """Reads the words of a text; every line ends with ``<eos>``."""
    return [word for line in read_lines(Path(folder) / f"{split}.txt.xz") for word in (*line.split(), "<eos>")]


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text, compressed by xz or not; they end where a line feed stands, and nowhere else."""
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as lines:
        return [line.rstrip("\n") for line in lines]


class Corpus:
    """A text in three files ``train|valid|test.txt.xz``.

    Attributes:
        words: the vocabulary of all splits, the most frequent word of the training split first.
        train, valid, test: ``[tokens]`` int64 word numbers.
    """

    train: Tensor
    valid: Tensor
    test: Tensor

    def __init__(self, folder: str | Path) -> None:
        texts = {split: read_words(folder, split) for split in ("train", "valid", "test")}
        counts = Counter(texts["train"])
        self.words = [word for word, _ in counts.most_common()]
        self.words += sorted(set(texts["valid"]).union(texts["test"]).difference(counts))
        number = {word: i for i, word in enumerate(self.words)}
        for split, words in texts.items():
            setattr(self, split, torch.tensor([number[word] for word in words]))
