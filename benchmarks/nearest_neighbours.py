"""Nearest-neighbour libraries on an output layer: faiss and hnswlib, with the bias as one more coordinate.

Both are optional: ``pip install faiss-cpu hnswlib``.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LIBRARIES = {"faiss": "faiss-cpu", "hnswlib": "hnswlib"}
MOST_ROWS = 2_000_000  # beyond these, graphs take hours to build, and further copies of the rows do not fit into memory
_LINKS = 16  # M of both HNSW graphs
_PAD = 4  # the dimension becomes a multiple, for product quantizers
_ADDED = 1 << 18  # rows at a time
_TRAINED_PER_LIST = 40  # rows that k-means of large layers sees; faiss takes 39 to 256


class Opponent(NamedTuple):
    """An index of another library: ``find(x, k)`` returns the rows ``[B, k]`` of queries ``[B, d]``."""

    name: str
    find: Callable[[np.ndarray, int], np.ndarray]
    build_seconds: float
    index_bytes: int


def missing() -> dict[str, str]:
    """The libraries that are not installed, with the names of their packages."""
    return {name: package for name, package in LIBRARIES.items() if importlib.util.find_spec(name) is None}


def augmented(rows: Tensor, last: Tensor) -> np.ndarray:
    """Rows with one more coordinate, and zeros up to a multiple of four."""
    padding = torch.zeros(len(rows), -(rows.shape[1] + 1) % _PAD)
    return torch.cat([rows.float(), last.float().view(-1, 1).expand(len(rows), 1), padding], 1).numpy()


class Vectors(NamedTuple):
    """The rows of a layer with their biases, made a few at a time: a copy of all takes as much memory as the layer."""

    weight: Tensor
    bias: Tensor

    @property
    def width(self) -> int:
        return augmented(self.weight[:1], self.bias[:1]).shape[1]

    def some(self, rows: Tensor | slice) -> np.ndarray:
        return augmented(self.weight[rows], self.bias[rows])

    def blocks(self) -> Iterator[np.ndarray]:
        for begin in range(0, len(self.weight), _ADDED):
            yield self.some(slice(begin, begin + _ADDED))

    def to_train(self, lists: int) -> np.ndarray:
        """All, or a random sample of many."""
        count = len(self.weight)
        if count <= MOST_ROWS:
            return self.some(slice(None))
        return self.some(torch.randperm(count, generator=torch.Generator().manual_seed(0))[: _TRAINED_PER_LIST * lists])


def faiss_index(kind: str, vectors: Vectors, folder: Path, lists: int, like: Any = None) -> tuple[Any, float, int]:
    """A built index by the name of ``faiss.index_factory``, its seconds and bytes; kept in ``folder``.

    Args:
        like: an index of as many inverted lists, whose centers are taken over; training them anew takes minutes.
    """
    import faiss

    path = folder / f"faiss-{len(vectors.weight)}-{kind.replace(',', '-')}"
    if not path.exists():
        index = faiss.index_factory(vectors.width, kind, faiss.METRIC_INNER_PRODUCT)
        start = time.perf_counter()
        if like is not None:
            centers = faiss.extract_index_ivf(like).quantizer
            faiss.extract_index_ivf(index).quantizer.add(centers.reconstruct_n(0, centers.ntotal))
        index.train(vectors.to_train(lists))
        for block in vectors.blocks():
            index.add(block)
        seconds = time.perf_counter() - start
        faiss.write_index(index, str(path))
        path.with_suffix(".seconds").write_text(str(seconds))
    return faiss.read_index(str(path)), float(path.with_suffix(".seconds").read_text()), path.stat().st_size


def faiss_opponents(vectors: Vectors, folder: Path) -> list[Opponent]:
    """Every index of faiss at several efforts."""
    import faiss

    rows = len(vectors.weight)
    lists = round(4 * math.sqrt(rows))
    inverted = (16, 64, 256)
    efforts: dict[str, Sequence[int]] = {f"IVF{lists},Flat": inverted}
    if rows <= MOST_ROWS:
        efforts[f"IVF{lists},PQ{vectors.width // 2}x4fs,RFlat"] = inverted
        if hasattr(faiss, "IndexIVFRaBitQ"):
            efforts[f"IVF{lists},RaBitQ4,RFlat"] = inverted  # one-bit codes rank too coarsely for so few refined
        efforts[f"HNSW{_LINKS},Flat"] = (64, 256, 1024)
    else:
        print(f"{rows} rows: of faiss, only IVF,Flat is measured; wanted at most {MOST_ROWS} rows for graphs and codes")
    found: list[Opponent] = []
    inverted_file: tuple[Any, float] | None = None
    for kind, values in efforts.items():
        is_graph = kind.startswith("HNSW")
        if inverted_file is None or is_graph:
            index, seconds, size = faiss_index(kind, vectors, folder, lists)
            inverted_file = inverted_file or (index, seconds)
        else:
            index, seconds, size = faiss_index(kind, vectors, folder, lists, like=inverted_file[0])
            seconds += inverted_file[1]  # which made the centers
        parameter = "efSearch" if is_graph else "nprobe"
        refined = kind.endswith("RFlat")
        for value in values:
            settings = f"{parameter}={value}" + (",k_factor_rf=10" if refined else "")
            found.append(Opponent(f"faiss {kind} {settings}", _search_at(index, settings), seconds, size))
    return found


def _search_at(index: Any, settings: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """A search with some settings. Setting them takes some microseconds of every call."""
    import faiss

    space = faiss.ParameterSpace()

    def find(x: np.ndarray, k: int) -> np.ndarray:
        space.set_index_parameters(index, settings)
        return index.search(x, k)[1]

    return find


def hnswlib_opponents(vectors: Vectors, folder: Path) -> list[Opponent]:
    """The graph of hnswlib at several efforts."""
    import hnswlib

    rows = len(vectors.weight)
    if rows > MOST_ROWS:
        print(f"{rows} rows: hnswlib is not measured; wanted at most {MOST_ROWS} rows")
        return []
    path = folder / f"hnswlib-{rows}"
    index = hnswlib.Index("ip", vectors.width)
    if not path.exists():
        start = time.perf_counter()
        index.init_index(rows, M=_LINKS, ef_construction=100, random_seed=0)
        for block in vectors.blocks():
            index.add_items(block, num_threads=torch.get_num_threads())
        path.with_suffix(".seconds").write_text(str(time.perf_counter() - start))
        index.save_index(str(path))
    else:
        index.load_index(str(path))
    seconds, size = float(path.with_suffix(".seconds").read_text()), path.stat().st_size
    index.set_num_threads(1)

    def at(effort: int) -> Callable[[np.ndarray, int], np.ndarray]:
        def find(x: np.ndarray, k: int) -> np.ndarray:
            index.set_ef(effort)
            return index.knn_query(x, k)[0].astype(np.int64)

        return find

    return [Opponent(f"hnswlib M={_LINKS} ef={ef}", at(ef), seconds, size) for ef in (64, 256, 1024)]


def opponents(weight: Tensor, bias: Tensor, folder: Path) -> list[Opponent]:
    """Those of every library that is installed."""
    vectors = Vectors(weight, bias)
    absent = missing()
    return [
        *([] if "faiss" in absent else faiss_opponents(vectors, folder)),
        *([] if "hnswlib" in absent else hnswlib_opponents(vectors, folder)),
    ]
