"""Targets: every form of target that a loss takes, brought into one."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ... import ops


@dataclass(eq=False, slots=True)  # not frozen, as that takes microseconds to make
class Target:
    """The labels of each sample, with their shares of the target distribution.

    Attributes:
        labels: ``[B, P]`` int64, padded with a negative number.
        shares: ``[B, P]`` floating; 0 at padding.
        probabilities: whether the target came as a distribution over all classes (CSR). PyTorch's mean then divides by
            the batch size; for class indices it divides by the weights of those that are not ignored.
        complete: whether every sample is known to have a label, so that the shares add up to the batch size.
    """

    labels: Tensor
    shares: Tensor
    probabilities: bool
    complete: bool = False

    @property
    def several(self) -> bool:
        """Whether the form allows more than one label per sample."""
        return self.probabilities or self.labels.shape[1] != 1

    def as_multi_hot(self) -> Target:
        """Returns the target in which every label counts 1."""
        return replace(self, shares=(self.labels >= 0).to(self.shares.dtype))


def as_target(
    target: Tensor, batch_shape: torch.Size, num_classes: int, ignore_index: int, dtype: torch.dtype
) -> Target | None:
    """Parses a target.

    Args:
        target: class indices of shape ``batch_shape``; or ``[*batch_shape, P]`` padded with ``ignore_index``, where the
            target of a sample is the mean of the one-hot vectors of its entries (one that occurs twice has two
            shares); or a sparse CSR tensor ``[B, num_classes]`` of probabilities.
        batch_shape: shape of the logits without the class dimension.
        num_classes: N.
        ignore_index: index that stands for no label.
        dtype: of the shares.

    Returns:
        The target; None if it is a dense distribution over all classes.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: the target does not fit the logits.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"target is a {type(target).__name__}; wanted a tensor")
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index is {ignore_index!r}; wanted an int")
    if not target.is_cpu:
        raise RuntimeError(f"target is on {target.device}; wanted cpu, the device of the logits")
    if target.layout is torch.sparse_csr:
        wanted = (math.prod(batch_shape), num_classes)
        if target.shape != wanted:
            raise ValueError(f"target has shape {tuple(target.shape)}; wanted {wanted}")
        return _from_csr(target, dtype)
    if target.is_floating_point():
        if target.numel() != math.prod(batch_shape) * num_classes:
            raise ValueError(
                f"target has shape {tuple(target.shape)} and dtype {target.dtype}; wanted class indices (int64) of "
                f"shape {tuple(batch_shape)}, or probabilities of the shape of the logits"
            )
        return None
    if target.dtype is torch.uint8:
        target = target.long()  # as in PyTorch
    if target.dtype is not torch.int64:
        raise TypeError(f"target has dtype {target.dtype}; wanted torch.int64 class indices")
    if target.shape == batch_shape:
        labels = (target if target.dim() == 1 else target.reshape(-1)).unsqueeze(1).contiguous()
    elif target.shape == (*batch_shape, num_classes) and _is_one_hot(target):
        raise ValueError(
            f"target has dtype {target.dtype} and shape {tuple(target.shape)}, that of the logits, and holds "
            f"nothing but 0 and 1; wanted class indices of shape {tuple(batch_shape)}, or floating-point probabilities"
        )
    elif target.shape[:-1] == batch_shape:
        labels = target.reshape(math.prod(batch_shape), target.shape[-1]).contiguous()
    else:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; wanted {tuple(batch_shape)}, "
            f"or {(*batch_shape, 'P')} with several labels per sample, padded with {ignore_index}"
        )
    return _from_indices(labels, num_classes, ignore_index, dtype)


def _is_one_hot(target: Tensor) -> bool:
    """Whether indices of the logits' shape are none: a sample with as many labels as classes has one above 1."""
    return target.numel() > 0 and bool(((target == 0) | (target == 1)).all())


def multi_hot(target: Target, num_classes: int) -> Tensor:
    """Returns the dense ``[B, num_classes]`` target that is 1 at the labels."""
    values = target.as_multi_hot().shares
    dense = torch.zeros(len(values), num_classes, dtype=values.dtype, device="cpu")
    return dense.scatter_reduce_(1, target.labels.clamp(min=0), values, "amax")


def _from_indices(labels: Tensor, num_classes: int, ignore_index: int, dtype: torch.dtype) -> Target:
    least, most = ops.extremes(labels)
    if least >= 0 and most < num_classes and not 0 <= ignore_index < num_classes:
        return Target(labels, _equal_shares(*labels.shape, dtype), probabilities=False, complete=labels.shape[1] > 0)
    ignored = labels == ignore_index
    if bool(((labels < 0) & ~ignored).any()):
        raise IndexError(
            f"target holds class {int(labels[~ignored].min())}; "
            f"wanted 0 to {num_classes - 1}, or {ignore_index} for none"
        )
    labels = labels.masked_fill(ignored, -1)
    _check_labels(ops.extremes(labels), num_classes, lowest=-1)
    shares = (~ignored).to(dtype)
    return Target(labels, shares / shares.sum(1, keepdim=True).clamp(min=1), probabilities=False)


def _from_csr(target: Tensor, dtype: torch.dtype) -> Target:
    crow, col = target.crow_indices().long(), target.col_indices().long()
    _check_labels(ops.extremes(col), target.shape[1])
    per_row = crow.diff()
    width = int(per_row.max()) if len(per_row) else 0
    row = torch.repeat_interleave(per_row)
    offset = torch.arange(len(col), device="cpu") - crow[:-1][row]
    labels = col.new_full((len(per_row), width), -1)
    shares = torch.zeros(len(per_row), width, dtype=dtype, device="cpu")
    labels[row, offset] = col
    shares[row, offset] = target.values().to(dtype)
    return Target(labels, shares, probabilities=True)


def _check_labels(extremes: tuple[int, int], num_classes: int, lowest: int = 0) -> None:
    for label in extremes:
        if not lowest <= label < num_classes:
            raise IndexError(f"target holds class {label}; wanted 0 to {num_classes - 1}")


@functools.lru_cache(maxsize=16)
def _equal_shares(count: int, labels: int, dtype: torch.dtype) -> Tensor:
    """Returns ``[count, labels]`` shares of ``1 / labels``; cached, so no caller may change them."""
    with torch.inference_mode(False):  # autograd cannot save inference tensors for a later backward pass
        return torch.full((count, labels), 1 / max(1, labels), dtype=dtype, device="cpu")
