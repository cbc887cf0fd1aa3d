"""SampledLogits: the output of a wide layer, computed when its use is known.

A tensor subclass without storage. ``__torch_function__`` looks a function up in :data:`HANDLERS`: losses and rankings
compute what they need, views and casts stay lazy. Any other function gets the dense logits, exact and differentiable.
Some operations bypass ``__torch_function__`` (the inside of an autograd function, say). For these
``__torch_dispatch__`` computes the dense values, and the autograd node under the tensor takes the dense gradient.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ...eager import eager
from ...ops.gradients import apply_function
from .owner import LogitsOwner
from .recipe import Recipe, run_before_backward
from .steps import Step, followed_by

Handler = Callable[..., Any]

# What computes a function of lazy logits without the dense tensor; NotImplemented stands for "take the dense tensor".
HANDLERS: dict[Any, Handler] = {}


# The same where the lazy logits are not the first argument; these check themselves that they are lazy.
HANDLERS_OF_OTHERS: dict[Any, Handler] = {}


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    """Registers a handler of torch functions; its arguments are theirs, with the lazy logits first."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def handles_others(*functions: Any) -> Callable[[Handler], Handler]:
    """Registers a handler of torch functions whose first argument is not the lazy logits."""

    def register(handler: Handler) -> Handler:
        HANDLERS_OF_OTHERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


class _Attach(torch.autograd.Function):
    """Puts lazy logits into the autograd graph; the backward pass is that of the dense layer."""

    @staticmethod
    def forward(
        ctx: Any, recipe: Recipe, input: Tensor, weight: Tensor, bias: Tensor | None, *step_tensors: Tensor
    ) -> Tensor:
        ctx.recipe = recipe
        ctx.save_for_backward(input, weight, bias, *step_tensors)
        ctx.set_materialize_grads(False)
        return SampledLogits.unattached(recipe)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if grad is None:
            return (None,) * (1 + len(ctx.saved_tensors))
        return gradients_of_dense(ctx, ctx.recipe.compute, grad)


