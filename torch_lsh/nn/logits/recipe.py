"""Recipe: how to compute logits that have not been computed yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ...row_sparse.changed_rows import version_of
from .owner import LogitsOwner
from .steps import Operand, Rows, Step

# The largest block of logits in exact evaluation: 4 MiB in float32, which caches hold and malloc gives again.
BLOCK_ELEMENTS = 1 << 20


@dataclass(eq=False, slots=True)  # not frozen, as that takes microseconds to make
class Recipe:
    """Logits are ``linear(input)`` in ``dtype`` after some steps, with the class dimension moved to ``class_dim``.

    Attributes:
        input: ``[*lead, in_features]``.
        owner: the layer.
        dtype: of the logits.
        product_dtype: of the matrix product, before casts.
        class_dim: position of the class dimension in the result; non-negative.
        steps: what was done to every logit.
        log_softmax: whether the result is the logarithm of their softmax.
        exponential: whether the result is the exponential of that: the softmax.
        factor: multiplies the result after the softmax.
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
    steps: tuple[Step, ...] = ()
    log_softmax: bool = False
    exponential: bool = False
    factor: float = 1.0
    detached: bool = False
    weight: Tensor | None = None
    bias: Tensor | None = None
    data_parallel: DistributedDataParallel | None = None
    before_backward: list[Callable[[Tensor], Any]] = field(default_factory=list)

    @classmethod
    def of(cls, input: Tensor, owner: LogitsOwner, weight: Tensor, bias: Tensor | None) -> Recipe:
        """The recipe of a layer with ``weight`` and ``bias`` that is called now, for ``input`` ``[*, in_features]``."""
        dtype = weight.dtype
        if torch.is_autocast_enabled("cpu") and dtype is not torch.float64:
            dtype = torch.get_autocast_dtype("cpu")
        return cls(
            input,
            owner,
            dtype,
            dtype,
            input.dim() - 1,
            detached=not torch.is_grad_enabled(),
            weight=weight,
            bias=bias,
            data_parallel=DistributedDataParallel._active_ddp_module,
        )

    @property
    def lead(self) -> torch.Size:
        """The shape without the class dimension."""
        return self.input.shape[:-1]

    @property
    def shape(self) -> torch.Size:
        sizes, at = self.input.shape[:-1], self.class_dim
        return torch.Size((*sizes[:at], self.owner.out_features, *sizes[at:]))

    @property
    def strides(self) -> tuple[int, ...]:
        """Those of the dense tensor: contiguous but for the place of the class dimension."""
        strides, size = [1], self.owner.out_features
        for length in reversed(self.lead):
            strides.insert(0, size)
            size *= max(1, length)
        strides.insert(self.class_dim, strides.pop())
        return tuple(strides)

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

    def operand(self, value: Any) -> Operand | None:
        """``value`` as the operand of a step; None if it has no such form or changes the dtype."""
        operand = Operand.of(value, self.shape, self.class_dim)
        if operand is not None and isinstance(value, Tensor) and value.dtype is not torch.bool:
            like = torch.empty((1,) * self.rank, dtype=self.dtype, device="cpu")
            return operand if torch.result_type(like, value) is self.dtype else None
        return operand

    def mapped(self, function: Callable[[Tensor], Tensor], **changes: Any) -> Recipe:
        """The recipe of a view; ``function`` maps tensors ``[*lead, width]`` and leaves the width alone."""
        steps = tuple([step.mapped(function) for step in self.steps])
        return replace(self, input=function(self.input), steps=steps, **changes)

    # --- tensors ---

    @property
    def step_tensors(self) -> list[Tensor]:
        """The tensors among the operands of the steps."""
        return [tensor for step in self.steps if (tensor := step.tensor) is not None]

    def with_step_tensors(self, tensors: Iterable[Tensor]) -> Recipe:
        """The recipe with other tensors in the place of :attr:`step_tensors`."""
        others = iter(tensors)
        return replace(
            self, steps=tuple([step if step.tensor is None else step.with_tensor(next(others)) for step in self.steps])
        )

    def versions(self) -> tuple[int, tuple[int, ...]]:
        """Returns the version counter of the input, and those of the other tensors that go into the logits."""
        weight, bias = self.weight, self.bias
        if weight is not None and bias is not None and not self.steps:
            try:
                return self.input._version, (weight._version, bias._version)
            except RuntimeError:  # one is an inference tensor
                pass
        others = (weight, bias, *self.step_tensors)
        return version_of(self.input), tuple([version_of(tensor) for tensor in others if tensor is not None])

    def has_parameters_of_owner(self) -> bool:
        """Whether the layer still has the parameters with which it was called."""
        if self.weight is None:
            return True
        weight, bias = self.owner.weight_and_bias()
        return self.weight is weight and self.bias is bias

    def wants_grad(self) -> bool:
        """Whether what is computed by the recipe now has a gradient."""
        if self.detached or not torch.is_grad_enabled():
            return False
        tensors = (self.input, self.weight, self.bias, *self.step_tensors)
        return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)

    def flat_input(self) -> Tensor:
        """The input as ``[B, in_features]``."""
        return self.input if self.input.dim() == 2 else self.input.reshape(-1, self.owner.in_features)

    # --- values ---

    def autocast(self) -> torch.autocast:
        """Restores the autocast state in which the layer was called."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.product_dtype is torch.bfloat16)

    def transform(self, logits: Tensor, rows: Rows = None) -> Tensor:
        """Applies the steps to flat logits ``[B, A]`` of ``rows``."""
        for step in self.steps:
            logits = step.apply(logits, None if step.by is None else step.by.at(rows))
        return logits

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields the logits after the steps in blocks of classes ``[B, block]``, in at least float32; no gradients."""
        x, (weight, bias) = self.flat_input(), self.owner.weight_and_bias()
        dtype = torch.promote_types(self.dtype, torch.float32)
        size = max(1024, BLOCK_ELEMENTS // max(1, len(x)))
        for start in range(0, len(weight), size):
            rows = slice(start, min(start + size, len(weight)))
            with torch.no_grad(), self.autocast():
                block = F.linear(x, weight[rows], None if bias is None else bias[rows])
                block = self.transform(block.to(dtype), rows)
            yield rows, block

    def log_partition(self) -> Tensor:
        """``logsumexp`` over all classes after the steps, ``[B]``; no gradients."""
        return torch.stack([block.logsumexp(1) for _, block in self.blocks()]).logsumexp(0)

    def compute(self, input: Tensor, weight: Tensor, bias: Tensor | None, *step_tensors: Tensor) -> Tensor:
        """Computes all logits from these operands in place of the recipe's own; of the steps either all or none."""
        if step_tensors:
            return self.with_step_tensors(step_tensors).compute(input, weight, bias)
        with self.autocast():
            logits = F.linear(input, weight, bias)
        logits = logits.to(self.dtype)
        if self.steps:
            logits = self.transform(logits.flatten(0, -2) if logits.dim() > 1 else logits.unsqueeze(0))
            logits = logits.to(self.dtype).view(*self.lead, self.owner.out_features)
        if self.log_softmax:
            logits = F.softmax(logits, -1) if self.exponential else F.log_softmax(logits, -1)
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits.movedim(-1, self.class_dim)

    def dense(self) -> Tensor:
        """Computes all logits."""
        weight, bias = self.owner.weight_and_bias() if self.weight is None else (self.weight, self.bias)
        return self.compute(self.input, weight, bias)


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
