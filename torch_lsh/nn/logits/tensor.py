"""SampledLogits: the output of an LSHLinear, evaluated when it is known what it is needed for.

A tensor subclass without storage. Functions that have a sampled or blocked path (losses, ``topk``, ``argmax``,
``max``) and operations that leave the class dimension alone (views, casts, scaling) are met in
``__torch_function__``; everything else first computes the dense result, exactly and with gradients. Should an operation
get past ``__torch_function__`` (the inside of an autograd function, say), ``__torch_dispatch__`` computes the dense
values and the autograd node under the tensor takes the dense gradient, so that the result is right there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ... import ops
from ...sampling.active_set import ActiveSet
from ...stopwatch import part
from . import losses

if TYPE_CHECKING:
    from ..linear import LSHLinear


@dataclass(frozen=True)
class _Recipe:
    """How to compute logits: ``linear(input) * scale`` in ``dtype``, the class dimension moved to ``class_dim``."""

    input: Tensor  # [*lead, in]
    layer: LSHLinear  # or a QuantizedLinear, which is never in training mode
    dtype: torch.dtype
    product_dtype: torch.dtype  # that of the product, before casts
    class_dim: int  # of the result, non-negative
    scale: float | Tensor = 1.0
    log_softmax: bool = False
    detached: bool = False
    # The layer's parameters when it was called; with torch.func.functional_call it has others later. None: always its.
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def lead(self) -> torch.Size:
        return self.input.shape[:-1]

    @property
    def shape(self) -> torch.Size:
        sizes = list(self.lead)
        sizes.insert(self.class_dim, self.layer.out_features)
        return torch.Size(sizes)

    def autocast(self) -> torch.autocast:
        """The context in which products are those of where the layer was called."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.product_dtype is torch.bfloat16)

    def compute(self, input: Tensor, weight: Tensor, bias: Tensor | None, scale: float | Tensor) -> Tensor:
        with self.autocast():
            logits = F.linear(input, weight, bias)
        logits = logits.to(self.dtype)
        if isinstance(scale, Tensor) or scale != 1.0:
            logits = (logits * scale).to(self.dtype)
        if self.log_softmax:
            logits = F.log_softmax(logits, -1)
        return logits.movedim(-1, self.class_dim)

    def dense(self) -> Tensor:
        weight, bias = (self.layer.weight, self.layer.bias) if self.weight is None else (self.weight, self.bias)
        return self.compute(self.input, weight, bias, self.scale)

    def is_of_layer(self) -> bool:
        """Whether the layer has the parameters that it was called with."""
        return self.weight is None or (self.weight is self.layer.weight and self.bias is self.layer.bias)

    def versions(self) -> tuple[int, tuple[int, ...]]:
        """Versions of the input, and of what else the logits are computed from."""
        others = (self.weight, self.bias, self.scale)
        return _version(self.input), tuple([_version(tensor) for tensor in others if isinstance(tensor, Tensor)])

    def flat_input(self) -> Tensor:
        return self.input if self.input.dim() == 2 else self.input.reshape(-1, self.layer.in_features)

    def sampled(self, x: Tensor, active: ActiveSet, corrected: bool) -> Tensor:
        """The scaled logits of the active rows, in at least float32, so that sums over classes are accurate."""
        with self.autocast():
            logits = self.layer.active_logits(x, active.rows)
        logits = logits.to(_accurate(self.dtype))
        if not (isinstance(self.scale, float) and self.scale == 1.0):
            logits = logits * self.scale
        keep = self.layer.sampler.keeper_of_hardest_rows(active, corrected)
        if keep is not None and logits.requires_grad:
            logits.register_hook(lambda gradient: keep(ops.positive_sums(gradient)))
        return logits

    def in_one_step(self, active: ActiveSet, correction: str) -> bool:
        """Whether :func:`losses.active_rows_cross_entropy` computes what :meth:`sampled` and a loss would."""
        return (
            not active.per_sample
            and (correction != "stratified" or active.inclusion is None or active.inclusion.dim() == 1)
            and isinstance(self.scale, float)
            and self.scale == 1.0
            and _accurate(self.product_dtype) is _accurate(self.dtype)
        )


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # these have none


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Attach(torch.autograd.Function):
    """Puts a SampledLogits into the autograd graph; its backward is that of the dense layer."""

    @staticmethod
    def forward(
        ctx: Any, recipe: _Recipe, input: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
    ) -> Tensor:
        ctx.recipe = recipe
        ctx.save_for_backward(input, weight, bias, scale)
        ctx.set_materialize_grads(False)
        return SampledLogits._make(recipe)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if grad is None:
            return (None,) * 5
        recipe = ctx.recipe
        with torch.enable_grad():
            input, weight, bias, scale = (
                None if tensor is None else tensor.detach().requires_grad_(needed)
                for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:])
            )
            logits = recipe.compute(input, weight, bias, recipe.scale if scale is None else scale)
        wanted = [tensor for tensor in (input, weight, bias, scale) if tensor is not None and tensor.requires_grad]
        gradients = iter(torch.autograd.grad(logits, wanted, grad))
        return (None, *(next(gradients) if needed else None for needed in ctx.needs_input_grad[1:]))


