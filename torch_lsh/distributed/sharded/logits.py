"""ShardedLogits: the output of a layer whose rows are spread over processes, computed when its use is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_map

from ...eager import eager
from ...nn.logits.cross_entropy import Options
from ...nn.logits.losses import accurate_dtype, check_class_weight, check_reduction
from ...nn.logits.targets import as_target
from ...nn.paths import RANKED
from .binary_cross_entropy import binary_cross_entropy
from .cross_entropy import cross_entropy
from .owner import ShardOwner
from .ranking import topk
from .samples import Samples

_HANDLERS: dict[Any, Callable[..., Any]] = {}


def _handles(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        _HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


@dataclass(frozen=True, eq=False)
class ShardedLogits:
    """Logits ``[*, out_features]`` of this process's samples, of which no process holds all columns.

    ``F.cross_entropy`` and, with sparse targets, ``F.binary_cross_entropy_with_logits`` are sampled while the layer
    trains, exact in ``eval()`` mode; ``topk``, ``argmax`` and ``max`` are exact. Views that join or split leading
    dimensions stay lazy. Any other function of PyTorch gets :meth:`dense`, with one warning per layer. All of them
    communicate: every process has to call the same.

    To wrappers of modules the logits are a container of the layer's input, which is the one tensor that they hold.

    Logits are those of the parameters with which the layer was called. If these have changed since, computing them is
    an error; rankings are by the new parameters, with one warning per layer.

    Attributes:
        input: ``[*, in_features]``.
        owner: the layer.
        versions: of its parameters, when it was called.
    """

    input: Tensor
    owner: ShardOwner
    versions: tuple[int, ...]

    @classmethod
    def of(cls, input: Tensor, owner: ShardOwner) -> ShardedLogits:
        """The logits of a layer for ``input``, with its parameters as they are now."""
        return cls(input, owner, _versions(owner))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.input.shape[:-1], self.owner.out_features))

    @property
    def dtype(self) -> torch.dtype:
        return self.input.dtype

    @property
    def device(self) -> torch.device:
        return self.input.device

    @property
    def ndim(self) -> int:
        return self.input.ndim

    def dim(self) -> int:
        """The number of dimensions."""
        return self.input.ndim

    def __len__(self) -> int:
        return len(self.input)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def view(self, *shape: Any) -> Any:
        """A view that leaves the last dimension alone; the dense tensor's otherwise."""
        sizes = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
        classes = self.owner.out_features
        lead = math.prod(self.shape[:-1])
        if len(sizes) < 2 or sizes[-1] not in (classes, -1) or (sizes[-1] == -1 and math.prod(sizes[:-1]) != lead):
            return self._announced_dense("view").view(*shape)
        return ShardedLogits(self.input.reshape(*sizes[:-1], self.owner.in_features), self.owner, self.versions)

    reshape = view

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> ShardedLogits:
        """These logits."""
        return self

    def float(self) -> Any:
        """These logits if they are float32, as losses of language models want them."""
        return self if self.dtype is torch.float32 else self._announced_dense("float").float()

    @eager()
    def topk(self, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
        """``torch.topk``: exact, without gradients."""
        if not largest or dim % self.ndim != self.ndim - 1:
            return self._announced_dense("topk").topk(k, dim, largest, sorted)
        if not 1 <= k <= self.owner.out_features:
            raise ValueError(f"k is {k}; wanted 1 to {self.owner.out_features}")
        self.owner.paths.took(RANKED)
        if self.versions != _versions(self.owner):
            self.owner.paths.say("stale")
        values, classes = topk(self.owner, self._flat_input(), k)
        shape = (*self.input.shape[:-1], k)
        return torch.return_types.topk((values.reshape(shape), classes.reshape(shape)))

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """``torch.argmax``: exact."""
        if dim is None or dim % self.ndim != self.ndim - 1:
            return self._announced_dense("argmax").argmax(dim, keepdim)
        classes = self.topk(1).indices
        return classes if keepdim else classes.squeeze(-1)

    @eager()
    def dense(self) -> Tensor:
        """The ``[*, out_features]`` tensor, differentiable. Costs what the whole layer costs."""
        owner, flat = self.owner, self.operand()
        samples, (inputs,), _ = Samples.gather(owner.channel, owner.same_inputs, [flat])
        local = F.linear(samples.attach(flat, inputs), owner.weight, owner.bias)
        return torch.cat(samples.to_owners(local, owner.shards.sizes), 1).reshape(self.shape)

    def operand(self) -> Tensor:
        """The input as ``[B, in_features]``.

        Raises:
            RuntimeError: the parameters changed after the layer was called.
        """
        if self.versions != _versions(self.owner):
            raise RuntimeError(
                "the parameters of the layer were changed (by optimizer.step()?) before these logits were computed; "
                "call logits.dense() before the change to keep the values"
            )
        return self._flat_input()

    def _flat_input(self) -> Tensor:
        return self.input.reshape(-1, self.owner.in_features)

    def _announced_dense(self, name: str) -> Tensor:
        self.owner.paths.dense(name)
        return self.dense()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._announced_dense(name), name)

    def __repr__(self) -> str:
        return f"ShardedLogits(shape={tuple(self.shape)}, dtype={self.dtype}, layer={self.owner})"

    @classmethod
    @eager("results of a sharded layer communicate")
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = getattr(func, "__name__", str(func))
        args, kwargs = tree_map(
            lambda leaf: leaf._announced_dense(name) if isinstance(leaf, ShardedLogits) else leaf,
            (args, kwargs),
            is_leaf=lambda node: isinstance(node, ShardedLogits),
        )
        return func(*args, **kwargs)


