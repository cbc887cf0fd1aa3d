"""The buckets that a query visits beside its own."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator


@operator
def probe_codes(codes: Tensor, flips: Tensor, costs: Tensor, probes: int) -> Tensor:
    """The codes to probe for each query, cheapest first.

    The first is the query's own code. Each other one changes a set of its hashes, every hash in at most one way. Sets
    are ordered by the sum of their costs.

    Args:
        codes: ``[n, L]`` int32.
        flips: ``[n, L, K, A]`` int32: the bits that each of A alternatives of each hash flips; 0: no alternative.
        costs: ``[n, L, K, A]`` float32, not negative; infinite: no alternative.
        probes: P, at least 1.

    Returns:
        ``[n, L, P]`` int32, padded with -1 where there are fewer sets.

    >>> import torch
    >>> flips = torch.tensor([[1], [2]], dtype=torch.int32).view(1, 1, 2, 1)
    >>> costs = torch.tensor([3.0, 1.0]).view(1, 1, 2, 1)
    >>> probe_codes(torch.zeros(1, 1, dtype=torch.int32), flips, costs, 5)
    tensor([[[ 0,  2,  1,  3, -1]]], dtype=torch.int32)

    Lv et al., *Multi-Probe LSH: Efficient Indexing for High-Dimensional Similarity Search*, VLDB 2007.
    """
    return codes.new_empty((*codes.shape, probes))