Handler = Callable[..., Any]
_HANDLERS: dict[Any, Handler] = {}


class SampledLogits(Tensor):
    """The logits of an :class:`LSHLinear`, not computed yet; behaves as the dense ``[*, out_features]`` tensor.

    ``F.cross_entropy``, ``F.log_softmax`` with ``F.nll_loss``, and ``F.binary_cross_entropy_with_logits`` compute only
    the active rows while the layer is in training mode, and are exact in ``eval()`` mode. ``topk``, ``argmax`` and
    ``max`` over classes are exact and never make the dense tensor. Views, casts and scaling that leave the class
    dimension alone stay lazy. Anything else computes the dense tensor (with one warning per layer); after an in-place
    change that is what the logits are.

    What is computed after the layer's parameters changed (after ``optimizer.step()``, say) would not be what the layer
    was asked for: that is an error, but for ``topk``, ``argmax`` and ``max``, which rank by the new parameters and say
    so once. ``logits.dense()``, called before, keeps the values.
    """

    _recipe: _Recipe
    _versions: tuple[int, tuple[int, ...]]  # of the recipe
    _made_stale: bool  # made from logits that were stale
    _dense: Tensor | None
    _dense_version: int
    _best: tuple[Tensor, Tensor] | None  # the best values and classes that were asked for: [*lead, k]

    @staticmethod
    def _make(recipe: _Recipe, stale: bool = False) -> SampledLogits:
        logits = Tensor._make_wrapper_subclass(
            SampledLogits, recipe.shape, dtype=recipe.dtype, device=recipe.input.device
        )
        logits._recipe = recipe
        logits._versions = recipe.versions()
        logits._made_stale = stale
        logits._dense = logits._best = None
        return logits

    @classmethod
    def of(cls, input: Tensor, layer: LSHLinear) -> Tensor:
        """The logits of ``layer`` for ``input`` ``[*, in_features]``."""
        dtype = layer.weight.dtype
        if torch.is_autocast_enabled("cpu") and dtype is not torch.float64:
            dtype = torch.get_autocast_dtype("cpu")
        return cls._from(
            _Recipe(input, layer, dtype, dtype, class_dim=input.dim() - 1, weight=layer.weight, bias=layer.bias)
        )

    @classmethod
    def _from(cls, recipe: _Recipe, stale: bool = False) -> Tensor:
        if recipe.detached or not torch.is_grad_enabled():
            return cls._make(replace(recipe, detached=True), stale)
        scale = recipe.scale if isinstance(recipe.scale, Tensor) else None
        logits = _Attach.apply(recipe, recipe.input, recipe.weight, recipe.bias, scale)
        logits._made_stale = stale
        return logits

    def dense(self) -> Tensor:
        """The dense tensor, exactly what ``nn.Linear`` would have given."""
        if self._dense is None:
            self._refuse_stale()
            # As where they were made: gradients, or none, and a version that shows changes.
            with torch.inference_mode(False), torch.set_grad_enabled(not self._recipe.detached):
                self._dense = self._through_function() if self._is_of_function() else self._computed()
            self._dense_version = self._dense._version
        return self._dense

    def _computed(self) -> Tensor:
        logits = self._recipe.dense()
        if self._best is not None:
            # Rounded as topk did, so that `logits < logits.topk(k).values[..., -1:]` is not true of the best k.
            values, classes = (part.movedim(-1, self._recipe.class_dim) for part in self._best)
            with torch.no_grad():
                logits.scatter_(self._recipe.class_dim, classes, values)
        return logits

    def _is_lazy(self) -> bool:
        """Whether the recipe still says what the logits are, and the layer can compute it; else :meth:`dense` says."""
        if self._dense is not None and (self._dense._version != self._dense_version or self._is_stale()):
            return False
        return self._recipe.is_of_layer() and not self._is_of_function()

    def _is_of_function(self) -> bool:
        """Whether an autograd function (a checkpoint, say), which has a backward of its own, returned them."""
        if not self._recipe.detached:
            return False
        with torch._C.DisableTorchFunctionSubclass():
            return self.requires_grad

    def _through_function(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass(), torch.enable_grad():
            return torch.clone(self)  # of the values that __torch_dispatch__ gives

    def _is_stale(self) -> bool:
        """Whether the parameters are not those any more that the logits were to be computed with."""
        (was_input, was), (input, others) = self._versions, self._recipe.versions()
        if input != was_input:
            raise RuntimeError(
                "the input of the layer was changed in place before its logits were computed; call logits.dense() "
                "before the change, which keeps them"
            )
        return self._made_stale or others != was

    def _refuse_stale(self) -> None:
        if self._is_stale():
            raise RuntimeError(
                "the parameters of the layer were changed (by an optimizer's step?) before these logits were computed; "
                "call logits.dense() before the change, which keeps them"
            )

    def _wants_grad(self) -> bool:
        recipe = self._recipe
        if recipe.detached or not torch.is_grad_enabled():
            return False
        tensors = (recipe.input, recipe.weight, recipe.bias, recipe.scale)
        return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch.Tensor's has no type
        recipe = self._recipe
        return f"SampledLogits(shape={tuple(recipe.shape)}, dtype={recipe.dtype}, layer={recipe.layer})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None and args and isinstance(args[0], SampledLogits):
            result = handler(*args, **kwargs) if args[0]._is_lazy() else NotImplemented
            if result is not NotImplemented:
                return result
        elif handler is not None and isinstance(kwargs.get("input"), SampledLogits):
            others = {key: kwargs[key] for key in kwargs if key != "input"}
            result = handler(kwargs["input"], *args, **others) if kwargs["input"]._is_lazy() else NotImplemented
            if result is not NotImplemented:
                return result
        if func in _METADATA or (getattr(func, "__name__", "") == "__get__" and func not in _DATA_ATTRIBUTES):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _HOOKS:
            raise RuntimeError(
                f"{func.__name__} was called on logits that are not computed yet; call it on logits.dense(), which is "
                "an ordinary tensor, and go on with that"
            )
        name = getattr(func, "__name__", str(func))
        args, kwargs = tree_map_only(SampledLogits, lambda logits: logits._announced(name), (args, kwargs))
        return func(*args, **kwargs)

    def _announced(self, name: str) -> Tensor:
        if self._dense is None:
            self._recipe.layer.warn_dense(name)
        return self.dense()

    def _values(self) -> Tensor:
        """The dense tensor without gradients, for where autograd does not see what is computed."""
        if self._dense is not None:
            return self._dense.detach()
        self._refuse_stale()
        return self._computed().detach()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as an attribute
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(SampledLogits, lambda logits: logits._values(), (args, dict(kwargs or {})))
        return func(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)


_METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.ndimension,
    Tensor.numel,
    Tensor.nelement,
    Tensor.element_size,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.get_device,
    Tensor.__len__,
    Tensor.__hash__,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
    Tensor.grad.__set__,  # type: ignore[union-attr]
}
_DATA_ATTRIBUTES = {getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "imag")}
_HOOKS = {Tensor.register_hook, Tensor.retain_grad, Tensor.register_post_accumulate_grad_hook}


