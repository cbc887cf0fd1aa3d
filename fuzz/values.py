"""Random arguments: tensors and numbers as nobody would pass them on purpose."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

INTS = (
    *(-(2**63), -(2**62), -(2**31), -100, -2, -1, 0, 1, 2, 3, 7, 8, 63, 64, 65, 127, 255, 256),
    *(2**15, 2**20, 2**24, 2**30, 2**31 - 1, 2**31, 2**32, 2**40, 2**60, 2**61, 2**62, 2**63 - 1),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e38, 3.4e38, 1e300, float("inf"), float("-inf"), float("nan"))
STRINGS = ("", "log", "count", "binary", "scalar", "none", "é", "\0", "%s", "a" * 5000)
SIZES = (0, 0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 64, 65, 100, 300)
HUGE = (2**20, 2**31, 2**40, 2**61, 2**62, 2**63 - 1)
FLOATING = (torch.float32, torch.float64, torch.bfloat16)
DTYPES = (
    *FLOATING,
    *(torch.int64, torch.int32, torch.uint8, torch.int8, torch.int16, torch.bool, torch.float16, torch.complex64),
)


def tensor(rng: random.Random) -> Tensor:
    """Of any dtype and shape, or one that is like an argument of some operator."""
    if rng.random() < 0.05:
        return empty_but_wide(rng)
    shape = [rng.choice(SIZES) for _ in range(rng.choice((0, 1, 1, 2, 2, 2, 3, 3, 4)))]
    while torch.Size(shape).numel() > 20_000:
        shape.pop()
    return filled(rng, shape, rng.choice(DTYPES))


def empty_but_wide(rng: random.Random) -> Tensor:
    """Without numbers, and of a size with which products overflow."""
    shape = [0, rng.choice(HUGE), *([rng.choice((1, 8, 64))] if rng.random() < 0.3 else [])]
    rng.shuffle(shape)
    try:
        return torch.empty(shape, dtype=rng.choice(DTYPES))
    except RuntimeError:  # a stride overflows
        return torch.empty(0, 2**40)


def filled(rng: random.Random, shape: list[int], dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        values = torch.randn(shape, dtype=torch.float32).to(dtype)
    elif dtype is torch.bool:
        values = torch.randint(2, shape, dtype=dtype)
    else:
        largest = min(rng.choice((1, 2, 4, 16, 100, 2**31)), torch.iinfo(dtype).max)
        values = torch.randint(largest, shape, dtype=dtype)
    return with_extremes(rng, values) if rng.random() < 0.2 else values


def with_extremes(rng: random.Random, values: Tensor) -> Tensor:
    """A copy with a few numbers replaced by the least, the largest, or a special one."""
    values = values.detach().clone(memory_format=torch.contiguous_format)
    flat = values.view(-1)
    for _ in range(rng.choice((1, 1, 3, 20)) if len(flat) > 0 else 0):
        if values.dtype.is_floating_point or values.dtype.is_complex:
            number: Any = rng.choice(FLOATS)
        elif values.dtype is torch.bool:
            number = rng.random() < 0.5
        else:
            bounds = torch.iinfo(values.dtype)
            number = rng.choice((bounds.min, bounds.max, -1, 0, 1, len(flat), len(flat) + 1, rng.choice(INTS)))
            number = min(max(number, bounds.min), bounds.max)
        flat[rng.randrange(len(flat))] = torch.tensor(number).to(values.dtype)
    return values


def resized(values: Tensor, dim: int, size: int) -> Tensor:
    """A copy with another size in one dimension: cut, or repeated."""
    if values.shape[dim] == 0:
        shape = [*values.shape]
        shape[dim] = size
        return torch.zeros(shape, dtype=values.dtype)
    return values.index_select(dim, torch.arange(size) % values.shape[dim])


def strided(rng: random.Random, values: Tensor) -> Tensor:
    """Equal values, not contiguous where that is possible."""
    if values.dim() == 0 or values.is_meta:  # PyTorch cannot stack tensors of 2^62 numbers that have no data
        return values
    if values.dim() >= 2 and rng.random() < 0.5:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if rng.random() < 0.2 and values.shape[0] > 0:
        return values[:1].expand(values.shape)
    return torch.stack([values, values], -1).select(-1, 0)


def _other_dtype(rng: random.Random, values: Tensor) -> Tensor:
    return values.to(rng.choice(DTYPES))


def _other_size(rng: random.Random, values: Tensor) -> Tensor:
    if values.dim() == 0:
        return values.unsqueeze(0)
    dim = rng.randrange(values.dim())
    size = rng.choice((0, values.shape[dim] + 1, max(0, values.shape[dim] - 1), rng.choice(SIZES)))
    return resized(values, dim, min(size, 20_000))


def _other_dimensions(rng: random.Random, values: Tensor) -> Tensor:
    return rng.choice(
        (
            lambda: values.unsqueeze(0),
            lambda: values.reshape(-1),
            lambda: values.squeeze(),
            lambda: values.sum(),
            lambda: values.unsqueeze(-1),
        )
    )()


def _shuffled(rng: random.Random, values: Tensor) -> Tensor:
    flat = values.reshape(-1)
    return flat[torch.randint(max(1, len(flat)), (len(flat),))].view(values.shape) if len(flat) > 0 else values


#: Ways to change a tensor argument.
CHANGES: tuple[Callable[[random.Random, Tensor], Tensor], ...] = (
    with_extremes,
    with_extremes,
    strided,
    _other_dtype,
    _other_size,
    _other_size,
    _other_dimensions,
    _shuffled,
    lambda rng, values: values.to("meta"),
    lambda rng, values: values.to_sparse() if rng.random() < 0.5 else torch._neg_view(-values),
    lambda rng, values: empty_but_wide(rng),
    lambda rng, values: tensor(rng),
)


def changed(rng: random.Random, value: Any) -> Any:
    """Another argument in place of ``value``."""
    if isinstance(value, Tensor):
        try:
            return rng.choice(CHANGES)(rng, value.detach())
        except (RuntimeError, NotImplementedError, IndexError):  # PyTorch has no such tensor
            return tensor(rng)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, value * 2, rng.choice(INTS), rng.choice(INTS)))
    if isinstance(value, float):
        return rng.choice((value * 2, -value, rng.choice(FLOATS)))
    if isinstance(value, str):
        return rng.choice(STRINGS)
    if isinstance(value, torch.dtype):
        return rng.choice(DTYPES)
    return None


def of_type(rng: random.Random, type_name: str) -> Any:
    """An argument of a type of PyTorch's schemas."""
    if type_name.startswith("Optional["):
        return None if rng.random() < 0.4 else of_type(rng, type_name[len("Optional[") : -1])
    if type_name == "Tensor":
        return tensor(rng)
    if type_name == "int":
        return rng.choice((rng.randrange(20), rng.choice(INTS)))
    if type_name == "float":
        return rng.choice((rng.random(), rng.choice(FLOATS)))
    if type_name == "bool":
        return rng.random() < 0.5
    if type_name == "str":
        return rng.choice(STRINGS)
    if type_name == "ScalarType":
        return rng.choice(DTYPES)
    raise NotImplementedError(f"type_name is {type_name!r}; wanted one of a schema of torch_lsh: add it here")
