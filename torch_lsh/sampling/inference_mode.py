"""A decorator of methods that keep tensors, which those of inference mode would forbid to change later."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def outside_inference_mode(method: Callable[..., Any]) -> Callable[..., Any]:
    """Runs ``method`` outside of inference mode, where it was called inside."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return run
