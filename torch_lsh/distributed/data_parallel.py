"""Row-sparse gradients under DistributedDataParallel and beside FSDP."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import JoinHook
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ..nn import EmbeddingBag, LSHLinear
from ..nn.feedforward import DownProjection
from ..sampling.sampler import Sampler
from .channel import Channel
from .gradients import average, check_same, refuse_updated
from .sharded import ShardedLSHLinear

_ROW_SPARSE = (LSHLinear, DownProjection, EmbeddingBag)

_exchanges: weakref.WeakKeyDictionary[nn.Module, RowExchange] = weakref.WeakKeyDictionary()  # by the module to wrap


def exchange_rows_(module: nn.Module, group: dist.ProcessGroup | None = None) -> RowExchange:
    """Makes ``DistributedDataParallel`` exchange row-sparse gradients as rows, in an unchanged training loop.

    Call it in every process with the module that is wrapped, before wrapping it; or with the wrapper.
    ``DistributedDataParallel`` then leaves the parameters of this package's layers alone. Their gradients are averaged
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
        ValueError: ``module`` has no layer with row-sparse gradients, or FSDP shards the parameters of one.

    >>> model = nn.Sequential(nn.Linear(4, 8), LSHLinear(8, 1_000))
    >>> exchange = exchange_rows_(model)
    >>> exchange.names
    ['1.weight', '1.bias']
    """
    wrapper = module if isinstance(module, DistributedDataParallel) else None
    inner: nn.Module = module if wrapper is None else wrapper.module
    exchange = RowExchange(inner)
    sharded = [name for name, _ in _parameters_of(inner, ShardedLSHLinear)]
    if not exchange.names and not sharded:
        raise ValueError("module has no layer with row-sparse gradients; swap one in with torch_lsh.sparsify_")
    if isinstance(module, FSDPModule):
        exchange.attach_to_fsdp(module, group)
        return exchange
    ignored = {*getattr(inner, "_ddp_params_and_buffers_to_ignore", ()), *exchange.names, *sharded}
    # PyTorch looks for parameters of the wrapped module itself under names that begin with a dot.
    ignored |= {f".{name}" for name in ignored if "." not in name}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(inner, ignored)
    if not _exchanges:
        _watch_for_wrappers()
    _exchanges[inner] = exchange
    if wrapper is not None:
        _set_up_again(wrapper)
    return exchange


def row_parameters(module: nn.Module) -> set[nn.Parameter]:
    """The parameters of wide layers in ``module``, which ``fully_shard`` should leave alone: its ``ignored_params``.

    >>> model = nn.Sequential(nn.Linear(4, 8), LSHLinear(8, 1_000))
    >>> row_parameters(model) == set(model[1].parameters())
    True
    """
    return {parameter for _, parameter in _parameters_of(module, *_ROW_SPARSE, ShardedLSHLinear)}


def _watch_for_wrappers() -> None:
    global _watcher
    if _watcher is None:
        _watcher = register_module_module_registration_hook(_note_submodule)


_watcher: RemovableHandle | None = None


def _note_submodule(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    if submodule is not None and isinstance(module, DistributedDataParallel) and submodule in _exchanges:
        _exchanges[submodule].attach(module)


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


def _parameters_of(module: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of layers of some kinds, under every name that they have."""
    for prefix, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, kinds):
            for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
                yield f"{prefix}.{name}" if prefix else name, parameter


