"""A decorator for functions that torch.compile does not trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def eager(reason: str | None = None) -> Callable[[_Function], _Function]:
    """``torch.compiler.disable(reason=reason)`` that imports the compiler when the function is first called.

    The import takes as long as that of PyTorch itself; PyTorch's optimizers do it when they are made.
    """

    def decorate(function: _Function) -> _Function:
        disabled: Any = torch._disable_dynamo(function)
        disabled._torchdynamo_disable, disabled._torchdynamo_disable_msg = True, reason  # what ends a graph
        return disabled

    return decorate
