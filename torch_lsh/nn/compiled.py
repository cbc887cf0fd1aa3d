"""The loss of a wide layer, the look-up of a tied embedding and a feed-forward block, as operators of a compiled graph.

A training step of a wide layer draws rows, follows the weights with its tables and delivers row-sparse gradients; no
graph of tensors can hold that. In a graph of ``torch.compile`` one operator stands for layer and loss. When it runs,
it takes the eager step on a leaf that shares the memory of the input, and keeps the autograd graph of that step. Its
backward operator runs that graph: the gradients of weight and bias reach the Parameters as they do in an eager step
(row-sparse, through hooks, through optimizers with ``in_backward=True``), and the gradient of the input goes back into
the compiled graph. The Parameters of a layer are no inputs of the graph, which would give them a second gradient, None:
the operator finds them through a handle.

Both operators have an ordered effect, so that no compiler drops, repeats, merges or exchanges them: the random stream
moves once per call, and gradients arrive although the graph has no use for them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._library.effects import EffectType

from ..eager import eager
from ..ops.gradients import accumulates_gradient
from ..row_sparse.parameters import wants_row_sparse
from .sampled_path import is_compiled, is_traced
from .topk_arguments import check_topk

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

_owners: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def handle_of(owner: Any) -> Tensor:
    """Returns a handle ``[]`` int64 by which a graph refers to ``owner``, without keeping it alive.

    Args:
        owner: has a method ``eager_loss(x, weight, bias, target, class_weight, loss)``, which takes an eager step.
            Weight and bias are None for an owner that has them.
    """
    number = next(_numbers)
    _owners[number] = owner
    return torch.tensor(number, device="cpu")


def _owner(handle: Tensor) -> Any:
    owner = _owners.get(int(handle))
    if owner is None:
        raise RuntimeError("the layer of a compiled graph does not exist any more; wanted a living one")
    return owner


def _weight_of_owner(alias: Tensor) -> nn.Parameter:
    """The weight that compilers passed an alias of, which cannot take a gradient."""
    for owner in list(_owners.values()):
        weight = owner._parameters.get("weight") if isinstance(owner, nn.Module) else None
        if weight is not None and shares_memory(weight, alias):
            return weight
    raise RuntimeError(
        "the layer tied with an embedding of a compiled graph does not exist any more; wanted a living one"
    )


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same one, or one is the other's alias, as compilers make them."""
    return one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape)


# Has no gradient of its own. It says that a loss has one where the input has none; and, as it is an input of the graph,
# whether a backward pass is for all that has a gradient.
_ANCHOR = torch.zeros((), device="cpu", requires_grad=True)
_ANCHOR_NODE = torch.autograd.graph.get_gradient_edge(_ANCHOR).node
_NO_AUTOCAST = contextlib.nullcontext()
# The dispatch keys of a program that is in no operator, with autograd and without autocast.
_KEYS = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


def _cross_entropy(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    handle: Tensor,
    anchor: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    autocast: torch.dtype | None,
    wants_grad: bool,
    wants_grad_of_x: bool,
) -> tuple[Tensor, Tensor]:
    loss_of = Loss(ignore_index, reduction, label_smoothing)
    with torch._C._ForceDispatchKeyGuard(*_KEYS), torch.set_grad_enabled(wants_grad):
        x = x.detach().requires_grad_(wants_grad_of_x)
        with _NO_AUTOCAST if autocast is None else torch.autocast("cpu", autocast):
            loss = _owner(handle).eager_loss(x, weight, bias, target, class_weight, loss_of)
        step = _Step.of(x, loss) if wants_grad else torch.zeros(1, dtype=torch.int64, device="cpu")
        return loss.detach(), step


def _cross_entropy_backward(step: Tensor, grad: Tensor, x: Tensor, wants_grad_of_x: bool) -> Tensor:
    kept = _steps[int(step)]
    with torch._C._ForceDispatchKeyGuard(*_KEYS):
        inputs = _leaves_asked_for(kept) if accumulates_gradient(_ANCHOR_NODE) is False else None
        if inputs is None or inputs:
            # The caller decides whether the graph may run twice; ours goes with the step.
            torch.autograd.backward(kept.loss, grad, retain_graph=True, inputs=inputs)
        grad_x, kept.input.grad = kept.input.grad, None
    return x.new_empty(0) if grad_x is None else grad_x


