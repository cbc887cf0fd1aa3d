"""sparsify_, densify_ and quantize_: swap the wide linear layers of an existing model, in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeGuard

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from ..config import LSHConfig
from .compiled import handle_of
from .feedforward import DownProjection, LSHFeedForward, LSHSequential, block_end, is_hooked
from .linear import LSHLinear
from .quantized import QuantizedLinear
from .speedup import block_pays, why_dense
from .tied import follow_tied_embeddings, stop_following
from .warnings import warn_nothing_swapped

FilterFn = Callable[[nn.Module, str], bool]


def sparsify_(
    model: nn.Module,
    config: LSHConfig | None = None,
    filter_fn: FilterFn | None = None,
) -> nn.Module:
    """Swaps wide linear layers of ``model`` for :class:`LSHLinear`, in place.

    The new layers hold the very same Parameters. An existing optimizer stays valid, tied weights stay tied, and hooks
    and the names of parameters in the ``state_dict`` stay. Layers that are more than a weight and a bias are left
    alone: subclasses of ``nn.Linear``, and pruned or weight-normed layers, which have other parameters or buffers.

    In an ``nn.Sequential``, a block ``Linear -> activation (-> Dropout) -> Linear`` with ReLU, GELU or SiLU and more
    hidden neurons than inputs and outputs becomes a sampled block: both layers compute and update the active neurons
    only, as in :class:`LSHFeedForward`. The weight of the second layer is transposed in place, and the optimizer's
    state follows; the ``state_dict`` shows the weight as before. A block is left alone if the model uses a layer of it
    or the second weight elsewhere.

    Args:
        model: any module.
        config: of all new layers; default: ``LSHConfig()``.
        filter_fn: ``filter_fn(module, name) -> bool`` chooses the ``nn.Linear`` layers to swap; for a block it gets the
            first layer. Default: swap what then trains faster by measurement (see :func:`~torch_lsh.nn.speedup.pays`).

    Returns:
        The model; the new layer if the model itself is a linear layer.

    Raises:
        TypeError: an argument has a wrong type; nothing is swapped.

    Where an embedding shares its weight with a wide layer, its gradients become row-sparse too while an optimizer of
    :mod:`torch_lsh.optim` updates the weight. A call that swaps nothing warns and says why;
    :func:`torch_lsh.explain` lists it per layer.

    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 20_000))
    >>> model = sparsify_(model, filter_fn=lambda module, name: name == "2")
    >>> type(model[0]).__name__, type(model[2]).__name__
    ('Linear', 'LSHLinear')
    """
    _check_arguments(model, config, filter_fn)

    def swap(module: nn.Module, name: str) -> nn.Module | None:
        if not isinstance(module, nn.Linear) or isinstance(module, LSHLinear):
            return None
        reason = _why_left(module, name, config, filter_fn)
        if reason is None and filter_fn is None and module in dense_blocks:
            reason = "belongs to a block that trains no faster by samples"
        if reason is None:
            return LSHLinear.from_linear(module, config)
        _left_dense[module] = reason
        return None

    # The first layer of a block that stays dense stays dense, too: its outputs are not logits.
    dense_blocks = set()
    for sequential, span, up_name in list(_wide_blocks(model)):
        up, *_, down = list(sequential)[span]
        assert isinstance(up, nn.Linear)
        assert isinstance(down, nn.Linear)
        if filter_fn(up, up_name) if filter_fn is not None else block_pays(up, down, config):
            _swap_block(sequential, span, config)
        else:
            dense_blocks.add(up)
    model = _swap_modules(model, swap)
    follow_tied_embeddings(model)
    if not any(isinstance(module, (LSHLinear, QuantizedLinear)) for module in model.modules()):
        warn_nothing_swapped([(name, why) for name, module in model.named_modules() if (why := why_left_dense(module))])
    return model


def why_left_dense(module: nn.Module) -> str | None:
    """Why the last :func:`sparsify_` left ``module`` dense; None: it is no ``nn.Linear`` that was looked at."""
    reason: str | None = _left_dense.get(module)
    return reason


_left_dense: WeakIdKeyDictionary = WeakIdKeyDictionary()  # module -> the reason


def _why_left(linear: nn.Linear, name: str, config: LSHConfig | None, filter_fn: FilterFn | None) -> str | None:
    """Why ``linear`` stays dense; None: it is swapped."""
    if not _is_plain(linear):
        if type(linear) is not nn.Linear:
            return f"is a {type(linear).__name__}, a subclass of nn.Linear"
        return "has other parameters, buffers or a forward of its own"
    if filter_fn is not None:
        return None if filter_fn(linear, name) else "was not chosen by filter_fn"
    return why_dense(linear, config)


def _wide_blocks(model: nn.Module) -> Iterator[tuple[nn.Sequential, slice, str]]:
    """Yields the blocks that can be swapped: container, positions in it, and the name of the first layer."""
    modules = list(model.modules())
    uses = Counter(child for module in modules for child in module._modules.values())
    holders = Counter(id(parameter) for module in modules for parameter in module._parameters.values())
    for name, sequential in model.named_modules():
        if type(sequential) is not nn.Sequential or "forward" in vars(sequential):
            continue
        children = list(sequential)
        for start, up in enumerate(children):
            stop = block_end(children, start, nn.Linear, nn.Linear)
            if stop is None or not _is_plain(up):
                continue
            down = children[stop - 1]
            if (
                _is_plain(down)
                and up.out_features > max(up.in_features, down.out_features)
                and uses[up] == uses[down] == holders[id(down.weight)] == 1
                and not any(is_hooked(module) for module in children[start:stop])
            ):
                key = list(sequential._modules)[start]
                yield sequential, slice(start, stop), f"{name}.{key}" if name else key


def _swap_block(sequential: nn.Sequential, span: slice, config: LSHConfig | None) -> None:
    up, *_, down = list(sequential._modules)[span]
    sequential._modules[up] = LSHLinear.from_linear(sequential._modules[up], config)  # type: ignore[arg-type]
    sequential._modules[down] = DownProjection.from_linear(sequential._modules[down])  # type: ignore[arg-type]
    # A change of class keeps the object, with its hooks, flags and references to it.
    sequential.__class__ = LSHSequential
    sequential.handle = handle_of(sequential)


def densify_(model: nn.Module) -> nn.Module:
    """Swaps every :class:`LSHLinear` of ``model`` for an ``nn.Linear`` with the very same Parameters, in place.

    Every :class:`LSHFeedForward` becomes an ``nn.Sequential``; its ``down.weight`` is transposed in place.

    Args:
        model: any module.

    Returns:
        The model; the new layer if the model itself is an :class:`LSHLinear`.

    Raises:
        TypeError: ``model`` is not a module.

    >>> model = nn.Sequential(nn.Linear(16, 32), LSHLinear(32, 20_000))
    >>> type(densify_(model)[1]).__name__
    'Linear'
    """
    _check_arguments(model)

    def swap(module: nn.Module, name: str) -> nn.Module | None:
        return module.to_linear() if isinstance(module, (LSHLinear, DownProjection)) else None

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            stop_following(module)
        if isinstance(module, (LSHFeedForward, LSHSequential)):
            vars(module).pop("sample_in_eval", None)
            vars(module).pop("handle")
            module.__class__ = nn.Sequential  # type: ignore[assignment]
    return _swap_modules(model, swap)


def quantize_(model: nn.Module, dtype: torch.dtype = torch.int8, filter_fn: FilterFn | None = None) -> nn.Module:
    """Swaps wide linear layers of ``model`` for :class:`QuantizedLinear`, in place, for serving.

    The float weights are lost: save them first. To load a quantised checkpoint, make the model and quantise it in the
    same way first.

    Args:
        model: any module.
        dtype: of the weights; only ``torch.int8``. For bfloat16 call ``model.to(torch.bfloat16)`` instead.
        filter_fn: ``filter_fn(module, name) -> bool`` chooses the linear layers to swap; default: every
            :class:`LSHLinear`.

    Returns:
        The model; the new layer if the model itself is a linear layer.

    Raises:
        TypeError: an argument has a wrong type; nothing is swapped.
        ValueError: the dtype is not int8, or weights have no int8 form; nothing is swapped.

    >>> model = nn.Sequential(nn.Linear(16, 32), LSHLinear(32, 20_000)).eval()
    >>> model = quantize_(model)
    >>> model(torch.randn(4, 16)).topk(5).indices.shape
    torch.Size([4, 5])
    """
    _check_arguments(model, filter_fn=filter_fn)
    if dtype is not torch.int8:
        raise ValueError(f"dtype is {dtype}; wanted torch.int8")

    def swap(module: nn.Module, name: str) -> nn.Module | None:
        if not (isinstance(module, LSHLinear) or _is_plain(module)):
            return None
        wanted = isinstance(module, LSHLinear) if filter_fn is None else filter_fn(module, name)
        return QuantizedLinear.from_linear(module) if wanted else None

    return _swap_modules(model, swap)


def _check_arguments(model: nn.Module, config: LSHConfig | None = None, filter_fn: FilterFn | None = None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; wanted torch.nn.Module")
    if config is not None and not isinstance(config, LSHConfig):
        raise TypeError(f"config is a {type(config).__name__}; wanted LSHConfig or None")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn is {filter_fn!r}; wanted a function of a module and its name, or None")


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the module computes what an ``nn.Linear`` does with its weight and bias.

    A subclass may compute something else. Pruning and old-style weight norm keep the class, but compute the weight from
    other parameters before every call; ``module.forward = ...`` replaces the computation of one layer.
    """
    return (
        type(module) is nn.Linear
        and module._parameters.keys() == {"weight", "bias"}
        and not module._buffers
        and not module._modules
        and "forward" not in vars(module)
    )


def _swap_modules(model: nn.Module, swap: Callable[[nn.Module, str], nn.Module | None]) -> nn.Module:
    """Replaces every module for which ``swap(module, name)`` is not None; one with two names is replaced once."""
    swapped: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules()):
        new = swap(module, name)
        if new is not None:
            _move_hooks(module, new)
            swapped[module] = new
    if model in swapped:
        return swapped[model]
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in swapped:
                setattr(parent, key, swapped[child])
    return model


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    for name, value in vars(old).items():
        # Without _is_full_backward_hook, PyTorch calls no backward hook.
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called", "_is_full_backward_hook")):
            setattr(new, name, value)
