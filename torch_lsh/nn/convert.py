"""sparsify_, densify_ and quantize_: swap the wide linear layers of an existing model, in place."""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from .. import optim
from ..config import LSHConfig
from ..rehash import ExponentialBackoff
from .feedforward import DownProjection, LSHFeedForward, LSHSequential, block_end, is_hooked
from .linear import LSHLinear
from .quantized import QuantizedLinear

_log = logging.getLogger("torch_lsh")

FilterFn = Callable[[nn.Module, str], bool]

# Layers narrower than this are not worth a measurement: their dense step takes less than the look-ups of a sampled one.
_NARROW = 4096
# The dense step is measured on at most this many rows and scaled up; its cost is proportional to them.
_MEASURED_ROWS = 32_768
_BATCH = 128


def _median_seconds(step: Callable[[], None], repetitions: int = 5) -> float:
    step()
    step()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _training_step(layer: nn.Linear, batch: int) -> Callable[[], None]:
    optimizer = optim.SGD(layer.parameters(), lr=1e-3)
    x = torch.randn(batch, layer.in_features, device="cpu")
    y = torch.randint(layer.out_features, (batch,), device="cpu")

    def step() -> None:
        F.cross_entropy(layer(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@functools.lru_cache(maxsize=256)
def _measured_speedup(in_features: int, out_features: int, bias: bool, config: LSHConfig, threads: int) -> float:
    """Seconds of a dense training step over those of a sampled one for a layer of that shape, on this machine.

    Plain SGD updates both, so that the comparison is about the layer; a dense Adam would make the sampled layer look
    better still. The layer that is measured has at most ``_MEASURED_ROWS`` rows, and the dense time is scaled to
    ``out_features``.
    """
    rows = min(out_features, _MEASURED_ROWS)
    active = min(config.active_rows(out_features), rows)
    generator_state = torch.get_rng_state()
    try:
        # The caller may be in no_grad or inference_mode, or have another default device.
        with torch.inference_mode(False), torch.enable_grad():
            dense = nn.Linear(in_features, rows, bias, device="cpu")
            sampled = LSHLinear(in_features, rows, bias, device="cpu", config=replace(config, active=active))
            dense_seconds = _median_seconds(_training_step(dense, _BATCH)) * out_features / rows
            return dense_seconds / _median_seconds(_training_step(sampled, _BATCH))
    finally:
        torch.set_rng_state(generator_state)


def pays(linear: nn.Linear, config: LSHConfig | None = None) -> bool:
    """Whether a training step of ``linear`` as an LSH layer is faster, measured on this machine.

    Layers of fewer than 4,096 outputs stay dense without a measurement. A measurement takes some tenths of a second and
    is kept for layers of the same shape and configuration.

    >>> pays(nn.Linear(128, 100))
    False
    """
    config = config if config is not None else LSHConfig()
    if linear.out_features < _NARROW or linear.weight.device.type != "cpu":
        return False
    if config.active_rows(linear.out_features) >= linear.out_features:
        return False
    # No re-hash falls due in so few steps, and a policy of the caller's need not be hashable.
    measured = replace(config, rehash=ExponentialBackoff())
    speedup = _measured_speedup(
        linear.in_features, linear.out_features, linear.bias is not None, measured, torch.get_num_threads()
    )
    _log.info(
        "nn.Linear(%d, %d): LSHLinear was measured to take 1/%.2f of the time; it %s",
        linear.in_features,
        linear.out_features,
        speedup,
        "pays" if speedup > 1.0 else "stays dense",
    )
    return speedup > 1.0


def _block_step(block: nn.Module, in_features: int, batch: int) -> Callable[[], None]:
    optimizer = optim.SGD(block.parameters(), lr=1e-3)
    x = torch.randn(batch, in_features, device="cpu")

    def step() -> None:
        block(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@functools.lru_cache(maxsize=256)
def _measured_block_speedup(in_features: int, hidden: int, out_features: int, config: LSHConfig, threads: int) -> float:
    """:func:`_measured_speedup` of a block with ``hidden`` neurons."""
    neurons = min(hidden, _MEASURED_ROWS)
    active = min(config.active_rows(hidden), neurons)
    generator_state = torch.get_rng_state()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            dense, sampled = (
                nn.Sequential(
                    nn.Linear(in_features, neurons, device="cpu"),
                    nn.ReLU(),
                    nn.Linear(neurons, out_features, device="cpu"),
                )
                for _ in range(2)
            )
            _swap_block(sampled, slice(0, 3), replace(config, active=active))
            dense_seconds = _median_seconds(_block_step(dense, in_features, _BATCH)) * hidden / neurons
            return dense_seconds / _median_seconds(_block_step(sampled, in_features, _BATCH))
    finally:
        torch.set_rng_state(generator_state)


def block_pays(up: nn.Linear, down: nn.Linear, config: LSHConfig | None = None) -> bool:
    """:func:`pays` of a block ``up -> activation -> down``: blocks of fewer than 4,096 hidden neurons stay dense.

    >>> block_pays(nn.Linear(128, 512), nn.Linear(512, 128))
    False
    """
    config = config if config is not None else LSHConfig()
    hidden = up.out_features
    if hidden < _NARROW or any(layer.weight.device.type != "cpu" for layer in (up, down)):
        return False
    if config.active_rows(hidden) >= hidden:
        return False
    measured = replace(config, rehash=ExponentialBackoff())
    return _measured_block_speedup(up.in_features, hidden, down.out_features, measured, torch.get_num_threads()) > 1.0


def sparsify_(
    model: nn.Module,
    config: LSHConfig | None = None,
    filter_fn: FilterFn | None = None,
) -> nn.Module:
    """Swaps linear layers of ``model`` for :class:`LSHLinear`, in place; Parameters stay the very same objects.

    So an optimizer made before stays valid, tied weights stay tied, hooks stay, and ``state_dict`` keys do not change.
    Layers that are more than a weight and a bias (subclasses of ``nn.Linear``; pruned or weight-normed ones, which have
    other parameters or buffers) are left alone.

    In an ``nn.Sequential``, ``Linear -> activation (-> Dropout) -> Linear`` with more hidden neurons than inputs and
    outputs (and ReLU, GELU or SiLU) becomes a block in which both layers compute and update the active neurons only,
    as :class:`LSHFeedForward` does. The weight of the second layer is transposed in place; in the ``state_dict`` it
    is as before, and an optimizer's state follows. Blocks are left alone where that weight or a layer is used elsewhere
    in the model too.

    Args:
        model: any module. If it is itself a linear layer, the new layer is returned.
        config: for all swapped layers; default: ``LSHConfig()``.
        filter_fn: ``filter_fn(module, name) -> bool`` says which ``nn.Linear`` to swap; default: those for which
            the swap is measured to pay (:func:`pays`, :func:`block_pays`). For a block it is asked about the first
            layer.

    Returns:
        The model.

    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 20_000))
    >>> model = sparsify_(model, filter_fn=lambda module, name: name == "2")
    >>> type(model[0]).__name__, type(model[2]).__name__
    ('Linear', 'LSHLinear')
    """

    _check_arguments(model, config, filter_fn)

    def swap(module: nn.Module, name: str) -> nn.Module | None:
        if not _is_plain(module) or (filter_fn is None and module in dense_blocks):
            return None
        wanted = filter_fn(module, name) if filter_fn is not None else pays(module, config)
        return LSHLinear.from_linear(module, config) if wanted else None

    # First layers of blocks that are not worth it: their outputs are no logits, so they are not worth it alone either.
    dense_blocks = set()
    for sequential, span, up_name in list(_wide_blocks(model)):
        up, *_, down = list(sequential)[span]
        assert isinstance(up, nn.Linear)
        assert isinstance(down, nn.Linear)
        if filter_fn(up, up_name) if filter_fn is not None else block_pays(up, down, config):
            _swap_block(sequential, span, config)
        else:
            dense_blocks.add(up)
    return _swap_modules(model, swap)


def _wide_blocks(model: nn.Module) -> Iterator[tuple[nn.Sequential, slice, str]]:
    """The blocks of ``model`` that can be swapped: their container, where in it they are, the first layer's name."""
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
    # The very same object: references to it, its hooks and its flags stay.
    sequential.__class__ = LSHSequential


def densify_(model: nn.Module) -> nn.Module:
    """Swaps every :class:`LSHLinear` of ``model`` back for an ``nn.Linear`` that shares the very same Parameters, and
    makes an ``nn.Sequential`` of every :class:`LSHFeedForward` (whose ``down.weight`` is transposed in place).

    Returns:
        The model (or the new layer, where the model itself is one).
    """
    _check_arguments(model)

    def swap(module: nn.Module, name: str) -> nn.Module | None:
        return module.to_linear() if isinstance(module, (LSHLinear, DownProjection)) else None

    for module in model.modules():
        if isinstance(module, (LSHFeedForward, LSHSequential)):
            vars(module).pop("sample_in_eval", None)
            module.__class__ = nn.Sequential  # type: ignore[assignment]
    return _swap_modules(model, swap)


def quantize_(model: nn.Module, dtype: torch.dtype = torch.int8, filter_fn: FilterFn | None = None) -> nn.Module:
    """Swaps wide linear layers of ``model`` for :class:`QuantizedLinear`, in place, for serving.

    The float weights are not kept: save them first. A quantised checkpoint is loaded into a model that was made and
    quantised in the same way.

    Args:
        model: any module. If it is itself a linear layer, the new layer is returned.
        dtype: of the weights; only ``torch.int8``. (For bfloat16 ``model.to(torch.bfloat16)`` is enough.)
        filter_fn: ``filter_fn(module, name) -> bool`` says which linear layers to swap; default: every
            :class:`LSHLinear`.

    Returns:
        The model.

    Raises:
        ValueError: another dtype, or weights that have no int8 form; then no layer was swapped.

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
    """Whether the module is an ``nn.Linear`` and nothing else, so that what replaces it computes the same.

    A subclass may compute something else. Pruning and old-style weight norm keep the class, but make the weight anew
    from other parameters before every call; ``module.forward = ...`` replaces the computation of one layer.
    """
    return (
        type(module) is nn.Linear
        and module._parameters.keys() == {"weight", "bias"}
        and not module._buffers
        and not module._modules
        and "forward" not in vars(module)
    )


def _swap_modules(model: nn.Module, swap: Callable[[nn.Module, str], nn.Module | None]) -> nn.Module:
    swapped: dict[nn.Module, nn.Module] = {}  # a module that is registered twice is swapped once
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
        # _is_full_backward_hook: without it, backward hooks are not called
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called", "_is_full_backward_hook")):
            setattr(new, name, value)
