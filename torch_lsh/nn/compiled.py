"""The loss of a wide layer as one operator of a compiled graph.

A training step of a wide layer draws rows, follows the weights with its tables and delivers row-sparse gradients; no
graph of tensors can hold that. In a graph of ``torch.compile`` one operator stands for layer and loss. When it runs,
it takes the eager step on a leaf that shares the memory of the input, and keeps the autograd graph of that step. Its
backward operator runs that graph: the gradients of weight and bias reach the Parameters as they do in an eager step
(row-sparse, through hooks, through optimizers with ``in_backward=True``), and the gradient of the input goes back into
the compiled graph.

Both operators have an ordered effect, so that no compiler drops, repeats, merges or exchanges them: the random stream
moves once per call, and gradients arrive although the graph has no use for them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library.effects import EffectType

_library = torch.library.Library("torch_lsh_nn", "DEF")  # operators go when this object does


class Loss(NamedTuple):
    """The arguments of a cross entropy beside operands and target."""

    ignore_index: int
    reduction: str
    label_smoothing: float


class _Step(bytearray):
    """A number, and the autograd graph of an eager step.

    The graph must live as long as a compiled backward pass may ask for it. A compiled graph passes nothing but tensors
    from its forward to its backward pass, so the number becomes one: its memory *is* this object.
    """

    input: Tensor
    loss: Tensor

    @classmethod
    def of(cls, input: Tensor, loss: Tensor) -> Tensor:
        """Keeps a graph; returns the ``[1]`` int64 tensor that keeps it alive."""
        number = next(_numbers)
        step = cls(number.to_bytes(8, "little"))
        step.input, step.loss = input, loss
        _steps[number] = step
        return torch.frombuffer(step, dtype=torch.int64)


_numbers = itertools.count()
_steps: weakref.WeakValueDictionary[int, _Step] = weakref.WeakValueDictionary()

EagerLoss = Callable[[Tensor, Tensor, "Tensor | None", Tensor, "Tensor | None", Loss], Tensor]

#: The eager losses, by the number in their handle.
_losses: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def handle_of(owner: Any) -> Tensor:
    """Returns a handle ``[]`` int64 by which a graph refers to ``owner``, without keeping it alive.

    Args:
        owner: has a method ``eager_loss(x, weight, bias, target, class_weight, loss)``, which takes an eager step.
    """
    number = next(_numbers)
    _losses[number] = owner
    return torch.tensor(number, device="cpu")


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same one, or one is the other's alias, as compilers make them."""
    return one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape)


# The dispatch keys of a program that is in no operator: the eager step inside of ours is recorded by autograd.
_KEYS = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


def _cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    handle: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    autocast: torch.dtype | None,
    wants_grad: bool,
    wants_grad_of_x: bool,
) -> tuple[Tensor, Tensor]:
    owner = _losses.get(int(handle))
    if owner is None:
        raise RuntimeError("the layer of a compiled loss does not exist any more")
    loss_of = Loss(ignore_index, reduction, label_smoothing)
    with torch._C._ForceDispatchKeyGuard(*_KEYS), torch.set_grad_enabled(wants_grad):
        x = x.detach().requires_grad_(wants_grad_of_x)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = owner.eager_loss(x, weight, bias, target, class_weight, loss_of)
        step = _Step.of(x, loss) if wants_grad else torch.zeros(1, dtype=torch.int64)
        return loss.detach(), step


def _cross_entropy_backward(step: Tensor, grad: Tensor, x: Tensor, wants_grad_of_x: bool) -> Tensor:
    kept = _steps[int(step)]
    with torch._C._ForceDispatchKeyGuard(*_KEYS):
        # The caller decides whether the graph may run twice; ours goes with the step.
        torch.autograd.backward(kept.loss, grad, retain_graph=True)
        grad_x, kept.input.grad = kept.input.grad, None
    return x.new_empty(0) if grad_x is None else grad_x


def _fake_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    handle: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    autocast: torch.dtype | None,
    *wants: bool,
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if autocast is None or x.dtype is torch.float64 else torch.float32
    return x.new_empty(x.shape[:-1] if reduction == "none" else (), dtype=dtype), handle.new_empty(1)


def _fake_cross_entropy_backward(step: Tensor, grad: Tensor, x: Tensor, wants_grad_of_x: bool) -> Tensor:
    return x.new_empty(x.shape if wants_grad_of_x else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[0])
    ctx.wants_grad_of_x = inputs[-1]


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    step, x = ctx.saved_tensors
    grad_x = torch.ops.torch_lsh_nn.cross_entropy_backward(step, grad, x, ctx.wants_grad_of_x)
    return (grad_x if ctx.wants_grad_of_x else None, *(None,) * 11)


def _define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> str:
    name = "torch_lsh_nn::" + schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, run, "CPU")
    torch.library.register_fake(name, fake, lib=_library)
    torch.library._register_effectful_op(name, EffectType.ORDERED)
    return name


_CROSS_ENTROPY = _define(
    "cross_entropy(Tensor x, Tensor weight, Tensor? bias, Tensor handle, Tensor target, Tensor? class_weight, "
    "int ignore_index, str reduction, float label_smoothing, ScalarType? autocast, bool wants_grad, "
    "bool wants_grad_of_x) -> (Tensor, Tensor)",
    _cross_entropy,
    _fake_cross_entropy,
)
_define(
    "cross_entropy_backward(Tensor step, Tensor grad, Tensor x, bool wants_grad_of_x) -> Tensor",
    _cross_entropy_backward,
    _fake_cross_entropy_backward,
)
torch.library.register_autograd(_CROSS_ENTROPY, _backward, setup_context=_save, lib=_library)


def compiled_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    handle: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    loss: Loss,
) -> Tensor:
    """The loss of ``handle``'s owner, for use while ``torch.compile`` traces.

    Args:
        x: ``[*, in_features]``.
        weight, bias: the owner's. The graph never reads them; autograd learns from them that there is a gradient.
        handle: of the owner, see :func:`handle_of`.
        target, class_weight, loss: as in :func:`torch.nn.functional.cross_entropy`.

    Returns:
        A scalar, or ``[*]`` for ``reduction="none"``.
    """
    grad = torch.is_grad_enabled()
    of_x = grad and x.requires_grad
    wants = of_x or (grad and (weight.requires_grad or (bias is not None and bias.requires_grad)))
    autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    result, _ = torch.ops.torch_lsh_nn.cross_entropy(
        x, weight, bias, handle, target, class_weight, *loss, autocast, wants, of_x
    )
    return result
