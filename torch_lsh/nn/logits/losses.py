"""Losses over an active set, and the same losses exactly, block by block.

Both take a :class:`Target`, the common form of every kind of target: the labels of each sample with their shares of the
target distribution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...sampling.active_set import ActiveSet

# Logits of a block that exact evaluation holds at a time: 16 MiB in float32.
BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Target:
    """Labels and what each counts.

    Attributes:
        labels: ``[B, P]`` int64; negative where there is none.
        shares: ``[B, P]`` floating: the label's share of the target distribution; 0 where there is no label.
        probabilities: the target came as a distribution over all classes (CSR), for which PyTorch's mean divides by
            the batch size; class indices divide by what is not ignored.
        complete: no sample is without labels, as far as is known; so shares sum up to the batch size.
    """

    labels: Tensor
    shares: Tensor
    probabilities: bool
    complete: bool = False

    @property
    def several(self) -> bool:
        """Whether the form allows more than one label per sample."""
        return self.probabilities or self.labels.shape[1] != 1


def _check_labels(extremes: tuple[int, int], num_classes: int, lowest: int = 0) -> None:
    for label in extremes:
        if not lowest <= label < num_classes:
            raise IndexError(f"target holds class {label}; wanted 0 to {num_classes - 1}")


@functools.lru_cache(maxsize=16)
def _equal_shares(count: int, labels: int, dtype: torch.dtype) -> Tensor:
    """The same for each of ``labels``, ``[count, labels]``: of batches that are all alike. Nobody changes them."""
    with torch.inference_mode(False):  # or no later step could keep them for its backward pass
        return torch.full((count, labels), 1 / max(1, labels), dtype=dtype, device="cpu")


def as_target(
    target: Tensor, batch_shape: torch.Size, num_classes: int, ignore_index: int, dtype: torch.dtype
) -> Target | None:
    """Brings a target into the common form, or returns None for a dense ``[B, num_classes]`` one.

    Args:
        target: class indices of shape ``batch_shape``; indices ``[*batch_shape, P]`` padded with ``ignore_index``
            (each label counts ``1 / number of labels``); or a sparse CSR tensor ``[B, num_classes]`` whose values
            are the target's probabilities.
        batch_shape: shape of the logits without the class dimension.
        num_classes: N.
        ignore_index: index that stands for no label.
        dtype: of the shares.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"target is a {type(target).__name__}; wanted a tensor")
    if target.device.type != "cpu":
        raise RuntimeError(f"target is on {target.device}; wanted cpu, the device of the logits")
    count = math.prod(batch_shape)
    if target.layout is torch.sparse_csr:
        if target.shape != (count, num_classes):
            raise ValueError(f"target has shape {tuple(target.shape)}; wanted {(count, num_classes)}")
        return _from_csr(target, dtype)
    if target.is_floating_point():
        if target.numel() != count * num_classes:
            raise ValueError(
                f"target has shape {tuple(target.shape)} and dtype {target.dtype}; wanted class indices (int64) of "
                f"shape {tuple(batch_shape)}, or probabilities of the shape of the logits"
            )
        return None
    if target.dtype is torch.uint8:
        target = target.long()  # PyTorch takes it, too
    if target.dtype is not torch.int64:
        raise TypeError(f"target has dtype {target.dtype}; wanted torch.int64 class indices")
    if target.shape == batch_shape:
        labels = target.reshape(count, 1).contiguous()
    elif target.shape[:-1] == batch_shape:
        labels = target.reshape(count, target.shape[-1]).contiguous()
    else:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; wanted {tuple(batch_shape)}, "
            f"or {(*batch_shape, 'P')} with several labels per sample, padded with {ignore_index}"
        )
    extremes = ops.extremes(labels)
    if extremes[0] >= 0 and not 0 <= ignore_index < num_classes:
        _check_labels(extremes, num_classes)
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
    offset = torch.arange(len(col)) - crow[:-1][row]
    labels = col.new_full((len(per_row), width), -1)
    shares = torch.zeros(len(per_row), width, dtype=dtype)
    labels[row, offset] = col
    shares[row, offset] = target.values().to(dtype)
    return Target(labels, shares, probabilities=True)


