"""HashFamily: hashes that agree more often for more similar vectors.

A family has L tables of K hashes. The K hashes of a table make its code. Two vectors share a code with the probability
of one agreement to the power K, and L independent codes give a similar pair L chances. Shape and seed determine the
parameters of a family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ... import ops

MAX_CODE_BITS = 30


class HashFamily(ABC):
    """A locality-sensitive hash family.

    Args:
        in_features: width of the vectors.
        hashes_per_table: K; ``K * bits_per_hash`` is at most 30.
        num_tables: L.
        seed: of the parameters.

    Raises:
        ValueError: an argument is not a positive number, or K is too large.
    """

    bits_per_hash: ClassVar[int]

    def __init__(self, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> None:
        sizes = {"in_features": in_features, "hashes_per_table": hashes_per_table, "num_tables": num_tables}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; wanted at least 1")
        if hashes_per_table * self.bits_per_hash > MAX_CODE_BITS:
            raise ValueError(f"hashes_per_table is {hashes_per_table}; wanted at most {self.max_hashes_per_table()}")
        self.in_features = in_features
        self.hashes_per_table = hashes_per_table
        self.num_tables = num_tables
        self.seed = seed

    @classmethod
    def max_hashes_per_table(cls) -> int:
        return MAX_CODE_BITS // cls.bits_per_hash

    @property
    def code_bits(self) -> int:
        """Codes are in ``0 .. 2**code_bits - 1``."""
        return self.hashes_per_table * self.bits_per_hash

    def codes(self, x: Tensor) -> Tensor:
        """The code of each row in each table.

        Args:
            x: ``[n, in_features]`` float32, float64 or bfloat16; dense. A row with a NaN or an infinity has some code
                (see the operators).

        Returns:
            ``[n, L]`` int32.

        Raises:
            ValueError: the shape, dtype or layout of ``x`` does not fit.
        """
        self._check(x)
        return self._codes(x.detach().contiguous())

    def probes(self, x: Tensor, count: int) -> Tensor:
        """The codes to look up for each query in each table, the likeliest to be shared first.

        The first is the query's own code. Each further one changes hashes that a small move of the query would change,
        the smallest move first (query-directed probing, Lv et al. 2007). So fewer tables find as much.

        Args:
            x: ``[n, in_features]`` float32, float64 or bfloat16; dense.
            count: P, at least 1.

        Returns:
            ``[n, L, P]`` int32; -1 where a table has fewer codes to offer.

        Raises:
            ValueError: an argument does not fit.
        """
        if count < 1:
            raise ValueError(f"count is {count}; wanted at least 1")
        if count == 1:
            return self.codes(x).unsqueeze(2)
        self._check(x)
        x = x.detach().float().contiguous()
        codes = self._codes(x)
        flips, costs = self._changes(x, codes)
        return ops.probe_codes(codes, flips.contiguous(), costs.contiguous(), count)

    def _check(self, x: Tensor) -> None:
        if x.layout is not torch.strided:
            raise ValueError(f"x has layout {x.layout}; wanted a dense tensor")
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x has shape {list(x.shape)}; wanted [n, {self.in_features}]")
        if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(f"x has dtype {x.dtype}; wanted float32, float64 or bfloat16")

    @abstractmethod
    def _changes(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The bits of the code that each of A changes of a hash flips, and how far the row would have to move for it.

        Both are ``[n, L, K, A]``, int32 and float32, for float32 ``x`` and its codes.
        """

    @abstractmethod
    def _codes(self, x: Tensor) -> Tensor: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the parameters."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_features}, hashes_per_table={self.hashes_per_table}, "
            f"num_tables={self.num_tables}, seed={self.seed})"
        )


_RUNNERS_UP = 3


def costs_of_runners_up(scores: Tensor, numbers: Tensor, codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """:meth:`HashFamily._changes` of a hash that is the number of the candidate with the largest score.

    Args:
        scores: ``[n, L, K, V]`` float32; -inf: no candidate. A hash without candidates has no change.
        numbers: the hash of each candidate; broadcasts with ``scores``.
        codes: ``[n, L]`` int32.
        bits: of one hash.
    """
    shifts = bits * torch.arange(scores.shape[2], device="cpu")
    hashes = (codes.unsqueeze(2) >> shifts & (1 << bits) - 1).unsqueeze(3)
    count = min(_RUNNERS_UP + 1, scores.shape[3])
    best, at = scores.topk(count, dim=3)
    others = numbers.expand_as(scores).gather(3, at)
    costs = (best[..., :1] - best).square().nan_to_num_(nan=torch.inf)
    return ((others ^ hashes) << shifts.unsqueeze(1)).int(), costs
