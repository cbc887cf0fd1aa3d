"""When the tables follow the weights: policies, and a scheduler used like a learning-rate scheduler.

Rows move with every optimizer step; re-hashing them at once would cost more than it brings, because a small move
seldom changes a hash code (SLIDE, Chen et al., MLSys 2020, section 3.2). A policy says how many training steps may pass
between two re-hashes. Layers run their own policy (``LSHConfig.rehash``) without any scheduler; a
:class:`RehashScheduler` takes over from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn


@dataclass(frozen=True)
class FixedInterval:
    """Re-hash every ``steps`` training steps the rows that at least ``touches`` updates touched.

    >>> FixedInterval(50).interval(rehashes=7)
    50
    """

    steps: int = 50
    touches: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or not 1 <= self.touches <= 255:
            raise ValueError(f"{self}: wanted steps >= 1 and touches 1 to 255")

    def interval(self, rehashes: int) -> int:
        """Steps to wait after ``rehashes`` re-hashes have been made."""
        return self.steps


@dataclass(frozen=True)
class ExponentialBackoff:
    """Wait ``factor`` times longer after every re-hash: rows move most in the beginning (SLIDE).

    Rows that fewer than ``touches`` updates touched since they were last hashed wait, too: most of the rows that a step
    touches were drawn at random, and one small move seldom changes a code.

    >>> policy = ExponentialBackoff(initial=10, factor=2.0, maximum=50)
    >>> [policy.interval(n) for n in range(5)]
    [10, 20, 40, 50, 50]
    """

    initial: int = 20
    factor: float = 1.2
    maximum: int = 200
    touches: int = 4

    def __post_init__(self) -> None:
        if self.initial < 1 or self.factor < 1 or self.maximum < self.initial or not 1 <= self.touches <= 255:
            raise ValueError(f"{self}: wanted initial >= 1, factor >= 1, maximum >= initial and touches 1 to 255")

    def interval(self, rehashes: int) -> int:
        """Steps to wait after ``rehashes`` re-hashes have been made."""
        # min() before the power keeps it from overflowing in a long run
        steps = self.initial
        for _ in range(rehashes):
            if steps >= self.maximum:
                return self.maximum
            steps = max(steps + (self.factor > 1), int(steps * self.factor))
        return min(self.maximum, steps)


@runtime_checkable
class RehashPolicy(Protocol):
    """Anything with ``interval(rehashes) -> steps``. An attribute ``touches`` (default: 1) says how many updates must
    have touched a row for a re-hash to include it.
    """

    def interval(self, rehashes: int) -> int: ...


@runtime_checkable
class _Rehashable(Protocol):
    scheduled: bool

    def rehash(self, full: bool = False, touches: int = 1) -> int: ...


class RehashScheduler:
    """Re-hashes the LSH layers of a model on a schedule of its own; call :meth:`step` after ``optimizer.step()``.

    While it lives, the layers' own policies are off.

    Args:
        model: a module; all LSH layers in it are scheduled.
        policy: when to re-hash; default: :class:`ExponentialBackoff`.
        full_every: make every n-th re-hash a full one (all rows, tables rebuilt); 0: only touched rows.

    >>> import torch, torch_lsh
    >>> model = torch.nn.Sequential(torch_lsh.LSHLinear(8, 100))
    >>> scheduler = RehashScheduler(model, FixedInterval(2))
    >>> [scheduler.step() for _ in range(4)]
    [False, True, False, True]
    """

    def __init__(self, model: nn.Module, policy: RehashPolicy | None = None, *, full_every: int = 0) -> None:
        self.policy: RehashPolicy = policy if policy is not None else ExponentialBackoff()
        if not isinstance(self.policy, RehashPolicy):
            raise TypeError(f"policy is {policy!r}; wanted an object with interval(rehashes) -> steps")
        if full_every < 0:
            raise ValueError(f"full_every is {full_every}; wanted 0 or more")
        self.full_every = full_every
        self._model = model
        self._since_rehash = 0
        self._rehashes = 0
        if not any(True for _ in self._layers()):
            raise ValueError("model has no LSH layer; swap layers in with torch_lsh.sparsify_(model)")
        for layer in self._layers():
            layer.scheduled = True

    def _layers(self) -> Iterator[_Rehashable]:
        return (module for module in self._model.modules() if isinstance(module, _Rehashable))

    def step(self) -> bool:
        """Counts one training step and re-hashes when it is time; returns whether it did."""
        self._since_rehash += 1
        if self._since_rehash < self.policy.interval(self._rehashes):
            return False
        self._since_rehash = 0
        self._rehashes += 1
        full = self.full_every > 0 and self._rehashes % self.full_every == 0
        for layer in self._layers():
            layer.rehash(full=full, touches=getattr(self.policy, "touches", 1))
        return True

    def detach(self) -> None:
        """Gives the schedule back to the layers' own policies."""
        for layer in self._layers():
            layer.scheduled = False

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule. The policy itself belongs to the constructor."""
        return {"since_rehash": self._since_rehash, "rehashes": self._rehashes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._since_rehash = int(state_dict["since_rehash"])
        self._rehashes = int(state_dict["rehashes"])