def gradients_of_dense(ctx: Any, compute: Callable[..., Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of ``compute(*operands)`` with the operands that an autograd function of a recipe saved."""
    with torch.enable_grad():
        operands = [
            None if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:])
        ]
        result = compute(*operands)
    wanted = [tensor for tensor in operands if tensor is not None and tensor.requires_grad]
    gradients = iter(torch.autograd.grad(result, wanted, grad))
    return (None, *(next(gradients) if needed else None for needed in ctx.needs_input_grad[1:]))


_attach = super(torch.autograd.Function, _Attach).apply  # without what function transforms need


class _InPlace(torch.autograd.Function):
    """Puts a step on lazy logits themselves, and into their autograd graph."""

    @staticmethod
    def forward(ctx: Any, logits: SampledLogits, step: Step, step_tensor: Tensor | None) -> Tensor:
        ctx.mark_dirty(logits)
        ctx.step, ctx.recipe = step, logits.recipe
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor | None]:
        recipe, by = ctx.recipe, ctx.step.by
        flat = grads[0].movedim(recipe.class_dim, -1).reshape(-1, recipe.owner.out_features)
        of_tensor = by.gradient(flat) if ctx.needs_input_grad[2] else None
        flat = ctx.step.slope(None if by is None else by.at(None), flat)
        return flat.view(*recipe.lead, recipe.owner.out_features).movedim(-1, recipe.class_dim), None, of_tensor


class SampledLogits(Tensor):
    """The lazy logits of an :class:`LSHLinear`; they behave as the dense ``[*, out_features]`` tensor.

    In training mode ``F.cross_entropy``, ``F.log_softmax`` with ``F.nll_loss``, and
    ``F.binary_cross_entropy_with_logits`` compute the active rows only. In ``eval()`` mode they are exact. ``topk``,
    ``argmax`` and ``max`` over classes are always exact and make no dense tensor. Views, casts and scaling stay lazy if
    they leave the class dimension alone. Any other function computes the dense tensor, with one warning per layer.
    An in-place change applies to the dense tensor, which the logits are from then on.

    Logits are those of the parameters with which the layer was called. If these have changed since (by
    ``optimizer.step()``, say), computing the logits is an error. ``topk``, ``argmax`` and ``max`` rank by the new
    parameters instead, with one warning per layer. Call :meth:`dense` before the change to keep the values.

    Attributes:
        recipe: how to compute the logits.
    """

    recipe: Recipe
    _versions: tuple[int, tuple[int, ...]]  # of the recipe's tensors, when the logits were made
    _made_stale = False  # made from stale logits
    _dense: Tensor | None = None
    _dense_version: int
    _best: tuple[Tensor, Tensor] | None = None  # the best values and classes so far asked for, [*lead, k] each
    _sharing: list[weakref.ref[SampledLogits]] | None = None  # these logits and others that share memory in PyTorch
    _outdated = False  # others that share memory were changed in place

    @staticmethod
    def unattached(recipe: Recipe, stale: bool = False) -> SampledLogits:
        """Makes logits outside of the autograd graph."""
        shape = recipe.shape
        strides = None if recipe.class_dim == len(shape) - 1 else recipe.strides
        logits = Tensor._make_wrapper_subclass(
            SampledLogits, shape, strides=strides, dtype=recipe.dtype, device=recipe.input.device
        )
        logits.recipe = recipe
        logits._versions = recipe.versions()
        if stale:
            logits._made_stale = True
        return logits

    @classmethod
    def from_recipe(cls, recipe: Recipe, stale: bool = False) -> SampledLogits:
        """Makes logits inside of the autograd graph if gradients are enabled."""
        if recipe.detached or not torch.is_grad_enabled():
            return cls.unattached(replace(recipe, detached=True), stale)
        step_tensors = recipe.step_tensors if recipe.steps else ()
        logits: SampledLogits = apply_function(_Attach, recipe, recipe.input, recipe.weight, recipe.bias, *step_tensors)
        if stale:
            logits._made_stale = True
        return logits

    @classmethod
    def of(cls, input: Tensor, owner: LogitsOwner, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Makes the logits of a layer with ``weight`` and ``bias`` for ``input`` ``[*, in_features]``.

        For where no function transform is active.
        """
        recipe = Recipe.of(input, owner, weight, bias)
        if recipe.detached:
            return cls.unattached(recipe)
        logits: Tensor = _attach(recipe, input, weight, bias)
        return logits

    def remade(self, **changes: Any) -> SampledLogits:
        """Makes logits with some fields of the recipe changed."""
        return SampledLogits.from_recipe(replace(self.recipe, **changes), self.is_stale())

    def mapped(self, function: Callable[[Tensor], Tensor], **changes: Any) -> Tensor:
        """Makes a view; ``function`` maps tensors ``[*lead, width]`` and leaves the width alone."""
        mapped = SampledLogits.from_recipe(self.recipe.mapped(function, **changes), self.is_stale())
        if _storage(mapped.recipe.input) == _storage(self.recipe.input):  # not where rows were copied
            self.share_memory_with(mapped)
        return mapped

    def share_memory_with(self, view: SampledLogits) -> None:
        """Notes that ``view`` would share memory with these logits, if they were computed."""
        if self._sharing is None:
            self._sharing = [weakref.ref(self)]
        self._sharing.append(weakref.ref(view))
        view._sharing = self._sharing

    def outdate_others(self) -> None:
        """Lets nobody use the logits that would have changed in place together with these."""
        if self._sharing is not None:
            mine = _extent(self.recipe.input)
            for reference in self._sharing:
                other = reference()
                if other is not None and other is not self and _overlap(_extent(other.recipe.input), mine):
                    other._outdated = True

    def _refuse_outdated(self) -> None:
        if self._outdated:
            raise RuntimeError(
                "logits that share memory with these (a view of them, or what they are a view of) were changed in "
                "place, which lazy logits do not see; take logits.dense() before the views, or change a copy of them"
            )

    def stepped(self, step: Step) -> Tensor:
        """Makes logits after one more step."""
        return self.remade(steps=followed_by(self.recipe.steps, step))

    def step_in_place(self, step: Step) -> Tensor:
        """Puts a step on these logits themselves."""
        self.refuse_stale()
        self.outdate_others()
        with torch._C.DisableTorchFunctionSubclass():
            _InPlace.apply(self, step, step.tensor)
        self.recipe = replace(self.recipe, steps=followed_by(self.recipe.steps, step))
        self._versions, self._best = self.recipe.versions(), None
        return self

    def dense(self) -> Tensor:
        """Returns the dense tensor, exactly what ``nn.Linear`` computes.

        Raises:
            RuntimeError: the parameters or the input changed after the layer was called.
        """
        self._refuse_outdated()
        if self._dense is None:
            self.refuse_stale()
            # The context is that in which the layer was called: with or without gradients, and with a version counter.
            with torch.inference_mode(False), torch.set_grad_enabled(not self.recipe.detached):
                self._dense = self._through_function() if self._is_of_function() else self._computed()
                if self.recipe.before_backward and self._dense.requires_grad:
                    run_before_backward(self._dense, self.recipe)
            self._dense_version = self._dense._version
        return self._dense

    def announced_dense(self, name: str, reason: str = "function") -> Tensor:
        """Returns the dense tensor for the function ``name``, with the layer's warning if it is computed now."""
        if self._dense is None:
            self.recipe.owner.paths.dense(name, reason if self.recipe.has_parameters_of_owner() else "parameters")
        return self.dense()

    @property
    def is_computed(self) -> bool:
        """Whether the dense tensor exists."""
        return self._dense is not None

    def keep_best(self, values: Tensor, classes: Tensor) -> None:
        """Keeps the best logits and their classes ``[*lead, k]``: the dense tensor will hold these very values."""
        if self._best is None or self._best[1].shape[-1] < classes.shape[-1]:
            self._best = values, classes

    def _computed(self) -> Tensor:
        logits = self.recipe.dense()
        if self._best is not None:
            # topk and the dense product may round differently. With the values of topk, a filter such as
            # `logits < logits.topk(k).values[..., -1:]` leaves k classes.
            values, classes = (part.movedim(-1, self.recipe.class_dim) for part in self._best)
            with torch.no_grad():
                logits.scatter_(self.recipe.class_dim, classes, values)
        return logits

    def is_lazy(self) -> bool:
        """Whether the recipe, computed by the layer, still gives the logits; otherwise :meth:`dense` does."""
        if self._dense is not None and (self._dense._version != self._dense_version or self.is_stale()):
            return False
        recipe = self.recipe
        return recipe.has_parameters_of_owner() and (not recipe.detached or not self._is_of_function())

    def _is_of_function(self) -> bool:
        """Whether an autograd function with its own backward pass (a checkpoint, say) returned the logits."""
        if not self.recipe.detached:
            return False
        with torch._C.DisableTorchFunctionSubclass():
            return self.requires_grad

    def _through_function(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass(), torch.enable_grad():
            return torch.clone(self)  # __torch_dispatch__ computes the values

    def before_backward(self, hook: Callable[[Tensor], Any]) -> None:
        """Runs ``hook`` with some gradient when the backward pass of what is computed from the logits begins."""
        self.recipe.before_backward.append(hook)
        if self._dense is not None and len(self.recipe.before_backward) == 1 and self._dense.requires_grad:
            run_before_backward(self._dense, self.recipe)

    def note_versions(self) -> None:
        """Takes parameters and input as they are now for those with which the layer was called."""
        self._versions = self.recipe.versions()

    def is_stale(self) -> bool:
        """Whether the parameters changed after the layer was called.

        Raises:
            RuntimeError: the input changed, or logits that share memory with these.
        """
        if self._outdated:
            self._refuse_outdated()
        versions = self.recipe.versions()
        if versions == self._versions:
            return self._made_stale
        if versions[0] != self._versions[0]:
            raise RuntimeError(
                "the input of the layer was changed in place before its logits were computed; call logits.dense() "
                "before the change to keep the values"
            )
        return True

    def refuse_stale(self) -> None:
        """Raises RuntimeError if the parameters or the input changed after the layer was called."""
        if self.is_stale():
            raise RuntimeError(
                "the parameters of the layer were changed (by optimizer.step()?) before these logits were computed; "
                "call logits.dense() before the change to keep the values"
            )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch.Tensor's has no type
        recipe = self.recipe
        return f"SampledLogits(shape={tuple(recipe.shape)}, dtype={recipe.dtype}, layer={recipe.owner})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return cls._outside_of_graph(func, types, args, kwargs)
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        if handler is not None and args and isinstance(args[0], SampledLogits):
            result = handler(*args, **kwargs) if args[0].is_lazy() else NotImplemented
            if result is not NotImplemented:
                return result
        elif handler is not None and isinstance(kwargs.get("input"), SampledLogits):
            others = {key: kwargs[key] for key in kwargs if key != "input"}
            result = handler(kwargs["input"], *args, **others) if kwargs["input"].is_lazy() else NotImplemented
            if result is not NotImplemented:
                return result
        elif func in HANDLERS_OF_OTHERS:
            result = HANDLERS_OF_OTHERS[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in _METADATA or (getattr(func, "__name__", "") == "__get__" and func not in _DATA_ATTRIBUTES):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _HOOKS:
            if args and isinstance(args[0], SampledLogits) and not args[0].recipe.has_parameters_of_owner():
                raise RuntimeError(
                    "the weights of the layer were freed after its forward pass (by FSDP?), before the loss could use "
                    "them; wanted fully_shard(layer, reshard_after_forward=False), or the layer left out: "
                    "fully_shard(model, ignored_params=torch_lsh.distributed.row_parameters(model))"
                )
            raise RuntimeError(
                f"{func.__name__} needs computed logits; call it on logits.dense(), and use that tensor from then on "
                "(tools that hook outputs of modules, such as FlopCounterMode, work in torch.no_grad())"
            )
        name = getattr(func, "__name__", str(func))
        if args and isinstance(args[0], SampledLogits) and _is_in_place(name):
            args[0].outdate_others()
        args, kwargs = tree_map_only(SampledLogits, lambda logits: logits.announced_dense(name), (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    @eager("lazy logits cannot be part of a graph")
    def _outside_of_graph(cls, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return cls.__torch_function__(func, types, args, kwargs)

    def _values(self) -> Tensor:
        """The dense tensor without gradients, for code below autograd."""
        if self._dense is not None:
            return self._dense.detach()
        self.refuse_stale()
        return self._computed().detach()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as an attribute
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(SampledLogits, lambda logits: logits._values(), (args, dict(kwargs or {})))
        return func(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)

    @handles(Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
    def _require_grad(self, requires_grad: bool = True) -> Tensor:
        """Makes a leaf of logits without gradients; it collects the gradient of all logits."""
        with torch._C.DisableTorchFunctionSubclass():
            self.requires_grad_(requires_grad)
            if self.is_leaf:
                self.recipe, self._dense = replace(self.recipe, detached=True), None
        return self


def _is_in_place(name: str) -> bool:
    if name.startswith("__"):
        return name in _IN_PLACE
    return name.endswith("_") and name not in ("requires_grad_", "detach_", "share_memory_")


_IN_PLACE = {"__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"))}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses from the first number of a tensor to the end of its last one."""
    last = sum([(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())])
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


# Functions of shape, dtype and device, which need no values.
_METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.ndimension,
    Tensor.numel,
    Tensor.nelement,
    Tensor.element_size,
    Tensor.stride,
    Tensor.storage_offset,
    Tensor.is_contiguous,
    Tensor.dim_order,
    Tensor.is_same_size,
    Tensor.is_signed,
    Tensor.is_inference,
    Tensor.is_conj,
    Tensor.is_neg,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.get_device,
    Tensor.__len__,
    Tensor.__hash__,
    torch.is_floating_point,
    torch.is_complex,
    torch.is_inference,
    torch.is_conj,
    torch.is_neg,
    torch.is_same_size,
    torch.result_type,
    torch.numel,
    Tensor.grad.__set__,  # type: ignore[union-attr]
}
# Attributes that are tensors made of the values; the others are metadata.
_DATA_ATTRIBUTES = {getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "imag")}
_HOOKS = {Tensor.register_hook, Tensor.retain_grad, Tensor.register_post_accumulate_grad_hook}
