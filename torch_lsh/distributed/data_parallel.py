"""Row-sparse gradients under DistributedDataParallel and beside FSDP."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import JoinHook
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from .row_exchange import ROW_SPARSE, RowExchange, parameters_of
from .sharded import ShardedLSHLinear

_exchanges: weakref.WeakKeyDictionary[nn.Module, RowExchange] = weakref.WeakKeyDictionary()  # by the module to wrap
_watcher: RemovableHandle | None = None  # the hook that sees the wrapping


def exchange_rows_(module: nn.Module, group: dist.ProcessGroup | None = None) -> RowExchange:
    """Makes ``DistributedDataParallel`` exchange row-sparse gradients as rows, in an unchanged training loop.

    Call it in every process with the module that is wrapped, before wrapping it; or with the wrapper.
    ``DistributedDataParallel`` then leaves the parameters of this package's layers alone, and weights for which the
    module has a :class:`torch_lsh.SamplerState`. Their gradients are averaged
    at the end of each backward pass that ``DistributedDataParallel`` synchronises: ``no_sync()``, ``join()``,
    ``find_unused_parameters`` and processes without gradients work as for the other parameters, and parameters start
    from those of process 0. The rows of :class:`ShardedLSHLinear` stay in their processes and are not averaged.

    For FSDP, call it after ``fully_shard(module, ignored_params=row_parameters(module))``: each process keeps all rows,
    and gradients are averaged when FSDP reduces its own. A step has to use one of the layers in all processes or none.

    Importing this function changes nothing in PyTorch; its first call registers a hook that sees modules become
    submodules, and so sees the wrapping.

    Args:
        module: the model, which must have other parameters, too; a ``DistributedDataParallel``, which is set up again;
            or a model after ``fully_shard``.
        group: the processes of FSDP; None: all.

    Raises:
        ValueError: ``module`` has no layer with row-sparse gradients, or FSDP shards the parameters of one, or parts of
            ``module`` but not ``module`` itself. Where ``fully_shard`` comes later, the next forward pass raises.

    >>> import torch_lsh
    >>> model = nn.Sequential(nn.Linear(4, 8), torch_lsh.LSHLinear(8, 1_000))
    >>> exchange = exchange_rows_(model)
    >>> exchange.names
    ['1.weight', '1.bias']
    """
    wrapper = module if isinstance(module, DistributedDataParallel) else None
    inner: nn.Module = module if wrapper is None else wrapper.module
    exchange = RowExchange(inner)
    sharded = [
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in inner.named_modules(remove_duplicate=False)
        if isinstance(layer, ShardedLSHLinear)
        for name in (*layer._parameters, *layer._buffers)
    ]
    if not exchange.names and not sharded:
        raise ValueError(
            "module has no layer with row-sparse gradients; swap one in with torch_lsh.sparsify_, or register a "
            "torch_lsh.SamplerState for a weight that goes to torch_lsh.linear_cross_entropy"
        )
    if isinstance(module, FSDPModule):
        _start_beside_fsdp(exchange, module, group)
        return exchange
    if exchange.names and _has_fsdp(inner):
        raise ValueError("fully_shard was called with parts of module; wanted module itself as well, before this call")
    inner.register_forward_pre_hook(_refuse_later_fsdp if exchange.names else _refuse_later_fsdp_of_itself)
    ids = {id(parameter) for parameter in exchange.parameters}
    tied = [name for name, parameter in inner.named_parameters(remove_duplicate=False) if id(parameter) in ids]
    ignored = {*getattr(inner, "_ddp_params_and_buffers_to_ignore", ()), *tied, *sharded}
    # PyTorch looks for parameters of the wrapped module itself under names that begin with a dot.
    ignored |= {f".{name}" for name in ignored if "." not in name}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(inner, ignored)
    global _watcher
    if _watcher is None:
        _watcher = register_module_module_registration_hook(_note_submodule)
    _exchanges[inner] = exchange
    if wrapper is not None:
        _set_up_again(wrapper)
    return exchange


def row_parameters(module: nn.Module) -> set[nn.Parameter]:
    """The parameters of wide layers in ``module``, which ``fully_shard`` should leave alone: its ``ignored_params``.

    >>> import torch_lsh
    >>> model = nn.Sequential(nn.Linear(4, 8), torch_lsh.LSHLinear(8, 1_000))
    >>> row_parameters(model) == set(model[1].parameters())
    True
    """
    return {parameter for _, parameter in parameters_of(module, *ROW_SPARSE, ShardedLSHLinear)}


# --- FSDP ---


def _start_beside_fsdp(exchange: RowExchange, module: FSDPModule, group: dist.ProcessGroup | None) -> None:
    if any(hasattr(parameter, "placements") for parameter in exchange.parameters):
        raise ValueError(
            "FSDP shards the parameters of a layer with row-sparse gradients; wanted "
            "fully_shard(module, ignored_params=torch_lsh.distributed.row_parameters(module))"
        )
    if exchange.names:
        triggers = [parameter for parameter in exchange.parameters if parameter.requires_grad]
        exchange.start(group, functools.partial(_fsdp_reduces, weakref.ref(module)), triggers)


def _has_fsdp(module: nn.Module) -> bool:
    return any(isinstance(part, FSDPModule) for part in module.modules())


def _refuse_later_fsdp(module: nn.Module, arguments: Any) -> None:
    if _has_fsdp(module):
        raise RuntimeError("fully_shard was called after exchange_rows_, so no rows would be exchanged; call it before")


def _refuse_later_fsdp_of_itself(module: nn.Module, arguments: Any) -> None:
    if isinstance(module, FSDPModule):
        _refuse_later_fsdp(module, arguments)


def _fsdp_reduces(reference: weakref.ref[FSDPModule]) -> bool:
    module = reference()
    if module is None:
        return False
    state: Any = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # PyTorch 2.13 has several
    return all(group.reduce_grads for group in groups if group)


# --- DistributedDataParallel ---


def _note_submodule(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Starts the exchange of a module when ``DistributedDataParallel`` wraps it, in all processes."""
    exchange = None if submodule is None else _exchanges.get(submodule)
    if exchange is None or submodule is None or not isinstance(module, DistributedDataParallel):
        return
    names: Any = submodule._ddp_params_and_buffers_to_ignore
    ignored = {f"module.{name.lstrip('.')}" for name in names}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)  # by a wrapper of the wrapper
    wrapper = weakref.ref(module)
    if any(isinstance(layer, ShardedLSHLinear) for layer in submodule.modules()):
        module.join_hook = _refuse_join  # type: ignore[method-assign]
    if not exchange.names:
        return
    # In every synchronised backward pass of every process at least one parameter gets a gradient.
    triggers = [parameter for parameter in submodule.parameters() if parameter.requires_grad]
    handles = exchange.start(module.process_group, functools.partial(_wrapper_reduces, wrapper), triggers)
    weakref.finalize(module, exchange.stop, handles).atexit = False
    if module.join_hook is not _refuse_join:
        module.join_hook = functools.partial(_JoinBoth, exchange, wrapper)  # type: ignore[method-assign]


