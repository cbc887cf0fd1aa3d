"""When the tables follow the weights: policies, and a scheduler used like a learning-rate scheduler.

Rows move with every optimizer step; re-hashing them at once would cost more than it brings, because a small move
seldom changes a hash code (SLIDE, Chen et al., MLSys 2020, section 3.2). A policy says how many training steps may pass
between two re-hashes, or measures whether one is due. Layers run their own policy (``LSHConfig.rehash``) without any
scheduler; a :class:`RehashScheduler` takes over from it. The logger "torch_lsh" says (INFO) when and why tables were
re-hashed.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

logger = logging.getLogger("torch_lsh")


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

    initial: int = 50
    factor: float = 1.2
    maximum: int = 500
    touches: int = 6

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


@dataclass(frozen=True)
class Drift:
    """Re-hash when the codes have drifted: when a ``threshold`` share of them has changed on a sample of touched rows.

    From ``minimum`` steps after a re-hash on, every ``every`` steps, ``sample`` of the rows that at least ``touches``
    updates touched since are hashed, and their codes compared with those in the tables (a code is the K hashes of one
    table). So the interval follows the learning rate and the state of training, where those of other policies have
    to be guessed. A check costs the hashes of the sample. After ``maximum`` steps tables are re-hashed in any case.

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
        if not 0 < self.threshold < 1 or min(counts) < 1 or self.maximum < self.minimum or self.touches > 255:
            raise ValueError(
                f"{self}: wanted 0 < threshold < 1, every and sample >= 1, 1 <= minimum <= maximum, touches 1 to 255"
            )

    def interval(self, rehashes: int) -> int:
        """Steps after which tables are re-hashed in any case."""
        return self.maximum

    def reason(self, steps: int, drift: Callable[[], float]) -> str | None:
        """Why to re-hash ``steps`` steps after the last time; None: not now. Calls ``drift`` only where it is time to
        measure.
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
    """Anything with ``interval(rehashes) -> steps``. An attribute ``touches`` (default: 1) says how many updates must
    have touched a row for a re-hash to include it.
    """

    def interval(self, rehashes: int) -> int: ...


@runtime_checkable
class Rehashable(Protocol):
    """What a policy needs of a layer."""

    scheduled: bool

    def rehash(self, full: bool = False, touches: int = 1) -> int: ...

    def drift(self, sample: int = 256, touches: int = 1, seed: int = 0) -> float: ...


def rehash_if_due(
    layer: Rehashable, policy: RehashPolicy, steps: int, rehashes: int, *, full: bool = False, name: str
) -> bool:
    """Re-hashes ``layer`` where ``policy`` says that it is time, and logs why; returns whether it did.

    Args:
        steps: training steps since the last re-hash.
        rehashes: re-hashes so far.
        full: whether this would be a full one.
        name: of the layer, for the log.
    """
    touches = getattr(policy, "touches", 1)
    if isinstance(policy, Drift):
        # The draw is a function of the place in the schedule, so a run that resumes makes the same one.
        seed = (rehashes * 1_000_003 + steps) % 2**63
        reason = policy.reason(steps, lambda: layer.drift(policy.sample, touches, seed))
    else:
        interval = policy.interval(rehashes)
        reason = f"after {steps} steps (interval: {interval})" if steps >= interval else None
    if reason is None:
        return False
    rows = layer.rehash(full=full, touches=touches)
    logger.info("re-hashed %s rows of %s, %d steps after the last time: %s", rows, name, steps, reason)
    return True


def _release(reference: weakref.ref[Rehashable]) -> None:
    layer = reference()
    if layer is not None:
        layer.scheduled = False


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
        names = [name for name, _ in self._layers()]
        if not names:
            raise ValueError("model has no LSH layer; swap layers in with torch_lsh.sparsify_(model)")
        self._since_rehash = dict.fromkeys(names, 0)
        self._rehashes = dict.fromkeys(names, 0)
        for _, layer in self._layers():
            layer.scheduled = True
            weakref.finalize(self, _release, weakref.ref(layer))

    def _layers(self) -> Iterator[tuple[str, Rehashable]]:
        return ((name, module) for name, module in self._model.named_modules() if isinstance(module, Rehashable))

    def step(self) -> bool:
        """Counts one training step and re-hashes the layers for which it is time; returns whether there were any."""
        rehashed = False
        for name, layer in self._layers():
            layer.scheduled = True  # a scheduler before this one may have given it back meanwhile
            steps, rehashes = self._since_rehash.get(name, 0) + 1, self._rehashes.get(name, 0)
            full = self.full_every > 0 and (rehashes + 1) % self.full_every == 0
            due = rehash_if_due(layer, self.policy, steps, rehashes, full=full, name=name or type(layer).__name__)
            self._since_rehash[name] = 0 if due else steps
            self._rehashes[name] = rehashes + due
            rehashed |= due
        return rehashed

    def detach(self) -> None:
        """Gives the schedule back to the layers' own policies."""
        for _, layer in self._layers():
            layer.scheduled = False

    def state_dict(self) -> dict[str, Any]:
        """The position of each layer in the schedule, by name. The policy itself belongs to the constructor.

        Which rows were touched since the last re-hash is in the tables, which belong to no ``state_dict``: a run that
        is to resume exactly makes a full re-hash when it saves and when it loads
        (:meth:`torch_lsh.LSHLinear.sampler_state`).
        """
        return {"since_rehash": dict(self._since_rehash), "rehashes": dict(self._rehashes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a position.

        Raises:
            KeyError, ValueError: it is not one, or that of a model with other LSH layers; nothing changes then.
        """
        loaded = []
        for key in ("since_rehash", "rehashes"):
            position = state_dict[key]
            if isinstance(position, int):  # of a version that counted for all layers together
                position = dict.fromkeys(self._since_rehash, position)
            if not isinstance(position, dict) or position.keys() != self._since_rehash.keys():
                raise ValueError(f"{key} is {position!r}; wanted a number for each of {', '.join(self._since_rehash)}")
            if not all(isinstance(number, int) and number >= 0 for number in position.values()):
                raise ValueError(f"{key} is {position!r}; wanted whole numbers, 0 or more")
            loaded.append(dict(position))
        self._since_rehash, self._rehashes = loaded
