"""The private names of PyTorch that the package uses, as PyTorch 2.11 to 2.13 have no public ones for what they tell.

Checked on import, so that a PyTorch without one is named here, and not by an AttributeError within a training step.
"""

from __future__ import annotations

from pkgutil import resolve_name

import torch

NAMES = (
    "torch._C.DisableTorchFunctionSubclass",
    "torch._C.DispatchKey.AutocastCPU",
    "torch._C.DispatchKeySet",
    "torch._C._AutoDispatchBelowAutograd",
    "torch._C._ExcludeDispatchKeyGuard",
    "torch._C._ForceDispatchKeyGuard",
    "torch._C._TorchDispatchModeKey.FAKE",
    "torch._C._TorchDispatchModeKey.PROXY",
    "torch._C._are_functorch_transforms_active",
    "torch._C._autograd._top_saved_tensors_default_hooks",
    "torch._C._current_graph_task_id",
    "torch._C._dispatch_get_registrations_for_dispatch_key",
    "torch._C._dispatch_tls_local_exclude_set",
    "torch._C._dispatch_tls_local_include_set",
    "torch._C._functorch.peek_interpreter_stack",
    "torch._C._get_dispatch_mode",
    "torch._C._is_torch_function_mode_enabled",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._will_engine_execute_node",
    "torch._disable_dynamo",
    "torch._library.effects.EffectType",
    "torch._ops.OpOverload",
    "torch.autograd.Variable._execution_engine.queue_callback",
    "torch.autograd._profiler_enabled",
    "torch.autograd.forward_ad._current_level",
    "torch.compiler._is_exporting_flag",
    "torch.library._register_effectful_op",
    "torch.nn.modules.module._has_any_global_hook",
    "torch.nn.parallel.DistributedDataParallel._active_ddp_module",
    "torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model",
    "torch.optim.optimizer._global_optimizer_post_hooks",
    "torch.optim.optimizer._global_optimizer_pre_hooks",
    "torch.utils._pytree.register_pytree_node",
    "torch.utils._pytree.tree_map",
    "torch.utils._pytree.tree_map_only",
)


def _is_missing(name: str) -> bool:
    try:
        resolve_name(name)
    except (AttributeError, ImportError):
        return True
    return False


_missing = [name for name in NAMES if _is_missing(name)]
if _missing:
    raise ImportError(
        f"PyTorch {torch.__version__} has no {', '.join(_missing)}; wanted PyTorch 2.11 to 2.13, or a later torch_lsh"
    )