def _handles(*functions: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for function in functions:
            _HANDLERS[function] = handler
        return handler

    return register


def _remade(logits: SampledLogits, **changes: Any) -> Tensor:
    return SampledLogits._from(replace(logits._recipe, **changes), logits._is_stale())


# --- operations that leave the class dimension alone ------------------------------------------------------------------


def _dim(dim: int, rank: int) -> int:
    """``dim`` counted from the front."""
    if not -rank <= dim < rank:
        raise IndexError(f"dimension is {dim}; wanted {-rank} to {rank - 1}")
    return dim % rank


def _sizes(shape: tuple[Any, ...]) -> list[int]:
    if len(shape) == 1 and isinstance(shape[0], (tuple, list, torch.Size)):
        shape = tuple(shape[0])
    return [int(size) for size in shape]


@_handles(Tensor.view, Tensor.reshape, torch.reshape)
def _reshape(logits: SampledLogits, *shape: Any, **kwargs: Any) -> Any:
    recipe = logits._recipe
    if kwargs or recipe.class_dim != len(recipe.lead):
        return NotImplemented
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        return NotImplemented
    sizes = _sizes(shape)
    num_classes = recipe.layer.out_features
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        if sizes.count(-1) > 1 or known == 0 or math.prod(recipe.shape) % known:
            return NotImplemented
        sizes[sizes.index(-1)] = math.prod(recipe.shape) // known
    if len(sizes) > 1 and sizes[-1] == 1 != num_classes:
        remade = _reshape(logits, sizes[:-1])
        return remade if remade is NotImplemented else _unsqueeze(remade, -1)
    if not sizes or sizes[-1] != num_classes or math.prod(sizes[:-1]) != math.prod(recipe.lead):
        return NotImplemented
    return _remade(logits, input=recipe.input.reshape(*sizes[:-1], recipe.layer.in_features), class_dim=len(sizes) - 1)


@_handles(Tensor.view_as, Tensor.reshape_as)
def _reshape_as(logits: SampledLogits, other: Tensor) -> Any:
    return _reshape(logits, other.shape)


@_handles(Tensor.flatten, torch.flatten)
def _flatten(logits: SampledLogits, start_dim: int = 0, end_dim: int = -1) -> Any:
    shape = logits._recipe.shape
    start, end = _dim(start_dim, len(shape)), _dim(end_dim, len(shape))
    if start > end:
        return NotImplemented
    return _reshape(logits, [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]])


