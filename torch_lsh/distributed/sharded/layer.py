"""ShardedLSHLinear: an LSHLinear of which each process owns some rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ... import ops
from ...config import LSHConfig
from ...eager import eager
from ...nn.linear_with_sampler import LinearWithSampler
from ...nn.paths import RANKED, Paths
from ...row_sparse.parameters import is_reduced, place_rows
from ...sampling.sampler import Sampler
from ..channel import Channel
from .clip import clip_by_whole_norm
from .logits import ShardedLogits
from .ranking import topk
from .shards import Shards
from .state import BY_ROWS, empty_state, read_state, write_state

_CANDIDATES = 512  # rows per shard that an approximate top-k scores exactly
_PREFIX = "sampler_"  # of buffers
_BLOCK = 4096  # rows that are initialised from one seed


class ShardedLSHLinear(LinearWithSampler):
    """A wide :class:`torch_lsh.LSHLinear` whose rows are spread over processes.

    Each process owns some rows, with their bias, hash tables and optimizer state; none ever holds or sends the weights
    of another. A training step gathers inputs and labels, each shard draws active rows of its own and computes their
    logits for the samples of all processes, and the processes exchange one partial sum and one label logit per sample.
    The loss estimates that of the whole layer, without bias where :class:`torch_lsh.LSHLinear` does, and each process
    gets the losses of its own samples. Gradients stay in the process, so ``in_backward=True`` works.

    ``forward`` returns :class:`ShardedLogits`. Every process has to make the same calls.

    A ``state_dict`` holds ``weight`` and ``bias`` as ``DTensor``, and so does that of an optimizer of
    :mod:`torch_lsh.optim`: :mod:`torch.distributed.checkpoint` saves them from any number of processes and loads them
    into any other. The whole tensors of an ``LSHLinear`` or ``nn.Linear`` load as well.

    Args:
        in_features: size of an input sample.
        out_features: N, the rows of all processes.
        bias: whether to learn an additive bias.
        device, dtype: of the parameters.
        config: see :class:`torch_lsh.LSHConfig`. ``active`` counts rows of the whole layer.
        mesh: the processes, a ``DeviceMesh`` of one dimension; None: all.
        same_inputs: True: all processes call the layer with the same samples, as in tensor parallelism. False: with
            samples of their own, as in data-parallel training; gradients are then means over the processes, as those of
            ``DistributedDataParallel``, which has to leave the layer alone
            (:func:`torch_lsh.distributed.exchange_rows_`).

    Shape:
        input ``[*, in_features]``; float32, float64 or bfloat16 on the CPU.

    Raises:
        ValueError: a process would own no row, or ``mesh`` has several dimensions.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        config: LSHConfig | None = None,
        mesh: DeviceMesh | None = None,
        same_inputs: bool = False,
    ) -> None:
        super().__init__()
        shards = Shards(out_features, mesh or _all_processes())
        rows = shards.own.stop - shards.own.start
        weight = torch.empty(rows, in_features, device=device, dtype=dtype)
        ops.prefer_huge_pages(weight)
        offset = torch.empty(rows, device=device, dtype=dtype) if bias else None
        self._set_up(weight, offset, config or LSHConfig(), shards, same_inputs)
        self.reset_parameters()

    def _set_up(
        self, weight: Tensor, bias: Tensor | None, config: LSHConfig, shards: Shards, same_inputs: bool
    ) -> None:
        self.in_features, self.out_features = weight.shape[1], shards.num_rows
        self.shards, self.same_inputs, self.config = shards, same_inputs, config
        self.channel = Channel(shards.mesh.get_group())
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self._place_rows()
        active = config.active
        if not isinstance(active, float):  # rows of the whole layer, not a fraction
            active = -(-config.active_rows(self.out_features) // self.channel.size)
        # With seeds of their own, shards draw different random rows.
        own = replace(config, active=active, seed=config.seed + self.channel.rank)
        self.sampler = Sampler(self.own_rows, self.in_features, own)
        for name, tensor in empty_state(self.sampler).items():
            self.register_buffer(_PREFIX + name, tensor)
        self.paths = Paths(self.out_features)

    def _place_rows(self) -> None:
        for parameter in self.parameters(recurse=False):
            place_rows(parameter, self.shards)
            clip_by_whole_norm(parameter, self.shards)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._place_rows()

    @classmethod
    def shard_(
        cls, linear: nn.Linear, mesh: DeviceMesh | None = None, same_inputs: bool = False, source: int | None = 0
    ) -> ShardedLSHLinear:
        """Turns a linear layer that is whole in every process into one that is sharded, in place.

        Args:
            linear: an :class:`torch_lsh.LSHLinear`, of which settings are kept, or another ``nn.Linear``.
            mesh, same_inputs: see the class.
            source: the process of ``mesh`` whose weights are taken; None: those of each process.

        Returns:
            The same object, of another class.

        Raises:
            TypeError: ``linear`` is no ``nn.Linear``.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is a {type(linear).__name__}; wanted torch.nn.Linear")
        shards = Shards(linear.out_features, mesh or _all_processes())
        config = getattr(linear, "config", LSHConfig())
        channel, own = Channel(shards.mesh.get_group()), []
        for whole in (linear.weight, linear.bias):
            if whole is not None and source is not None:
                channel.broadcast_(whole.detach().contiguous(), source)
            own.append(None if whole is None else whole.detach()[shards.own].clone())
        weight, bias = own
        assert weight is not None
        training = linear.training
        linear.__dict__.clear()
        linear.__class__ = cls  # type: ignore[assignment]
        nn.Module.__init__(linear)
        layer = cast(ShardedLSHLinear, linear)
        layer._set_up(weight, bias, config, shards, same_inputs)
        return layer.train(training)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws weights as ``nn.Linear`` does; they do not depend on the number of processes."""
        seed = torch.randint(2**62, (1,), device="cpu")
        self.channel.broadcast_(seed, 0)
        bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0.0
        own = self.shards.own
        for block in range(own.start // _BLOCK, -(-own.stop // _BLOCK)):
            generator = torch.Generator().manual_seed(int(seed) + block)
            size = min(_BLOCK, self.out_features - block * _BLOCK)
            drawn = torch.empty(size, self.in_features + 1, device="cpu").uniform_(-bound, bound, generator=generator)
            start, stop = max(own.start, block * _BLOCK), min(own.stop, block * _BLOCK + size)
            part = drawn[start - block * _BLOCK : stop - block * _BLOCK]
            self.weight[start - own.start : stop - own.start] = part[:, :-1]
            if self.bias is not None:
                self.bias[start - own.start : stop - own.start] = part[:, -1]

    def extra_repr(self) -> str:
        own = self.shards.own
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"rows={own.start}..{own.stop - 1}"
        )

    # --- forward ---

    @eager("logits of a sharded layer cannot be part of a graph")
    def forward(self, input: Tensor) -> ShardedLogits:
        """The logits of this process's samples ``[*, in_features]``."""
        self.paths.watch(self.weight)
        if is_reduced(self.weight):
            raise RuntimeError(
                "DistributedDataParallel averages the rows of a sharded layer with rows of other processes, which are "
                "others; call torch_lsh.distributed.exchange_rows_(model) before the model is wrapped"
            )
        return ShardedLogits.of(self._converted(input), self)

    def _converted(self, input: Tensor) -> Tensor:
        """The input in the dtype of the weights, as autocast allows."""
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"input has shape {tuple(input.shape)}; wanted {self.in_features} features in the last dimension"
            )
        if input.dtype is self.weight.dtype:
            return input
        if not torch.is_autocast_enabled("cpu"):
            raise TypeError(f"input has dtype {input.dtype}; wanted {self.weight.dtype}, the dtype of the weights")
        return input.to(self.weight.dtype)

    @eager()
    def topk(self, x: Tensor, k: int, exact: bool = True, candidates: int | None = None) -> torch.return_types.topk:
        """The ``k`` highest scoring classes of each sample ``[*, in_features]``, without gradients.

        Args:
            x: this process's samples.
            k: 1 to ``out_features``.
            exact: False: each shard scores ``candidates`` rows per sample, those with the nearest sign codes.
            candidates: with ``exact=False``; None: 512 and at least ``16 * k``.

        Raises:
            ValueError: ``k`` is out of range.
        """
        if not 1 <= k <= self.out_features:
            raise ValueError(f"k is {k}; wanted 1 to {self.out_features}")
        self.paths.took(RANKED)
        count = None if exact else (candidates or max(_CANDIDATES, 16 * k))
        values, classes = topk(self, x.reshape(-1, self.in_features), k, count)
        shape = (*x.shape[:-1], k)
        return torch.return_types.topk((values.reshape(shape), classes.reshape(shape)))

    def set_label_counts(self, counts: Tensor, samples: int | None = None) -> None:
        """Gives label counts ``[out_features]``; see :meth:`torch_lsh.sampling.sampler.Sampler.set_label_counts`."""
        own = self.shards.local(counts)
        super().set_label_counts(own, max(1, int(counts.sum())) if samples is None else samples)

    def check_can_sample(self, input: Tensor) -> None:
        """Raises an error if the layer does not take ``input``."""
        self._converted(input)

    # --- what losses and rankings ask of their owner ---

    @property
    def own_rows(self) -> int:
        """Rows of this process."""
        return len(self.weight)

    # --- state ---

    def _sampler_buffers(self) -> dict[str, Tensor]:
        """The buffers that hold the sampler's state in a checkpoint, and nothing at other times."""
        return {name.removeprefix(_PREFIX): tensor for name, tensor in self.named_buffers(recurse=False)}

    def _names_by_rows(self) -> list[str]:
        """The names of parameters and buffers with an element per row."""
        by_rows = [f"{_PREFIX}{name}" for name in BY_ROWS]
        return [*self._parameters, *(name for name in by_rows if name in self._buffers)]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        write_state(self.sampler, self._sampler_buffers())
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._names_by_rows():
            if prefix + name in destination:
                destination[prefix + name] = self.shards.place(destination[prefix + name])

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        for name in self._names_by_rows():
            if prefix + name in own:
                own[prefix + name] = self.shards.local(own[prefix + name])
        own.pop(f"{prefix}_extra_state", None)  # an LSHLinear's, which knows other rows
        super()._load_from_state_dict(own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self.sampler.forget_weights()
        if f"{prefix}{_PREFIX}position" in own:
            read_state(self.sampler, self._sampler_buffers())
        else:  # the state_dict of a whole layer, which is complete without
            missing_keys[:] = [key for key in missing_keys if not key.startswith(prefix + _PREFIX)]


def _all_processes() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))
