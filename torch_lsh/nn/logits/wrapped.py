"""What DistributedDataParallel and FSDP do to the output of a module, done to lazy logits.

Both run code of theirs when the backward pass begins, and attach it to the output. The sampled losses do not pass
through the output's autograd node, so they run it themselves: it waits in ``Recipe.before_backward``.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..warnings import warn_gathered
from .owner import LogitsOwner
from .tensor import SampledLogits, handles

_warned: weakref.WeakSet[LogitsOwner] = weakref.WeakSet()


@handles(getattr(Tensor, "grad_fn").__get__)  # noqa: B009  # a descriptor, which mypy takes for its value
def _grad_fn(logits: SampledLogits) -> Any:
    """None where ``DistributedDataParallel`` asks: it then returns these very logits rather than a copy of its own.

    The copy's node does nothing for ``find_unused_parameters``. With ``static_graph`` it begins the first reduction.
    """
    wrapper = logits.recipe.data_parallel
    if wrapper is None:
        return NotImplemented
    if wrapper.static_graph and not wrapper._static_graph_delay_allreduce_enqueued:
        logits.before_backward(functools.partial(_reduce_at_the_end, wrapper))
    return None


def _reduce_at_the_end(wrapper: DistributedDataParallel, gradient: Tensor) -> None:
    if not wrapper._static_graph_delay_allreduce_enqueued:
        delayed: Any = wrapper.reducer
        torch.autograd.Variable._execution_engine.queue_callback(delayed._delay_all_reduce)
        wrapper._static_graph_delay_allreduce_enqueued = True


@handles(Tensor.clone, torch.clone)
def _clone(logits: SampledLogits, *, memory_format: Any = torch.preserve_format) -> Any:
    return NotImplemented if logits.is_computed else logits.remade()


@handles(Tensor.register_hook)
def _register_hook(logits: SampledLogits, hook: Any) -> Any:
    """Takes the hook of FSDP, which begins to gather parameters and looks at no gradient."""
    state = getattr(hook, "__self__", None)
    if not type(state).__module__.startswith("torch.distributed.fsdp."):
        return NotImplemented
    recipe = logits.recipe
    if _gathers(state, recipe.weight):
        # FSDP hides new weights from the version counter, which hash tables rely on.
        parameters = [tensor for tensor in (recipe.weight, recipe.bias) if tensor is not None]
        torch.autograd.graph.increment_version(parameters)
        logits.note_versions()
        if recipe.owner not in _warned:
            _warned.add(recipe.owner)
            warn_gathered(recipe.owner.out_features)
    logits.before_backward(hook)
    return None


def _gathers(state: Any, weight: Tensor | None) -> bool:
    """Whether FSDP, of which ``state`` is that of one module, made ``weight`` from the shards of all processes."""
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # PyTorch 2.13 has several
    return any(parameter._unsharded_param is weight for group in groups if group for parameter in group.fsdp_params)
