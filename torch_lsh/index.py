"""LSHIndex: which rows of a weight matrix have large inner products with a vector?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import ops
from .hashing import family_type, make_family

_BLOCK_ROWS = 16384  # rows that are augmented and hashed at a time
_BUCKET_SIZE = 64
_NUM_TABLES = 16


class LSHIndex:
    """Rows of a weight matrix in L hash tables, to look up those with large inner products with a query.

    With ``mips`` the row ``w`` with bias ``b`` is hashed as ``[w, b, sqrt(M**2 - |w|**2 - b**2)]`` and the query ``h``
    as ``[h, 1, 0]``, so that the angle follows the inner product ``h · w + b`` (Shrivastava & Li 2014; Neyshabur &
    Srebro 2015). ``M`` is the largest norm at the last :meth:`build`; a row that outgrows it later has 0 in the last
    place until the next one. Without ``mips``, ``[w, b]`` is hashed against ``[h, 1]``: the angle, whatever the norms.

    A row with a NaN or an infinity has some code and stays out of ``M``; a query with one finds some rows or none.

    Args:
        num_rows: N, rows of the weight.
        in_features: width of the weight.
        hash: ``"simhash"``, ``"dwta"`` or ``"srp_sparse"``.
        hashes_per_table: K. Default: as many as make a code of the table's bits.
        num_tables: L. Default: 16.
        bucket_size: capacity of a bucket. Default: 64. A table has ``2**ceil(log2(num_rows / bucket_size))`` buckets,
            so that they are half full to full on average, or fewer where the code has fewer bits.
        mips: see above.
        seed: of the hash functions and of the choice of rows that stay in an overfull bucket.

    Raises:
        ValueError: an argument does not fit.

    >>> weight = torch.eye(100)
    >>> index = LSHIndex(100, 100)
    >>> index.build(weight)
    >>> 7 in index.query(10 * weight[[7]], max_candidates=20)
    True
    """

    def __init__(
        self,
        num_rows: int,
        in_features: int,
        *,
        hash: str = "simhash",
        hashes_per_table: int | None = None,
        num_tables: int | None = None,
        bucket_size: int | None = None,
        mips: bool = True,
        seed: int = 0,
    ) -> None:
        bucket_size = _BUCKET_SIZE if bucket_size is None else bucket_size
        num_tables = _NUM_TABLES if num_tables is None else num_tables
        for name, value in (("num_rows", num_rows), ("in_features", in_features), ("bucket_size", bucket_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; wanted at least 1")
        if num_rows >= 2**31:
            raise ValueError(f"num_rows is {num_rows}; wanted fewer than 2**31")
        kind = family_type(hash)
        table_bits = max(1, math.ceil(math.log2(num_rows / bucket_size)))
        if hashes_per_table is None:
            hashes_per_table = min(math.ceil(table_bits / kind.bits_per_hash), kind.max_hashes_per_table())
        self.hash = hash
        self.in_features = in_features
        self.bucket_size = bucket_size
        self.mips = mips
        self.seed = seed
        self.family = make_family(hash, in_features + (2 if mips else 1), hashes_per_table, num_tables, seed)
        self.bucket_bits = min(table_bits, self.family.code_bits)
        self._num_rows = num_rows
        self._max_norm = 0.0
        self._tables: tuple[Tensor, Tensor, Tensor] | None = None  # ids, counts, row_buckets

    @property
    def num_rows(self) -> int:
        return self._num_rows

    @property
    def num_tables(self) -> int:
        return self.family.num_tables

    @property
    def hashes_per_table(self) -> int:
        return self.family.hashes_per_table

    @property
    def is_built(self) -> bool:
        return self._tables is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the tables and of the parameters of the hash functions."""
        return self.family.nbytes + sum(tensor.nbytes for tensor in self._tables or ())

    @torch.no_grad()
    def build(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Hashes every row anew.

        Args:
            weight: ``[num_rows, in_features]`` float32, float64 or bfloat16.
            bias: ``[num_rows]`` or None.

        Raises:
            ValueError: the shape or dtype of an argument does not fit.
        """
        self._check_weight(weight, bias)
        blocks = range(0, self.num_rows, _BLOCK_ROWS)
        max_norm = 0.0
        if self.mips:
            for begin in blocks:
                norms = self._extend(*_block(weight, bias, begin)).norm(dim=1)
                max_norm = max(max_norm, float(norms.nan_to_num(0, 0, 0).max()))
        self._max_norm = max_norm
        row_buckets = torch.empty(self.num_rows, self.num_tables, dtype=torch.int32)
        for begin in blocks:
            row_buckets[begin : begin + _BLOCK_ROWS] = self._row_buckets(*_block(weight, bias, begin))
        self._tables = (*ops.build_tables(row_buckets, self.bucket_bits, self.bucket_size, self.seed), row_buckets)

    @torch.no_grad()
    def update(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> int:
        """Hashes some rows anew and moves them to other buckets where their code changed.

        Args:
            weight: ``[num_rows, in_features]`` float32, float64 or bfloat16.
            bias: ``[num_rows]`` or None.
            rows: ``[A]`` int64, unique: the rows that may have changed.

        Returns:
            How many (row, table) entries moved, of ``A * num_tables``.

        Raises:
            ValueError: the shape, dtype or range of an argument does not fit.
            RuntimeError: the index was not built.
        """
        ids, counts, row_buckets = self._built()
        self._check_weight(weight, bias)
        if rows.dim() != 1 or rows.dtype is not torch.int64:
            raise ValueError(f"rows has shape {list(rows.shape)} and dtype {rows.dtype}; wanted [A] int64")
        if len(rows) == 0:
            return 0
        if rows.min() < 0 or rows.max() >= self.num_rows:
            raise ValueError(f"rows runs from {rows.min()} to {rows.max()}; wanted 0 to {self.num_rows - 1}")
        moved = 0
        for some in rows.contiguous().split(_BLOCK_ROWS):
            buckets = self._row_buckets(weight[some], None if bias is None else bias[some])
            moved += int(ops.update_tables(ids, counts, row_buckets, some, buckets, self.seed))
        return moved

    @torch.no_grad()
    def query(self, x: Tensor, max_candidates: int) -> Tensor:
        """The rows that share a bucket with a query in most tables.

        Args:
            x: ``[B, in_features]`` float32, float64 or bfloat16.
            max_candidates: M, rows wanted per query.

        Returns:
            ``[B, M]`` int64, most shared buckets first, padded with -1.

        Raises:
            ValueError: the shape or dtype of ``x`` does not fit, or ``max_candidates`` is not positive.
            RuntimeError: the index was not built.
        """
        ids, counts, _ = self._built()
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x has shape {list(x.shape)}; wanted [B, {self.in_features}]")
        _check_dtype(x, "x")
        if max_candidates < 1:
            raise ValueError(f"max_candidates is {max_candidates}; wanted at least 1")
        extended = self._extend(x, None)
        extended[:, self.in_features] = 1
        return ops.query_tables(ids, counts, self._buckets(extended), max_candidates)

    def _built(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._tables is None:
            raise RuntimeError("the index was not built: call build(weight, bias) first")
        return self._tables

    def _check_weight(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.shape != (self.num_rows, self.in_features):
            raise ValueError(f"weight has shape {list(weight.shape)}; wanted [{self.num_rows}, {self.in_features}]")
        _check_dtype(weight, "weight")
        if bias is not None:
            if bias.shape != (self.num_rows,):
                raise ValueError(f"bias has shape {list(bias.shape)}; wanted [{self.num_rows}]")
            _check_dtype(bias, "bias")

    def _extend(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[w, b, 0]``, or ``[w, b]`` without mips, in float32."""
        extended = torch.zeros(len(weight), self.family.in_features)
        extended[:, : self.in_features] = weight
        if bias is not None:
            extended[:, self.in_features] = bias
        return extended

    def _row_buckets(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        extended = self._extend(weight, bias)
        if self.mips:
            squares = extended.square().sum(1)
            extended[:, -1] = (self._max_norm**2 - squares).clamp_(min=0).nan_to_num_(0).sqrt_()
        return self._buckets(extended)

    def _buckets(self, extended: Tensor) -> Tensor:
        """Bucket numbers ``[n, L]``: the codes, or a mixed hash of them where there are fewer buckets than codes."""
        codes = self.family.codes(extended)
        if self.bucket_bits == self.family.code_bits:
            return codes
        return ((codes.long() * 0x9E3779B1 & 0xFFFFFFFF) >> (32 - self.bucket_bits)).int()

    def state_dict(self) -> dict[str, Any]:
        """The tables (not copied) and what they were made with. Before :meth:`build` there are no tables in it."""
        state: dict[str, Any] = {"config": self._config(), "max_norm": self._max_norm}
        if self._tables is not None:
            state.update(zip(("ids", "counts", "row_buckets"), self._tables))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a copy of the tables of an index with the same arguments.

        Raises:
            ValueError: the state is of an index with other arguments, or its tables do not fit.
        """
        if state["config"] != self._config():
            raise ValueError(f"the state is of an index with {state['config']}; wanted {self._config()}")
        tables = None
        if "ids" in state:
            table_shape = (self.num_tables, 1 << self.bucket_bits)
            wanted = (
                ("ids", (*table_shape, self.bucket_size), self.num_rows),
                ("counts", table_shape, self.bucket_size + 1),
                ("row_buckets", (self.num_rows, self.num_tables), 1 << self.bucket_bits),
            )
            for name, shape, end in wanted:
                tensor = state[name]
                if tensor.shape != shape or tensor.dtype is not torch.int32:
                    raise ValueError(
                        f"{name} has shape {list(tensor.shape)} and dtype {tensor.dtype}; wanted {list(shape)} int32"
                    )
                if tensor.min() < -1 or tensor.max() >= end:
                    raise ValueError(f"{name} runs from {tensor.min()} to {tensor.max()}; wanted -1 to {end - 1}")
            tables = (state["ids"].clone(), state["counts"].clone(), state["row_buckets"].clone())
        self._max_norm = state["max_norm"]
        self._tables = tables

    def _config(self) -> dict[str, Any]:
        return {
            "num_rows": self.num_rows,
            "in_features": self.in_features,
            "hash": self.hash,
            "hashes_per_table": self.hashes_per_table,
            "num_tables": self.num_tables,
            "bucket_size": self.bucket_size,
            "mips": self.mips,
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._config().items())
        return f"LSHIndex({arguments}, is_built={self.is_built})"


def _check_dtype(tensor: Tensor, name: str) -> None:
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(f"{name} has dtype {tensor.dtype}; wanted float32, float64 or bfloat16")


def _block(weight: Tensor, bias: Tensor | None, begin: int) -> tuple[Tensor, Tensor | None]:
    rows = slice(begin, begin + _BLOCK_ROWS)
    return weight[rows], None if bias is None else bias[rows]
