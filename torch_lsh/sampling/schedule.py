"""RehashScheduler: re-hashes the LSH layers of a model, used like a learning-rate scheduler."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from torch import nn

from ..rehash import Drift, ExponentialBackoff, RehashPolicy

logger = logging.getLogger("torch_lsh")


@runtime_checkable
class Rehashable(Protocol):
    """What a schedule needs of a layer."""

    scheduled: bool

    def rehash(self, full: bool = False, touches: int = 1) -> int: ...

    def drift(self, sample: int = 256, touches: int = 1, seed: int = 0) -> float: ...


def reason_to_rehash(
    policy: RehashPolicy, steps: int, rehashes: int, drift: Callable[[int, int, int], float]
) -> str | None:
    """Why ``policy`` wants a re-hash now; None: it does not.

    Args:
        policy: when to re-hash.
        steps: training steps since the last re-hash.
        rehashes: re-hashes so far.
        drift: measures the share of changed codes; takes ``sample``, ``touches`` and ``seed``.
    """
    if isinstance(policy, Drift):
        # The draw is a function of the place in the schedule, so a run that resumes makes the same one.
        seed = (rehashes * 1_000_003 + steps) % 2**63
        return policy.reason(steps, lambda: drift(policy.sample, policy.touches, seed))
    interval = policy.interval(rehashes)
    return f"after {steps} steps (interval: {interval})" if steps >= interval else None


def rehash_and_log(
    rehash: Callable[..., int], policy: RehashPolicy, steps: int, reason: str, *, name: str, full: bool = False
) -> None:
    """Re-hashes, and logs why.

    Args:
        rehash: re-hashes; takes ``full`` and ``touches``, and returns the number of rows.
        policy: which rows a re-hash leaves out.
        steps: training steps since the last re-hash.
        reason: from :func:`reason_to_rehash`.
        name: names the rows in the log.
        full: whether the re-hash is a full one.
    """
    rows = rehash(full=full, touches=getattr(policy, "touches", 1))
    logger.info("re-hashed %s rows of %s, %d steps after the last time: %s", rows, name, steps, reason)


def _release(reference: weakref.ref[Rehashable]) -> None:
    layer = reference()
    if layer is not None:
        layer.scheduled = False


class RehashScheduler:
    """Re-hashes the LSH layers of a model on a schedule of its own; call :meth:`step` after ``optimizer.step()``.

    The layers' own policies are off for as long as the scheduler lives.

    Args:
        model: a module; all LSH layers in it are scheduled.
        policy: when to re-hash; default: :class:`ExponentialBackoff`.
        full_every: rebuild the tables from all rows at every n-th re-hash; 0: never.

    >>> import torch, torch_lsh
    >>> model = torch.nn.Sequential(torch_lsh.LSHLinear(8, 100))
    >>> scheduler = RehashScheduler(model, torch_lsh.FixedInterval(2))
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
        """Counts one training step and re-hashes the layers that are due; returns whether any was."""
        rehashed = False
        for name, layer in self._layers():
            layer.scheduled = True  # a scheduler before this one may have given it back meanwhile
            steps, rehashes = self._since_rehash.get(name, 0) + 1, self._rehashes.get(name, 0)
            full = self.full_every > 0 and (rehashes + 1) % self.full_every == 0
            reason = reason_to_rehash(self.policy, steps, rehashes, layer.drift)
            due = reason is not None
            if reason is not None:
                rehash_and_log(layer.rehash, self.policy, steps, reason, name=name or type(layer).__name__, full=full)
            self._since_rehash[name] = 0 if due else steps
            self._rehashes[name] = rehashes + due
            rehashed |= due
        return rehashed

    def detach(self) -> None:
        """Gives the schedule back to the layers' own policies."""
        for _, layer in self._layers():
            layer.scheduled = False

    def state_dict(self) -> dict[str, Any]:
        """The position of each layer in the schedule, by name. The policy is an argument of the constructor."""
        return {"since_rehash": dict(self._since_rehash), "rehashes": dict(self._rehashes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned.

        Raises:
            KeyError, ValueError: it is not such a state, or that of a model with other LSH layers; nothing changes
            then.
        """
        loaded = []
        for key in ("since_rehash", "rehashes"):
            position = state_dict[key]
            if not isinstance(position, dict) or position.keys() != self._since_rehash.keys():
                raise ValueError(f"{key} is {position!r}; wanted a number for each of {', '.join(self._since_rehash)}")
            if not all(isinstance(number, int) and number >= 0 for number in position.values()):
                raise ValueError(f"{key} is {position!r}; wanted whole numbers, 0 or more")
            loaded.append(dict(position))
        self._since_rehash, self._rehashes = loaded
