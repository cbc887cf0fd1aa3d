"""The agreement between layers and optimizers about parameters of which a step touches few rows.

Two facts are kept per parameter, outside of the parameter itself so that copies and checkpoints carry nothing:

* whether a living optimizer can update it row by row (:func:`mark`, :func:`wants_row_sparse`). Only then do layers
  produce row-sparse gradients: sparse COO tensors with one sparse dimension. ``torch.optim`` optimizers mark nothing,
  so they get the dense gradients that they need;
* which rows changed (:func:`record_update`, :class:`ChangedRows`), by comparing tensor versions: PyTorch raises
  ``tensor._version`` at every in-place change, so a change that nobody recorded shows as a gap.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from .. import _library  # noqa: F401  (registers torch.ops.torch_lsh)


class _Facts:
    """What is known of a parameter."""

    def __init__(self) -> None:
        self.optimizers: list[weakref.ref[Any]] = []  # that marked it
        self.listeners: list[weakref.ref[ChangedRows]] = []
        self.reduced = False  # DistributedDataParallel was seen to manage it

    def living_optimizers(self) -> list[Any]:
        return [optimizer for reference in tuple(self.optimizers) if (optimizer := reference()) is not None]


_facts: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameter -> _Facts
_NOTHING = _Facts()


def _facts_of(parameter: Tensor) -> _Facts:
    """Those that are kept, to be changed."""
    facts: _Facts = _facts.setdefault(parameter, _Facts())
    return facts


def _known(parameter: Tensor) -> _Facts:
    facts: _Facts = _facts.get(parameter, _NOTHING)
    return facts


def mark(parameter: Tensor, optimizer: Any) -> None:
    """Says that ``optimizer`` takes row-sparse gradients of ``parameter``, for as long as it lives."""
    facts = _facts_of(parameter)
    if not any(one is optimizer for one in facts.living_optimizers()):
        facts.optimizers.append(weakref.ref(optimizer, facts.optimizers.remove))


def wants_row_sparse(parameter: Tensor) -> bool:
    """Whether layers should produce a row-sparse gradient for ``parameter``."""
    facts = _known(parameter)
    return len(facts.optimizers) > 0 and not facts.reduced


def note_forward(parameter: Tensor) -> None:
    """Called in the ``forward`` of a layer with ``parameter``.

    In a ``DistributedDataParallel`` its gradients are dense from then on: it takes row-sparse ones of ``nn.Embedding``
    only, and an update in the backward pass would come before the other processes' gradients.
    """
    if torch.nn.parallel.DistributedDataParallel._active_ddp_module is not None:
        _facts_of(parameter).reduced = True


class Updater(Protocol):
    """An optimizer that can update a parameter during the backward pass."""

    def updates_in_backward(self, parameter: Tensor) -> bool: ...

    def update_in_backward(
        self, parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None = None
    ) -> None: ...


def updater(parameter: Tensor) -> Updater | None:
    """The optimizer that is to be given the row-sparse gradients of ``parameter`` during the backward pass, if any."""
    return wants_row_sparse_and_updater(parameter)[1]


def wants_row_sparse_and_updater(parameter: Tensor) -> tuple[bool, Updater | None]:
    """:func:`wants_row_sparse` and :func:`updater` in one look-up."""
    facts = _known(parameter)
    if facts.reduced or not facts.optimizers:
        return False, None
    for optimizer in facts.living_optimizers():
        if optimizer.updates_in_backward(parameter):
            return True, optimizer
    return True, None


def record_update(parameter: Tensor, rows: Tensor, version_before: int) -> None:
    """Says that ``rows`` (``[A]`` int64) are all that changed since ``parameter._version`` was ``version_before``.

    Called by row-sparse optimizers right after the update.
    """
    for reference in tuple(_known(parameter).listeners):  # some may die meanwhile
        listener = reference()
        if listener is not None:
            listener._record(parameter, rows, version_before, parameter._version)


def _raise_versions(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """PyTorch's fused steps on CPUs change parameters without raising their versions; this makes up for it."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            changed = [parameter for parameter in group["params"] if parameter.grad is not None]
            torch.autograd.graph.increment_version(changed)


register_optimizer_step_post_hook(_raise_versions)


