"""How an operator of the C++ library is declared in Python: once, as a function.

The function has the name, the signature and the documentation of the operator. Its body says what the operator returns
for tensors without data: meta tensors, and the fake tensors of ``torch.compile`` and ``torch.export``. The counterpart
is the schema in ``csrc/library.cpp``; ``tests/ops/test_declaration.py`` compares the two.

::

    @operator
    def positive_sums(gradient: Tensor) -> Tensor:
        '''Sums the positive entries of every column.'''
        return gradient.new_empty(gradient.shape[1])
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import itemgetter
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from .. import _library  # noqa: F401  (loads torch.ops.torch_lsh)

Function = TypeVar("Function", bound=Callable[..., Any])

#: Every declared operator by its name in ``torch.ops.torch_lsh``.
declared: dict[str, Callable[..., Any]] = {}

_autocast = torch.library.Library("torch_lsh", "IMPL", "AutocastCPU")


class NeedsData(NotImplementedError):
    """Raised by the body of an operator that reads its result from data; ``torch.compile`` breaks the graph there."""


@overload
def operator(function: Function) -> Function: ...
@overload
def operator(
    *,
    name: str | None = None,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    autocast: Callable[..., Any] | None = None,
) -> Callable[[Function], Function]: ...
def operator(function: Any = None, **options: Any) -> Any:
    """Declares an operator of the C++ library by a Python function; the result calls the operator.

    Calls raise the version of every argument that the schema marks as changed, as PyTorch's own in-place operators do,
    so that autograd notices changes of tensors that it saved.

    Args:
        function: signature, documentation and, as body, the result for tensors without data.
        name: of the operator, where the function has another one.
        setup_context: as in :func:`torch.library.register_autograd`.
        backward: as in :func:`torch.library.register_autograd`.
        autocast: replaces the operator under CPU autocast. It takes the operator and its arguments. (PyTorch's
            ready-made rule converts all arguments, thus whole weight tables at every step.)

    Raises:
        AttributeError: the library has no operator of this name.
    """
    return functools.partial(_declare, **options) if function is None else _declare(function)


def _declare(
    function: Callable[..., Any],
    name: str | None = None,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    autocast: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    name = name or function.__name__
    compiled = getattr(torch.ops.torch_lsh, name).default
    torch.library.register_fake(f"torch_lsh::{name}", _of_one_device(name, function))
    if backward is not None:
        torch.library.register_autograd(f"torch_lsh::{name}", backward, setup_context=setup_context)
    if autocast is not None:
        _register_autocast(name, compiled, autocast)
    declared[name] = functools.wraps(function)(_caller(compiled))
    return declared[name]


def _caller(compiled: torch._ops.OpOverload) -> Callable[..., Any]:
    """The function that users call. What it does per call is all the overhead that a declaration adds."""
    changed = [
        (position, argument.name)
        for position, argument in enumerate(compiled._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def call(*arguments: Any, **named: Any) -> Any:
        return compiled(*arguments, **named)

    end = changed[-1][0] + 1 if changed else 0
    changed_of = itemgetter(*[position for position, _ in changed]) if len(changed) > 1 else None

    def call_and_count(*arguments: Any, **named: Any) -> Any:
        tensors: Any
        if changed_of is not None and len(arguments) >= end:
            tensors = changed_of(arguments)
        else:
            tensors = [arguments[i] if i < len(arguments) else named.get(name) for i, name in changed]
        tensors = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
        try:
            return compiled(*arguments, **named)
        finally:  # Ctrl-C during the call is raised where it returns
            torch.autograd.graph.increment_version(tensors)

    return call_and_count if changed else call


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raises a RuntimeError as the compiled operators do, where the size of a result would overflow."""
    if not least <= value <= most:
        raise RuntimeError(f"{name} is {value}; wanted {least} to {most}")


def _of_one_device(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` after a check that all tensors are on one device, which the operators themselves check on CPUs."""

    def checked(*arguments: Any, **named: Any) -> Any:
        tensors = [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
        devices = sorted({str(tensor.device) for tensor in tensors})
        if len(devices) > 1:
            raise RuntimeError(f"torch_lsh::{name}: arguments are on {' and '.join(devices)}; wanted one device")
        return function(*arguments, **named)

    return checked


def _register_autocast(name: str, compiled: torch._ops.OpOverload, rule: Callable[..., Any]) -> None:
    def without_autocast(*arguments: Any, **named: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return compiled(*arguments, **named)

    _autocast.impl(name, functools.partial(rule, without_autocast))


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that CPU autocast converts ``tensor`` to, or None where it leaves the tensor as it is."""
    if tensor.dtype is torch.float32 and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return None
