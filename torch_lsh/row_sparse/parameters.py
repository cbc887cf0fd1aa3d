"""Facts about parameters of which a step touches few rows.

They are kept outside of the parameter, so that copies and checkpoints carry nothing:

* which living optimizers update it row by row (:func:`mark`). While there is one, layers produce row-sparse gradients:
  sparse COO tensors with one sparse dimension. Optimizers of :mod:`torch.optim` mark nothing and get dense gradients;
* which other optimizer stepped last (:func:`yield_to`): it gets dense gradients;
* which rows of a larger tensor it is, where processes share its rows out (:func:`place_rows`);
* who wants to know which rows an optimizer updated (:func:`listen`, :func:`record_update`);
* who tells the user why all rows are updated (:func:`report_to`, :func:`reporters`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakIdKeyDictionary


class Hardest(Protocol):
    """Asks for the hardest rows of a step; see :class:`torch_lsh.ops.HardestRows`."""

    @property
    def count(self) -> int: ...

    @property
    def log_weights(self) -> Tensor | None: ...

    @property
    def keep(self) -> Callable[[Tensor], None]: ...


class Updater(Protocol):
    """An optimizer that updates parameters row by row, if asked during the backward pass."""

    def updates_in_backward(self, parameter: Tensor) -> bool: ...

    def update_in_backward(
        self, parameter: Tensor, rows: Tensor, values: Tensor, factor: Tensor | None = None, unique: bool = False
    ) -> None: ...

    def update_linear_in_backward(
        self,
        weight: Tensor,
        bias: Tensor | None,
        slopes: Tensor,
        factors: Tensor,
        x: Tensor,
        rows: Tensor,
        grad: Tensor | None,
        hardest: Hardest | None,
    ) -> Tensor | None: ...


class Listener(Protocol):
    """Is told of every update of some rows."""

    touches: Tensor

    def record(
        self, parameter: Tensor, rows: Tensor, version_before: int, version_after: int, counted: Tensor | None = None
    ) -> None: ...


class Reporter(Protocol):
    """Tells the user why all rows of a layer are updated."""

    def updated_densely(self, reason: str, **facts: str) -> None: ...


class Placement(Protocol):
    """Says which rows of a larger tensor a process has."""

    def place(self, local: Tensor) -> Tensor: ...

    def local(self, tensor: Tensor) -> Tensor: ...


class _Facts:
    """What is known of one parameter."""

    def __init__(self) -> None:
        self.optimizers: list[weakref.ref[Updater]] = []
        self.listeners: list[weakref.ref[Listener]] = []
        self.reporters: list[weakref.ref[Reporter]] = []
        self.dense_optimizer: weakref.ref[Any] | None = None
        self.in_data_parallel = False
        self.placement: Placement | None = None


# By the id of a living parameter. A WeakIdKeyDictionary takes a microsecond per look-up, and a step has several.
_facts: dict[int, _Facts] = {}
_NOTHING = _Facts()
_yielding: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameters with a dense_optimizer
_in_data_parallel: set[int] = set()  # ids of the living parameters that a wrapper reduces
_reduced: weakref.WeakKeyDictionary[torch.nn.Module, frozenset[int]] = weakref.WeakKeyDictionary()  # by wrapper


def _facts_to_change(parameter: Tensor) -> _Facts:
    facts = _facts.get(id(parameter))
    if facts is None:
        facts = _facts[id(parameter)] = _Facts()
        weakref.finalize(parameter, _forget, id(parameter)).atexit = False
    return facts


def _forget(number: int) -> None:
    _facts.pop(number, None)
    _in_data_parallel.discard(number)


def _known(parameter: Tensor) -> _Facts:
    return _facts.get(id(parameter), _NOTHING)


def mark(parameter: Tensor, optimizer: Updater) -> None:
    """Says that ``optimizer`` takes row-sparse gradients of ``parameter`` for as long as the optimizer lives."""
    optimizers = _facts_to_change(parameter).optimizers
    if not any(reference() is optimizer for reference in optimizers):
        optimizers.append(weakref.ref(optimizer, optimizers.remove))


def wants_row_sparse(parameter: Tensor) -> bool:
    """Whether layers should produce a row-sparse gradient for ``parameter``."""
    return wants_row_sparse_and_updater(parameter)[0]


def updater(parameter: Tensor) -> Updater | None:
    """The optimizer that takes row-sparse gradients of ``parameter`` during the backward pass, if there is one."""
    return wants_row_sparse_and_updater(parameter)[1]


def wants_row_sparse_and_updater(parameter: Tensor) -> tuple[bool, Updater | None]:
    """:func:`wants_row_sparse` and :func:`updater` in one look-up."""
    facts = _facts.get(id(parameter), _NOTHING)
    if facts.in_data_parallel or facts.dense_optimizer is not None or not facts.optimizers:
        return False, None
    for reference in tuple(facts.optimizers):  # a copy: optimizers may die meanwhile
        optimizer = reference()
        if optimizer is not None and optimizer.updates_in_backward(parameter):
            return True, optimizer
    return True, None


def marked_optimizers(parameter: Tensor) -> list[Updater]:
    """The living optimizers that update ``parameter`` row by row."""
    return [optimizer for reference in _known(parameter).optimizers if (optimizer := reference()) is not None]


def yield_to(parameter: Tensor, optimizer: Any) -> None:
    """Says that ``optimizer``, which takes dense gradients, steps on ``parameter`` from now on, while it lives.

    Layers produce dense gradients then, also while an optimizer that takes row-sparse ones is still referenced.
    """
    facts = _facts_to_change(parameter)
    if facts.dense_optimizer is None or facts.dense_optimizer() is not optimizer:
        facts.dense_optimizer = weakref.ref(optimizer, lambda gone: _end_yield(facts, gone))
        _yielding[parameter] = True


def _end_yield(facts: _Facts, gone: Any) -> None:
    if facts.dense_optimizer is gone:
        facts.dense_optimizer = None


def take_back(parameters: Iterable[Tensor]) -> None:
    """Says that a row-sparse optimizer steps on ``parameters``: ends :func:`yield_to`."""
    if not _yielding.data:  # its len() takes a microsecond
        return
    for parameter in parameters:
        if _yielding.pop(parameter, False):
            _facts_to_change(parameter).dense_optimizer = None


def in_data_parallel(parameter: Tensor) -> bool:
    """Whether ``parameter`` was seen inside ``DistributedDataParallel``."""
    return _known(parameter).in_data_parallel


def note_forward(*parameters: Tensor | None) -> None:
    """Layers call this in ``forward``; a parameter that ``DistributedDataParallel`` reduces gets dense gradients.

    ``DistributedDataParallel`` reduces row-sparse gradients of ``nn.Embedding`` only, and an update during the backward
    pass would come before the gradients of the other processes. A forward pass outside of it ends that.
    """
    if DistributedDataParallel._active_ddp_module is not None or _in_data_parallel:
        for parameter in parameters:
            if parameter is not None:
                _note_forward(parameter)


def _note_forward(parameter: Tensor) -> None:
    wrapper = DistributedDataParallel._active_ddp_module
    facts = _facts_to_change(parameter)
    facts.in_data_parallel = is_reduced(parameter)
    if not facts.in_data_parallel:
        _in_data_parallel.discard(id(parameter))
    elif wrapper is not None and id(parameter) not in _in_data_parallel:
        _in_data_parallel.add(id(parameter))
        if facts.optimizers:
            for reporter in reporters(parameter):
                reporter.updated_densely("data_parallel")


def is_reduced(parameter: Tensor) -> bool:
    """Whether the forward pass is inside a ``DistributedDataParallel`` that reduces the gradient of ``parameter``."""
    wrapper = DistributedDataParallel._active_ddp_module
    return wrapper is not None and id(parameter) in _reduced_by(wrapper)


def _reduced_by(wrapper: DistributedDataParallel) -> frozenset[int]:
    """The ids of the parameters whose gradients ``wrapper`` reduces."""
    if wrapper not in _reduced:
        named = wrapper.module.named_parameters(remove_duplicate=False)
        ignored = wrapper.parameters_to_ignore
        _reduced[wrapper] = frozenset(id(parameter) for name, parameter in named if name not in ignored)
    return _reduced[wrapper]


def place_rows(parameter: Tensor, placement: Placement) -> None:
    """Says which rows of a larger tensor ``parameter`` is; optimizers save their state so."""
    _facts_to_change(parameter).placement = placement


def placement_of(parameter: Tensor) -> Placement | None:
    """What :func:`place_rows` was told; None: ``parameter`` is a whole tensor."""
    return _known(parameter).placement


def report_to(parameter: Tensor, reporter: Reporter) -> None:
    """Has ``reporter`` told why all rows of ``parameter`` are updated, for as long as both live."""
    reporters = _facts_to_change(parameter).reporters
    if any(reference() is reporter for reference in reporters):
        return
    reporters.append(weakref.ref(reporter, reporters.remove))


def reporters(parameter: Tensor) -> list[Reporter]:
    """Who is told why all rows of ``parameter`` are updated."""
    return [reporter for reference in _known(parameter).reporters if (reporter := reference()) is not None]


def listen(parameter: Tensor, listener: Listener) -> None:
    """Tells ``listener`` of all coming updates of ``parameter`` for as long as the listener lives."""
    listeners = _facts_to_change(parameter).listeners
    listeners.append(weakref.ref(listener, listeners.remove))


def touches_to_count(parameter: Tensor) -> Tensor | None:
    """``[rows]`` uint8, how often each row of ``parameter`` was updated; an operator may count an update itself."""
    for reference in _known(parameter).listeners:
        listener = reference()
        if listener is not None:
            return listener.touches
    return None


def record_update(rows: Tensor, *updated: tuple[Tensor, int], counted: Tensor | None = None) -> None:
    """Row-sparse optimizers call this right after an update.

    Args:
        rows: ``[A]`` int64, all rows that changed.
        updated: every parameter that was updated, and its ``_version`` before.
        counted: the result of :func:`touches_to_count`, where that was counted up.
    """
    for parameter, version_before in updated:
        for reference in tuple(_facts.get(id(parameter), _NOTHING).listeners):  # a copy: listeners may die meanwhile
            listener = reference()
            if listener is not None:
                listener.record(parameter, rows, version_before, parameter._version, counted)