def _leaves_asked_for(step: _Step) -> list[Tensor]:
    """The leaves of a step's graph that a backward pass wants which is for some tensors only."""
    leaves, nodes, seen = [], [step.loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
            leaf = getattr(node, "variable", None)
            if leaf is not None and (leaf is step.input or accumulates_gradient(node)):
                leaves.append(leaf)
    return leaves


def _fake_cross_entropy(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    handle: Tensor,
    anchor: Tensor,
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


class _CrossEntropy(torch.autograd.Function):
    name = "cross_entropy"

    @classmethod
    def forward(cls, ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            result, step = getattr(torch.ops.torch_lsh_nn, cls.name)(*arguments)
        ctx.save_for_backward(step, arguments[0])
        ctx.wants_grad_of_x, ctx.others = arguments[-1], len(arguments) - 1
        ctx.mark_non_differentiable(step)
        return result, step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        step, x = ctx.saved_tensors
        grad_x = torch.ops.torch_lsh_nn.cross_entropy_backward(step, grads[0], x, ctx.wants_grad_of_x)
        return (grad_x if ctx.wants_grad_of_x else None, *(None,) * ctx.others)


class _Block(_CrossEntropy):
    name = "block"


def _embedding(indices: Tensor, weight: Tensor, anchor: Tensor, padding_idx: int | None) -> tuple[Tensor, Tensor]:
    parameter = _weight_of_owner(weight)
    with torch._C._ForceDispatchKeyGuard(*_KEYS), torch.enable_grad():
        rows = F.embedding(indices, parameter, padding_idx, sparse=wants_row_sparse(parameter))
        return rows.detach(), _Step.of(indices, rows)


def _fake_embedding(indices: Tensor, weight: Tensor, anchor: Tensor, padding_idx: int | None) -> tuple[Tensor, Tensor]:
    return weight.new_empty(*indices.shape, weight.shape[1]), indices.new_empty(1, dtype=torch.int64)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            rows, step = torch.ops.torch_lsh_nn.embedding(*arguments)
        ctx.save_for_backward(step)
        ctx.mark_non_differentiable(step)
        return rows, step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        torch.ops.torch_lsh_nn.cross_entropy_backward(*ctx.saved_tensors, grads[0].contiguous(), grads[0], False)
        return (None,) * 4


def embedding_in_graph(indices: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
    """``F.embedding`` in a graph of ``torch.compile``; the gradient of the weight is row-sparse where that is wanted.

    Args:
        indices: int64.
        weight: ``[N, width]``, the weight of a layer with a handle.
        padding_idx: the index whose row has no gradient, or None.
    """
    rows, _ = torch.ops.torch_lsh_nn.embedding(indices, weight.detach(), _ANCHOR, padding_idx)
    return rows


def _block(
    x: Tensor,
    handle: Tensor,
    anchor: Tensor,
    position: int,
    width: int,
    autocast: torch.dtype | None,
    wants_grad: bool,
    wants_grad_of_x: bool,
) -> tuple[Tensor, Tensor]:
    with torch._C._ForceDispatchKeyGuard(*_KEYS), torch.set_grad_enabled(wants_grad):
        x = x.detach().requires_grad_(wants_grad_of_x)
        with _NO_AUTOCAST if autocast is None else torch.autocast("cpu", autocast):
            out = _owner(handle).eager_block(x, position)
        step = _Step.of(x, out) if wants_grad else torch.zeros(1, dtype=torch.int64, device="cpu")
        return out.detach(), step


def _fake_block(
    x: Tensor,
    handle: Tensor,
    anchor: Tensor,
    position: int,
    width: int,
    autocast: torch.dtype | None,
    *wants: bool,
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if autocast is None or x.dtype is torch.float64 else autocast
    return x.new_empty(*x.shape[:-1], width, dtype=dtype), handle.new_empty(1)


def block_in_graph(handle: Tensor, x: Tensor, position: int, width: int, parameters: Iterable[nn.Parameter]) -> Tensor:
    """A feed-forward block, as one operator of the graph that ``torch.compile`` makes.

    Args:
        handle: of an owner (:func:`handle_of`) with a method ``eager_block(x, position)``, which takes an eager step.
        x: ``[*, d_model]``.
        position: which block of the owner.
        width: of the result, ``[*, width]``.
        parameters: of the block.
    """
    autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    wants_grad, wants_grad_of_x = wants_gradient(x, *parameters), wants_gradient(x)
    anchor = _ANCHOR if wants_grad else handle
    out, _ = torch.ops.torch_lsh_nn.block(x, handle, anchor, position, width, autocast, wants_grad, wants_grad_of_x)
    return out


def _topk(x: Tensor, handle: Tensor, k: int, candidates: int | None, recall: float) -> tuple[Tensor, Tensor]:
    with torch._C._ForceDispatchKeyGuard(*_KEYS), torch.no_grad():
        values, classes = _owner(handle).topk(x, k, exact=False, candidates=candidates, recall=recall)
    return values, classes


def _fake_topk(x: Tensor, handle: Tensor, k: int, candidates: int | None, recall: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], k), handle.new_empty(x.shape[0], k)


def _define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = "torch_lsh_nn::" + schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, run, "CPU")
    torch.library.register_fake(name, fake, lib=_library)
    torch.library._register_effectful_op(name, EffectType.ORDERED)


_define(
    "cross_entropy(Tensor x, Tensor? weight, Tensor? bias, Tensor handle, Tensor anchor, Tensor target, "
    "Tensor? class_weight, int ignore_index, str reduction, float label_smoothing, ScalarType? autocast, "
    "bool wants_grad, bool wants_grad_of_x) -> (Tensor, Tensor)",
    _cross_entropy,
    _fake_cross_entropy,
)
_define(
    "cross_entropy_backward(Tensor step, Tensor grad, Tensor x, bool wants_grad_of_x) -> Tensor",
    _cross_entropy_backward,
    _fake_cross_entropy_backward,
)
_define(
    "block(Tensor x, Tensor handle, Tensor anchor, int position, int width, ScalarType? autocast, bool wants_grad, "
    "bool wants_grad_of_x) -> (Tensor, Tensor)",
    _block,
    _fake_block,
)
_define(
    "approximate_topk(Tensor x, Tensor handle, int k, int? candidates, float recall) -> (Tensor, Tensor)",
    _topk,
    _fake_topk,
)
_define(
    "embedding(Tensor indices, Tensor weight, Tensor anchor, int? padding_idx) -> (Tensor, Tensor)",
    _embedding,
    _fake_embedding,
)


def _record(name: str, function: type[torch.autograd.Function]) -> None:
    """Gives an operator its kernel for autograd; ``torch.library.register_autograd`` takes four times as long."""
    operator = getattr(torch.ops.torch_lsh_nn, name)

    def kernel(*arguments: Any) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            recorded: tuple[Tensor, Tensor] = function.apply(*arguments)
            return recorded
        with torch._C._AutoDispatchBelowAutograd():
            result: tuple[Tensor, Tensor] = operator(*arguments)
            return result

    _library.impl(name, kernel, "Autograd")


_record("cross_entropy", _CrossEntropy)
_record("embedding", _Embedding)
_record("block", _Block)


# --- methods of layers while a graph is made --------------------------------------------------------------------------

Method = Callable[..., Any]


def in_graphs(replacement: Method) -> Callable[[Method], Method]:
    """Has a method of a layer replaced while a graph is made of it.

    Args:
        replacement: takes the layer, the method outside of the graph (``torch.compile`` ends the graph before it) and
            the method's arguments.
    """

    def decorate(method: Method) -> Method:
        outside = eager()(method)

        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return replacement(self, outside, *args, **kwargs) if is_traced() else method(self, *args, **kwargs)

        return call

    return decorate


def cross_entropy_in_graph(
    layer: Any,
    outside: Method,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``LSHLinear.cross_entropy``: one operator of ``torch.compile``; dense for any other tracer."""
    loss = Loss(ignore_index, reduction, label_smoothing)
    # torch.func.functional_call replaces Parameters by other tensors, of which the layer's tables know nothing.
    if not is_compiled() or not isinstance(layer.weight, nn.Parameter):
        layer.tell_traced()
        return F.cross_entropy(F.linear(x, layer.weight, layer.bias), target, weight, **loss._asdict())
    wants_grad = wants_gradient(x, layer.weight, layer.bias)
    return call_loss(layer.handle, x, None, None, target, weight, loss, wants_grad)


def call_loss(
    handle: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    loss: Loss,
    wants_grad: bool,
) -> Tensor:
    """Puts the loss of a handle's owner into the graph that ``torch.compile`` makes.

    Args:
        handle: see :func:`handle_of`.
        x: ``[*, in_features]``.
        weight, bias: passed on to the owner, which may know them itself.
        target, class_weight, loss: as in :func:`torch.nn.functional.cross_entropy`.
        wants_grad: whether anything has a gradient.

    Returns:
        A scalar, or ``[*]`` for ``reduction="none"``.
    """
    autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    wants_grad_of_x = wants_gradient(x)
    anchor = _ANCHOR if wants_grad else handle
    result, _ = torch.ops.torch_lsh_nn.cross_entropy(
        x, weight, bias, handle, anchor, target, class_weight, *loss, autocast, wants_grad, wants_grad_of_x
    )
    return result


def topk_in_graph(
    layer: Any,
    outside: Method,
    x: Tensor,
    k: int,
    exact: bool = True,
    candidates: int | None = None,
    recall: float = 0.95,
) -> torch.return_types.topk:
    """``LSHLinear.topk``: operators of ``torch.compile``, or outside of its graph where the values have gradients.

    For any other tracer it is exact and consists of PyTorch's own operators, so that an exported graph runs anywhere.
    """
    if not is_compiled():
        return torch.topk(F.linear(x, layer.weight, layer.bias), k)
    if wants_gradient(x, layer.weight, layer.bias):
        return outside(layer, x, k, exact, candidates, recall)
    check_topk(k, layer.out_features, candidates, recall)
    flat = x.reshape(-1, layer.in_features)
    if exact:
        values, classes = layer.largest_logits(flat, k)
    else:
        values, classes = torch.ops.torch_lsh_nn.approximate_topk(flat, layer.handle, k, candidates, recall)
    shape = (*x.shape[:-1], k)
    return torch.return_types.topk((values.to(x.dtype).reshape(shape), classes.reshape(shape)))


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a result of these tensors has a gradient."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