def _divides_by_batch(shares: Tensor, target: Target) -> bool:
    """Whether the mean divides by the batch size: with a distribution, or where the shares sum up to it."""
    return target.probabilities or (target.complete and shares is target.shares)


def _reduce_cross_entropy(loss: Tensor, shares: Tensor, target: Target, reduction: str) -> Tensor:
    """Args: each sample's loss ``[B]``; the shares of the target, weighted by class: what they add to the divisor of
    the mean.
    """
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        if _divides_by_batch(shares, target):
            return loss.mean()
        # As in PyTorch, the mean of nothing is NaN and its gradient 0.
        divisor = shares.sum()
        nothing = divisor == 0
        return (loss.sum() / divisor.masked_fill(nothing, 1)).masked_fill(nothing, math.nan)
    raise ValueError(f"{reduction!r} is not a valid value for reduction; wanted 'mean', 'sum' or 'none'")


def _smoothed(loss: Tensor, smooth: Tensor, target: Target, smoothing: float) -> Tensor:
    """Label smoothing; ``smooth`` ``[B]`` is the mean of -log p over all classes."""
    # Ignored samples are no part of a loss over class indices; a distribution has no ignored samples.
    if not target.probabilities:
        smooth = smooth.masked_fill((target.labels < 0).all(1), 0)
    return (1 - smoothing) * loss + smoothing * smooth


def _class_weighted(target: Target, class_weight: Tensor | None) -> Tensor:
    if class_weight is None:
        return target.shares
    return target.shares * class_weight[target.labels.clamp(min=0)]


def _log_weights(active: ActiveSet, correction: str, dtype: torch.dtype) -> Tensor | None:
    """Logarithms of what active rows weigh that are no label of a sample, ``[A]`` or ``[B, A]``; None: 1."""
    if correction == "stratified":
        return active.log_weights().to(dtype)
    if correction == "even":
        return active.even_log_weights().to(dtype)
    return active.present.to(dtype).log() if active.per_sample else None


def _log_weights_of_logits(active: ActiveSet, correction: str, dtype: torch.dtype) -> Tensor | None:
    """The same for each sample: its own labels weigh 1, which is not so of itself with "even" only."""
    log_weights = _log_weights(active, correction, dtype)
    if correction != "even" or log_weights is None:
        return log_weights
    log_weights = log_weights.expand(len(active.positions), -1).clone()
    sample, label = (active.positions >= 0).nonzero(as_tuple=True)
    log_weights[sample, active.positions[sample, label]] = 0
    return log_weights


def active_rows_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    active: ActiveSet,
    target: Target,
    *,
    correction: str,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
    pushed_down: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """:func:`sampled_cross_entropy` of a layer's logits, fused with the layer; without label smoothing.

    Args as there, with the layer's input ``x`` ``[B, in]``, its ``weight`` and ``bias``, an active set that the batch
    shares, and ``pushed_down`` as in :func:`torch_lsh.ops.active_rows_loss`.
    """
    log_weights = _log_weights(active, correction, target.shares.dtype)
    shares = _class_weighted(target, class_weight)
    divisor = None
    if reduction == "sum":
        divisor = 1.0
    elif reduction == "mean" and _divides_by_batch(shares, target):
        divisor = float(len(shares))
    loss = ops.active_rows_loss(
        x, weight, bias, active.rows, log_weights, active.positions, shares, divisor, pushed_down
    )
    return _reduce_cross_entropy(loss, shares, target, reduction) if divisor is None else loss


