"""LearnedPartition: buckets, and the routing to them, learned from rows and queries."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops

_COARSE_STEPS, _FINE_STEPS = 8, 6  # of k-means
_GROWTH = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # share of the centers in each step of k-means over all of them at once
_GROWING = 16  # groups that are looked into meanwhile
_GROUPED = 32  # centers per group that k-means of groups looks at
_NEAR, _NEAR_SHARE = 1.5, 0.2  # meanwhile, a row is near within so many times the distance of so many rows
_NEAR_WEIGHT = 1 / 16  # of such a row's distance where new centers are drawn
_FEW = 0.25  # of the average: a center with fewer rows is dropped
_HELD = 2 / 3  # more centers are not tried once fewer than that share of them kept rows
_AT_FIRST = 4  # groups that a row is compared with; those of `compared` if its center is then far
_FURTHER = 4  # times as many groups, once more where it is still far
_FAR = 2.0  # times the median squared distance from the center, of rows that k-means saw
_ROUTING_STEPS = 40
_CONTESTED = 1 << 14  # buckets whose scores are learned, at most: those that most queries would visit
_LEARNING_RATE = 0.015  # of Adam, in units of the root mean square of the centers
_SHARPNESS = 4.0  # standard deviation of the logits of the softmax over buckets, before it is learned
_BLOCK_ROWS = 16384


class LearnedPartition:
    """``2**K`` learned buckets: a row belongs to the nearest center, a query visits the buckets of its best rows.

    :meth:`fit` makes the centers from a sample of rows by k-means in two levels, so a row is compared with about
    ``2 * 2**(K / 2)`` of them. Rows that are close to each other part where the border between two groups of centers is
    between them. With ``compared`` over 1, k-means is over all centers. After each step these are grouped by direction
    (k-means of unit vectors): of groups by distance, those close to the origin would be the nearest ones of too many
    rows. A row is compared with the centers of the 4 groups whose directions have the largest products with it; where
    the nearest of these is far, with those of 16 groups, and so on up to ``compared``. The centers begin as a quarter
    of the buckets and grow in number by rows that are far from theirs, so that each cluster of rows gets one; those
    with few rows are dropped. What is left of the buckets stays empty: there are as many as the rows have clusters,
    where these are fewer than ``2**K``.
    :meth:`fit_queries` trains a linear classifier that scores the buckets for a query. Its
    loss is the cross entropy between the softmax over the buckets and the buckets of the true top rows of sampled
    queries: it pulls a query towards buckets with rows that score high and pushes it away from all others. Before
    that, the score of a bucket is the inner product with its center.

    So rows and queries have hash functions of their own, unlike in the families that compare angles.

    Args:
        in_features: width of the vectors.
        hashes_per_table: K, at most 20.
        compared: groups of centers that a row is compared with, at most.
        seed: of the rows that k-means begins with.

    Raises:
        ValueError: an argument is out of range.

    References:
        Arthur & Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007 (rows are chosen by squared
        distance);
        Chen et al., "MONGOOSE: A Learnable LSH Framework for Efficient Neural Network Training", ICLR 2021 (hash
        functions trained from pairs of a query and rows that score high or low, on the fly); Dong et al., "Learning
        Space Partitions for Nearest Neighbor Search", ICLR 2020; Vecchiato et al., "A Learning-to-Rank Formulation of
        Clustering-Based Approximate Nearest Neighbor Search", SIGIR 2024 (queries routed by a learned linear map).

    >>> rows = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    >>> family = LearnedPartition(8, hashes_per_table=4)
    >>> family.fit(rows)
    >>> family.buckets(rows).shape, int(family.buckets(rows).max()) < 16
    (torch.Size([500]), True)
    """

    max_hashes_per_table: ClassVar[int] = 20

    def __init__(self, in_features: int, hashes_per_table: int, compared: int = 1, seed: int = 0) -> None:
        if in_features < 1:
            raise ValueError(f"in_features is {in_features}; wanted at least 1")
        if not 1 <= hashes_per_table <= self.max_hashes_per_table:
            raise ValueError(f"hashes_per_table is {hashes_per_table}; wanted 1 to {self.max_hashes_per_table}")
        if compared < 1:
            raise ValueError(f"compared is {compared}; wanted at least 1")
        self.in_features, self.hashes_per_table, self.seed = in_features, hashes_per_table, seed
        self.compared = compared
        buckets = self.num_buckets
        # Rows of clusters are compared with `groups` centers of groups and some of `buckets / groups` members.
        groups = 1 << (hashes_per_table + (3 if compared > 1 else 0)) // 2
        self.coarse = torch.zeros(groups, in_features, dtype=torch.float32, device="cpu")
        self.first = torch.arange(groups + 1, device="cpu") * (buckets // groups)
        self.centers = torch.zeros(buckets, in_features, dtype=torch.float32, device="cpu")
        self.directions, self.offsets = self.centers, torch.zeros(buckets, dtype=torch.float32, device="cpu")
        self.near = torch.zeros(1, dtype=torch.float32, device="cpu")  # squared distance from a center

    @property
    def num_buckets(self) -> int:
        return 1 << self.hashes_per_table

    @property
    def num_centers(self) -> int:
        """Buckets that have a center. The others come last, and no row is in them."""
        return int(self.first[-1])

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Makes the centers from a sample of rows ``[n, in_features]`` float32, without those that are not finite."""
        self._check(rows)
        rows = rows[rows.isfinite().all(1)]
        if len(rows) == 0:
            rows = torch.zeros(1, self.in_features, dtype=torch.float32, device="cpu")
        generator = torch.Generator().manual_seed(self.seed)
        if self.compared > 1:
            self._fit_all_centers(rows, generator)
        else:
            self._fit_group_by_group(rows, generator)
        self.directions = self.centers
        self.offsets = torch.zeros(self.num_buckets, dtype=torch.float32, device="cpu")

    def _fit_group_by_group(self, rows: Tensor, generator: torch.Generator) -> None:
        groups, buckets = len(self.coarse), self.num_buckets
        self.coarse = _k_means(rows, groups, _COARSE_STEPS, generator)
        group = _nearest(rows, self.coarse)
        sizes = group.bincount(minlength=groups)
        # A center for each group, and the others in proportion to the rows.
        shares = (buckets - groups) * sizes.double() / len(rows)
        count = shares.long()
        count[(shares - count).argsort(descending=True, stable=True)[: buckets - groups - int(count.sum())]] += 1
        self.first = torch.cat([count.new_zeros(1), (count + 1).cumsum(0)])
        members = group.argsort(stable=True).split(sizes.tolist())
        parts = []
        for number, some in enumerate(members):
            wanted = int(count[number]) + 1
            of_group = rows[some] if len(some) > 0 else self.coarse[number : number + 1]
            parts.append(_k_means(of_group, wanted, _FINE_STEPS, generator))
        self.centers = torch.cat(parts)

    def _fit_all_centers(self, rows: Tensor, generator: torch.Generator) -> None:
        few = _FEW * len(rows) / self.num_buckets
        rows = _sample(rows, len(rows), generator)
        self._group(rows[torch.arange(round(_GROWTH[0] * self.num_buckets), device="cpu") % len(rows)], generator)
        for now, share in zip(_GROWTH, (*_GROWTH[1:], 0)):
            some = rows[: max(_BLOCK_ROWS, round(now * len(rows)))]  # as many for each center
            nearest = self._nearest_of_groups(some, _GROWING).long()
            sizes = nearest.bincount(minlength=len(self.centers))
            used, sums = ops.coalesce_rows(nearest, some)
            centers = self.centers.clone()
            centers[used] = sums / sizes[used].unsqueeze(1)
            far = _squared_distances(some, centers, nearest)
            near = _NEAR * far.kthvalue(math.ceil(_NEAR_SHARE * len(far))).values
            far[far <= near] *= _NEAR_WEIGHT
            held = centers[sizes >= few]
            added = round(share * self.num_buckets) - len(held)
            if added <= 0 or len(held) < _HELD * len(centers) or not bool(far.sum() > 0):
                break
            far_rows = torch.multinomial(far, added, replacement=True, generator=generator)
            self._group(torch.cat([held, some[far_rows]]), generator)
        self._group(held, generator)
        some = _sample(rows, min(len(rows), _BLOCK_ROWS), generator)
        nearest = self._nearest_of_groups(some, self.compared)
        self.near = _FAR * _squared_distances(some, self.centers, nearest).median().unsqueeze(0)
        self.centers = F.pad(self.centers, (0, 0, 0, self.num_buckets - len(self.centers)))

    def _group(self, centers: Tensor, generator: torch.Generator) -> None:
        """Takes over the centers, those that are close to each other next to each other."""
        groups = len(self.coarse)
        some = _sample(centers, min(len(centers), _GROUPED * groups), generator)
        self.coarse = _directions(some, groups, _COARSE_STEPS, generator)
        group = torch.cat([_best(part, self.coarse) for part in centers.split(_BLOCK_ROWS)])
        self.centers = centers[group.argsort(stable=True)]
        sizes = group.bincount(minlength=groups)
        self.first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])

    @torch.no_grad()
    def fit_queries(self, queries: Tensor, buckets: Tensor, offsets: Tensor | None = None) -> None:
        """Trains the scores of the buckets.

        Args:
            queries: ``[Q, in_features]`` float32, finite.
            buckets: ``[Q, k]`` int64: the codes of the k rows that score highest for each query.
            offsets: ``[2**K]`` float32: added to the score of each bucket before it is learned.
        """
        self._check(queries)
        if buckets.dim() != 2 or len(buckets) != len(queries) or buckets.shape[1] < 1:
            raise ValueError(f"buckets has shape {list(buckets.shape)}; wanted [{len(queries)}, k]")
        start = torch.zeros(self.num_buckets, dtype=torch.float32, device="cpu") if offsets is None else offsets
        # One matrix: directions, and the offset as the product with a constant 1.
        count = self.num_centers
        weights = torch.cat([self.centers, start.unsqueeze(1)], 1)[:count]
        queries = torch.cat([queries, queries.new_ones(len(queries), 1)], 1)
        target = torch.zeros(len(queries), count, dtype=torch.float32, device="cpu")
        target.scatter_add_(
            1, buckets, torch.full(buckets.shape, 1 / buckets.shape[1], dtype=torch.float32, device="cpu")
        )
        scores = ops.product(queries, weights.T)
        sharpness = _SHARPNESS / scores.std().clamp(min=1e-6)
        step = _LEARNING_RATE * self.centers.square().mean().sqrt()
        if count > _CONTESTED:
            visits = torch.softmax(scores * sharpness, 1).add_(target).sum(0)
            chosen = visits.topk(_CONTESTED).indices
            weights[chosen] = _routed(weights[chosen], queries, scores[:, chosen], target[:, chosen], sharpness, step)
        else:
            weights = _routed(weights, queries, scores, target, sharpness, step)
        weights = F.pad(weights, (0, 0, 0, self.num_buckets - count))
        self.directions, self.offsets = weights[:, :-1].contiguous(), weights[:, -1].contiguous()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything learned, not copied."""
        return {name: getattr(self, name) for name in ("coarse", "first", "centers", "directions", "offsets", "near")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a copy of what was learned.

        Raises:
            ValueError: a tensor is missing, as in states of an earlier version, or has another shape.
        """
        for name, own in self.state_dict().items():
            if name not in state:
                raise ValueError(f"{name} is missing; build the index anew")
            if state[name].shape != own.shape:
                raise ValueError(f"{name} has shape {list(state[name].shape)}; wanted {list(own.shape)}")
        for name in self.state_dict():
            setattr(self, name, state[name].clone())

    def scores(self, queries: Tensor) -> Tensor:
        """The scores of the buckets, ``[n, 2**K]`` float32, for queries ``[n, in_features]`` float32."""
        return ops.product(self.directions, queries.T, self.offsets).T

    def buckets(self, rows: Tensor) -> Tensor:
        """The bucket of each row: ``[n]`` int32 for ``[n, in_features]`` float32."""
        self._check(rows)
        if self.compared > 1:
            return self._nearest_of_all(rows)
        group = _nearest(rows, self.coarse)
        found = torch.empty(len(rows), dtype=torch.int32, device="cpu")
        members = group.argsort(stable=True).split(group.bincount(minlength=len(self.coarse)).tolist())
        for number, some in enumerate(members):
            if len(some) > 0:
                begin, end = self.first[number], self.first[number + 1]
                found[some] = (begin + _nearest(rows[some], self.centers[begin:end])).int()
        return found

    def _nearest_of_all(self, rows: Tensor) -> Tensor:
        """Looks further for those whose center is far."""
        compared = min(_AT_FIRST, self.compared)
        found = self._nearest_of_groups(rows, compared)
        far = torch.arange(len(rows), device="cpu")
        while compared < min(self.compared, len(self.coarse)) and len(far) > 0:
            compared = min(_FURTHER * compared, self.compared)
            far = far[_squared_distances(rows[far], self.centers, found[far]) > self.near]
            found[far] = self._nearest_of_groups(rows[far], compared)
        return found

    def _nearest_of_groups(self, rows: Tensor, compared: int) -> Tensor:
        rows, centers = rows.contiguous(), self.centers[: self.num_centers]
        empty = self.first.diff() == 0
        offsets = torch.zeros(len(empty), dtype=torch.float32, device="cpu").masked_fill_(empty, -torch.inf)  # last
        groups = ops.linear_topk(rows, self.coarse, offsets, min(compared, len(self.coarse)))[1]
        return ops.nearest_members(rows, groups, self.first, centers, _offsets(centers))

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != self.in_features or x.dtype is not torch.float32:
            raise ValueError(f"x has shape {list(x.shape)}, dtype {x.dtype}; wanted [n, {self.in_features}] float32")

    @property
    def nbytes(self) -> int:
        return self.coarse.nbytes + self.centers.nbytes + self.directions.nbytes + self.offsets.nbytes