class RowExchange:
    """Averages the row-sparse gradients of a module at the end of backward passes; see :func:`exchange_rows_`.

    Attributes:
        names: of the parameters, in the module.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        self.names = [] if module is None else [name for name, _ in _parameters_of(module, *_ROW_SPARSE)]
        self._channel: Channel | None = None
        self._handles: list[RemovableHandle] = []
        self._wrapper: weakref.ref[nn.Module] | None = None
        self._module = None if module is None else weakref.ref(module)
        self._due = False  # the latest forward pass wants its backward pass synchronised
        self._queued = False  # the exchange runs at the end of the present backward pass
        self._of_all = True

    def __reduce__(self) -> Any:
        return RowExchange, ()  # copies of a wrapped module are not wrapped

    @property
    def bytes_sent(self) -> int:
        """The bytes that this process sent so far for the exchange."""
        return 0 if self._channel is None else self._channel.bytes_sent

    def attach(self, wrapper: DistributedDataParallel) -> None:
        """Begins to average; ``DistributedDataParallel`` calls this, in all processes, when it wraps the module."""
        if not self.names:
            return  # sharded layers have nothing to average
        module = self._start(wrapper, wrapper.process_group)
        # In every synchronised backward pass of every process at least one parameter gets a gradient.
        self._queue_after(parameter for parameter in module.parameters() if parameter.requires_grad)
        wrapper.join_hook = functools.partial(_join_both, self)  # type: ignore[method-assign]

    def attach_to_fsdp(self, module: FSDPModule, group: dist.ProcessGroup | None) -> None:
        """Begins to average beside FSDP; see :func:`exchange_rows_`."""
        if any(hasattr(parameter, "placements") for parameter in self._parameters()):
            raise ValueError(
                "FSDP shards the parameters of a layer with row-sparse gradients; wanted "
                "fully_shard(module, ignored_params=torch_lsh.distributed.row_parameters(module))"
            )
        if self.names:
            self._start(cast(nn.Module, module), group)
            self._queue_after(self._parameters())

    def _start(self, wrapper: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
        """Makes parameters equal in all processes and watches the forward passes of the module, which is returned."""
        module = None if self._module is None else self._module()
        assert module is not None
        self._detach()
        self._wrapper = weakref.ref(wrapper, lambda _: self._detach())
        # A group of its own: the order of collectives need not fit in with those of the wrapper, nor the backend.
        ranks = dist.get_process_group_ranks(group)
        self._channel = Channel(dist.new_group(ranks, backend="gloo", use_local_synchronization=True))
        check_same(self._parameters(), self._channel)
        self._copy_parameters(source=0)
        self._handles = [module.register_forward_pre_hook(self._note_forward)]
        return module

    def _queue_after(self, parameters: Iterable[Tensor]) -> None:
        self._handles += [parameter.register_post_accumulate_grad_hook(self._queue) for parameter in parameters]

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._wrapper, self._due = [], None, False

    def _parameters(self) -> list[Tensor]:
        module = None if self._module is None else self._module()
        if module is None:
            return []
        parameters = dict(module.named_parameters(remove_duplicate=False))
        unique = {id(parameters[name]): parameters[name] for name in self.names}
        return [parameter for parameter in unique.values() if parameter.requires_grad]

    @torch.no_grad()
    def _copy_parameters(self, source: int) -> None:
        parameters = self._parameters()
        for parameter in parameters:
            assert self._channel is not None
            self._channel.broadcast_(parameter, source)
        torch.autograd.graph.increment_version(parameters)  # a broadcast does not, and hash tables rely on it

    def _note_forward(self, module: nn.Module, arguments: Any) -> None:
        wrapper = None if self._wrapper is None else self._wrapper()
        if not torch.is_grad_enabled():
            return
        if isinstance(wrapper, FSDPModule):
            state: Any = wrapper._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # PyTorch 2.13 has several
            self._due = all(group.reduce_grads for group in groups if group)
        elif wrapper is not None and wrapper is DistributedDataParallel._active_ddp_module:
            self._due = cast(DistributedDataParallel, wrapper).require_backward_grad_sync

    def _queue(self, parameter: Tensor) -> None:
        """Queues the exchange for the end of the backward pass; the first gradient of the pass calls this."""
        if self._due and not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._exchange)

    def _exchange(self) -> None:
        self._due = self._queued = False
        parameters = self._parameters()
        refuse_updated(parameters)
        assert self._channel is not None
        average(parameters, self._channel, of_all=self._of_all)
        self._agree_on_carried_rows()

    @torch.no_grad()
    def _agree_on_carried_rows(self) -> None:
        """Lets all processes carry over the same rows: the hardest of each in turn.

        They then choose more rows in common, and the state of one process resumes all of them.
        """
        assert self._channel is not None
        for sampler in self._samplers():
            room = sampler.packed_sizes()["carried_room"]
            if room == 0:
                continue
            own = torch.full((room,), -1)
            if sampler.carried is not None:
                own[: len(sampler.carried)] = sampler.carried
            in_turn = torch.stack(self._channel.gather(own)).T.flatten()
            in_turn = _first_of_each(in_turn[in_turn >= 0])
            if len(in_turn) > 0:
                sampler.carry(in_turn)

    def _samplers(self) -> list[Sampler]:
        module = None if self._module is None else self._module()
        return [] if module is None else [layer.sampler for layer in module.modules() if isinstance(layer, LSHLinear)]

    # --- processes that ran out of inputs ---

    def begin_join(self, of_all: bool) -> DistributedDataParallel:
        """Notes whether means are over all processes or over those that still have inputs; returns the wrapper."""
        wrapper = None if self._wrapper is None else self._wrapper()
        assert isinstance(wrapper, DistributedDataParallel)
        self._of_all = of_all
        return wrapper

    def shadow(self) -> None:
        """Takes part in the exchange of the others, without gradients."""
        assert self._channel is not None
        average(self._parameters(), self._channel, takes_part=False, of_all=self._of_all)
        self._agree_on_carried_rows()

    def end_join(self, is_last: bool) -> None:
        """Copies the parameters of a process that had inputs to the end to all processes."""
        assert self._channel is not None
        ranks = self._channel.gather(torch.tensor([self._channel.rank if is_last else -1]))
        self._copy_parameters(int(torch.cat(ranks).max()))


def _first_of_each(rows: Tensor) -> Tensor:
    """``rows`` without those that came before."""
    ordered, places = rows.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return rows[places[is_first].sort().values]


def _join_both(exchange: RowExchange, **options: Any) -> JoinHook:
    """The join hook of a wrapper with an exchange."""
    return _JoinBoth(exchange, **options)


class _JoinBoth(JoinHook):
    """What a process does that ran out of inputs: the wrapper's part, then the exchange's."""

    def __init__(self, exchange: RowExchange, **options: Any) -> None:
        self._exchange, self._wrapper = exchange, exchange.begin_join(options.get("divide_by_initial_world_size", True))
        self._hook = type(self._wrapper).join_hook(self._wrapper, **options)

    def main_hook(self) -> None:
        self._hook.main_hook()
        if self._wrapper.require_forward_param_sync:  # the others synchronise this backward pass
            self._exchange.shadow()

    def post_hook(self, is_last_joiner: bool) -> None:
        self._hook.post_hook(is_last_joiner)
        self._exchange.end_join(is_last_joiner)
