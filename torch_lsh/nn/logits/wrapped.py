"""What DistributedDataParallel, FSDP and Fabric do to the output of a module, done to lazy logits.

They run code of theirs when the backward pass begins, and attach it to the output. The sampled losses do not pass
through the output's autograd node, so they run it themselves: it waits in ``Recipe.before_backward``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .tensor import SampledLogits, handles

# Modules whose hooks are known to look at no gradient.
_FSDP, _FABRIC = "torch.distributed.fsdp.", ("lightning.fabric.", "lightning_fabric.")


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


@handles(Tensor.register_hook)
def _register_hook(logits: SampledLogits, hook: Any) -> Any:
    """Takes the hooks of FSDP and of Lightning's Fabric, which look at no gradient: they mark that the pass begins."""
    function = getattr(hook, "func", hook)  # of a functools.partial
    module = getattr(function, "__module__", None) or ""
    if not module.startswith((_FSDP, *_FABRIC)):
        return NotImplemented
    recipe = logits.recipe
    if module.startswith(_FSDP) and _gathers(hook.__self__, recipe.weight):
        recipe.owner.paths.say("gathered")
        # FSDP hides new weights from the version counter, which hash tables rely on.
        parameters = [tensor for tensor in (recipe.weight, recipe.bias) if tensor is not None]
        torch.autograd.graph.increment_version(parameters)
        logits.note_versions()
    logits.before_backward(hook)
    return None


def _gathers(state: Any, weight: Tensor | None) -> bool:
    """Whether FSDP, of which ``state`` is that of one module, made ``weight`` from the shards of all processes."""
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # PyTorch 2.13 has several
    return any(parameter._unsharded_param is weight for group in groups if group for parameter in group.fsdp_params)