class ChangedRows:
    """Collects the rows of some parameters, which have equally many, that change from now on.

    >>> weight = torch.zeros(10, 2)
    >>> changed = ChangedRows(weight)
    >>> before = weight._version
    >>> rows = torch.tensor([3, 7])
    >>> _ = weight.index_fill_(0, rows, 1.0)
    >>> record_update(weight, rows, before)
    >>> changed.take()
    tensor([3, 7])
    >>> _ = weight.zero_()  # nobody recorded which rows
    >>> changed.take() is None
    True
    """

    def __init__(self, *parameters: Tensor) -> None:
        self._parameters = [weakref.ref(parameter) for parameter in parameters]
        # [rows]: how often each was recorded, up to 255. One byte per row costs less than lists of rows that wait.
        self._touches = torch.zeros(parameters[0].shape[0], dtype=torch.uint8)
        self._reset()
        for parameter in parameters:
            listeners = _facts_of(parameter).listeners
            listeners.append(weakref.ref(self, listeners.remove))

    def _reset(self) -> None:
        self._versions = [parameter._version for parameter in self._current()]
        self._touches.zero_()
        self._some = self._everything = False
        self._last: tuple[Tensor, int] | None = None  # the rows that were counted last, and their version
        self._updated: set[int] = set()  # parameters of which they were recorded

    def _record(self, parameter: Tensor, rows: Tensor, version_before: int, version_after: int) -> None:
        number = next(i for i, watched in enumerate(self._parameters) if watched() is parameter)
        self._everything |= version_before != self._versions[number]
        self._versions[number] = version_after
        if self._everything:
            return
        # Weight and bias change in the same rows, one after the other: one touch.
        if number in self._updated or not self._counted_last(rows):
            torch.ops.torch_lsh.count_touches_(self._touches, rows)
            self._some = True
            self._last, self._updated = (rows, rows._version), set()
        self._updated.add(number)

    def _counted_last(self, rows: Tensor) -> bool:
        if self._last is None:
            return False
        last, version = self._last
        return rows.data_ptr() == last.data_ptr() and rows.shape == last.shape and rows._version == version

    def _current(self) -> list[Tensor]:
        parameters = [parameter for watched in self._parameters if (parameter := watched()) is not None]
        if len(parameters) < len(self._parameters):
            raise RuntimeError("the parameter whose changes were collected does not exist any more")
        return parameters

    def are_of(self, *parameters: Tensor | None) -> bool:
        """Whether the changes are those of these parameters (None: there is none)."""
        wanted = [parameter for parameter in parameters if parameter is not None]
        return len(wanted) == len(self._parameters) and all(
            watched() is parameter for watched, parameter in zip(self._parameters, wanted)
        )

    def unrecorded(self) -> bool:
        """Whether something changed of which the rows are not known."""
        return self._everything or self._versions != [parameter._version for parameter in self._current()]

    def any(self) -> bool:
        """Whether anything changed that :meth:`take` would return."""
        return self.unrecorded() or self._some

    def take(self, touches: int = 1) -> Tensor | None:
        """The rows that changed at least ``touches`` times since they were last taken (``[A]`` int64, increasing), or
        None: any row may have changed.
        """
        if self.unrecorded():
            self._reset()
            return None
        rows = (self._touches >= touches).nonzero()[:, 0]
        self._touches[rows] = 0
        self._last = None
        self._some = touches > 1 and bool(self._touches.any())
        return rows

    def touched(self) -> Tensor | None:
        """Which rows changed since they were last taken (``[rows]`` bool), or None: any row may have."""
        return None if self.unrecorded() else self._touches > 0

    def sample(self, count: int, touches: int = 1, seed: int = 0) -> Tensor | None:
        """``count`` random rows (``[count]`` int64) of those that :meth:`take` would return, all of them where there
        are fewer, or None: any row may have changed.

        Draws by rejection, which costs ``count`` over the share of such rows; where that is more than a pass over one
        byte per row, the pass. Rows may be drawn twice.
        """
        if self.unrecorded():
            return None
        generator = torch.Generator().manual_seed(seed)
        draws = 4 * count
        while draws < len(self._touches) // 8:
            rows = torch.randint(len(self._touches), (draws,), generator=generator)
            rows = rows[self._touches[rows] >= touches]
            if len(rows) >= count:
                return rows[:count]
            draws *= 4
        rows = (self._touches >= touches).nonzero()[:, 0]
        return rows[torch.randperm(len(rows), generator=generator)[:count]]
