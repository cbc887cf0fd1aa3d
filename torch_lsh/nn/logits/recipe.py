"""Recipe: how to compute logits that have not been computed yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .owner import LogitsOwner


@dataclass(frozen=True)
class Recipe:
    """Logits are ``linear(input) * scale`` in ``dtype``, with the class dimension moved to ``class_dim``.

    Attributes:
        input: ``[*lead, in_features]``.
        owner: the layer.
        dtype: of the logits.
        product_dtype: of the matrix product, before casts.
        class_dim: position of the class dimension in the result; non-negative.
        scale: factor of the logits.
        log_softmax: whether the result is the logarithm of their softmax.
        detached: whether the logits have no gradient.
        weight: the layer's weight when it was called, which ``torch.func.functional_call`` replaces for the call alone;
            None: the weight that the layer has when the logits are computed.
        bias: the layer's bias when it was called.
        data_parallel: the ``DistributedDataParallel`` inside which the layer was called.
        before_backward: what runs at the start of the backward pass; takes a gradient.
    """

    input: Tensor
    owner: LogitsOwner
    dtype: torch.dtype
    product_dtype: torch.dtype
    class_dim: int
    scale: float | Tensor = 1.0
    log_softmax: bool = False
    detached: bool = False
    weight: Tensor | None = None
    bias: Tensor | None = None
    data_parallel: DistributedDataParallel | None = None
    before_backward: list[Callable[[Tensor], Any]] = field(default_factory=list)

    @property
    def lead(self) -> torch.Size:
        """The shape without the class dimension."""
        return self.input.shape[:-1]

    @property
    def shape(self) -> torch.Size:
        sizes = list(self.lead)
        sizes.insert(self.class_dim, self.owner.out_features)
        return torch.Size(sizes)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return self.input.dim()

    @property
    def classes_last(self) -> bool:
        return self.class_dim == self.rank - 1

    def is_class_dim(self, dim: int) -> bool:
        """Whether ``dim``, which may be negative, is the class dimension.

        Raises:
            IndexError: there is no such dimension.
        """
        return dim_from_front(dim, self.rank) == self.class_dim

    @property
    def is_scaled(self) -> bool:
        return isinstance(self.scale, Tensor) or self.scale != 1.0

    def autocast(self) -> torch.autocast:
        """Restores the autocast state in which the layer was called."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.product_dtype is torch.bfloat16)

    def compute(self, input: Tensor, weight: Tensor, bias: Tensor | None, scale: float | Tensor) -> Tensor:
        """Computes all logits from these operands in place of the recipe's own."""
        with self.autocast():
            logits = F.linear(input, weight, bias)
        logits = logits.to(self.dtype)
        if self.is_scaled:
            logits = (logits * scale).to(self.dtype)
        if self.log_softmax:
            logits = F.log_softmax(logits, -1)
        return logits.movedim(-1, self.class_dim)

    def dense(self) -> Tensor:
        """Computes all logits."""
        weight, bias = (self.owner.weight, self.owner.bias) if self.weight is None else (self.weight, self.bias)
        return self.compute(self.input, weight, bias, self.scale)

    def has_parameters_of_owner(self) -> bool:
        """Whether the layer still has the parameters with which it was called."""
        return self.weight is None or (self.weight is self.owner.weight and self.bias is self.owner.bias)

    def versions(self) -> tuple[int, tuple[int, ...]]:
        """Returns the version counter of the input, and those of the other tensors that go into the logits."""
        others = (self.weight, self.bias, self.scale)
        return _version(self.input), tuple([_version(tensor) for tensor in others if isinstance(tensor, Tensor)])

    def flat_input(self) -> Tensor:
        """The input as ``[B, in_features]``."""
        return self.input if self.input.dim() == 2 else self.input.reshape(-1, self.owner.in_features)


def run_before_backward(result: Tensor, recipe: Recipe) -> None:
    """Runs what waits in ``recipe.before_backward`` when the gradient of ``result`` arrives."""

    def run(gradient: Tensor) -> None:
        for hook in recipe.before_backward:
            hook(gradient)

    result.register_hook(run)


def dim_from_front(dim: int, rank: int) -> int:
    """Returns the non-negative form of a dimension of a tensor with ``rank`` dimensions."""
    if not -rank <= dim < rank:
        raise IndexError(f"dim is {dim}; wanted {-rank} to {rank - 1}")
    return dim % rank


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # inference tensors have no version counter
