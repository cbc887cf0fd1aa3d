"""LearnedIndex: rows of a weight matrix in learned buckets, to look up those with large inner products with a query."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..stopwatch import Stopwatch, timed
from .balance import Balance
from .families.learned import LearnedPartition

_log = logging.getLogger("torch_lsh")

_BLOCK_ROWS = 16384  # rows that are mapped and hashed at a time
_CODE_ROWS = 64  # rows of a block of codes; see csrc/kernels/sketch.h
_CODE_BITS = 2  # per dimension
_CODE_RMS = 1.9  # root mean square of the numbers that these stand for
_FITTED_ROWS = 65536  # rows that k-means looks at, half of them the longest
_SPREAD = 3.0  # before routing is learned: how far in standard deviations a bucket's best row is above its center
_TOP_ROWS = 50  # true top rows of each query that routing is trained on
_JUDGES = 32  # latest queries, which are not trained on: recall is measured with them
_JUDGED_ROWS = 10  # recall@k
_TOLERATED_LOSS, _GOOD_RECALL = 0.05, 0.9  # all is learned anew where recall fell by more than the one, below the other


class Partition(NamedTuple):
    """Codes of rows, bucket by bucket; see :func:`torch_lsh.ops.update_partition`."""

    codes: Tensor
    factors: Tensor
    ids: Tensor
    next: Tensor
    heads: Tensor
    places: Tensor
    row_buckets: Tensor

    @classmethod
    def empty(cls, num_rows: int, num_buckets: int, width: int, bits: int = _CODE_BITS) -> Partition:
        blocks = num_rows // _CODE_ROWS + num_buckets
        factors = torch.zeros(blocks, 2, _CODE_ROWS, dtype=torch.bfloat16)
        factors[:, 1] = -torch.inf
        heads = torch.tensor([-1, 0], dtype=torch.int32).repeat(num_buckets + 1, 1)
        heads[-1, 0] = 0
        next = torch.arange(1, blocks + 1, dtype=torch.int32)
        next[-1] = -1
        return cls(
            codes=torch.zeros(blocks, bits * width // 8, _CODE_ROWS, dtype=torch.uint8),
            factors=factors,
            ids=torch.full((blocks, _CODE_ROWS), -1, dtype=torch.int32),
            next=next,
            heads=heads,
            places=torch.full((num_rows,), -1, dtype=torch.int32),
            row_buckets=torch.full((num_rows,), -1, dtype=torch.int32),
        )


class LearnedIndex:
    """Rows in buckets that are learned from the rows and from queries, ranked by codes of two bits per dimension.

    Takes the place of :class:`LSHIndex` where the hash is ``"learned"``. Three things are learned by
    :meth:`build`, all of them for the inner products ``h · w + b`` with queries such as the given ones:

    1. *Coordinates.* Rows and queries are mapped so that inner products stay and distances of rows say what differences
       of inner products to expect, see :class:`torch_lsh.balance.Balance`; the mean row is subtracted.
    2. *Buckets* and *the way to them*, see :class:`LearnedPartition`: k-means for rows, and for
       queries a linear classifier trained with the true top rows. Few rows are much longer than most, and these are
       top rows of many queries: half of the rows that k-means sees are the longest, so that such rows have buckets of
       their own. The classifier begins with what the best row of a bucket will probably be, which is the higher above
       the center the farther the rows are from it.

    A look-up goes through the buckets in the order of their scores for the query until as many rows as it may examine
    were met, and ranks these by estimates of their inner products: the exact one with the center of the bucket, plus
    one with the row's difference from that, rounded to two bits per dimension in a random rotation, plus the bias. (The
    second bit halves the error that :class:`RowSketch` has with one, and its plane is summed with the
    same tables.)

    A row with a NaN or an infinity is in some bucket; a query with one finds some rows.

    Args:
        num_rows: N, rows of the weight.
        in_features: width of the weight.
        hashes_per_table: K: there are ``2**K`` buckets. Default: the power of two nearest to ``2.5 * sqrt(N)``: with
            more, scoring and visiting them costs more than the rows in them.
        probes: how many rows a look-up examines, in buckets of average size. Default: ``N / 16 + 4096`` rows.
        seed: of k-means and of the rotation.

    Raises:
        ValueError: an argument does not fit.

    References:
        See :class:`LearnedPartition`; Jégou, Douze & Schmid, "Product Quantization for Nearest
        Neighbor Search", PAMI 2011 (codes of residuals in an inverted file); Gao & Long, "RaBitQ: Quantizing
        High-Dimensional Vectors with a Theoretical Error Bound", SIGMOD 2024, and Gao et al., "Practical and
        Asymptotically Optimal Quantization of High-Dimensional Vectors in Euclidean Space for Approximate Nearest
        Neighbor Search", SIGMOD 2025 (estimates from one and from several bits).

    >>> weight = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    >>> index = LearnedIndex(1000, 16)
    >>> index.build(weight)
    >>> 7 in index.query(weight[[7]], max_candidates=20)
    True
    """

    def __init__(
        self,
        num_rows: int,
        in_features: int,
        *,
        hashes_per_table: int | None = None,
        probes: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("num_rows", num_rows), ("in_features", in_features), ("probes", probes)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; wanted at least 1")
        if num_rows >= 2**31:
            raise ValueError(f"num_rows is {num_rows}; wanted fewer than 2**31")
        if hashes_per_table is None:
            hashes_per_table = max(1, round(math.log2(2.5 * math.sqrt(num_rows))))
        self.num_rows, self.in_features = num_rows, in_features
        self.seed = seed
        self._width = -(-in_features // 8) * 8
        self.family = LearnedPartition(self._width, hashes_per_table, seed=seed)
        self.probes = probes
        average = num_rows / self.family.num_buckets
        examined = num_rows // 16 + 4096 if probes is None else math.ceil(probes * average)
        self.examined = min(num_rows, examined)
        generator = torch.Generator().manual_seed(seed + 1)
        gaussian = torch.randn(self._width, self._width, generator=generator, dtype=torch.float64)
        self._rotation = torch.linalg.qr(gaussian).Q[:in_features].float().contiguous()
        self._center = torch.zeros(in_features, dtype=torch.float32)
        self._row_map = self._query_map = self._rotation
        self._store: Partition | None = None
        self.learned_from = 0  # queries
        self.learned_recall = math.nan
        self.stopwatch: Stopwatch | None = None  # where not None, it times look-ups

    @property
    def hashes_per_table(self) -> int:
        return self.family.hashes_per_table

    @property
    def num_tables(self) -> int:
        return 1

    @property
    def bucket_bits(self) -> int:
        return self.family.code_bits

    @property
    def bucket_size(self) -> int:
        """Rows of a bucket on average: buckets hold all that belong to them."""
        return -(-self.num_rows // self.family.num_buckets)

    @property
    def is_built(self) -> bool:
        return self._store is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' codes and of what was learned."""
        stored = sum(part.nbytes for part in self._store or ())
        return stored + self.family.nbytes + self._row_map.nbytes + self._query_map.nbytes

    @torch.no_grad()
    def build(self, weight: Tensor, bias: Tensor | None = None, queries: Tensor | None = None) -> None:
        """Learns everything anew and hashes every row.

        Args:
            weight: ``[num_rows, in_features]`` float32, float64 or bfloat16.
            bias: ``[num_rows]`` or None.
            queries: ``[Q, in_features]``: a sample of them, some hundreds or a thousand, the latest last. None or
                empty: buckets are scored by the inner product with their centers.

        Raises:
            ValueError: the shape or dtype of an argument does not fit.
        """
        self._check_weight(weight, bias)
        taught, judges = self._divided(self._checked_queries(queries))
        total = torch.zeros(self.in_features, dtype=torch.float64)
        for begin in range(0, self.num_rows, _BLOCK_ROWS):
            total += weight[begin : begin + _BLOCK_ROWS].float().nan_to_num(0, 0, 0).sum(0, dtype=torch.float64)
        self._center = (total / self.num_rows).float()
        self._row_map = self._query_map = self._rotation
        if len(taught) > 0:
            moment = ops.product(taught.T.double(), taught.double()) / len(taught)
            balance = Balance.fit(torch.eye(self.in_features, dtype=torch.float64), moment)
            self._row_map = ops.product(balance.rows, self._rotation)
            self._query_map = ops.product(balance.queries, self._rotation)
        self.family.fit(self._mapped_rows(weight[self._fitted_rows(weight)]))
        self._hash_all(weight, bias)
        self.learned_from, self.learned_recall = len(taught), math.nan
        if len(taught) > 0:
            self._learn_routing(taught, _top_rows(taught, weight, bias, _TOP_ROWS))
        if len(judges) > 0:
            self.learned_recall = self.recall(weight, bias, judges)

    def _fitted_rows(self, weight: Tensor) -> Tensor:
        """All, or as many: the longest, which have the largest products with whatever query, and every n-th."""
        if self.num_rows <= _FITTED_ROWS:
            return torch.arange(self.num_rows)
        lengths = torch.cat([(rows.float() - self._center).norm(dim=1) for rows in weight.split(_BLOCK_ROWS)])
        half = _FITTED_ROWS // 2
        longest = lengths.nan_to_num_(0, 0, 0).topk(half).indices
        return torch.cat([torch.arange(0, self.num_rows, -(-self.num_rows // half)), longest])

    @torch.no_grad()
    def rehash(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Hashes every row anew with what was learned by the last :meth:`build`."""
        self._built()
        self._check_weight(weight, bias)
        self._hash_all(weight, bias)

    def _hash_all(self, weight: Tensor, bias: Tensor | None) -> None:
        store = Partition.empty(self.num_rows, self.family.num_buckets, self._width)
        hashed = [
            self._hashed(
                weight[begin : begin + _BLOCK_ROWS], None if bias is None else bias[begin : begin + _BLOCK_ROWS]
            )
            for begin in range(0, self.num_rows, _BLOCK_ROWS)
        ]
        codes, signs, factors = (torch.cat(parts) for parts in zip(*hashed))
        order = codes.argsort(stable=True)  # so that the blocks of a bucket are neighbours
        ops.update_partition(*store, order, codes[order], signs[order], factors[order])
        self._store = store

    def _learn_routing(self, queries: Tensor, top: Tensor) -> None:
        store = self._built()
        row_buckets = store.row_buckets.long()
        scale, added = store.factors.movedim(1, 0).flatten(1)[:, store.places].double().nan_to_num_(0, 0, 0)
        sums = torch.zeros(2, self.family.num_buckets, dtype=torch.float64)
        sums.index_add_(1, row_buckets, torch.stack([scale, added]))
        mean_scale, mean_added = sums / row_buckets.bincount(minlength=self.family.num_buckets).clamp(min=1)
        queries = self._mapped_queries(queries)
        # The best row of a bucket is some standard deviations of the residuals' products above its center.
        spread = _SPREAD * _CODE_RMS * mean_scale * float(queries.square().sum(1).mean().sqrt())
        self.family.fit_queries(queries, row_buckets[top], (spread + mean_added).float())

    @torch.no_grad()
    def recall(self, weight: Tensor, bias: Tensor | None, queries: Tensor) -> float:
        """The share of the true top 10 rows among the first 1 % of rows (but at least 100) that a look-up returns.

        Costs one exact product with the weights; some tens of queries make a measurement.
        """
        queries = self._checked_queries(queries)
        top = _top_rows(queries, weight, bias, _JUDGED_ROWS)
        found = self.query(queries, max(100, self.num_rows // 100))
        return float((top.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean())

    @torch.no_grad()
    def outdated(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> str | None:
        """Why a :meth:`build` with these queries promises to find more; None where it does not.

        It does where the recall of the latest queries fell by more than 0.05 below what it was after the last
        :meth:`build`, and below 0.9; or where there are at least twice as many queries to learn from.
        """
        self._built()
        taught, judges = self._divided(self._checked_queries(queries))
        if len(judges) == 0:
            return None
        if len(taught) >= 2 * max(1, self.learned_from):
            return f"there are {len(taught)} queries to learn from, after {self.learned_from}"
        recall = self.recall(weight, bias, judges)
        if recall < min(self.learned_recall - _TOLERATED_LOSS, _GOOD_RECALL):
            return f"recall fell from {self.learned_recall:.3f} to {recall:.3f}"
        _log.debug("learned buckets stay: recall is %.3f, was %.3f", recall, self.learned_recall)
        return None

    @torch.no_grad()
    def update(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> int:
        """Hashes some rows anew and moves them to other buckets where their code changed.

        Args:
            weight: ``[num_rows, in_features]`` float32, float64 or bfloat16.
            bias: ``[num_rows]`` or None.
            rows: ``[A]`` int64, unique: the rows that may have changed.

        Returns:
            How many rows moved.

        Raises:
            ValueError: the shape, dtype or range of an argument does not fit.
            RuntimeError: the index was not built.
        """
        store = self._built()
        self._check_weight(weight, bias)
        self._check_rows(rows)
        moved = 0
        for some in rows.contiguous().split(_BLOCK_ROWS):
            hashed = self._hashed(weight[some], None if bias is None else bias[some])
            moved += int(ops.update_partition(*store, some, *hashed))
        return moved

    @torch.no_grad()
    def drift(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> float:
        """The share of some rows ``[A]`` int64 that belong to another bucket than the one where they are."""
        store = self._built()
        self._check_weight(weight, bias)
        self._check_rows(rows)
        changed = 0
        for some in rows.contiguous().split(_BLOCK_ROWS):
            buckets = self.family.codes(self._mapped_rows(weight[some]))[:, 0]
            changed += int((buckets != store.row_buckets[some]).sum())
        return changed / max(1, len(rows))

    @timed("look-up")
    @torch.no_grad()
    def query(self, x: Tensor, max_candidates: int, labels: Tensor | None = None) -> Tensor:
        """The rows with the largest estimates among those examined, best first.

        Args:
            x: ``[B, in_features]`` float32, float64 or bfloat16.
            max_candidates: M, rows wanted per query.
            labels: None: labels are not inserted into learned buckets.

        Returns:
            ``[B, M]`` int64, best first, padded with -1.

        Raises:
            ValueError: the shape or dtype of ``x`` does not fit, or ``max_candidates`` is not positive.
            RuntimeError: the index was not built.
        """
        store = self._built()
        self._check_queries(x, "x")
        if max_candidates < 1:
            raise ValueError(f"max_candidates is {max_candidates}; wanted at least 1")
        if labels is not None:
            raise ValueError("labels came, which learned buckets do not take in; wanted None")
        queries = self._mapped_queries(x)
        scores = self.family.scores(queries).contiguous()
        return ops.query_partition(
            queries,
            scores,
            self.family.centers,
            store.codes,
            store.factors,
            store.ids,
            store.next,
            store.heads,
            max_candidates,
            self.examined,
        )

    def state_dict(self) -> dict[str, Any]:
        """The buckets (not copied) and what was learned. Before :meth:`build` there are no buckets in it."""
        return {
            "config": self._config(),
            "center": self._center,
            "row_map": self._row_map,
            "query_map": self._query_map,
            "family": self.family.state_dict(),
            "learned_from": self.learned_from,
            "learned_recall": self.learned_recall,
            **({} if self._store is None else self._store._asdict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a copy of the buckets of an index with the same arguments.

        Raises:
            ValueError: the state is of an index with other arguments, or its buckets do not fit.
        """
        if state["config"] != self._config():
            raise ValueError(f"the state is of an index with {state['config']}; wanted {self._config()}")
        store = None
        if "ids" in state:
            wanted = Partition.empty(self.num_rows, self.family.num_buckets, self._width)
            for name, part in wanted._asdict().items():
                if state[name].shape != part.shape or state[name].dtype is not part.dtype:
                    raise ValueError(
                        f"{name} has shape {list(state[name].shape)} and dtype {state[name].dtype}; "
                        f"wanted {list(part.shape)} {part.dtype}"
                    )
            for name, lowest, end in (
                ("ids", -1, self.num_rows),
                ("next", -1, len(wanted.next)),
                ("heads", -1, max(len(wanted.next), _CODE_ROWS + 1)),
                ("places", 0, wanted.ids.numel()),
                ("row_buckets", 0, self.family.num_buckets),
            ):
                if state[name].min() < lowest or state[name].max() >= end:
                    raise ValueError(
                        f"{name} runs from {state[name].min()} to {state[name].max()}; wanted {lowest} to {end - 1}"
                    )
            store = Partition(*(state[name].clone() for name in Partition._fields))
        self.family.load_state_dict(state["family"])
        self._center, self._row_map = state["center"].clone(), state["row_map"].clone()
        self._query_map = state["query_map"].clone()
        self.learned_from, self.learned_recall = state["learned_from"], state["learned_recall"]
        self._store = store

    def _config(self) -> dict[str, Any]:
        return {
            "num_rows": self.num_rows,
            "in_features": self.in_features,
            "hashes_per_table": self.hashes_per_table,
            "probes": self.probes,
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._config().items())
        return f"LearnedIndex({arguments}, is_built={self.is_built})"

    def _mapped_rows(self, weight: Tensor) -> Tensor:
        return ops.product(weight.float() - self._center, self._row_map)

    def _mapped_queries(self, x: Tensor) -> Tensor:
        return ops.product(x.float(), self._query_map)

    def _hashed(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Buckets ``[n]`` int32, codes ``[n, bits * width / 8]`` uint8 and factors ``[n, 2]`` bfloat16 of some rows."""
        rows = self._mapped_rows(weight)
        buckets = self.family.codes(rows)[:, 0]
        signs, scale = ops.residual_codes(rows, self.family.centers, buckets, _CODE_BITS)
        added = torch.zeros_like(scale) if bias is None else bias.float()
        return buckets, signs, torch.stack([scale, added], 1).bfloat16()

    def _built(self) -> Partition:
        if self._store is None:
            raise RuntimeError("the index was not built: call build(weight, bias) first")
        return self._store

    def _check_rows(self, rows: Tensor) -> None:
        if rows.dim() != 1 or rows.dtype is not torch.int64:
            raise ValueError(f"rows has shape {list(rows.shape)} and dtype {rows.dtype}; wanted [A] int64")
        if len(rows) > 0 and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise ValueError(f"rows runs from {rows.min()} to {rows.max()}; wanted 0 to {self.num_rows - 1}")

    def _check_queries(self, x: Tensor, name: str) -> None:
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"{name} has shape {list(x.shape)}; wanted [B, {self.in_features}]")
        _check_dtype(x, name)

    def _checked_queries(self, queries: Tensor | None) -> Tensor:
        """In float32, without those that are not finite."""
        if queries is None:
            return torch.zeros(0, self.in_features, dtype=torch.float32)
        self._check_queries(queries, "queries")
        queries = queries.float()
        return queries[queries.isfinite().all(1)]

    def _divided(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Those to learn from, and the latest, to measure recall with."""
        judges = min(_JUDGES, len(queries) // 4)
        return queries[: len(queries) - judges], queries[len(queries) - judges :]

    def _check_weight(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.shape != (self.num_rows, self.in_features):
            raise ValueError(f"weight has shape {list(weight.shape)}; wanted [{self.num_rows}, {self.in_features}]")
        _check_dtype(weight, "weight")
        if bias is not None:
            if bias.shape != (self.num_rows,):
                raise ValueError(f"bias has shape {list(bias.shape)}; wanted [{self.num_rows}]")
            _check_dtype(bias, "bias")


def _top_rows(queries: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> Tensor:
    """``[Q, k]`` int64: the rows with the largest outputs, exactly."""
    x = queries.to(weight.dtype).contiguous()
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    return ops.linear_topk(x, weight.contiguous(), bias, min(k, len(weight)))[1]


def _check_dtype(tensor: Tensor, name: str) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; hash tables are made on the CPU")
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(f"{name} has dtype {tensor.dtype}; wanted float32, float64 or bfloat16")
