"""RowExchange: averages the row-sparse gradients of a module at the end of backward passes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..nn import EmbeddingBag, LSHLinear
from ..nn.feedforward import DownProjection
from ..nn.functional import SamplerState
from ..sampling.sampler import Sampler
from .channel import Channel, timeout_of
from .gradients import average, check_same, refuse_updated

ROW_SPARSE = (LSHLinear, DownProjection, EmbeddingBag)  # layers with row-sparse gradients


def parameters_of(module: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of layers of some kinds, and the weights of :class:`SamplerState`, under every name they have."""
    weights = {id(state.weight) for state in module.modules() if isinstance(state, SamplerState)}
    for prefix, layer in module.named_modules(remove_duplicate=False):
        for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
            if isinstance(layer, kinds) or id(parameter) in weights:
                yield f"{prefix}.{name}" if prefix else name, parameter


class RowExchange:
    """Averages the row-sparse gradients of a module; :func:`torch_lsh.distributed.exchange_rows_` makes it.

    Holds its module and parameters weakly. Copies and pickles of it do nothing: a copy of a wrapped module is not
    wrapped.

    Attributes:
        names: of the parameters, in the module.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        found = [] if module is None else list(parameters_of(module, *ROW_SPARSE))
        self.names = [name for name, _ in found]
        self._rows = [weakref.ref(one) for one in {id(parameter): parameter for _, parameter in found}.values()]
        layers = () if module is None else module.modules()
        self._layers = [weakref.ref(layer) for layer in layers if isinstance(layer, LSHLinear)]
        self._module = None if module is None else weakref.ref(module)
        self._channel: Channel | None = None
        self._handles: list[RemovableHandle] = []
        self._is_synchronised: Callable[[], bool] = bool
        self._due = False  # the latest forward pass wants its backward pass synchronised
        self._queued = False  # the exchange runs at the end of the present backward pass
        self._of_all = True

    def __reduce__(self) -> Any:
        return RowExchange, ()

    @property
    def bytes_sent(self) -> int:
        """The bytes that this process sent so far for the exchange."""
        return 0 if self._channel is None else self._channel.bytes_sent

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that still exist."""
        return [parameter for one in self._rows if (parameter := one()) is not None]

    def start(
        self, group: dist.ProcessGroup | None, is_synchronised: Callable[[], bool], triggers: Iterable[Tensor]
    ) -> list[RemovableHandle]:
        """Makes the parameters equal in all processes of ``group``, and averages from now on; all processes call it.

        Args:
            group: the processes; None: all.
            is_synchronised: says in a forward pass whether its backward pass is to be synchronised.
            triggers: parameters, one of which at least gets a gradient in each such backward pass.

        Returns:
            What :meth:`stop` takes.
        """
        module = None if self._module is None else self._module()
        assert module is not None
        self.stop()
        # A group of its own: the order of collectives need not fit in with those of others, nor the backend.
        ranks = dist.get_process_group_ranks(group)
        own = dist.new_group(ranks, timeout_of(group), backend="gloo", use_local_synchronization=True)
        self._channel = Channel(own)
        check_same(self.parameters, self._channel)
        self._copy_parameters(source=0)
        self._is_synchronised = is_synchronised
        self._handles = [parameter.register_post_accumulate_grad_hook(self._queue) for parameter in triggers]
        self._handles.append(module.register_forward_pre_hook(self._note_forward))
        return self._handles

    def stop(self, handles: list[RemovableHandle] | None = None) -> None:
        """Averages no more; with ``handles`` only if it did not start again since it returned them."""
        if handles is not None and handles is not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles, self._due = [], False

    @torch.no_grad()
    def _copy_parameters(self, source: int) -> None:
        assert self._channel is not None
        parameters = self.parameters
        for parameter in parameters:
            self._channel.broadcast_(parameter, source)
        torch.autograd.graph.increment_version(parameters)  # a broadcast does not, and hash tables rely on it

    def _note_forward(self, module: nn.Module, arguments: Any) -> None:
        if torch.is_grad_enabled():
            self._due = self._is_synchronised()
            self._queued = False  # a backward pass that failed leaves it

    def _queue(self, parameter: Tensor) -> None:
        """Queues the exchange for the end of the backward pass; the first gradient of the pass calls this."""
        if self._due and not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._exchange)

    def _exchange(self, takes_part: bool = True) -> None:
        self._due = self._queued = False
        assert self._channel is not None
        parameters = [parameter for parameter in self.parameters if parameter.requires_grad]
        refuse_updated(parameters)
        samplers = [sampler for sampler in self._samplers() if sampler.packed_sizes()["carried_room"] > 0]
        notes = average(parameters, self._channel, takes_part, self._of_all, _carried_rows(samplers, takes_part))
        _agree_on_carried_rows(samplers, notes)

    def _samplers(self) -> list[Sampler]:
        return [layer.sampler for one in self._layers if (layer := one()) is not None]

    # --- processes that ran out of inputs ---

    def begin_join(self, of_all: bool) -> None:
        """Notes whether means are over all processes or over those that still have inputs."""
        self._of_all = of_all

    def shadow(self) -> None:
        """Takes part in the exchange of the others, without gradients."""
        self._exchange(takes_part=False)

    def end_join(self, is_last: bool) -> None:
        """Copies the parameters of a process that had inputs to the end to all processes."""
        assert self._channel is not None
        ranks = self._channel.gather(torch.tensor(self._channel.rank if is_last else -1, device="cpu"))
        self._copy_parameters(int(ranks.max()))


def _carried_rows(samplers: list[Sampler], takes_part: bool) -> Tensor:
    """The rows that each sampler carries over, padded with -1 to the room that it has for them."""
    notes = []
    for sampler in samplers:
        note = torch.full((sampler.packed_sizes()["carried_room"],), -1, device="cpu")
        if takes_part and sampler.carried is not None:
            note[: len(sampler.carried)] = sampler.carried
        notes.append(note)
    return torch.cat(notes) if notes else torch.empty(0, dtype=torch.int64, device="cpu")


def _agree_on_carried_rows(samplers: list[Sampler], notes: list[Tensor]) -> None:
    """Lets all processes carry over the same rows: the hardest of each in turn.

    They then choose more rows in common, and the state of one process resumes all of them.
    """
    rooms = [sampler.packed_sizes()["carried_room"] for sampler in samplers]
    for sampler, notes_of in zip(samplers, zip(*(note.split(rooms) for note in notes))):
        in_turn = torch.stack(notes_of).T.flatten()
        in_turn = _first_of_each(in_turn[in_turn >= 0])
        if len(in_turn) > 0:
            sampler.carry(in_turn)


def _first_of_each(rows: Tensor) -> Tensor:
    """``rows`` without those that came before."""
    ordered, places = rows.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return rows[places[is_first].sort().values]
