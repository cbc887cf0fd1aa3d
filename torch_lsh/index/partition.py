"""PartitionIndex: rows of a weight matrix in learned buckets."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from .balance import Balance
from .base import Index, StoredTensor, best_rows, finite_queries, mean_row, random_rotation, row_blocks
from .checks import check_int
from .families.learned import LearnedPartition
from .sign_codes import code_places

_log = logging.getLogger("torch_lsh")

_CODE_ROWS = 64  # rows of a block of codes; see csrc/kernels/sketch.h
_CODE_BITS = 2  # per dimension
_CODE_RMS = 1.9  # root mean square of the numbers that codes stand for
_FITTED_ROWS, _FITTED_PER_BUCKET = 65536, 8  # rows that k-means looks at, at least
_SPREAD = 3.0  # before routing is learned: how far in standard deviations a bucket's best row is above its center
_TOP_ROWS = 50  # true top rows of each query that routing is trained on
_JUDGES = 32  # latest queries, which are not trained on: recall is measured with them
_JUDGED_ROWS = 10  # recall@k
_MANY_BUCKETS = 1 << 14  # codes of one bit are worth a try where more are scored
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
        factors = torch.zeros(blocks, 2, _CODE_ROWS, dtype=torch.bfloat16, device="cpu")
        factors[:, 1] = -torch.inf
        heads = torch.tensor([-1, 0], dtype=torch.int32, device="cpu").repeat(num_buckets + 1, 1)
        heads[-1, 0] = 0
        next = torch.arange(1, blocks + 1, dtype=torch.int32, device="cpu")
        next[-1] = -1
        return cls(
            codes=torch.zeros(blocks, bits * width // 8, _CODE_ROWS, dtype=torch.uint8, device="cpu"),
            factors=factors,
            ids=torch.full((blocks, _CODE_ROWS), -1, dtype=torch.int32, device="cpu"),
            next=next,
            heads=heads,
            places=torch.full((num_rows,), -1, dtype=torch.int32, device="cpu"),
            row_buckets=torch.full((num_rows,), -1, dtype=torch.int32, device="cpu"),
        )


class Route(NamedTuple):
    """How :meth:`PartitionIndex.search` scores buckets.

    Attributes:
        learned: by the directions that were learned from queries; False: by the centers.
        bits: per dimension of their codes.
    """

    learned: bool = True
    bits: int = _CODE_BITS

    def __str__(self) -> str:
        """Prints what is compared with a query.

        >>> print(Route(learned=False, bits=1))
        centers, 1 bit
        """
        return f"{'learned directions' if self.learned else 'centers'}, {self.bits} bit{'s' if self.bits > 1 else ''}"


_LEARNED = Route()


class Routing(NamedTuple):
    """What scores buckets in :func:`torch_lsh.ops.search_partition`: a map of queries, and codes of directions."""

    query_map: Tensor
    codes: Tensor
    factors: Tensor

    @classmethod
    def of(cls, query_map: Tensor, directions: Tensor, offsets: Tensor, bits: int = _CODE_BITS) -> Routing:
        """Codes around the mean direction, whose product with a query is the same for all buckets."""
        count = len(directions)
        none = torch.zeros(count, dtype=torch.int32, device="cpu")
        signs, scale = ops.residual_codes(directions, directions.mean(0, keepdim=True), none, bits)
        blocks = -(-count // _CODE_ROWS)
        codes = torch.zeros(blocks, signs.shape[1], _CODE_ROWS, dtype=torch.uint8, device="cpu")
        factors = torch.zeros(blocks, 2, _CODE_ROWS, dtype=torch.bfloat16, device="cpu")
        rows = torch.arange(count, device="cpu")
        block, place = rows // _CODE_ROWS, rows % _CODE_ROWS
        codes[block, :, code_places(place)] = signs
        factors[block, 0, place], factors[block, 1, place] = scale.bfloat16(), offsets.bfloat16()
        return cls(query_map.T.contiguous(), codes, factors)


class PartitionIndex(Index):
    """Rows in learned buckets, ranked by codes of two bits per dimension.

    :meth:`build` learns three things, all for the inner products ``h · w + b`` with queries like the given ones:

    1. *Coordinates.* Rows and queries are mapped so that inner products stay the same and distances between rows
       predict differences of inner products (:class:`torch_lsh.index.balance.Balance`). The mean row is subtracted.
    2. *Buckets*: k-means over the rows (:class:`LearnedPartition`). A few rows are much longer than most and are top
       rows of many queries. Half of the rows that k-means sees are the longest ones, so long rows get buckets of their
       own.
    3. *Routing*: a linear classifier, trained with the true top rows of the queries, scores the buckets for a query. It
       starts from a guess at the best row of each bucket, which lies higher above the center the farther the rows are
       from it.

    A look-up visits the buckets in the order of their scores until it has examined enough rows, and ranks these by
    estimates of their inner products: the exact product with the center of the bucket, plus an estimated product with
    the row's residual, rounded to two bits per dimension in a random rotation, plus the bias. The second bit halves
    the error of the one-bit codes of :class:`SignCodeIndex`; both planes are summed with the same tables.

    A row with a NaN or an infinity is in some bucket; a query with one finds some rows.

    Args:
        num_rows: N, rows of the weight.
        in_features: width of the weight.
        hashes_per_table: K; there are ``2**K`` buckets. Default: the power of two nearest to ``2.5 * sqrt(N)``. With
            more buckets, scoring and visiting them costs more than ranking the rows in them.
        probes: how many rows a look-up examines, in buckets of average size. Default: ``N / 16 + 4096`` rows.
        compared: groups of buckets that a row is compared with, at most (:class:`LearnedPartition`). Over 1: a row is
            in the bucket that suits it best, each tight cluster has one, and building takes longer.
        seed: of k-means and of the rotation.

    Raises:
        ValueError: an argument does not fit.

    References:
        See :class:`LearnedPartition`; Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search",
        PAMI 2011 (codes of residuals in an inverted file); Gao & Long, "RaBitQ: Quantizing High-Dimensional Vectors
        with a Theoretical Error Bound", SIGMOD 2024, and Gao et al., "Practical and Asymptotically Optimal Quantization
        of High-Dimensional Vectors in Euclidean Space for Approximate Nearest Neighbor Search", SIGMOD 2025 (estimates
        from one bit and from several bits).

    >>> weight = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    >>> index = PartitionIndex(1000, 16)
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
        compared: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(num_rows, in_features, seed)
        if probes is not None:
            check_int("probes", probes)
        check_int("compared", compared)
        if hashes_per_table is None:
            hashes_per_table = max(1, round(math.log2(2.5 * math.sqrt(num_rows))))
        self._rotation = random_rotation(in_features, seed + 1)
        self._width = self._rotation.shape[1]
        self.family = LearnedPartition(self._width, hashes_per_table, compared, seed)
        self.probes = probes
        average = num_rows / self.family.num_buckets
        examined = num_rows // 16 + 4096 if probes is None else math.ceil(probes * average)
        self.examined = min(num_rows, examined)
        self._clear()

    def _clear(self) -> None:
        self._center = torch.zeros(self.in_features, dtype=torch.float32, device="cpu")
        self._row_map = self._query_map = self._rotation
        self._store: Partition | None = None
        self._routings: dict[Route, Routing] = {}
        self.learned_from = 0  # queries
        self.learned_recall = math.nan

    @property
    def hashes_per_table(self) -> int:
        return self.family.hashes_per_table

    @property
    def is_built(self) -> bool:
        return self._store is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' codes and of what was learned."""
        parts = [*(self._store or ()), *itertools.chain(*self._routings.values())]
        return sum(part.nbytes for part in parts) + self.family.nbytes + self._row_map.nbytes + self._query_map.nbytes

    def bucket_loads(self) -> Tensor | None:
        if self._store is None:
            return None
        return self._store.row_buckets.bincount(minlength=self.family.num_buckets).unsqueeze(0)

    def _build(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None:
        taught, judges = self._divided(queries)
        self._center = mean_row(weight)
        self._row_map = self._query_map = self._rotation
        if len(taught) > 0:
            moment = ops.product(taught.T.double(), taught.double()) / len(taught)
            balance = Balance.fit(torch.eye(self.in_features, dtype=torch.float64, device="cpu"), moment)
            self._row_map = ops.product(balance.rows, self._rotation)
            self._query_map = ops.product(balance.queries, self._rotation)
        self.family.fit(self._mapped_rows(weight[self._fitted_rows(weight)]))
        self._rehash(weight, bias, queries)
        self.learned_from, self.learned_recall = len(taught), math.nan
        if len(taught) > 0:
            self._learn_routing(taught, best_rows(taught, weight, bias, _TOP_ROWS))
        self._routings = {}
        if len(judges) > 0:
            self.learned_recall = self._recall(weight, bias, judges)

    def _routing(self, route: Route) -> Routing:
        """The codes of a route, made at its first use; threads that meet here make equal ones."""
        if route not in self._routings:
            family, count = self.family, self.family.num_centers
            directions, offsets = family.directions[:count], family.offsets[:count]
            if not route.learned:
                directions, offsets = family.centers[:count], torch.zeros_like(offsets)
            self._routings[route] = Routing.of(self._query_map, directions, offsets, route.bits)
        return self._routings[route]

    def routes(self) -> list[Route]:
        """The routes to choose from by measurement.

        Among clusters the products with the centers tell as much as what was learned. Codes of one bit take half the
        time, which matters where there are many buckets.
        """
        learned = (True, False) if self.family.compared > 1 else (True,)
        bits = (_CODE_BITS, 1) if self.family.num_centers > _MANY_BUCKETS else (_CODE_BITS,)
        return [Route(*each) for each in itertools.product(learned, bits)]

    def _fitted_rows(self, weight: Tensor) -> Tensor:
        """The rows that k-means sees.

        All, or every n-th and the longest, which are top rows of most queries. Where k-means looks for clusters, it
        finds outliers by itself, and the longest rows are members of some clusters only: a random sample.
        """
        fitted = max(_FITTED_ROWS, _FITTED_PER_BUCKET * self.family.num_buckets)
        if self.num_rows <= fitted:
            return torch.arange(self.num_rows, device="cpu")
        if self.family.compared > 1:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.randperm(self.num_rows, generator=generator, device="cpu")[:fitted]
        lengths = torch.cat([(rows.float() - self._center).norm(dim=1) for _, rows, _ in row_blocks(weight, None)])
        half = fitted // 2
        longest = lengths.nan_to_num_(0, 0, 0).topk(half).indices
        return torch.cat([torch.arange(0, self.num_rows, -(-self.num_rows // half), device="cpu"), longest])

    def _rehash(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None:
        store = Partition.empty(self.num_rows, self.family.num_buckets, self._width)
        # Centers are packed for each block, so there are as many rows.
        blocks = row_blocks(weight, bias, self.family.num_centers if self.family.compared > 1 else 1)
        hashed = [self._hashed(rows, biases) for _, rows, biases in blocks]
        codes, signs, factors = (torch.cat(parts) for parts in zip(*hashed))
        order = codes.argsort(stable=True)  # so that the blocks of a bucket are neighbours
        ops.update_partition(*store, order, codes[order], signs[order], factors[order])
        self._store = store

    def _learn_routing(self, queries: Tensor, top: Tensor) -> None:
        store = self._built()
        row_buckets = store.row_buckets.long()
        scale, added = store.factors.movedim(1, 0).flatten(1)[:, store.places].double().nan_to_num_(0, 0, 0)
        sums = torch.zeros(2, self.family.num_buckets, dtype=torch.float64, device="cpu")
        sums.index_add_(1, row_buckets, torch.stack([scale, added]))
        mean_scale, mean_added = sums / row_buckets.bincount(minlength=self.family.num_buckets).clamp(min=1)
        queries = self._mapped_queries(queries)
        # The best row of a bucket is some standard deviations of the residuals' products above its center.
        spread = _SPREAD * _CODE_RMS * mean_scale * float(queries.square().sum(1).mean().sqrt())
        self.family.fit_queries(queries, row_buckets[top], (spread + mean_added).float())

    @torch.no_grad()
    def recall(self, weight: Tensor, bias: Tensor | None, queries: Tensor) -> float:
        """The share of the true top 10 rows among the first 1 % of rows (but at least 100) that a look-up returns.

        Costs one exact product with the weights; some tens of queries make a measurement. Takes and raises what
        :meth:`outdated` does.
        """
        self._check_built()
        self._check_weight(weight, bias)
        self._check_queries(queries, "queries")
        return self._recall(weight, bias, finite_queries(queries))

    def _recall(self, weight: Tensor, bias: Tensor | None, queries: Tensor) -> float:
        top = best_rows(queries, weight, bias, _JUDGED_ROWS)
        found = self._query(queries, max(100, self.num_rows // 100), None)
        return float((top.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean())

    def _outdated(self, weight: Tensor, bias: Tensor | None, queries: Tensor) -> str | None:
        """Recall of the latest queries fell, or there are at least twice as many queries to learn from.

        Recall fell if it is below 0.9 and more than 0.05 below that of the last :meth:`build`.
        """
        taught, judges = self._divided(queries)
        if len(judges) == 0:
            return None
        if len(taught) >= 2 * max(1, self.learned_from):
            return f"there are {len(taught)} queries to learn from, after {self.learned_from}"
        recall = self._recall(weight, bias, judges)
        if recall < min(self.learned_recall - _TOLERATED_LOSS, _GOOD_RECALL):
            return f"recall fell from {self.learned_recall:.3f} to {recall:.3f}"
        _log.debug("learned buckets stay: recall is %.3f, was %.3f", recall, self.learned_recall)
        return None

    def _update(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> int:
        hashed = self._hashed(weight[rows], None if bias is None else bias[rows])
        return int(ops.update_partition(*self._built(), rows, *hashed))

    def _differs(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        return self.family.buckets(self._mapped_rows(weight[rows])) != self._built().row_buckets[rows]

    def _query(self, x: Tensor, max_candidates: int, labels: Tensor | None) -> Tensor:
        store, queries = self._built(), self._mapped_queries(x)
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

    def search(self, x: Tensor, max_candidates: int, examined: int, route: Route = _LEARNED) -> Tensor:
        """:meth:`query` for one or few queries: scores buckets by codes, in the operator that ranks the rows.

        Args:
            x: ``[B, in_features]`` float32.
            max_candidates: M, at least 1.
            examined: rows to compare at least, where there are as many.
            route: how buckets are scored.

        Returns:
            ``[B, M]`` int64, best first, padded with -1.
        """
        store = self._built()
        return ops.search_partition(
            x,
            *self._routing(route),
            self.family.centers,
            store.codes,
            store.factors,
            store.ids,
            store.next,
            store.heads,
            max_candidates,
            examined,
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "num_rows": self.num_rows,
            "in_features": self.in_features,
            "hashes_per_table": self.hashes_per_table,
            "probes": self.probes,
            "compared": self.family.compared,
            "seed": self.seed,
        }

    def _stored(self) -> dict[str, StoredTensor]:
        empty = Partition.empty(self.num_rows, self.family.num_buckets, self._width)
        blocks = len(empty.next)
        ranges = {
            "ids": (-1, self.num_rows),
            "next": (-1, blocks),
            "heads": (-1, max(blocks, _CODE_ROWS + 1)),
            "places": (0, empty.ids.numel()),
            "row_buckets": (0, self.family.num_buckets),
        }
        stored = {
            name: StoredTensor(tuple(part.shape), part.dtype, *ranges.get(name, ()))
            for name, part in empty._asdict().items()
        }
        map_shape = tuple(self._rotation.shape)
        return {
            "center": StoredTensor((self.in_features,), torch.float32),
            "row_map": StoredTensor(map_shape, torch.float32),
            "query_map": StoredTensor(map_shape, torch.float32),
            **stored,
        }

    def _state(self) -> dict[str, Any]:
        return {
            "center": self._center,
            "row_map": self._row_map,
            "query_map": self._query_map,
            "family": self.family.state_dict(),
            "learned_from": self.learned_from,
            "learned_recall": self.learned_recall,
            **self._built()._asdict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.family.load_state_dict(state["family"])
        self._center, self._row_map, self._query_map = state["center"], state["row_map"], state["query_map"]
        self.learned_from, self.learned_recall = state["learned_from"], state["learned_recall"]
        self._store = Partition(*(state[name] for name in Partition._fields))
        self._routings = {}

    def _mapped_rows(self, weight: Tensor) -> Tensor:
        return ops.product(weight.float() - self._center, self._row_map)

    def _mapped_queries(self, x: Tensor) -> Tensor:
        return ops.product(x.float(), self._query_map)

    def _hashed(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Buckets ``[n]`` int32, codes ``[n, bits * width / 8]`` uint8 and factors ``[n, 2]`` bfloat16 of some rows."""
        rows = self._mapped_rows(weight)
        buckets = self.family.buckets(rows)
        signs, scale = ops.residual_codes(rows, self.family.centers, buckets, _CODE_BITS)
        added = torch.zeros_like(scale) if bias is None else bias.float()
        return buckets, signs, torch.stack([scale, added], 1).bfloat16()

    def _built(self) -> Partition:
        self._check_built()
        assert self._store is not None
        return self._store

    def _divided(self, queries: Tensor | None) -> tuple[Tensor, Tensor]:
        """The finite queries to learn from, and the latest ones, which recall is measured with."""
        queries = finite_queries(self._center.new_empty(0, self.in_features) if queries is None else queries)
        judges = min(_JUDGES, len(queries) // 4)
        return queries[: len(queries) - judges], queries[len(queries) - judges :]