def _versions(owner: ShardOwner) -> tuple[int, ...]:
    return tuple([-1 if one.is_inference() else one._version for one in (owner.weight, owner.bias) if one is not None])


def _dense_operator(name: str) -> Callable[..., Any]:
    return lambda logits, *others: getattr(logits._announced_dense(name), name)(*others)


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "matmul", "getitem"):
    setattr(ShardedLogits, f"__{_name}__", _dense_operator(f"__{_name}__"))

register_pytree_node(
    ShardedLogits,
    lambda logits: ([logits.input], (logits.owner, logits.versions)),
    lambda leaves, others: ShardedLogits(next(iter(leaves)), *others),
)


@_handles(F.cross_entropy)
def _cross_entropy(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    logits = input
    if not isinstance(logits, ShardedLogits) or logits.ndim > 2 or size_average is not None or reduce is not None:
        return NotImplemented
    check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; wanted 0 to 1")
    classes, dtype = logits.owner.out_features, accurate_dtype(logits.dtype)
    parsed = as_target(target, logits.shape[:-1], classes, ignore_index, dtype)
    if parsed is None:
        return NotImplemented
    options = Options(check_class_weight(weight, "weight", classes, dtype), label_smoothing, reduction)
    loss = cross_entropy(logits.owner, logits.operand(), parsed, options)
    return (loss.reshape(logits.shape[:-1]) if reduction == "none" else loss).to(logits.dtype)


@_handles(F.binary_cross_entropy_with_logits)
def _binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Any:
    logits = input
    if not isinstance(logits, ShardedLogits) or size_average is not None or reduce is not None:
        return NotImplemented
    check_reduction(reduction)
    classes, dtype = logits.owner.out_features, accurate_dtype(logits.dtype)
    is_indices = isinstance(target, Tensor) and target.dtype is torch.int64 and target.shape != logits.shape
    if not is_indices and not (isinstance(target, Tensor) and target.layout is torch.sparse_csr):
        return NotImplemented
    parsed = as_target(target, logits.shape[:-1], classes, -100, dtype)
    assert parsed is not None  # the target is not dense
    if is_indices:
        parsed = parsed.as_multi_hot()
    if reduction == "none" or (weight is not None and weight.dim() != 1):  # the loss of every class is wanted
        dense = torch.zeros(len(parsed.shares), classes, dtype=dtype, device="cpu")
        dense.scatter_add_(1, parsed.labels.clamp(min=0), parsed.shares)
        dense = dense.reshape(logits.shape).to(logits.dtype)
        values = logits._announced_dense("binary_cross_entropy_with_logits")
        return F.binary_cross_entropy_with_logits(values, dense, weight, reduction=reduction, pos_weight=pos_weight)
    weight = check_class_weight(weight, "weight", classes, dtype)
    pos_weight = check_class_weight(pos_weight, "pos_weight", classes, dtype)
    loss = binary_cross_entropy(logits.owner, logits.operand(), parsed, weight, pos_weight, reduction)
    return loss.to(logits.dtype)


@_handles(torch.topk)
def _topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return input.topk(k, dim, largest, sorted)


@_handles(torch.argmax)
def _argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return input.argmax(dim, keepdim)


@_handles(torch.max)
def _max(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None or dim % input.ndim != input.ndim - 1:
        return NotImplemented
    best = input.topk(1)
    values, classes = (best.values, best.indices) if keepdim else (best.values.squeeze(-1), best.indices.squeeze(-1))
    return torch.return_types.max((values, classes))
