"""Modules whose tensors keep their dtypes when the model is cast."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def without_cast(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What moves tensors where ``fn`` does, for ``nn.Module._apply``, and leaves their dtypes and digits.

    >>> import torch
    >>> without_cast(lambda tensor: tensor.to("meta", torch.bfloat16))(torch.ones(1))
    tensor(..., device='meta', size=(1,))
    """

    def moved(tensor: Tensor) -> Tensor:
        applied = fn(tensor)
        return applied if applied.dtype is tensor.dtype else tensor.to(applied.device)

    return moved
