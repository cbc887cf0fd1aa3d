"""HashTableIndex: rows of a weight matrix in hash tables."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .balance import Balance
from .base import Index, SimHashTables, StoredTensor, row_blocks
from .checks import check_choice, check_int
from .families import MAX_CODE_BITS, HashFamily, family_type, make_family
from .families.simhash import SimHash

SELECTIONS = ("ranked", "frequency", "vanilla")
BUCKET_POLICIES = ("reservoir", "fifo")

_BUCKET_SIZE = 64
_NUM_TABLES = 24
# These retrieve best from output layers trained on real data, early and late in training.
_CENTERING = 0.25  # of the mean row
_NORM_QUANTILE = 0.2
_BALANCED_CENTERING = 1.0
_BALANCED_NORM_QUANTILE = 0.9
_MOMENT_ROWS = 32768  # rows sampled for second moments


class HashTables(NamedTuple):
    """The tensors of :func:`torch_lsh.ops.build_tables`."""

    ids: Tensor
    counts: Tensor
    row_buckets: Tensor


class HashTableIndex(Index):
    """Rows of a weight matrix in L hash tables.

    With ``mips``, the row ``w`` with bias ``b`` is hashed as ``[v, sqrt(M**2 - |v|**2)]``, where ``v = [w, b] - c``,
    and the query ``h`` as ``[h, 1, 0]``. The angle between them then follows the inner product ``h · w + b``. Without
    ``mips``, ``[w, b]`` is hashed against ``[h, 1]``: the angle, whatever the norms.

    Two choices spread the rows over the buckets; :meth:`build` makes both. ``c`` is a quarter of the mean row:
    subtracting one vector from all rows keeps the order of their inner products. ``M`` is the 20 % quantile of the
    norms, not the largest norm; longer rows have 0 in the last place. This ranks short rows lower and tells long rows
    apart by angle alone.

    A row with a NaN or an infinity has some code and hardly counts in ``c`` and ``M``.

    Args:
        num_rows: N, rows of the weight.
        in_features: width of the weight.
        hash: a hash family of :mod:`torch_lsh.index.families`.
        hashes_per_table: K. A table has ``2**(K * bits_per_hash)`` buckets, at most the power of two above
            ``num_rows``. Default: enough for ``num_rows / (2 * bucket_size)`` buckets, rounded up to a power of two.
            For the same memory, more tables that hold a sample of their rows find more than fewer that hold all.
        num_tables: L. Default: 24.
        bucket_size: rows that a bucket holds at most. Default: 64; with K given, twice the average load and at least
            16.
        mips: let the angle follow the inner product; see above.
        probes: buckets that a query looks up in each table: its own, then those that a small move of the query would
            lead to, nearest first. Default: 1.
        selection: which rows of these buckets a query returns. ``"ranked"``: those that share most buckets with the
            query, the ``8 * M`` best of them ranked by the Hamming distance of their codes in all tables (where a hash
            is one bit and a table has as many buckets as codes) or of their sketches. ``"frequency"``: those that share
            most buckets. ``"vanilla"``: the first ones met, from no more buckets than needed.
        min_matches: leave out rows that share fewer buckets with the query. SLIDE's three modes are "vanilla",
            "frequency", and "frequency" with ``min_matches``.
        sketch_bits: with "ranked": rank by sketches of at least this many SimHash bits instead of the codes of the
            tables. Sketches tell angles apart more finely and work with every family. 480 bits take one cache line per
            row. 0: no sketches.
        bucket_policy: which rows an overfull bucket keeps: ``"reservoir"``, a uniform sample; ``"fifo"``, the latest.
        balance: hash in coordinates in which rows and queries have the same second moment (:class:`Balance`). Needs
            ``mips``, and queries at every :meth:`build`. ``c`` is then the mean row and ``M`` the 90 % quantile.
        seed: of the hash functions and of the rows that stay in an overfull bucket.

    Raises:
        ValueError: an argument does not fit.

    References:
        Shrivastava & Li, "Asymmetric LSH (ALSH) for Sublinear Time Maximum Inner Product Search", NIPS 2014;
        Neyshabur & Srebro, "On Symmetric and Asymmetric LSHs for Inner Product Search", ICML 2015;
        Lv et al., "Multi-Probe LSH: Efficient Indexing for High-Dimensional Similarity Search", VLDB 2007.

    >>> weight = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    >>> index = HashTableIndex(1000, 16)
    >>> index.build(weight)
    >>> 7 in index.query(10 * weight[[7]], max_candidates=20)
    True
    """

    takes_labels = True

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
        probes: int = 1,
        selection: str = "ranked",
        min_matches: int = 1,
        sketch_bits: int = 0,
        bucket_policy: str = "reservoir",
        balance: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(num_rows, in_features, seed)
        check_choice("selection", selection, SELECTIONS)
        check_choice("bucket_policy", bucket_policy, BUCKET_POLICIES)
        check_int("probes", probes)
        check_int("min_matches", min_matches)
        check_int("sketch_bits", sketch_bits, least=0)
        if bucket_size is not None:
            check_int("bucket_size", bucket_size)
        if balance and not mips:
            raise ValueError("balance is True and mips is False; wanted mips=True with balance")
        num_tables = _NUM_TABLES if num_tables is None else num_tables
        hashes_per_table, self.bucket_bits, self._bucket_size = _table_shape(
            num_rows, family_type(hash), hashes_per_table, bucket_size
        )
        self.hash = hash
        self.mips = mips
        self.probes = probes
        self.selection = selection
        self.min_matches = min_matches
        self.sketch_bits = sketch_bits
        self.bucket_policy = bucket_policy
        self.balance = balance
        self.family = make_family(hash, in_features + (2 if mips else 1), hashes_per_table, num_tables, seed)
        self.sketcher: HashFamily | None = None
        if sketch_bits > 0:
            words = math.ceil(sketch_bits / MAX_CODE_BITS)
            bits = math.ceil(sketch_bits / words)
            self.sketcher = make_family("simhash_hadamard", self.family.in_features, bits, words, seed + 1)
        self._clear()

    def _clear(self) -> None:
        self._center = torch.zeros(self.in_features + 1, dtype=torch.float32, device="cpu")
        self._norm = 0.0
        self._maps: Balance | None = None
        self._tables: HashTables | None = None
        self._sketches: Tensor | None = None
        self._packed: Tensor | None = None  # the buckets of rows as bytes, where simhash_tables compares those
        self.simhash_tables = None

    @property
    def num_tables(self) -> int:
        return self.family.num_tables

    @property
    def hashes_per_table(self) -> int:
        return self.family.hashes_per_table

    @property
    def bucket_size(self) -> int:
        return self._bucket_size

    @property
    def is_built(self) -> bool:
        return self._tables is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the tables, of the sketches and of the parameters of the hash functions."""
        parts = (*(self._tables or ()), self._sketches, self._packed, self.family, self.sketcher)
        return sum(part.nbytes for part in parts if part is not None)

    def bucket_loads(self) -> Tensor | None:
        if self._tables is None:
            return None
        buckets = 1 << self.bucket_bits
        return torch.stack([torch.bincount(rows, minlength=buckets) for rows in self._tables.row_buckets.T])

    def _build(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None:
        self._center, self._norm, self._maps = torch.zeros_like(self._center), 0.0, None
        self._fit(weight, bias, queries if self.balance and queries is not None and len(queries) > 0 else None)
        row_buckets = torch.empty(self.num_rows, self.num_tables, dtype=torch.int32, device="cpu")
        ops.prefer_huge_pages(row_buckets)
        sketches = None
        if self.sketcher is not None:
            sketches = torch.empty(self.num_rows, self.sketcher.num_tables, dtype=torch.int32, device="cpu")
            ops.prefer_huge_pages(sketches)
        for some, rows, biases in row_blocks(weight, bias):
            vectors = self._row_vectors(rows, biases)
            row_buckets[some] = self._of_codes(self.family.codes(vectors))
            if self.sketcher is not None and sketches is not None:
                sketches[some] = self.sketcher.codes(vectors)
        ids, counts = ops.build_tables(row_buckets, self.bucket_bits, self.bucket_size, self.seed, self._fifo)
        self._tables, self._sketches = HashTables(ids, counts, row_buckets), sketches
        self.simhash_tables = self._simhash_tables(self._tables)

    def _fit(self, weight: Tensor, bias: Tensor | None, queries: Tensor | None) -> None:
        """Chooses the coordinates: ``c`` and ``M``, and the maps of a balanced index."""
        if not self.mips:
            return
        total = torch.zeros(self.in_features + 1, dtype=torch.float64, device="cpu")
        for _, rows, biases in row_blocks(weight, bias):
            total += self._centered(rows, biases).nan_to_num_(0, 0, 0).sum(0, dtype=torch.float64)
        self._center = ((_CENTERING if queries is None else _BALANCED_CENTERING) * total / self.num_rows).float()
        if queries is not None:
            sampled = torch.arange(0, self.num_rows, -(-self.num_rows // _MOMENT_ROWS), device="cpu")
            sample = self._centered(_take(weight, sampled), None if bias is None else _take(bias, sampled))
            self._maps = Balance.fit(_second_moment(sample), _second_moment(ops.query_vectors(queries, 0)))
        norms = torch.empty(self.num_rows, dtype=torch.float32, device="cpu")
        for some, rows, biases in row_blocks(weight, bias):
            norms[some] = self._centered(rows, biases).norm(dim=1)
        quantile = _NORM_QUANTILE if queries is None else _BALANCED_NORM_QUANTILE
        self._norm = float(norms.nan_to_num_(0, 0, 0).kthvalue(1 + int(quantile * (self.num_rows - 1))).values)

    def _update(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> int:
        buckets, vectors = self._buckets_of(weight, bias, rows)
        if self.sketcher is not None and self._sketches is not None:
            self._sketches[rows] = self.sketcher.codes(vectors)
        moved = int(ops.update_tables(*self._built(), rows, buckets, self.seed, self._fifo))
        if self._packed is not None:
            self._packed[rows] = _packed(buckets)
        return moved

    def _differs(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        return self._buckets_of(weight, bias, rows)[0] != self._built().row_buckets[rows]

    def _simhash_tables(self, tables: HashTables) -> SimHashTables | None:
        family = self.family
        if type(family) is not SimHash or self.bucket_bits != family.code_bits:
            return None
        if self.probes > 1 or self.sketcher is not None or self._maps is not None:
            return None
        ranked = self.selection == "ranked"
        self._packed = _packed(tables.row_buckets) if ranked and family.hashes_per_table <= 8 else None
        codes = tables.row_buckets if self._packed is None else self._packed
        return SimHashTables(
            tables.ids,
            tables.counts,
            codes if ranked else None,
            family.projections,
            family.hashes_per_table,
            zeros=1 if self.mips else 0,
            min_matches=self.min_matches,
            vanilla=self.selection == "vanilla",
        )

    def _query(self, x: Tensor, max_candidates: int, labels: Tensor | None) -> Tensor:
        ids, counts, row_buckets = self._built()
        queries = self._query_vectors(x)
        several = self.probes > 1
        buckets = self._of_codes(self.family.probes(queries, self.probes) if several else self.family.codes(queries))
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
            own = buckets[:, :, 0].contiguous() if several else buckets
            ops.insert_labels(ids, counts, own, labels.contiguous(), self.num_rows, self.seed, self._fifo)
        return found

    @property
    def _fifo(self) -> bool:
        return self.bucket_policy == "fifo"

    def _built(self) -> HashTables:
        self._check_built()
        assert self._tables is not None
        return self._tables

    def _buckets_of(self, weight: Tensor, bias: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The buckets ``[A, L]`` that rows belong to, and the vectors hashed."""
        vectors = self._row_vectors(_take(weight, rows), None if bias is None else _take(bias, rows))
        return self._of_codes(self.family.codes(vectors)), vectors

    def _query_vectors(self, x: Tensor) -> Tensor:
        """The vectors to hash for queries: float32 ``[n, family.in_features]``."""
        if self._maps is None:
            return ops.query_vectors(x, 1 if self.mips else 0)
        return F.pad(self._maps.map_queries(ops.query_vectors(x, 0)), (0, 1))

    def _centered(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[w, b] - c`` in float32, in the coordinates that are hashed."""
        rows = torch.empty(len(weight), self.in_features + 1, dtype=torch.float32, device="cpu")
        rows[:, :-1] = weight
        rows[:, -1] = 0 if bias is None else bias
        rows.sub_(self._center)
        return rows if self._maps is None else self._maps.map_rows(rows)

    def _row_vectors(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The vectors to hash for some rows: float32 ``[n, family.in_features]``."""
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

    def _settings(self) -> dict[str, Any]:
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

    def _stored(self) -> dict[str, StoredTensor]:
        shape, int32 = (self.num_tables, 1 << self.bucket_bits), torch.int32
        stored = {
            "center": StoredTensor((self.in_features + 1,), torch.float32),
            "ids": StoredTensor((*shape, self.bucket_size), int32, -1, self.num_rows),
            "counts": StoredTensor(shape, int32, -1, self.bucket_size + 1),
            "row_buckets": StoredTensor((self.num_rows, self.num_tables), int32, -1, 1 << self.bucket_bits),
        }
        if self.sketcher is not None:
            words, bits = self.sketcher.num_tables, self.sketcher.code_bits
            stored["sketches"] = StoredTensor((self.num_rows, words), int32, -1, 1 << bits)
        return stored

    def _state(self) -> dict[str, Any]:
        return {
            "center": self._center,
            "norm": self._norm,
            "maps": None if self._maps is None else tuple(self._maps),
            **self._built()._asdict(),
            **({} if self._sketches is None else {"sketches": self._sketches}),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._center, self._norm = state["center"], state["norm"]
        self._maps = None if state["maps"] is None else Balance(*(part.clone() for part in state["maps"]))
        self._tables = HashTables(*(state[name] for name in HashTables._fields))
        self._sketches = state.get("sketches")
        self.simhash_tables = self._simhash_tables(self._tables)


def table_bytes(
    num_rows: int,
    in_features: int,
    hash: str,
    hashes_per_table: int | None,
    num_tables: int | None,
    bucket_size: int | None,
) -> int:
    """Bytes of the tables, and of projections where the hash family has them. Nothing is allocated."""
    family = family_type(hash)
    hashes, bits, size = _table_shape(num_rows, family, hashes_per_table, bucket_size)
    tables = _NUM_TABLES if num_tables is None else num_tables
    return 4 * tables * ((size + 1 << bits) + num_rows + hashes * in_features)


def _table_shape(
    num_rows: int, family: type[HashFamily], hashes_per_table: int | None, bucket_size: int | None
) -> tuple[int, int, int]:
    """K, the bits of a bucket's number, and the rows that a bucket holds at most."""
    if hashes_per_table is None:
        bucket_size = _BUCKET_SIZE if bucket_size is None else bucket_size
        bucket_bits = max(int(num_rows > bucket_size), math.ceil(math.log2(num_rows / (2 * bucket_size))))
        hashes_per_table = min(math.ceil(max(1, bucket_bits) / family.bits_per_hash), family.max_hashes_per_table())
    else:
        bucket_bits = min(hashes_per_table * family.bits_per_hash, math.ceil(math.log2(num_rows)))
        if bucket_size is None:
            bucket_size = max(_BUCKET_SIZE // 4, 2 * num_rows >> bucket_bits)
    return hashes_per_table, bucket_bits, bucket_size


def _packed(codes: Tensor) -> Tensor:
    """Codes ``[n, L]`` of at most 8 bits as :func:`torch_lsh.ops.draw_hashed_rows` takes them packed."""
    return F.pad(codes.to(torch.uint8), (0, -codes.shape[1] % 4)).view(torch.int32)


def _second_moment(vectors: Tensor) -> Tensor:
    vectors = vectors[vectors.isfinite().all(1)].double()
    return vectors.T @ vectors / max(1, len(vectors))


def _take(tensor: Tensor, rows: Tensor) -> Tensor:
    return ops.gather_rows(tensor, rows, tensor.dtype) if tensor.is_contiguous() else tensor[rows]
