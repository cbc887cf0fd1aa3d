"""Locality-sensitive hash families: hashes that agree the more often, the more similar two vectors are.

A family has L tables of K hashes. The K hashes of a table make its code, so two vectors share a code with the
probability of one agreement to the power K; L independent codes give a similar pair L chances. The parameters of a
family are a function of its shape and seed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from . import ops

MAX_CODE_BITS = 30


class HashFamily(ABC):
    """What every hash family offers.

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
            x: ``[n, in_features]`` float32, float64 or bfloat16; dense or sparse CSR. A row with NaN or infinities has
                some code (see the operators).

        Returns:
            ``[n, L]`` int32.

        Raises:
            ValueError: the shape, dtype or layout of ``x`` does not fit.
        """
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x has shape {list(x.shape)}; wanted [n, {self.in_features}]")
        if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(f"x has dtype {x.dtype}; wanted float32, float64 or bfloat16")
        x = x.detach()
        if x.layout is torch.sparse_csr:
            return self._codes_csr(x.crow_indices().long(), x.col_indices().long(), x.values().float())
        if x.layout is not torch.strided:
            raise ValueError(f"x has layout {x.layout}; wanted a dense or a sparse CSR tensor")
        return self._codes_dense(x.contiguous())

    @abstractmethod
    def _codes_dense(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _codes_csr(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor: ...

    @abstractmethod
    def collision_probability(self, similarity: Tensor) -> Tensor:
        """The probability that two vectors of this similarity have the same code in one table."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the parameters."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_features}, hashes_per_table={self.hashes_per_table}, "
            f"num_tables={self.num_tables}, seed={self.seed})"
        )


class SimHash(HashFamily):
    """Signs of Gaussian projections (Charikar 2002), for the angle between vectors. A zero vector has the code 0.

    >>> family = SimHash(3, hashes_per_table=4, num_tables=2)
    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> bool((family.codes(x) == family.codes(5 * x)).all())
    True
    >>> family.collision_probability(torch.tensor([1.0, 0.0]))
    tensor([1.0000, 0.0625])
    """

    bits_per_hash = 1

    def __init__(self, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> None:
        super().__init__(in_features, hashes_per_table, num_tables, seed)
        self.projections = self._draw(torch.Generator().manual_seed(seed))

    def _draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.in_features, self.num_tables * self.hashes_per_table, generator=generator)

    def _codes_dense(self, x: Tensor) -> Tensor:
        return ops.simhash_codes(x, self.projections, self.hashes_per_table)

    def _codes_csr(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        return ops.simhash_codes_csr(crow, col, values, self.projections, self.hashes_per_table)

    def collision_probability(self, similarity: Tensor) -> Tensor:
        """``(1 - angle / pi) ** K``, where ``similarity`` is the cosine. Exact (Goemans & Williamson 1995)."""
        return (1 - similarity.clamp(-1, 1).acos() / math.pi) ** self.hashes_per_table

    @property
    def nbytes(self) -> int:
        return self.projections.nbytes


class SparseSignProjection(SimHash):
    """Signs of projections with ±1 on a random third of the coordinates, zero elsewhere, as in SLIDE.

    Approaches SimHash where no few coordinates carry the vector (Li, Hastie & Church 2006); its collision probability
    is SimHash's in that limit.

    >>> SparseSignProjection(9, hashes_per_table=2, num_tables=1).projections.abs().sum(0)
    tensor([3., 3.])
    """

    def _draw(self, generator: torch.Generator) -> Tensor:
        count = math.ceil(self.in_features / 3)
        projections = torch.zeros(self.in_features, self.num_tables * self.hashes_per_table)
        for column in projections.T:
            chosen = torch.randperm(self.in_features, generator=generator)[:count]
            column[chosen] = 2.0 * torch.randint(2, (count,), generator=generator) - 1
        return projections


class DWTA(HashFamily):
    """Densified winner-take-all (Chen & Shrivastava 2018), for the rank order of coordinates; SLIDE's hash.

    Each hash looks at 8 coordinates, cut from random permutations, and gives the position of the largest (3 bits).
    Suits sparse vectors; see :func:`torch_lsh.ops.dwta_codes` for how empty bins are filled.

    >>> family = DWTA(20, hashes_per_table=2, num_tables=3)
    >>> x = torch.rand(4, 20)
    >>> bool((family.codes(x) == family.codes(x.to_sparse_csr())).all())
    True
    """

    bits_per_hash = 3
    bin_width = 8

    def __init__(self, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> None:
        super().__init__(in_features, hashes_per_table, num_tables, seed)
        generator = torch.Generator().manual_seed(seed)
        num_hashes = num_tables * hashes_per_table
        bins_per_permutation = max(in_features // self.bin_width, 1)
        bins = []
        for _ in range(math.ceil(num_hashes / bins_per_permutation)):
            permutation = torch.randperm(in_features, generator=generator)
            if in_features < self.bin_width:  # a repeated coordinate never wins over its first occurrence
                permutation = permutation.repeat(math.ceil(self.bin_width / in_features))
            bins.append(permutation[: bins_per_permutation * self.bin_width].view(-1, self.bin_width))
        self.bins = torch.cat(bins)[:num_hashes].contiguous()

    def _codes_dense(self, x: Tensor) -> Tensor:
        return ops.dwta_codes(x, self.bins, self.hashes_per_table, self.seed)

    def _codes_csr(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        return ops.dwta_codes_csr(crow, col, values, self.bins, self.in_features, self.hashes_per_table, self.seed)

    def collision_probability(self, similarity: Tensor) -> Tensor:
        """For pairs of vectors whose coordinates are jointly Gaussian with this correlation.

        What holds in general is only that agreement grows with the similarity of rank order (Yagnik et al. 2011). The
        Gaussian case has no closed form for 8 coordinates: it is estimated from 65,536 fixed draws (standard error of
        one hash below 0.002).
        """
        generator = torch.Generator().manual_seed(0)
        a, independent = torch.randn(2, 65536, self.bin_width, generator=generator)
        agree = []
        for rho in similarity.flatten().clamp(-1, 1).tolist():
            b = rho * a + math.sqrt(1 - rho * rho) * independent
            agree.append((a.argmax(1) == b.argmax(1)).float().mean())
        one = torch.stack(agree) if agree else similarity.new_empty(0)
        return one.to(similarity.dtype).view(similarity.shape) ** self.hashes_per_table

    @property
    def nbytes(self) -> int:
        return self.bins.nbytes


FAMILIES: dict[str, type[HashFamily]] = {"simhash": SimHash, "dwta": DWTA, "srp_sparse": SparseSignProjection}


def family_type(name: str) -> type[HashFamily]:
    """The class of a hash family by name.

    Raises:
        ValueError: there is no family of that name.
    """
    if name not in FAMILIES:
        raise ValueError(f"hash is {name!r}; wanted one of {', '.join(map(repr, FAMILIES))}")
    return FAMILIES[name]


def make_family(name: str, in_features: int, hashes_per_table: int, num_tables: int, seed: int = 0) -> HashFamily:
    """A hash family by name: ``"simhash"``, ``"dwta"`` or ``"srp_sparse"``.

    Raises:
        ValueError: there is no family of that name, or an argument does not fit.

    >>> make_family("simhash", 128, hashes_per_table=10, num_tables=16)
    SimHash(128, hashes_per_table=10, num_tables=16, seed=0)
    """
    return family_type(name)(in_features, hashes_per_table, num_tables, seed)