def _routed(
    weights: Tensor, queries: Tensor, scores: Tensor, target: Tensor, sharpness: Tensor, step: Tensor
) -> Tensor:
    """Weights ``[C, d]`` after some steps of Adam on the cross entropy of ``softmax(queries @ weights.T)``."""
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    for number in range(1, _ROUTING_STEPS + 1):
        difference = torch.softmax(scores * sharpness, 1) - target
        gradient = ops.product(difference.T, queries) / len(queries)
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square_(), 0.001)
        correction = (1 - 0.999**number) ** 0.5 / (1 - 0.9**number)
        weights.addcdiv_(mean, square.sqrt().add_(1e-12), value=float(-step * correction))
        scores = ops.product(queries, weights.T)
    return weights


def _offsets(centers: Tensor) -> Tensor:
    """``[C]``: the center with the largest ``x · center + offset`` is the nearest one."""
    return centers.square().sum(1) / -2


def _squared_distances(rows: Tensor, centers: Tensor, nearest: Tensor) -> Tensor:
    """Of each row from its center."""
    pairs = zip(rows.split(_BLOCK_ROWS), nearest.split(_BLOCK_ROWS))
    return torch.cat([(some - centers[of_some]).square_().sum(1) for some, of_some in pairs])


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    """The number of the nearest center of each row: ``[n]`` int64; the first among equals."""
    # not a BLAS product, whose last bits may depend on the batch and the number of threads
    return ops.product(x, centers.T).add_(_offsets(centers)).argmax(1)