def sampled_cross_entropy(
    logits: Tensor,
    active: ActiveSet,
    target: Target,
    *,
    correction: str,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy over an active set; with every row active exactly that of PyTorch.

    Args:
        logits: ``[B, A]`` of the active rows, float32 or float64.
        active: the active set; its positions are those of ``target.labels``.
        target: see :func:`as_target`.
        correction: of ``sum(exp(logits))``. ``"stratified"``: by the importance weights, so that it estimates the full
            partition function without bias; ``"even"``: by one weight for all rows but the sample's own labels, which
            weigh 1; ``"none"``.
        class_weight: ``[N]`` or None, as in :func:`torch.nn.functional.cross_entropy`.
        label_smoothing: 0 to 1; the mean over all classes is estimated with the importance weights.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``[B]``).
    """
    log_weights = _log_weights_of_logits(active, correction, logits.dtype)
    shares = _class_weighted(target, class_weight)
    if active.per_sample or (log_weights is not None and log_weights.dim() == 2):
        logits = logits.contiguous()
    loss, _ = ops.sampled_softmax_loss(logits, log_weights, active.positions, shares)
    if label_smoothing > 0:
        adjusted = logits if log_weights is None else logits + log_weights
        weights = active.weights().to(logits.dtype)
        weights = weights / weights.sum(-1, keepdim=True)
        if class_weight is not None:
            weights = weights * class_weight[active.rows.clamp(min=0)]
        smooth = adjusted.logsumexp(1) * weights.sum(-1) - (weights * logits).sum(1)
        loss = _smoothed(loss, smooth, target, label_smoothing)
    return _reduce_cross_entropy(loss, shares, target, reduction)


def sampled_binary_cross_entropy(
    logits: Tensor,
    active: ActiveSet,
    target: Target,
    *,
    correction: str,
    class_weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross entropy over an active set: with correction "stratified" an unbiased estimate of the sum (or mean)
    over all N classes, with "none" the plain one over the active set.

    Args:
        logits: ``[B, A]``.
        active: the active set; its positions are those of ``target.labels``.
        target: labels; their shares are the targets' values.
        correction: see :func:`sampled_cross_entropy`.
        class_weight: ``[N]``: rescales each class.
        pos_weight: ``[N]``: rescales the positive part of each class.
        reduction: ``"mean"`` or ``"sum"``.
    """
    values = torch.zeros_like(logits).scatter_add_(1, active.positions.clamp(min=0), target.shares)
    rows = active.rows.clamp(min=0)
    log_weights = _log_weights_of_logits(active, correction, logits.dtype)
    weight = logits.new_ones(logits.shape[1]) if log_weights is None else log_weights.exp()
    count = weight.expand_as(logits).sum() if correction == "none" else active.num_rows * len(logits)
    if class_weight is not None:
        weight = weight * class_weight[rows]
    loss = F.binary_cross_entropy_with_logits(
        logits, values, weight, pos_weight=None if pos_weight is None else pos_weight[rows], reduction="sum"
    )
    return loss / count if reduction == "mean" else loss


def logit_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """The exact logits in blocks of classes: ``(first class, [B, block])``, some MiB at a time."""
    block = max(1024, BLOCK_ELEMENTS // max(1, len(x)))
    for start in range(0, len(weight), block):
        stop = min(start + block, len(weight))
        yield start, F.linear(x, weight[start:stop], None if bias is None else bias[start:stop])


def exact_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float | Tensor,
    target: Target,
    *,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy over all classes without a ``[B, N]`` tensor; not differentiable.

    Args as in :func:`sampled_cross_entropy`, with the layer's ``x`` ``[B, in]``, ``weight``, ``bias`` and a factor
    ``scale`` of the logits in place of the logits.
    """
    dtype = target.shares.dtype
    log_z = x.new_full((len(x),), -math.inf, dtype=dtype)
    total = x.new_zeros(len(x), dtype=dtype)
    at_labels = x.new_zeros(target.labels.shape, dtype=dtype)
    for start, block in logit_blocks(x, weight, bias):
        logits = block.to(dtype) * scale
        log_z = torch.logaddexp(log_z, logits.logsumexp(1))
        position = target.labels - start
        inside = (position >= 0) & (position < logits.shape[1])
        at_labels = torch.where(inside, logits.gather(1, position.clamp(0, logits.shape[1] - 1)), at_labels)
        if label_smoothing > 0:
            stop = start + logits.shape[1]
            total += logits.sum(1) if class_weight is None else logits @ class_weight[start:stop].to(dtype)
    log_z = log_z.masked_fill(log_z == math.inf, math.nan)  # as in PyTorch's loss
    shares = _class_weighted(target, class_weight)
    # Not a product with the share 0 of padding, which would let the NaN of an ignored sample through.
    loss = (shares * (log_z.unsqueeze(1) - at_labels)).masked_fill(target.labels < 0, 0).sum(1)
    if label_smoothing > 0:
        mass = len(weight) if class_weight is None else class_weight.sum()
        loss = _smoothed(loss, (log_z * mass - total) / len(weight), target, label_smoothing)
    return _reduce_cross_entropy(loss, shares, target, reduction)