@_handles(Tensor.unsqueeze, torch.unsqueeze)
def _unsqueeze(logits: SampledLogits, dim: int) -> Any:
    recipe = logits._recipe
    dim = _dim(dim, len(recipe.shape) + 1)
    if dim > recipe.class_dim:
        return _remade(logits, input=recipe.input.unsqueeze(dim - 1))
    return _remade(logits, input=recipe.input.unsqueeze(dim), class_dim=recipe.class_dim + 1)


@_handles(Tensor.squeeze, torch.squeeze)
def _squeeze(logits: SampledLogits, dim: Any = None) -> Any:
    recipe = logits._recipe
    if not isinstance(dim, int):
        return NotImplemented
    dim = _dim(dim, len(recipe.shape))
    if dim == recipe.class_dim:
        return NotImplemented if recipe.layer.out_features == 1 else logits
    before = dim < recipe.class_dim
    lead_dim = dim if before else dim - 1
    if recipe.lead[lead_dim] != 1:
        return logits
    return _remade(logits, input=recipe.input.squeeze(lead_dim), class_dim=recipe.class_dim - before)


@_handles(Tensor.permute, torch.permute)
def _permute(logits: SampledLogits, *dims: Any) -> Any:
    recipe = logits._recipe
    rank = len(recipe.shape)
    order = [_dim(dim, rank) for dim in _sizes(dims)]
    if sorted(order) != list(range(rank)):
        return NotImplemented
    class_dim = order.index(recipe.class_dim)
    lead_order = [dim - (dim > recipe.class_dim) for dim in order if dim != recipe.class_dim]
    return _remade(logits, input=recipe.input.permute(*lead_order, rank - 1), class_dim=class_dim)


