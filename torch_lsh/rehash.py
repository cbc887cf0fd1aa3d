"""Policies of re-hashing: when an index follows the weights.

Rows move with every optimizer step. Re-hashing them at once costs more than it brings, because a small move seldom
changes a hash code (SLIDE, Chen et al., MLSys 2020, section 3.2). A policy says how many training steps may pass
between two re-hashes, or measures whether one is due. A layer runs its own policy, ``LSHConfig.rehash``, unless a
:class:`torch_lsh.RehashScheduler` takes over. The logger "torch_lsh" reports at level INFO when and why rows are
re-hashed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

logger = logging.getLogger("torch_lsh")

_MOST_STEPS = 1 << 53  # exact as a float
_LARGEST_FACTOR = 1e6


@dataclass(frozen=True)
class FixedInterval:
    """Every ``steps`` training steps, re-hash the rows that at least ``touches`` updates touched.

    >>> FixedInterval(50).interval(rehashes=7)
    50
    """

    steps: int = 50
    touches: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _MOST_STEPS or not 1 <= self.touches <= 255:
            raise ValueError(f"{self}: wanted steps 1 to 2^53 and touches 1 to 255")

    def interval(self, rehashes: int) -> int:
        """Steps to wait after the ``rehashes``-th re-hash."""
        return self.steps


@dataclass(frozen=True)
class ExponentialBackoff:
    """Wait ``factor`` times longer after every re-hash, because rows move most in the beginning (SLIDE).

    A re-hash leaves out rows that fewer than ``touches`` updates touched since they were last hashed: a step draws most
    of its rows at random, and one small move seldom changes a code.

    >>> policy = ExponentialBackoff(initial=10, factor=2.0, maximum=50)
    >>> [policy.interval(n) for n in range(5)]
    [10, 20, 40, 50, 50]
    """

    initial: int = 50
    factor: float = 1.2
    maximum: int = 500
    touches: int = 6

    def __post_init__(self) -> None:
        steps = 1 <= self.initial <= self.maximum <= _MOST_STEPS
        if not steps or not 1 <= self.factor <= _LARGEST_FACTOR or not 1 <= self.touches <= 255:
            raise ValueError(
                f"{self}: wanted initial >= 1, factor 1 to {_LARGEST_FACTOR:g}, maximum from initial to 2^53 "
                "and touches 1 to 255"
            )

    def interval(self, rehashes: int) -> int:
        """Steps to wait after the ``rehashes``-th re-hash."""
        return _backed_off(self.initial, self.factor, self.maximum, rehashes)


@functools.lru_cache(maxsize=16)
def _backed_off(steps: int, factor: float, maximum: int, rehashes: int) -> int:
    """``steps`` after so many increases; cached, as every training step asks."""
    for _ in range(rehashes):
        if steps >= maximum:
            return maximum
        steps = max(steps + (factor > 1), int(steps * factor))
    return min(maximum, steps)


@dataclass(frozen=True)
class Drift:
    """Re-hash when a ``threshold`` share of the codes of touched rows has changed.

    A check hashes ``sample`` of the rows that at least ``touches`` updates touched, and compares their codes with those
    in the index (a code is the K hashes of one table). It runs every ``every`` steps, from ``minimum`` steps after a
    re-hash on; after ``maximum`` steps a re-hash is due in any case. So the interval follows the learning rate and the
    state of training, where other policies need a guess.

    References:
        Chen et al., "MONGOOSE: A Learnable LSH Framework for Efficient Neural Network Training", ICLR 2021.

    >>> policy = Drift(threshold=0.1, every=10, minimum=20, maximum=40)
    >>> [policy.reason(steps, drift=lambda: 0.05) for steps in (19, 20, 30, 40)]
    [None, None, None, 'after the maximum of 40 steps']
    >>> policy.reason(20, drift=lambda: 0.125)
    '12.5 % of the codes of touched rows have changed (threshold: 10 %)'
    """

    threshold: float = 0.3
    every: int = 10
    sample: int = 256
    minimum: int = 20
    maximum: int = 1000
    touches: int = 4

    def __post_init__(self) -> None:
        counts = (self.every, self.sample, self.minimum, self.maximum, self.touches)
        if any(isinstance(count, bool) or not isinstance(count, int) for count in counts):
            raise TypeError(f"{self}: wanted whole numbers for all but threshold")
        steps = 1 <= self.minimum <= self.maximum <= _MOST_STEPS
        if (
            not 0 < self.threshold < 1
            or min(counts) < 1
            or max(counts) > _MOST_STEPS
            or not steps
            or self.touches > 255
        ):
            raise ValueError(
                f"{self}: wanted 0 < threshold < 1, every and sample >= 1, 1 <= minimum <= maximum <= 2^53, "
                "touches 1 to 255"
            )

    def interval(self, rehashes: int) -> int:
        """Steps after which a re-hash is due in any case."""
        return self.maximum

    def reason(self, steps: int, drift: Callable[[], float]) -> str | None:
        """Why to re-hash ``steps`` steps after the last time; None: not now.

        Calls ``drift`` only when it is time to measure.
        """
        if steps >= self.maximum:
            return f"after the maximum of {self.maximum} steps"
        if steps < self.minimum or (steps - self.minimum) % self.every:
            return None
        changed = drift()
        logger.debug("%.1f %% of the codes of touched rows have changed after %d steps", 100 * changed, steps)
        if changed < self.threshold:
            return None
        return (
            f"{100 * changed:.3g} % of the codes of touched rows have changed (threshold: {100 * self.threshold:.3g} %)"
        )


@runtime_checkable
class RehashPolicy(Protocol):
    """Anything with ``interval(rehashes) -> steps``.

    An optional attribute ``touches`` (default: 1) is the number of updates after which a re-hash includes a row.
    """

    def interval(self, rehashes: int) -> int: ...