def _wrapper_reduces(reference: weakref.ref[DistributedDataParallel]) -> bool:
    wrapper = reference()
    if wrapper is None or wrapper is not DistributedDataParallel._active_ddp_module:
        return False
    return bool(wrapper.require_backward_grad_sync)


def _set_up_again(wrapper: DistributedDataParallel) -> None:
    """Runs the constructor of a wrapper again, with the same arguments."""
    kept = {name: wrapper.__dict__[name] for name in nn.Module().__dict__ if "hooks" in name}
    hooks, training = wrapper._comm_hooks, wrapper.training
    buffers = "forward_sync_buffers" if hasattr(wrapper, "forward_sync_buffers") else "broadcast_buffers"
    DistributedDataParallel.__init__(
        wrapper,
        wrapper.module,
        device_ids=wrapper.device_ids,
        output_device=wrapper.output_device,
        dim=wrapper.dim,
        process_group=wrapper.process_group,
        bucket_cap_mb=wrapper.bucket_bytes_cap / 2**20,
        find_unused_parameters=wrapper.find_unused_parameters,
        gradient_as_bucket_view=wrapper.gradient_as_bucket_view,
        static_graph=wrapper.static_graph,
        **{buffers: getattr(wrapper, buffers)},
    )
    wrapper.__dict__.update(kept)
    wrapper.training = training
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)


def _refuse_join(**options: Any) -> JoinHook:
    raise RuntimeError(
        "join() lets processes leave the loop one by one, but a step of a row-sharded layer takes all of them; wanted "
        "a loop of equal length, in which a process without samples brings an empty batch"
    )


class _JoinBoth(JoinHook):
    """What a process does that ran out of inputs: the wrapper's part, then the exchange's."""

    def __init__(self, exchange: RowExchange, reference: weakref.ref[DistributedDataParallel], **options: Any) -> None:
        wrapper = reference()
        assert wrapper is not None
        self._exchange, self._wrapper = exchange, wrapper
        self._hook = type(wrapper).join_hook(wrapper, **options)
        exchange.begin_join(options.get("divide_by_initial_world_size", True))

    def main_hook(self) -> None:
        self._hook.main_hook()
        if self._wrapper.require_forward_param_sync:  # the others synchronise this backward pass
            self._exchange.shadow()

    def post_hook(self, is_last_joiner: bool) -> None:
        self._hook.post_hook(is_last_joiner)
        self._exchange.end_join(is_last_joiner)
