"""What gradient loggers ask of row-sparse gradients and PyTorch has no sparse CPU kernels for.

Statistics look at the stored values and at the number of zeros. Histograms, flat vectors and sums with a dense tensor
are dense. :mod:`~torch_lsh.optim.global_hooks` registers the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .gradients import rows_and_values

Kernel = Callable[..., Any]


def stored_values(tensor: Tensor) -> Tensor:
    """The values of a sparse tensor, repeated entries summed."""
    return rows_and_values(tensor)[1] if tensor.sparse_dim() == 1 else tensor.coalesce()._values()


def _with_zero(tensor: Tensor) -> Tensor:
    """The stored values, and a zero if there are entries that are not stored."""
    values = stored_values(tensor).flatten()
    return values if len(values) == tensor.numel() else torch.cat([values, values.new_zeros(1)])


def _of_all(statistic: Callable[[Tensor], Any], name: str) -> Kernel:
    """The kernel of a function that reduces all dimensions, or some: these are computed of the dense tensor."""

    def kernel(tensor: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
        if dim or keepdim or isinstance(dim, int):
            dense = tensor.to_dense()
            return getattr(torch, name)(dense, dim=dim, keepdim=keepdim)
        return statistic(_with_zero(tensor))

    return kernel


def mean(tensor: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.mean`` of a sparse tensor."""
    if dim or keepdim:
        return tensor.to_dense().mean(dim, keepdim, dtype=dtype)
    return stored_values(tensor).sum(dtype=dtype) / tensor.numel()


def var_mean(
    tensor: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """``torch.var_mean`` of a sparse tensor."""
    if dim or keepdim:
        return torch.var_mean(tensor.to_dense(), dim, correction=correction, keepdim=keepdim)
    values, count = stored_values(tensor), tensor.numel()
    center = values.sum() / count
    squares = (values - center).square().sum() + (count - values.numel()) * center.square()
    degrees = max(0, count - (1 if correction is None else correction))
    return squares / degrees if degrees > 0 else squares.new_full((), math.nan), center


def std_mean(tensor: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """``torch.std_mean`` of a sparse tensor."""
    variance, center = var_mean(tensor, *args, **kwargs)
    return variance.sqrt(), center


def _comparison(compare: Callable[..., Tensor]) -> Kernel:
    """The kernel of a comparison; zeros count, so it is dense, but takes no memory where all entries compare alike.

    ``torch.isfinite`` is made of comparisons.
    """

    def kernel(tensor: Tensor, other: Any) -> Tensor:
        if isinstance(other, Tensor) and other is not tensor:
            return compare(tensor.to_dense(), other.to_dense())
        entries = _with_zero(tensor)
        results = compare(entries, entries if other is tensor else other)
        if len(results) > 0 and bool((results == results[0]).all()):
            return results[0].expand(tensor.shape)
        dense = tensor.to_dense()
        return compare(dense, dense if other is tensor else other)

    return kernel


def with_dense(kernel: Any, sign: int) -> Kernel:
    """PyTorch's ``kernel`` of ``torch.add`` (``sign`` 1) or ``sub`` (-1), which takes a dense second tensor, too."""

    def add(keys: Any, tensor: Tensor, other: Tensor, *, alpha: float = 1) -> Tensor:
        if tensor.layout is torch.sparse_coo and other.layout is torch.strided and other.shape == tensor.shape:
            return other * (sign * alpha) + tensor
        result: Tensor = kernel.call_boxed(keys, tensor, other, alpha=alpha)
        return result

    return add


def _dense(function: Callable[..., Any]) -> Kernel:
    return lambda tensor, *args, **kwargs: function(tensor.to_dense(), *args, **kwargs)


KERNELS: dict[str, Kernel] = {
    "max": lambda tensor: _with_zero(tensor).max(),
    "min": lambda tensor: _with_zero(tensor).min(),
    "amax": _of_all(torch.amax, "amax"),
    "amin": _of_all(torch.amin, "amin"),
    "aminmax": lambda tensor, *, dim=None, keepdim=False: _of_all(torch.aminmax, "aminmax")(tensor, dim, keepdim),
    "mean.dim": mean,
    "var.correction": lambda tensor, *args, **kwargs: var_mean(tensor, *args, **kwargs)[0],
    "std.correction": lambda tensor, *args, **kwargs: std_mean(tensor, *args, **kwargs)[0],
    "var_mean.correction": var_mean,
    "std_mean.correction": std_mean,
    "histc": _dense(torch.histc),
    "histogram.bin_ct": _dense(torch.histogram),
    "view": _dense(Tensor.reshape),
}
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    KERNELS[f"{_name}.Scalar"] = KERNELS[f"{_name}.Tensor"] = _comparison(getattr(torch, _name))