@_handles(Tensor.transpose, torch.transpose, Tensor.swapaxes, torch.swapaxes)
def _transpose(logits: SampledLogits, dim0: int, dim1: int) -> Any:
    order = list(range(len(logits._recipe.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(logits, order)


@_handles(Tensor.mT.__get__)  # type: ignore[attr-defined]
def _matrix_transpose(logits: SampledLogits, *_: Any) -> Any:
    return _transpose(logits, -2, -1)


@_handles(Tensor.movedim, torch.movedim)
def _movedim(logits: SampledLogits, source: Any, destination: Any) -> Any:
    if not isinstance(source, int) or not isinstance(destination, int):
        return NotImplemented
    rank = len(logits._recipe.shape)
    order = [dim for dim in range(rank) if dim != _dim(source, rank)]
    order.insert(_dim(destination, rank), _dim(source, rank))
    return _permute(logits, order)


def _dims_consumed(index: Any) -> int:
    if index is None:
        return 0
    if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
        return index.dim()
    return 1


@_handles(Tensor.__getitem__)
def _getitem(logits: SampledLogits, index: Any) -> Any:
    recipe = logits._recipe
    rank = len(recipe.shape)
    items = list(index) if isinstance(index, tuple) else [index]
    if recipe.class_dim != rank - 1 or any(isinstance(item, (list, bool)) for item in items):
        return NotImplemented
    free = rank - sum(_dims_consumed(item) for item in items if item is not Ellipsis)
    ellipses = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(ellipses) > 1 or free < 0:
        return NotImplemented
    if ellipses:
        items[ellipses[0] : ellipses[0] + 1] = [slice(None)] * free
    else:
        items += [slice(None)] * free
    if not items or not isinstance(items[-1], slice) or items[-1] != slice(None):
        return NotImplemented
    input = recipe.input[tuple(items)]
    return _remade(logits, input=input, class_dim=input.dim() - 1)


@_handles(Tensor.contiguous, Tensor.cpu)
def _same(logits: SampledLogits, *_: Any, **__: Any) -> Any:
    return logits


@_handles(Tensor.clone, torch.clone)
def _clone(logits: SampledLogits, **_: Any) -> Any:
    return _remade(logits)


@_handles(Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
def _detach(logits: SampledLogits, *_: Any) -> Any:
    recipe = logits._recipe
    scale = recipe.scale.detach() if isinstance(recipe.scale, Tensor) else recipe.scale
    return _remade(logits, input=recipe.input.detach(), scale=scale, detached=True)


def _like(function: Any) -> Handler:
    """``function`` of a tensor that asks for shape and dtype only."""

    def handler(logits: SampledLogits, *args: Any, **kwargs: Any) -> Any:
        recipe = logits._recipe
        return function(torch.empty((), dtype=recipe.dtype).expand(recipe.shape), *args, **kwargs)

    return handler


for _name in ("zeros", "ones", "empty", "full", "rand", "randn"):
    _function = getattr(torch, f"{_name}_like")
    _HANDLERS[_function] = _like(_function)
for _name in ("zeros", "ones", "empty", "full", "tensor"):
    _function = getattr(Tensor, f"new_{_name}")
    _HANDLERS[_function] = _like(_function)


@_handles(Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
def _require_grad(logits: SampledLogits, requires_grad: bool = True) -> Tensor:
    """Makes a leaf of logits without gradients, which collects the gradient of all of them."""
    with torch._C.DisableTorchFunctionSubclass():
        logits.requires_grad_(requires_grad)
        if logits.is_leaf:
            logits._recipe, logits._dense = replace(logits._recipe, detached=True), None
    return logits


def _cast(logits: SampledLogits, dtype: torch.dtype) -> Any:
    if logits._recipe.log_softmax or not dtype.is_floating_point:
        return NotImplemented
    return logits if dtype is logits._recipe.dtype else _remade(logits, dtype=dtype)


@_handles(Tensor.float)
def _float(logits: SampledLogits, **_: Any) -> Any:
    return _cast(logits, torch.float32)


@_handles(Tensor.double)
def _double(logits: SampledLogits, **_: Any) -> Any:
    return _cast(logits, torch.float64)


@_handles(Tensor.bfloat16)
def _bfloat16(logits: SampledLogits, **_: Any) -> Any:
    return _cast(logits, torch.bfloat16)


@_handles(Tensor.half)
def _half(logits: SampledLogits, **_: Any) -> Any:
    return _cast(logits, torch.float16)


@_handles(Tensor.to, Tensor.type, Tensor.type_as)
def _to(logits: SampledLogits, *args: Any, **kwargs: Any) -> Any:
    dtype: torch.dtype | None = None
    if not (args or kwargs):
        return NotImplemented
    copy = kwargs.get("copy") or [argument for argument in args if isinstance(argument, bool)][1:] == [True]
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, Tensor):
            dtype = argument.dtype
            if argument.device.type != "cpu":
                return NotImplemented
        elif isinstance(argument, (str, torch.device)):
            if not str(argument).startswith("cpu"):
                return NotImplemented
        elif not isinstance(argument, bool) and argument is not None and not isinstance(argument, torch.memory_format):
            return NotImplemented
    result = logits if dtype is None else _cast(logits, dtype)
    return _clone(logits) if copy and result is logits else result


def _is_scalar(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and value.is_floating_point() and value.device.type == "cpu"
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@_handles(Tensor.mul, torch.mul, torch.multiply, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
def _mul(logits: SampledLogits, other: Any, **kwargs: Any) -> Any:
    if kwargs or not _is_scalar(other) or logits._recipe.log_softmax:
        return NotImplemented
    return _remade(logits, scale=logits._recipe.scale * other)


@_handles(Tensor.div, torch.div, torch.true_divide, Tensor.true_divide, torch.divide, Tensor.divide, Tensor.__truediv__)
def _div(logits: SampledLogits, other: Any, **kwargs: Any) -> Any:
    if kwargs or not _is_scalar(other) or logits._recipe.log_softmax or (not isinstance(other, Tensor) and other == 0):
        return NotImplemented
    return _remade(logits, scale=logits._recipe.scale / other)


# --- losses -----------------------------------------------------------------------------------------------------------


def _loss_dtype(recipe: _Recipe) -> torch.dtype:
    """Autocast computes losses in float32; otherwise a loss has the dtype of the logits."""
    return torch.float32 if torch.is_autocast_enabled("cpu") and recipe.dtype is not torch.float64 else recipe.dtype


def _finish(loss: Tensor, recipe: _Recipe, reduction: str) -> Tensor:
    if reduction == "none":
        loss = loss.reshape(recipe.lead)
    return loss.to(_loss_dtype(recipe))


def _class_dim_of_loss(recipe: _Recipe) -> bool:
    """Whether the class dimension is where PyTorch's losses look for it: second, or the only one."""
    return recipe.class_dim == (1 if len(recipe.shape) > 1 else 0)


def _correction(recipe: _Recipe, several_labels: bool) -> str:
    correction = recipe.layer.sampler.config.correction
    if correction == "auto":
        return "even" if several_labels else "stratified"
    return correction


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction!r} is not a valid value for reduction; wanted 'mean', 'sum' or 'none'")


def _check_class_weight(weight: Tensor | None, name: str, num_classes: int, dtype: torch.dtype) -> Tensor | None:
    if weight is None:
        return None
    if weight.shape != (num_classes,):
        raise ValueError(f"{name} has shape {tuple(weight.shape)}; wanted {(num_classes,)}")
    if weight.device.type != "cpu":
        raise RuntimeError(f"{name} is on {weight.device}; wanted cpu, the device of the logits")
    return weight.to(dtype)


def _dense_if_differentiated(logits: SampledLogits) -> bool:
    """Exact losses are computed in blocks, which has no backward; with gradients the dense path is taken."""
    return logits._wants_grad()


@_handles(F.cross_entropy)
def _cross_entropy(
    logits: SampledLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    recipe = logits._recipe
    if size_average is not None or reduce is not None or recipe.log_softmax or not _class_dim_of_loss(recipe):
        return NotImplemented
    _check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; wanted 0 to 1")
    logits._refuse_stale()
    layer = recipe.layer
    dtype = _accurate(recipe.dtype)
    parsed = losses.as_target(target, recipe.lead, layer.out_features, ignore_index, dtype)
    if parsed is None:
        return NotImplemented
    weight = _check_class_weight(weight, "weight", layer.out_features, dtype)
    x = recipe.flat_input()
    if layer.training:
        active = layer.sampler.draw(layer.weight, layer.bias, x.detach(), parsed.labels)
        with (
            part(layer.sampler.stopwatch, "loss"),
            torch.set_grad_enabled(torch.is_grad_enabled() and not recipe.detached),
        ):
            correction = _correction(recipe, parsed.several)
            corrected = correction == "stratified"
            if label_smoothing == 0 and recipe.in_one_step(active, correction):
                loss = losses.active_rows_cross_entropy(
                    x.to(recipe.product_dtype),
                    layer.weight,
                    layer.bias,
                    active,
                    parsed,
                    correction=correction,
                    class_weight=weight,
                    reduction=reduction,
                    pushed_down=layer.sampler.keeper_of_hardest_rows(active, corrected),
                )
            else:
                loss = losses.sampled_cross_entropy(
                    recipe.sampled(x, active, corrected),
                    active,
                    parsed,
                    correction=correction,
                    class_weight=weight,
                    label_smoothing=label_smoothing,
                    reduction=reduction,
                )
    elif _dense_if_differentiated(logits):
        everything = torch.arange(layer.out_features)
        active = ActiveSet(
            everything, torch.zeros_like(everything, dtype=torch.bool), parsed.labels, layer.out_features
        )
        with recipe.autocast():
            product = F.linear(x, layer.weight, layer.bias)
        loss = losses.sampled_cross_entropy(
            product.to(dtype) * recipe.scale,
            active,
            parsed,
            correction="none",
            class_weight=weight,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
    else:
        with torch.no_grad(), recipe.autocast():
            loss = losses.exact_cross_entropy(
                x,
                layer.weight,
                layer.bias,
                recipe.scale,
                parsed,
                class_weight=weight,
                label_smoothing=label_smoothing,
                reduction=reduction,
            )
    return _finish(loss, recipe, reduction)


@_handles(F.log_softmax, torch.log_softmax, Tensor.log_softmax)
def _log_softmax(
    logits: SampledLogits, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Any:
    recipe = logits._recipe
    if dim is None or recipe.log_softmax or _dim(dim, len(recipe.shape)) != recipe.class_dim:
        return NotImplemented
    return _remade(logits, log_softmax=True, dtype=dtype or _loss_dtype(recipe))


@_handles(F.nll_loss)
def _nll_loss(
    logits: SampledLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    recipe = logits._recipe
    if not recipe.log_softmax or not isinstance(target, Tensor) or target.shape != recipe.lead:
        return NotImplemented
    unnormalised = SampledLogits._make(replace(recipe, log_softmax=False), logits._is_stale())
    return _cross_entropy(unnormalised, target, weight, size_average, ignore_index, reduce, reduction)


@_handles(F.binary_cross_entropy_with_logits)
def _binary_cross_entropy(
    logits: SampledLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Any:
    recipe = logits._recipe
    layer = recipe.layer
    if size_average is not None or reduce is not None or recipe.log_softmax:
        return NotImplemented
    if recipe.class_dim != len(recipe.lead):
        return NotImplemented
    _check_reduction(reduction)
    logits._refuse_stale()
    dtype = _accurate(recipe.dtype)
    is_sparse = isinstance(target, Tensor) and target.layout is torch.sparse_csr
    is_indices = isinstance(target, Tensor) and target.dtype is torch.int64 and target.shape != recipe.shape
    if not (is_sparse or is_indices):
        return NotImplemented
    if reduction == "none" or not layer.training or (weight is not None and weight.dim() != 1):
        # The dense result is what is asked for, or an exact value.
        with torch.no_grad():
            multi_hot = target.to_dense() if is_sparse else _multi_hot(target, recipe)
        return F.binary_cross_entropy_with_logits(
            logits._announced("binary_cross_entropy_with_logits"),
            multi_hot.reshape(recipe.shape).to(recipe.dtype),
            weight,
            reduction=reduction,
            pos_weight=pos_weight,
        )
    parsed = losses.as_target(target, recipe.lead, layer.out_features, -100, dtype)
    assert parsed is not None
    if is_indices:
        parsed = replace(parsed, shares=(parsed.labels >= 0).to(dtype))  # each label is a 1 of the multi-hot target
    weight = _check_class_weight(weight, "weight", layer.out_features, dtype)
    pos_weight = _check_class_weight(pos_weight, "pos_weight", layer.out_features, dtype)
    x = recipe.flat_input()
    active = layer.sampler.draw(layer.weight, layer.bias, x.detach(), parsed.labels)
    with part(layer.sampler.stopwatch, "loss"), torch.set_grad_enabled(torch.is_grad_enabled() and not recipe.detached):
        correction = _correction(recipe, several_labels=False)
        loss = losses.sampled_binary_cross_entropy(
            recipe.sampled(x, active, correction == "stratified"),
            active,
            parsed,
            correction=correction,
            class_weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
        )
    return _finish(loss, recipe, reduction)


def _multi_hot(target: Tensor, recipe: _Recipe) -> Tensor:
    parsed = losses.as_target(target, recipe.lead, recipe.layer.out_features, -100, recipe.dtype)
    assert parsed is not None
    values = (parsed.labels >= 0).to(recipe.dtype)
    dense = torch.zeros(len(values), recipe.layer.out_features, dtype=recipe.dtype)
    return dense.scatter_reduce_(1, parsed.labels.clamp(min=0), values, "amax")


# --- best classes -----------------------------------------------------------------------------------------------------


def _ranks_by_logits(recipe: _Recipe) -> bool:
    """Whether larger logits of the layer mean larger results."""
    return float(recipe.scale) > 0


def _best(logits: SampledLogits, k: int) -> tuple[Tensor, Tensor] | None:
    """Exact best ``k`` classes ``[*lead, k]``; None where the order of the logits is not that of the layer, and where
    all values are there already.
    """
    recipe = logits._recipe
    layer = recipe.layer
    if logits._dense is not None or not _ranks_by_logits(recipe) or recipe.log_softmax:
        return None
    if logits._is_stale():
        layer.warn_stale()
    x = recipe.flat_input()
    values, classes = layer.largest_logits(x, k)
    if logits._wants_grad():
        with recipe.autocast():
            values = layer.active_logits(x, classes)
    values = (values.to(recipe.dtype) * recipe.scale).to(recipe.dtype)
    best = values.reshape(*recipe.lead, k), classes.reshape(*recipe.lead, k)
    if logits._best is None or logits._best[1].shape[-1] < k:
        logits._best = best
    return best


@_handles(torch.topk, Tensor.topk)
def _topk(
    logits: SampledLogits, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, **kwargs: Any
) -> Any:
    recipe = logits._recipe
    if kwargs or not largest or _dim(dim, len(recipe.shape)) != recipe.class_dim:
        return NotImplemented
    if not 0 <= k <= recipe.layer.out_features:
        raise ValueError(f"k is {k}; wanted 0 to {recipe.layer.out_features}")
    best = _best(logits, k) if k > 0 else None
    if best is None:
        return NotImplemented
    values, classes = (part.movedim(-1, recipe.class_dim) for part in best)
    return torch.return_types.topk((values, classes))


@_handles(torch.argmax, Tensor.argmax)
def _argmax(logits: SampledLogits, dim: int | None = None, keepdim: bool = False) -> Any:
    recipe = logits._recipe
    if dim is None or _dim(dim, len(recipe.shape)) != recipe.class_dim:
        return NotImplemented
    best = _best(logits, 1)
    if best is None:
        return NotImplemented
    classes = best[1].movedim(-1, recipe.class_dim)
    return classes if keepdim else classes.squeeze(recipe.class_dim)


@_handles(torch.max, Tensor.max)
def _max(logits: SampledLogits, *args: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    recipe = logits._recipe
    if len(args) in (1, 2) and dim is None and isinstance(args[0], int):
        dim, keepdim = args[0], (bool(args[1]) if len(args) == 2 else keepdim)
    elif args:
        return NotImplemented
    if dim is None or _dim(dim, len(recipe.shape)) != recipe.class_dim:
        return NotImplemented
    best = _best(logits, 1)
    if best is None:
        return NotImplemented
    values, classes = (part.movedim(-1, recipe.class_dim) for part in best)
    if not keepdim:
        values, classes = values.squeeze(recipe.class_dim), classes.squeeze(recipe.class_dim)
    return torch.return_types.max((values, classes))


@_handles(torch.amax, Tensor.amax)
def _amax(logits: SampledLogits, dim: Any = (), keepdim: bool = False) -> Any:
    if not isinstance(dim, int):
        return NotImplemented
    result = _max(logits, dim, keepdim)
    return result if result is NotImplemented else result.values