def _best(x: Tensor, directions: Tensor) -> Tensor:
    """The number of the direction with the largest product with each row: ``[n]`` int64; the first among equals."""
    return ops.product(x, directions.T).argmax(1)


def _directions(x: Tensor, count: int, steps: int, generator: torch.Generator) -> Tensor:
    """``[count, d]`` unit vectors by k-means of directions.

    Of centers at different distances from the origin, the nearest one is often a short one that stands for nothing:
    with these, few groups would hold most rows.
    """
    directions = F.normalize(_sample(x, count, generator))
    for _ in range(steps):
        used, sums = ops.coalesce_rows(_best(x, directions), x)
        directions[used] = F.normalize(sums)
    return directions


def _sample(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``[count, d]``: rows in random order, over again where they are fewer."""
    order = torch.randperm(len(x), generator=generator, device="cpu")
    return x[order[torch.arange(count, device="cpu") % len(x)]]


def _k_means(x: Tensor, count: int, steps: int, generator: torch.Generator) -> Tensor:
    """``[count, d]`` centers by Lloyd's iterations from a sample of the rows; one that is nobody's nearest stays."""
    centers = _sample(x, count, generator)
    for _ in range(steps if count > 1 else 1):
        nearest = _nearest(x, centers)
        used, sums = ops.coalesce_rows(nearest, x)
        centers[used] = sums / nearest.bincount(minlength=count)[used].unsqueeze(1)
    return centers
