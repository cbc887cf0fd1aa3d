"""Hash tables of row numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import check_range, operator


@operator
def build_tables(
    row_buckets: Tensor, bucket_bits: int, bucket_size: int, seed: int, fifo: bool = False
) -> tuple[Tensor, Tensor]:
    """Builds L hash tables of row numbers, each with ``2**bucket_bits`` buckets of fixed capacity.

    A bucket of more than ``bucket_size`` rows keeps a uniform sample of them, drawn by (seed, table, row).

    Args:
        row_buckets: ``[N, L]`` int32: the bucket of each row in each table.
        bucket_bits: 0 to 30.
        bucket_size: capacity of a bucket.
        seed: of the samples.
        fifo: keeps the rows that were inserted last rather than a sample. Rows are inserted in the order of their
            numbers, beginning with one that is drawn for each table.

    Returns:
        ``ids``: ``[L, 2**bucket_bits, bucket_size]`` int32, -1 where unused; ``counts``: ``[L, 2**bucket_bits]`` int32.

    >>> build_tables(torch.tensor([[1], [0], [1]], dtype=torch.int32), 1, 2, seed=0)[1]
    tensor([[1, 2]], dtype=torch.int32)
    """
    check_range("bucket_bits", bucket_bits, 0, 30)
    shape = (row_buckets.shape[1], 1 << bucket_bits)
    return row_buckets.new_empty((*shape, bucket_size)), row_buckets.new_empty(shape)


@operator
def update_tables(
    ids: Tensor,
    counts: Tensor,
    row_buckets: Tensor,
    rows: Tensor,
    buckets: Tensor,
    seed: int,
    fifo: bool = False,
) -> Tensor:
    """Moves rows to other buckets, in the tables where their bucket changed. In place.

    The last id of the old bucket takes the place of the row that leaves; with ``fifo`` all later ones move up. Entries
    of ``ids`` beyond ``counts`` keep their values. A full bucket keeps the rows that :func:`build_tables` would keep.

    Args:
        ids, counts: from :func:`build_tables`.
        row_buckets: ``[N, L]`` int32, the present buckets of all rows.
        rows: ``[A]`` int64, unique.
        buckets: ``[A, L]`` int32, the new buckets of ``rows``.
        seed, fifo: those of :func:`build_tables`.

    Returns:
        The number of (row, table) entries that moved: a scalar int64 tensor.

    >>> row_buckets = torch.tensor([[1], [0], [1]], dtype=torch.int32)
    >>> ids, counts = build_tables(row_buckets, 1, 2, seed=0)
    >>> update_tables(ids, counts, row_buckets, torch.tensor([1]), torch.tensor([[1]], dtype=torch.int32), seed=0)
    tensor(1)
    >>> counts, row_buckets.T
    (tensor([[0, 2]], dtype=torch.int32), tensor([[1, 1, 1]], dtype=torch.int32))
    """
    return rows.new_empty(())


@operator
def insert_labels(
    ids: Tensor, counts: Tensor, buckets: Tensor, labels: Tensor, num_rows: int, seed: int, fifo: bool = False
) -> Tensor:
    """Inserts labels that a look-up would miss into the buckets of their queries, in all tables. In place.

    BOLT does so while it trains: similar queries then find the label, whatever its own code. In a full bucket the label
    replaces the row that is the next to be dropped. The missing labels of all queries are determined before the first
    one is inserted.

    Args:
        ids, counts: from :func:`build_tables`.
        buckets: ``[B, L]`` int32, the buckets of the queries.
        labels: ``[B, P]`` int64; negative: no label.
        num_rows: N.
        seed, fifo: those of :func:`build_tables`.

    Returns:
        The number of (query, label) pairs that were inserted: a scalar int64 tensor.

    >>> ids, counts = build_tables(torch.tensor([[1], [0], [1]], dtype=torch.int32), 1, 2, seed=0)
    >>> insert_labels(ids, counts, torch.tensor([[0]], dtype=torch.int32), torch.tensor([[1, 2]]), 3, seed=0)
    tensor(1)
    >>> sorted(ids[0, 0].tolist())
    [1, 2]

    Meisburger et al., *BOLT: An Automated Deep Learning Framework for Training and Deploying Large-Scale Search and
    Recommendation Models on Commodity CPU Hardware*, CIKM 2023.
    """
    return labels.new_empty(())


@operator
def query_tables(
    ids: Tensor,
    counts: Tensor,
    row_codes: Tensor | None,
    buckets: Tensor,
    max_candidates: int,
    min_matches: int = 1,
    vanilla: bool = False,
    query_codes: Tensor | None = None,
) -> Tensor:
    """Finds the rows in the buckets of each sample, best first.

    The best rows share the most buckets with the sample. With ``row_codes`` the ``8 * M`` best are ranked again, by the
    number of bits in which their codes differ from the sample's, over all tables; this resolves angles more finely.
    Among equals the row seen first wins. The sample's buckets determine the table to begin with and the first entry of
    each bucket.

    Args:
        ids, counts: from :func:`build_tables`.
        row_codes: ``[N, L]`` int32, the codes of all rows, or None. Unless ``query_codes`` is given, the bucket numbers
            must be the codes, of one bit per hash. Ids outside of ``0 .. N - 1`` are left out.
        buckets: ``[B, L]`` int32, one bucket per sample and table; or ``[B, L, P]``, P of them, the sample's own first,
            padded with -1.
        max_candidates: M, at least 1.
        min_matches: leaves out rows that share fewer buckets with the sample.
        vanilla: takes rows as they come until there are M, without ranking.
        query_codes: ``[B, W]`` int32: the codes of the samples, compared with ``row_codes`` ``[N, W]``.

    Returns:
        ``[B, M]`` int64, best first, padded with -1.

    >>> ids, counts = build_tables(torch.tensor([[0, 1], [0, 0]], dtype=torch.int32), 1, 2, seed=0)
    >>> query_tables(ids, counts, None, torch.tensor([[0, 1]], dtype=torch.int32), 3)
    tensor([[ 0,  1, -1]])
    """
    return buckets.new_empty((buckets.shape[0], max_candidates), dtype=torch.int64)
