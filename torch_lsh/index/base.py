"""Index: the contract of everything that finds rows with large inner products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..stopwatch import Stopwatch, timed

_BLOCK_ROWS = 16384


class StoredTensor(NamedTuple):
    """What a tensor of a saved index must look like; its values lie in ``[least, end)``, where these are given."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    least: int | None = None
    end: int | None = None


class SimHashTables(NamedTuple):
    """What :func:`torch_lsh.ops.draw_hashed_rows` takes of an index that it looks up in."""

    ids: Tensor
    counts: Tensor
    row_codes: Tensor | None
    projections: Tensor
    hashes_per_table: int
    zeros: int
    min_matches: int
    vanilla: bool


class Index(ABC):
    """Finds the rows of a weight matrix that have large inner products with a query.

    All kinds share these methods, which check their arguments and then call the method of the kind (``_build``,
    ``_query``, ...). A kind never sees an argument that does not fit.

    Args:
        num_rows: N, rows of the weight.
        in_features: width of the weight.
        seed: of everything random in the index.

    Attributes:
        stopwatch: times the look-ups; None: nothing is timed.
        best_first: whether :meth:`query` returns the best rows first. If not, its order says nothing about the rows.
        takes_labels: whether :meth:`query` can insert labels.
        hashes_per_table: K; None: the index has no hash functions.
        bucket_size: rows that a bucket holds at most; None: no limit, or no buckets.
        simhash_tables: the tables of a built index of which a :meth:`query` is nothing but a look-up of SimHash codes;
            None: it is more.

    Raises:
        ValueError: an argument is out of range.
    """

    best_first: ClassVar[bool] = True
    takes_labels: ClassVar[bool] = False
    simhash_tables: SimHashTables | None = None

    def __init__(self, num_rows: int, in_features: int, seed: int = 0) -> None:
        for name, value in (("num_rows", num_rows), ("in_features", in_features)):
            if value < 1:
                raise ValueError(f"{name} is {value}; wanted at least 1")
        if num_rows >= 2**31:
            raise ValueError(f"num_rows is {num_rows}; wanted fewer than 2**31")
        self.num_rows = num_rows
        self.in_features = in_features
        self.seed = seed
        self.stopwatch: Stopwatch | None = None

    # --- what every kind answers ---

    @property
    @abstractmethod
    def is_built(self) -> bool:
        """Whether the index holds rows."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory that the index takes."""

    @property
    def hashes_per_table(self) -> int | None:
        return None

    @property
    def bucket_size(self) -> int | None:
        return None

    def bucket_loads(self) -> Tensor | None:
        """How many rows belong to each bucket, whether they fit or not.

        Returns:
            ``[L, buckets]`` int64; None: the index has no buckets.
        """
        return None

    # --- rows ---

    @torch.no_grad()
    def build(self, weight: Tensor, bias: Tensor | None = None, queries: Tensor | None = None) -> None:
        """Learns what the kind learns from rows and queries, and takes in every row.

        Args:
            weight: ``[num_rows, in_features]`` float32, float64 or bfloat16.
            bias: ``[num_rows]`` of the same dtypes, or None.
            queries: ``[Q, in_features]``: a sample of the queries to come, the latest last; some hundreds are enough.
                None or empty: nothing is known about queries.

        Raises:
            ValueError: the shape or dtype of an argument does not fit.
        """
        self._check_weight(weight, bias)
        if queries is not None:
            self._check_queries(queries, "queries")
        self._build(weight, bias, queries)

    @torch.no_grad()
    def rehash(self, weight: Tensor, bias: Tensor | None = None, queries: Tensor | None = None) -> None:
        """Takes in every row anew and keeps what the last :meth:`build` learned, where the kind learns anything.

        Takes the arguments of :meth:`build`, and is the same for an index that is not built.
        """
        self._check_weight(weight, bias)
        if queries is not None:
            self._check_queries(queries, "queries")
        if self.is_built:
            self._rehash(weight, bias, queries)
        else:
            self._build(weight, bias, queries)

    @torch.no_grad()
    def update(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> int:
        """Takes in some rows anew.

        Args:
            weight: ``[num_rows, in_features]`` float32, float64 or bfloat16.
            bias: ``[num_rows]`` or None.
            rows: ``[A]`` int64, unique: the rows that may have changed.

        Returns:
            How many entries moved: of a hash table, or rows of any other kind.

        Raises:
            ValueError: the shape, dtype or range of an argument does not fit.
            RuntimeError: the index is not built.
        """
        self._check_built()
        self._check_weight(weight, bias)
        self._check_rows(rows)
        return sum(self._update(weight, bias, some) for some in _blocks_of(rows))

    @torch.no_grad()
    def drift(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> float:
        """The share of the codes of some rows that differ from those in the index.

        Takes and raises what :meth:`update` does; 0.0 for no rows.
        """
        self._check_built()
        self._check_weight(weight, bias)
        self._check_rows(rows)
        if len(rows) == 0:
            return 0.0
        changed, codes = 0, 0
        for some in _blocks_of(rows):
            differs = self._differs(weight, bias, some)
            changed, codes = changed + int(differs.sum()), codes + differs.numel()
        return changed / codes

    # --- queries ---

    @timed("look-up")
    def query(self, x: Tensor, max_candidates: int, labels: Tensor | None = None) -> Tensor:
        """Looks up rows with large inner products.

        Args:
            x: ``[B, in_features]`` float32, float64 or bfloat16. A query with a NaN or an infinity finds some rows or
                none.
            max_candidates: M, the most rows to return for a query.
            labels: ``[B, P]`` int64, negative where there is none: rows that later look-ups near these queries are to
                find, until the next :meth:`build`. Only for indexes that take them (``takes_labels``).

        Returns:
            ``[B, M]`` int64, padded with -1; best first where ``best_first``, else in no order of quality.

        Raises:
            ValueError: the shape or dtype of an argument does not fit, ``max_candidates`` is not positive, or the index
                takes no labels.
            RuntimeError: the index is not built.
        """
        self._check_built()
        self._check_queries(x, "x")
        if max_candidates < 1:
            raise ValueError(f"max_candidates is {max_candidates}; wanted at least 1")
        if labels is not None:
            if not self.takes_labels:
                raise ValueError(f"labels is a tensor; wanted None: {type(self).__name__} does not insert labels")
            if labels.dim() != 2 or len(labels) != len(x) or labels.dtype is not torch.int64:
                raise ValueError(
                    f"labels has shape {list(labels.shape)}, dtype {labels.dtype}; wanted [{len(x)}, P] int64"
                )
        return self._query(x.detach() if x.requires_grad else x, max_candidates, labels)

    @torch.no_grad()
    def outdated(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> str | None:
        """Why a :meth:`build` with these queries promises to find more; None: it does not.

        Takes and raises what :meth:`build` does.
        """
        self._check_built()
        self._check_weight(weight, bias)
        if queries is None:
            return None
        self._check_queries(queries, "queries")
        return self._outdated(weight, bias, queries)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Everything that the index holds, not copied. An index that is not built holds nothing but its settings."""
        return {"config": self._settings(), **(self._state() if self.is_built else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a copy of what another index with the same settings holds.

        Raises:
            ValueError: the state is of an index with other settings, or one of its tensors does not fit.
        """
        settings = self._settings()
        if state["config"] != settings:
            raise ValueError(f"the state is of an index with {state['config']}; wanted {settings}")
        if len(state) == 1:
            self._clear()
            return
        for name, wanted in self._stored().items():
            if name not in state:
                raise ValueError(f"the state has {', '.join(state)}; wanted {name}, too")
            _check_stored(name, state[name], wanted)
        self._load({name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()})

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
        return f"{type(self).__name__}({arguments}, is_built={self.is_built})"

    # --- what a kind implements ---

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """The arguments of the constructor, by name."""

    @abstractmethod
    def _build(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None: ...

    def _rehash(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None:
        self._build(weight, bias, queries)

    @abstractmethod
    def _update(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> int: ...

    @abstractmethod
    def _differs(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        """Bool ``[A, ...]``: which codes of ``rows`` ``[A]`` differ from those in the index."""

    @abstractmethod
    def _query(self, x: Tensor, max_candidates: int, labels: Tensor | None) -> Tensor: ...

    def _outdated(self, weight: Tensor, bias: Tensor | None, queries: Tensor) -> str | None:
        return None

    @abstractmethod
    def _stored(self) -> dict[str, StoredTensor]:
        """The tensors of a state, by name."""

    @abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abstractmethod
    def _load(self, state: dict[str, Any]) -> None:
        """Takes over the tensors of a state, which are copies already."""

    @abstractmethod
    def _clear(self) -> None:
        """Becomes an index that is not built."""

    # --- checks ---

    def _check_built(self) -> None:
        if not self.is_built:
            raise RuntimeError("the index was not built: call build(weight, bias) first")

    def _check_weight(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.shape != (self.num_rows, self.in_features):
            raise ValueError(f"weight has shape {list(weight.shape)}; wanted [{self.num_rows}, {self.in_features}]")
        _check_dtype(weight, "weight")
        if bias is not None:
            if bias.shape != (self.num_rows,):
                raise ValueError(f"bias has shape {list(bias.shape)}; wanted [{self.num_rows}]")
            _check_dtype(bias, "bias")

    def _check_queries(self, x: Tensor, name: str) -> None:
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"{name} has shape {list(x.shape)}; wanted [B, {self.in_features}]")
        _check_dtype(x, name)

    def _check_rows(self, rows: Tensor) -> None:
        if rows.dim() != 1 or rows.dtype is not torch.int64:
            raise ValueError(f"rows has shape {list(rows.shape)} and dtype {rows.dtype}; wanted [A] int64")
        least, largest = ops.extremes(rows)
        if least < 0 or largest >= self.num_rows:
            raise ValueError(f"rows runs from {least} to {largest}; wanted 0 to {self.num_rows - 1}")


def row_blocks(weight: Tensor, bias: Tensor | None, least: int = 1) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """All rows, a block of at least so many at a time: which rows, their weights, their biases."""
    size = max(_BLOCK_ROWS, least)
    for begin in range(0, len(weight), size):
        rows = slice(begin, begin + size)
        yield rows, weight[rows], None if bias is None else bias[rows]


def finite_queries(queries: Tensor) -> Tensor:
    """Those without a NaN or an infinity, in float32."""
    queries = queries.float()
    return queries[queries.isfinite().all(1)]


def best_rows(queries: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> Tensor:
    """``[Q, k]`` int64: the rows with the largest outputs, exactly."""
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    return ops.linear_topk(queries.to(weight.dtype).contiguous(), weight.contiguous(), bias, min(k, len(weight)))[1]


def random_rotation(in_features: int, seed: int) -> Tensor:
    """Orthonormal rows ``[in_features, width]`` float32, of the next multiple of 8 for width."""
    width = -(-in_features // 8) * 8
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(width, width, generator=generator, dtype=torch.float64, device="cpu")
    return torch.linalg.qr(gaussian).Q[:in_features].float().contiguous()


def mean_row(weight: Tensor) -> Tensor:
    """``[in]`` float32; a NaN or an infinity counts as 0."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device="cpu")
    for _, rows, _ in row_blocks(weight, None):
        total += rows.float().nan_to_num(0, 0, 0).sum(0, dtype=torch.float64)
    return (total / len(weight)).float()


def _blocks_of(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.contiguous().split(_BLOCK_ROWS) if len(rows) > 0 else ()


def _check_dtype(tensor: Tensor, name: str) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; hash tables are made on the CPU")
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(f"{name} has dtype {tensor.dtype}; wanted float32, float64 or bfloat16")


def _check_stored(name: str, tensor: Tensor, wanted: StoredTensor) -> None:
    if tensor.shape != wanted.shape or tensor.dtype is not wanted.dtype:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)} and dtype {tensor.dtype}; "
            f"wanted {list(wanted.shape)} {str(wanted.dtype).removeprefix('torch.')}"
        )
    if wanted.least is None or wanted.end is None:
        return
    if tensor.min() < wanted.least or tensor.max() >= wanted.end:
        raise ValueError(
            f"{name} runs from {tensor.min()} to {tensor.max()}; wanted {wanted.least} to {wanted.end - 1}"
        )
