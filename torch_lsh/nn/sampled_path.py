"""What a wide layer can compute through active rows, and what it leaves to ``nn.Linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..eager import eager

_DTYPES = {torch.float32, torch.float64, torch.bfloat16}
TRANSFORMED = "a function transform or forward-mode differentiation"


def is_traced() -> bool:
    """Whether the present computation becomes a graph, or runs without values (FakeTensorMode)."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if torch._C._len_torch_dispatch_stack() == 0:
        return False
    keys = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FAKE))


def recorder() -> str | None:
    """What records the present computation for other inputs and to train with, without torch.compile; None: nothing."""
    if torch.compiler.is_compiling():
        return None
    if torch.jit.is_tracing():
        return "torch.jit.trace"
    if torch._C._len_torch_dispatch_stack() == 0:
        return None
    return "make_fx" if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None else None


def is_compiled() -> bool:
    """Whether ``torch.compile`` traces the present computation, rather than ``torch.export`` or another tracer."""
    # Before PyTorch 2.12, torch.compile takes torch.compiler.is_exporting() for True; the flag that it returns is read.
    return torch.compiler.is_dynamo_compiling() and not torch.compiler._is_exporting_flag


def leaf_call(module: nn.Module, input: Any, *others: Any) -> Any:
    """The call of ``module`` with a proxy in a graph of torch.fx, of which it is a leaf, as layers of torch.nn are."""
    path = input.tracer.path_of_module(module)
    return input.tracer.create_proxy("call_module", path, (input, *others), {})


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation sees the present computation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


# For compiled code only: the decorated function takes longer to call than to run.
_is_transformed_when_run = eager()(is_transformed)


def obstacle(layer: nn.Linear, input: Tensor) -> str | None:
    """Why ``layer(input)`` has no sampled path although ``nn.Linear`` can compute it; None: it has one.

    Raises:
        TypeError, ValueError: ``nn.Linear`` cannot compute it either.
    """
    if _is_transformed_when_run() if torch.compiler.is_dynamo_compiling() else is_transformed():
        return TRANSFORMED
    return obstacle_of_operands(layer, input, layer.weight, layer.bias)


def obstacle_of_operands(layer: nn.Linear, input: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """:func:`obstacle` where :func:`is_transformed` is False, for a layer with these parameters."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input is a {type(input).__name__}; wanted a tensor")
    if type(weight) is not nn.Parameter and hasattr(weight, "placements"):
        return "a DTensor weight (torch_lsh.distributed.ShardedRows has one in the place of ColwiseParallel)"
    if not (input.is_cpu and weight.is_cpu):
        return f"a tensor on {weight.device if input.is_cpu else input.device}"
    if input.dim() < 1 or input.shape[-1] != layer.in_features:
        raise ValueError(
            f"input has shape {tuple(input.shape)}; wanted {layer.in_features} features in the last dimension"
        )
    dtype = weight.dtype
    dtypes: tuple[torch.dtype, ...] = (dtype,)
    if torch.is_autocast_enabled("cpu"):
        dtypes = (dtype, input.dtype, torch.get_autocast_dtype("cpu"))
        # Autocast converts every floating dtype but float64.
        same = input.dtype is dtype or (input.is_floating_point() and torch.float64 not in dtypes)
    else:
        same = input.dtype is dtype
    if not same:
        raise TypeError(f"input has dtype {input.dtype}; wanted {dtype}, the dtype of the weights")
    for dtype in dtypes:
        if dtype not in _DTYPES:
            return str(dtype)
    if input.layout is not torch.strided:
        return f"input of layout {input.layout}"
    if weight.shape != (layer.out_features, layer.in_features):
        return f"a weight of shape {tuple(weight.shape)}, not (out_features, in_features),"
    if layer.training and not weight.is_leaf:  # another tensor in every step, with tables to build from nothing
        return "a weight that is the result of an operation (a parametrization such as weight_norm, pruning)"
    if weight.numel() == 0:
        return "a layer without weights"
    if not weight.is_contiguous() or not (bias is None or bias.is_contiguous()):
        return "a weight or bias that is not contiguous"
    return "a full backward hook" if layer._backward_hooks or layer._backward_pre_hooks else None


def check_can_sample(layer: nn.Linear, input: Tensor) -> None:
    """Raises a RuntimeError where :func:`obstacle` finds one."""
    reason = obstacle(layer, input)
    if reason is not None:
        raise RuntimeError(
            f"{reason} has no sampled path; wanted contiguous tensors of float32, float64 or bfloat16 on the CPU"
        )
