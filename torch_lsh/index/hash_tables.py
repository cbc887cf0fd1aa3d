"""LSHIndex: which rows of a weight matrix have large inner products with a vector?"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..stopwatch import Stopwatch, timed
from .balance import Balance
from .families import MAX_CODE_BITS, HashFamily, family_type, make_family

SELECTIONS = ("ranked", "frequency", "vanilla")
BUCKET_POLICIES = ("reservoir", "fifo")

_BLOCK_ROWS = 16384  # rows that are augmented and hashed at a time
_BUCKET_SIZE = 64
_NUM_TABLES = 24
# What retrieves best on output layers trained on real data, early and late in training.
_CENTERING = 0.25  # of the mean row
_NORM_QUANTILE = 0.2
_BALANCED_CENTERING = 1.0
_BALANCED_NORM_QUANTILE = 0.9
_MOMENT_ROWS = 32768  # rows that second moments are taken of


class LSHIndex:
    """Rows of a weight matrix in L hash tables, to look up those with large inner products with a query.

    With ``mips`` the row ``w`` with bias ``b`` is hashed as ``[v, sqrt(M**2 - |v|**2)]``, where ``v = [w, b] - c``, and
    the query ``h`` as ``[h, 1, 0]``, so that the angle follows the inner product ``h · w + b`` (Shrivastava & Li 2014;
    Neyshabur & Srebro 2015). Two choices keep the rows spread over the buckets, where they would else have most of
    their vectors in common: ``M`` is the 20 % quantile of the norms rather than the largest, and longer rows have 0 in
    the last place, so short rows are put back and long ones told apart by angle only; and ``c`` is a quarter of the
    mean row (subtracting a vector from all rows leaves the order of their inner products as it is). Both are those of
    the last :meth:`build`. Without ``mips``, ``[w, b]`` is hashed against ``[h, 1]``: the angle, whatever the norms.

    A row with a NaN or an infinity has some code and hardly counts in ``c`` and ``M``; a query with one finds some rows
    or none.

    Args:
        num_rows: N, rows of the weight.
        in_features: width of the weight.
        hash: a hash family of :mod:`torch_lsh.index.families` that compares values: any but ``"minhash"``.
        hashes_per_table: K. A table has ``2**(K * bits_per_hash)`` buckets, but no more than the power of two above
            ``num_rows``. Default: as large as ``2**ceil(log2(num_rows / (2 * bucket_size)))`` buckets need, to each of
            which one to two times as many rows belong as fit: for the same memory, more tables that hold a sample of
            their rows find more than fewer that hold all. One bucket if all rows fit in it.
        num_tables: L. Default: 24.
        bucket_size: capacity of a bucket. Default: 64, or with K given twice the average number of rows in a bucket
            and at least 16.
        mips: see above.
        probes: buckets that a query looks up in each table: its own and those that a small move of it would lead to,
            nearest first (query-directed multi-probe, Lv et al. 2007). None: 1.
        selection: which of the rows in these buckets a query returns: ``"ranked"``, see :meth:`query`; ``"frequency"``,
            those in most of the buckets; ``"vanilla"``, the first ones met, visiting no more buckets than needed.
        min_matches: leave out rows that are in fewer of a query's buckets. (SLIDE's three modes are "vanilla",
            "frequency", and "frequency" with a threshold here.)
        sketch_bits: with ``"ranked"``: compare sketches of at least this many SimHash bits rather than the codes of the
            tables, which tells angles finer and works with every family. 480 bits take one cache line per row. 0: none.
        bucket_policy: which rows an overfull bucket keeps: ``"reservoir"``, a uniform sample; ``"fifo"``, the latest.
        balance: change the coordinates so that rows and queries have the same second moment, which leaves inner
            products as they are (:class:`torch_lsh.balance.Balance`); needs ``mips`` and a sample of queries at every
            :meth:`build`. All of the mean row is subtracted then, and ``M`` is the 90 % quantile.
        seed: of the hash functions and of the choice of rows that stay in an overfull bucket.

    Raises:
        ValueError: an argument does not fit.

    >>> weight = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    >>> index = LSHIndex(1000, 16)
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
        probes: int | None = None,
        selection: str = "ranked",
        min_matches: int = 1,
        sketch_bits: int = 0,
        bucket_policy: str = "reservoir",
        balance: bool = False,
        seed: int = 0,
    ) -> None:
        for name, choice, wanted in (
            ("selection", selection, SELECTIONS),
            ("bucket_policy", bucket_policy, BUCKET_POLICIES),
        ):
            if choice not in wanted:
                raise ValueError(f"{name} is {choice!r}; wanted one of {', '.join(map(repr, wanted))}")
        probes = 1 if probes is None else probes
        for name, number in (("probes", probes), ("min_matches", min_matches)):
            if number < 1:
                raise ValueError(f"{name} is {number}; wanted at least 1")
        if balance and not mips:
            raise ValueError("balance is True, which needs mips=True: it leaves rows of very different lengths")
        if sketch_bits < 0:
            raise ValueError(f"sketch_bits is {sketch_bits}; wanted 0 or more")
        num_tables = _NUM_TABLES if num_tables is None else num_tables
        for name, value in (("num_rows", num_rows), ("in_features", in_features), ("bucket_size", bucket_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; wanted at least 1")
        if num_rows >= 2**31:
            raise ValueError(f"num_rows is {num_rows}; wanted fewer than 2**31")
        kind = family_type(hash)
        if kind.of_sets:
            raise ValueError(f"hash is {hash!r}, which compares sets; the rows of a weight matrix have no zeros")
        if hashes_per_table is None:
            bucket_size = _BUCKET_SIZE if bucket_size is None else bucket_size
            bucket_bits = max(int(num_rows > bucket_size), math.ceil(math.log2(num_rows / (2 * bucket_size))))
            hashes_per_table = min(math.ceil(max(1, bucket_bits) / kind.bits_per_hash), kind.max_hashes_per_table())
        else:
            bucket_bits = min(hashes_per_table * kind.bits_per_hash, math.ceil(math.log2(num_rows)))
            bucket_size = max(_BUCKET_SIZE // 4, 2 * num_rows >> bucket_bits) if bucket_size is None else bucket_size
        self.hash = hash
        self.in_features = in_features
        self.bucket_size = bucket_size
        self.mips = mips
        self.probes = probes
        self.selection = selection
        self.min_matches = min_matches
        self.bucket_policy = bucket_policy
        self.seed = seed
        self.family = make_family(hash, in_features + (2 if mips else 1), hashes_per_table, num_tables, seed)
        self.bucket_bits = bucket_bits
        self.sketch_bits = sketch_bits
        self.sketcher: HashFamily | None = None
        if sketch_bits > 0:
            words = math.ceil(sketch_bits / MAX_CODE_BITS)
            bits = math.ceil(sketch_bits / words)
            self.sketcher = make_family("simhash_hadamard", self.family.in_features, bits, words, seed + 1)
        self._num_rows = num_rows
        self._center = torch.zeros(in_features + 1, dtype=torch.float32)
        self._norm = 0.0
        self.balance = balance
        self._maps: Balance | None = None
        self._tables: tuple[Tensor, Tensor, Tensor] | None = None  # ids, counts, row_buckets
        self._sketches: Tensor | None = None
        self.stopwatch: Stopwatch | None = None  # where not None, it times look-ups

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
        tensors = [*(self._tables or ()), *([] if self._sketches is None else [self._sketches])]
        families = [self.family, *([] if self.sketcher is None else [self.sketcher])]
        return sum(part.nbytes for part in (*tensors, *families))

    @torch.no_grad()
    def build(self, weight: Tensor, bias: Tensor | None = None, queries: Tensor | None = None) -> None:
        """Hashes every row anew.

        Args:
            weight: ``[num_rows, in_features]`` float32, float64 or bfloat16.
            bias: ``[num_rows]`` or None.
            queries: ``[Q, in_features]``: a sample of them, some hundreds, for ``balance``; None or empty: as without.

        Raises:
            ValueError: the shape or dtype of an argument does not fit.
        """
        self._check_weight(weight, bias)
        if queries is not None:
            self._check_queries(queries, "queries")
        blocks = range(0, self.num_rows, _BLOCK_ROWS)
        self._center, self._norm, self._maps = torch.zeros(self.in_features + 1, dtype=torch.float32), 0.0, None
        balanced = self.balance and queries is not None and len(queries) > 0
        if self.mips:
            total = torch.zeros(self.in_features + 1, dtype=torch.float64)
            for begin in blocks:
                rows = self._centered(*_block(weight, bias, begin))
                total += rows.nan_to_num_(0, 0, 0).sum(0, dtype=torch.float64)
            self._center = ((_BALANCED_CENTERING if balanced else _CENTERING) * total / self.num_rows).float()
        if balanced and queries is not None:
            stride = -(-self.num_rows // _MOMENT_ROWS)
            sampled = torch.arange(0, self.num_rows, stride)
            sample = self._centered(_take(weight, sampled), None if bias is None else _take(bias, sampled))
            self._maps = Balance.fit(_second_moment(sample), _second_moment(self._with_one(queries)))
        if self.mips:
            norms = torch.empty(self.num_rows, dtype=torch.float32)
            for begin in blocks:
                norms[begin : begin + _BLOCK_ROWS] = self._centered(*_block(weight, bias, begin)).norm(dim=1)
            quantile = _BALANCED_NORM_QUANTILE if balanced else _NORM_QUANTILE
            self._norm = float(norms.nan_to_num_(0, 0, 0).kthvalue(1 + int(quantile * (self.num_rows - 1))).values)
        row_buckets = torch.empty(self.num_rows, self.num_tables, dtype=torch.int32)
        ops.prefer_huge_pages(row_buckets)
        sketches = None
        if self.sketcher is not None:
            sketches = torch.empty(self.num_rows, self.sketcher.num_tables, dtype=torch.int32)
            ops.prefer_huge_pages(sketches)
        for begin in blocks:
            some = slice(begin, begin + _BLOCK_ROWS)
            vectors = self._row_vectors(*_block(weight, bias, begin))
            row_buckets[some] = self._of_codes(self.family.codes(vectors))
            if self.sketcher is not None and sketches is not None:
                sketches[some] = self.sketcher.codes(vectors)
        tables = ops.build_tables(row_buckets, self.bucket_bits, self.bucket_size, self.seed, self._fifo)
        self._tables, self._sketches = (*tables, row_buckets), sketches

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
        self._check_rows(rows)
        moved = 0
        for some in rows.contiguous().split(_BLOCK_ROWS) if len(rows) > 0 else ():
            buckets, vectors = self._buckets_of(weight, bias, some)
            if self.sketcher is not None and self._sketches is not None:
                self._sketches[some] = self.sketcher.codes(vectors)
            moved += int(ops.update_tables(ids, counts, row_buckets, some, buckets, self.seed, self._fifo))
        return moved

    @torch.no_grad()
    def drift(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> float:
        """The share of the codes of some rows that differ from those in the tables.

        Args:
            weight: ``[num_rows, in_features]`` float32, float64 or bfloat16.
            bias: ``[num_rows]`` or None.
            rows: ``[A]`` int64.

        Raises:
            ValueError: the shape, dtype or range of an argument does not fit.
            RuntimeError: the index was not built.
        """
        row_buckets = self._built()[2]
        self._check_weight(weight, bias)
        self._check_rows(rows)
        if len(rows) == 0:
            return 0.0
        changed = 0
        for some in rows.contiguous().split(_BLOCK_ROWS):
            changed += int((self._buckets_of(weight, bias, some)[0] != row_buckets[some]).sum())
        return changed / (len(rows) * self.num_tables)

    @timed("look-up")
    def query(self, x: Tensor, max_candidates: int, labels: Tensor | None = None) -> Tensor:
        """The rows in the buckets of a query, best first.

        Best, where the selection is "ranked", are those that share most buckets with the query; of these, the ``8 * M``
        best are ranked again by the bits of all tables in which their codes differ from the query's (not with hashes of
        more than one bit, nor where a table has fewer buckets than codes), or by the bits of their sketches.

        Args:
            x: ``[B, in_features]`` float32, float64 or bfloat16.
            max_candidates: M, rows wanted per query.
            labels: ``[B, P]`` int64, negative where there is none: rows to put into the buckets of their own queries
                where these would not find them (after the look-up, and until the next :meth:`build`). "ranked" compares
                with the rows' own codes and so makes little of it; the other selections do.

        Returns:
            ``[B, M]`` int64, best first, padded with -1.

        Raises:
            ValueError: the shape or dtype of ``x`` does not fit, or ``max_candidates`` is not positive.
            RuntimeError: the index was not built.
        """
        ids, counts, row_buckets = self._built()
        self._check_queries(x, "x")
        if max_candidates < 1:
            raise ValueError(f"max_candidates is {max_candidates}; wanted at least 1")
        if labels is not None and (labels.dim() != 2 or len(labels) != len(x) or labels.dtype is not torch.int64):
            raise ValueError(f"labels has shape {list(labels.shape)}, dtype {labels.dtype}; wanted [{len(x)}, P] int64")
        queries = self._with_one(x.detach())
        if self._maps is not None:
            queries = self._maps.map_queries(queries)
        if self.mips:
            queries = F.pad(queries, (0, 1))
        buckets = self._of_codes(self.family.probes(queries, self.probes))
        # The Hamming distance of codes ranks finer than the number of shared buckets, but needs one bit per hash.
        one_bit = self.family.bits_per_hash == 1 and self.bucket_bits == self.family.code_bits
        row_codes, query_codes = (row_buckets if one_bit else None), None
        if self.sketcher is not None:
            row_codes, query_codes = self._sketches, self.sketcher.codes(queries)
        if self.selection != "ranked":
            row_codes = query_codes = None
        vanilla = self.selection == "vanilla"
        found = ops.query_tables(
            ids, counts, row_codes, buckets, max_candidates, self.min_matches, vanilla, query_codes
        )
        if labels is not None:
            own = buckets[:, :, 0].contiguous()
            ops.insert_labels(ids, counts, own, labels.contiguous(), self.num_rows, self.seed, self._fifo)
        return found

    def _buckets_of(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The buckets ``[A, L]`` that rows belong to, and what was hashed."""
        vectors = self._row_vectors(_take(weight, rows), None if bias is None else _take(bias, rows))
        return self._of_codes(self.family.codes(vectors)), vectors

    def _check_rows(self, rows: Tensor) -> None:
        if rows.dim() != 1 or rows.dtype is not torch.int64:
            raise ValueError(f"rows has shape {list(rows.shape)} and dtype {rows.dtype}; wanted [A] int64")
        least, largest = ops.extremes(rows)
        if least < 0 or largest >= self.num_rows:
            raise ValueError(f"rows runs from {least} to {largest}; wanted 0 to {self.num_rows - 1}")

    @property
    def _fifo(self) -> bool:
        return self.bucket_policy == "fifo"

    def _check_queries(self, x: Tensor, name: str) -> None:
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"{name} has shape {list(x.shape)}; wanted [B, {self.in_features}]")
        _check_dtype(x, name)

    def _with_one(self, x: Tensor) -> Tensor:
        """``[h, 1]`` in float32."""
        return torch.cat([x.float(), x.new_ones(len(x), 1, dtype=torch.float32)], 1)

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

    def _centered(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[w, b] - c`` in float32, in the coordinates that are hashed."""
        rows = torch.empty(len(weight), self.in_features + 1, dtype=torch.float32)
        rows[:, :-1] = weight
        rows[:, -1] = 0 if bias is None else bias
        rows.sub_(self._center)
        return rows if self._maps is None else self._maps.map_rows(rows)

    def _row_vectors(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What is hashed of some rows: float32 ``[n, family.in_features]``."""
        rows = self._centered(weight, bias)
        if self.mips:
            last = (self._norm**2 - rows.square().sum(1, keepdim=True)).clamp_(min=0).nan_to_num_(0).sqrt_()
            rows = torch.cat([rows, last], 1)
        return rows

    def _of_codes(self, codes: Tensor) -> Tensor:
        """Bucket numbers: the codes, or a mixed hash of them where there are fewer buckets; -1 for -1."""
        if self.bucket_bits == self.family.code_bits:
            return codes
        mixed = ((codes.long() * 0x9E3779B1 & 0xFFFFFFFF) >> (32 - self.bucket_bits)).int()
        return mixed.masked_fill_(codes < 0, -1)

    def state_dict(self) -> dict[str, Any]:
        """The tables (not copied) and what they were made with. Before :meth:`build` there are no tables in it."""
        maps = None if self._maps is None else tuple(self._maps)
        state: dict[str, Any] = {
            "config": self._config(),
            "center": self._center,
            "norm": self._norm,
            "maps": maps,
        }
        if self._tables is not None:
            state.update(zip(("ids", "counts", "row_buckets"), self._tables))
        if self._sketches is not None:
            state["sketches"] = self._sketches
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
            wanted: list[tuple[str, tuple[int, ...], int]] = [
                ("ids", (*table_shape, self.bucket_size), self.num_rows),
                ("counts", table_shape, self.bucket_size + 1),
                ("row_buckets", (self.num_rows, self.num_tables), 1 << self.bucket_bits),
            ]
            if self.sketcher is not None:
                wanted.append(("sketches", (self.num_rows, self.sketcher.num_tables), 1 << self.sketcher.code_bits))
            for name, shape, end in wanted:
                tensor = state[name]
                if tensor.shape != shape or tensor.dtype is not torch.int32:
                    raise ValueError(
                        f"{name} has shape {list(tensor.shape)} and dtype {tensor.dtype}; wanted {list(shape)} int32"
                    )
                if tensor.min() < -1 or tensor.max() >= end:
                    raise ValueError(f"{name} runs from {tensor.min()} to {tensor.max()}; wanted -1 to {end - 1}")
            tables = (state["ids"].clone(), state["counts"].clone(), state["row_buckets"].clone())
        self._center, self._norm = state["center"].clone(), state["norm"]
        self._maps = None if state["maps"] is None else Balance(*(part.clone() for part in state["maps"]))
        self._tables = tables
        self._sketches = state["sketches"].clone() if tables is not None and self.sketcher is not None else None

    def _config(self) -> dict[str, Any]:
        return {
            "num_rows": self.num_rows,
            "in_features": self.in_features,
            "hash": self.hash,
            "hashes_per_table": self.hashes_per_table,
            "num_tables": self.num_tables,
            "bucket_size": self.bucket_size,
            "mips": self.mips,
            "probes": self.probes,
            "selection": self.selection,
            "min_matches": self.min_matches,
            "sketch_bits": self.sketch_bits,
            "bucket_policy": self.bucket_policy,
            "balance": self.balance,
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._config().items())
        return f"LSHIndex({arguments}, is_built={self.is_built})"


def _check_dtype(tensor: Tensor, name: str) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; hash tables are made on the CPU")
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(f"{name} has dtype {tensor.dtype}; wanted float32, float64 or bfloat16")


def _second_moment(vectors: Tensor) -> Tensor:
    vectors = vectors[vectors.isfinite().all(1)].double()
    return vectors.T @ vectors / max(1, len(vectors))


def _take(tensor: Tensor, rows: Tensor) -> Tensor:
    return ops.gather_rows(tensor, rows, tensor.dtype) if tensor.is_contiguous() else tensor[rows]


def _block(weight: Tensor, bias: Tensor | None, begin: int) -> tuple[Tensor, Tensor | None]:
    rows = slice(begin, begin + _BLOCK_ROWS)
    return weight[rows], None if bias is None else bias[rows]
