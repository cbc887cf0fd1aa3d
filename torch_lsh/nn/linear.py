"""LSHLinear: an nn.Linear that computes and updates only the rows that matter for a batch."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import ops
from ..config import LSHConfig
from ..eager import eager
from ..row_sparse.parameters import note_forward
from ..sampling.active_set import ActiveSet
from ..sampling.sampler import Sampler
from ..sampling.state import pack, unpack, without_foreign
from .compiled import Loss, cross_entropy_in_graph, handle_of, in_graphs, topk_in_graph
from .linear_with_sampler import LinearWithSampler
from .logits.cross_entropy import cross_entropy_of
from .logits.recipe import Recipe
from .logits.targets import as_target
from .logits.tensor import SampledLogits
from .paths import Paths
from .sampled_path import (
    TRANSFORMED,
    check_can_sample,
    is_compiled,
    is_traced,
    is_transformed,
    leaf_call,
    obstacle_of_operands,
    recorder,
)
from .topk_arguments import check_topk


class LSHLinear(LinearWithSampler, nn.Linear):
    """A linear layer for very wide outputs, trained through a sampled set of its rows.

    It *is* an :class:`torch.nn.Linear`: same constructor, initialisation and parameters. In training, ``forward``
    computes nothing yet: it returns :class:`SampledLogits`, which behave as the ``[*, out_features]`` tensor. A loss on
    them knows the labels, draws the active rows (labels, rows found by locality-sensitive hashing, random rows) and
    computes only those. In ``eval()`` mode every result is exact. Whatever has no sampled path gives exactly what
    ``nn.Linear`` gives, and warns once.

    The layer's :class:`torch_lsh.sampling.sampler.Sampler` draws the rows. Its hash tables are built at their first use
    and follow the weights: rows that a row-sparse optimizer touched are re-hashed as ``config.rehash`` says, and before
    any look-up in ``eval()`` mode; ``load_state_dict``, in-place edits and ``weight.data = tensor`` lead to a rebuild
    before the next look-up. Edits in place through ``weight.data`` or NumPy cannot be seen; call ``rehash(full=True)``
    after them.

    The ``state_dict`` holds ``weight``, ``bias`` and, as ``_extra_state``, the sampler's state, so that a resumed run
    equals one that never stopped, bit for bit. The ``state_dict`` of an ``nn.Linear`` loads with ``strict=True``; an
    ``nn.Linear`` loads this layer's with ``strict=False``. Tables are not saved: taking the state drops them, here as
    in the resumed run, and the next step builds them.

    Args:
        in_features: size of an input sample.
        out_features: N, the number of classes.
        bias: whether to learn an additive bias.
        device, dtype: of the parameters.
        config: see :class:`torch_lsh.LSHConfig`.

    Shape:
        input ``[*, in_features]``, output ``[*, out_features]``; float32, float64 or bfloat16 on the CPU. For anything
        else that ``nn.Linear`` takes (float16, sparse input, other devices, weights that are not contiguous, full
        backward hooks), ``forward`` is that of ``nn.Linear``.

    References:
        Spring & Shrivastava, "Scalable and Sustainable Deep Learning via Randomized Hashing", KDD 2017;
        Chen et al., "SLIDE: In Defense of Smart Algorithms over Hardware Acceleration", MLSys 2020.

    >>> layer = LSHLinear(16, 5_000)
    >>> x, y = torch.randn(4, 16), torch.tensor([1, 2, 3, 4_999])
    >>> loss = torch.nn.functional.cross_entropy(layer(x), y)
    >>> loss.backward()
    >>> layer(x).topk(5).indices.shape
    torch.Size([4, 5])
    """

    # For torch.jit.script, which compiles a layer as the nn.Linear that it is.
    __jit_ignored_attributes__ = ["sampler", "paths"]  # noqa: RUF012  (PyTorch reads a list)
    __jit_unused_properties__ = ["config", "scheduled"]  # noqa: RUF012

    # torch.jit.script reads annotations, and does not know those of LinearWithSampler.
    __annotations__ = nn.Linear.__annotations__

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        config: LSHConfig | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._set_up(config)

    def reset_parameters(self) -> None:
        """As in ``nn.Linear``; prepares the memory of a large layer first."""
        ops.prepare_memory(self.weight)
        super().reset_parameters()

    def _set_up(self, config: LSHConfig | None) -> None:
        _check_config(config)
        self.sampler = Sampler(self.out_features, self.in_features, config if config is not None else LSHConfig())
        self.paths = Paths(self.out_features)
        self.paths.watch(self.weight)
        self.handle = handle_of(self)

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: LSHConfig | None = None) -> LSHLinear:
        """An LSH layer that shares the very same Parameters with ``linear``.

        >>> linear = nn.Linear(8, 1_000)
        >>> LSHLinear.from_linear(linear).weight is linear.weight
        True
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is a {type(linear).__name__}; wanted torch.nn.Linear")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        _share_parameters(linear, layer)
        layer._set_up(config)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` that shares the very same Parameters."""
        linear = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(linear)
        _share_parameters(self, linear)
        return linear.train(self.training)

    @property
    def config(self) -> LSHConfig:
        """The settings; :meth:`reconfigure` changes them."""
        return self.sampler.config

    def reconfigure(self, config: LSHConfig) -> None:
        """Takes over other settings; hash tables are built anew at their next use."""
        _check_config(config, optional=False)
        self.sampler.reconfigure(config)

    def extra_repr(self) -> str:
        """The arguments, and the size of an active set."""
        active = self.config.active_rows(self.out_features)
        return f"{super().extra_repr()}, index={self.config.index}, active={active}, scope={self.config.scope}"

    # --- copies and checkpoints ---

    def __getstate__(self) -> dict[str, Any]:
        # With tensors of the layer alone: those of a copy would end before a new process, to which it goes, maps them.
        state = {**self.__dict__}
        del state["handle"]
        return state

    def __copy__(self) -> LSHLinear:
        layer = self.__class__.__new__(self.__class__)
        layer.__setstate__({**self.__getstate__(), "sampler": copy.deepcopy(self.sampler)})
        return layer

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.paths.watch(self.weight)
        self.handle = handle_of(self)

    def get_extra_state(self) -> Tensor:
        """The sampler's state, ``[n]`` uint8 of a size that follows from shape and settings."""
        self.sampler.fit(self.weight)
        return pack(self.sampler.state_dict(), **self.sampler.packed_sizes())

    def set_extra_state(self, state: Tensor) -> None:
        """Takes over what :meth:`get_extra_state` returned."""
        self.sampler.fit(self.weight)
        self.sampler.load_state_dict(unpack(state))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}_extra_state"
        own = without_foreign(state_dict, key, self.weight, unexpected_keys)
        super()._load_from_state_dict(own, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self.sampler.forget_weights()
        if key in missing_keys:  # the state_dict of an nn.Linear, which is complete without
            missing_keys.remove(key)

    # --- forward ---

    def forward(self, input: Tensor) -> Tensor:
        """Lazy logits of ``input`` ``[*, in_features]``: they behave as the ``[*, out_features]`` tensor."""
        if torch.jit.is_scripting():
            return F.linear(input, self.weight, self.bias)
        if is_traced():
            if self.training and is_compiled():
                return self._outside_of_graph(input)
            self.tell_traced()
            return super().forward(input)
        return self._lazy_logits(input)

    @torch.jit.unused
    def _lazy_logits(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return super().forward(input) if input.tracer.root is self else leaf_call(self, input)
        weight, bias = self.weight_and_bias()
        reason = self._obstacle(input, weight, bias)
        if reason is None:
            return SampledLogits.of(input, self, weight, bias)
        self.paths.dense(reason, "operands")
        return super().forward(input)

    @torch.jit.unused
    def _obstacle(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
        """Why there are no lazy logits of ``input`` for the layer, which is called now; None: there are."""
        self.paths.watch(weight)
        note_forward(weight, bias)
        return TRANSFORMED if is_transformed() else obstacle_of_operands(self, input, weight, bias)

    @torch.jit.unused
    def tell_traced(self) -> None:
        """Warns if a tracer records a training step, which is dense in its graph."""
        if self.training and (what := recorder()) is not None:
            self.paths.dense(what, "traced")

    @torch.jit.unused
    @eager(
        "lazy logits cannot be part of a graph; compile without fullgraph=True, "
        "or take the loss with layer.cross_entropy(x, target)"
    )
    def _outside_of_graph(self, input: Tensor) -> Tensor:
        return self._lazy_logits(input)

    @in_graphs(cross_entropy_in_graph)
    def cross_entropy(
        self,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """``F.cross_entropy(self(x), target, ...)``: sampled while training, exact in ``eval()`` mode.

        Args:
            x: ``[*, in_features]``.
            target: class indices ``[*]``; or ``[*, P]`` padded with ``ignore_index``, where the labels of a sample
                share the target distribution equally; or a sparse CSR tensor ``[B, out_features]`` of probabilities.
            weight, ignore_index, reduction, label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.

        Returns:
            The loss, a scalar, or ``[*]`` for ``reduction="none"``.
        """
        how: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
        if type(x) is Tensor and self._call_is_forward():
            # Making the lazy logits, and the way of F.cross_entropy to its handler, take longer than this method.
            parameters = self.weight_and_bias()
            if self._obstacle(x, *parameters) is None:
                recipe = Recipe.of(x, self, *parameters)
                recipe.class_dim = min(recipe.class_dim, 1)
                loss: Tensor = cross_entropy_of(recipe, target, weight, **how)
                if loss is not NotImplemented:
                    return loss
        logits = self(x) if x.dim() <= 2 else self(x).movedim(-1, 1)
        return F.cross_entropy(logits, target, weight, **how)

    def _call_is_forward(self) -> bool:
        """Whether calling the layer is nothing but :meth:`forward` of this class: nobody hooks or replaces it."""
        hooks = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        replaced = type(self).forward is not LSHLinear.forward or "forward" in self.__dict__ or self._compiled_call_impl
        return not (hooks or replaced or _has_any_global_hook() or torch._C._is_torch_function_mode_enabled())

    def eager_loss(
        self, x: Tensor, weight: None, bias: None, target: Tensor, class_weight: Tensor | None, loss: Loss
    ) -> Tensor:
        """:meth:`cross_entropy`, called by the operator that stands for it in a compiled graph."""
        return self.cross_entropy(x, target, class_weight, **loss._asdict())

    @in_graphs(topk_in_graph)
    def topk(
        self, x: Tensor, k: int, exact: bool = True, candidates: int | None = None, recall: float = 0.95
    ) -> torch.return_types.topk:
        """The ``k`` highest scoring classes of each sample, without a ``[B, out_features]`` tensor.

        With ``exact=False``, an index finds candidates, and only these are scored. It may miss a class; the scores that
        it returns are exact. The index is made at the first use and follows the weights: sign codes of all rows, or
        learned buckets where these cost less (:class:`torch_lsh.index.lookup.LookupIndex`). The first call with some
        ``k`` and ``recall`` measures what they take, on kept inputs: those of the latest training steps, and the first
        256 of calls since then, once they are known. Between steps of training it is measured again once there were
        twice as many, or 8,192 inputs of calls. Fewer than 256 inputs say nothing yet: until then 512 candidates,
        and at least ``16 * k``, are scored. A recall of 1, or one that cannot be measured, is exact. :meth:`stats`
        reports the recall.

        Any number of threads may call this at a time in ``eval()`` mode.

        Args:
            x: ``[*, in_features]``.
            k: 1 to ``out_features``.
            exact: False: look only at candidates.
            candidates: rows per sample to score with ``exact=False``, at least ``k``, in place of as many as ``recall``
                takes.
            recall: the share of the ``k`` classes to find with ``exact=False``, over 0 and at most 1.

        Returns:
            ``(values, indices)`` of shape ``[*, k]``, values in descending order; -inf and -1 where fewer than ``k``
            classes were found.

        Raises:
            TypeError, ValueError: an argument does not fit.
            RuntimeError: ``exact=False`` and there is no sampled path for the layer or the input.
        """
        check_topk(k, self.out_features, candidates, recall)
        if exact:
            return torch.topk(self(x), k)
        self.check_can_sample(x)
        flat = x.reshape(-1, self.in_features)
        # Entering a context takes longer than asking.
        autocast = torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
        with autocast, torch.no_grad():
            rows = self._candidates(flat.detach().float().contiguous(), k, candidates, recall)
            if rows is None:
                values, classes = self.largest_logits(flat.detach(), k)
            else:
                values, classes = ops.rows_topk(self._as_weight(flat.detach()), self.weight, self.bias, rows, k)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *self.parameters())):
            values = torch.where(classes < 0, values, self.active_logits(flat, classes))
        shape = (*x.shape[:-1], k)
        return torch.return_types.topk((values.to(x.dtype).view(shape), classes.view(shape)))

    def _candidates(self, x: Tensor, k: int, candidates: int | None, recall: float) -> Tensor | None:
        if candidates is None:
            return self.sampler.candidates_of_recall(self.weight, self.bias, x, k, recall)
        return self.sampler.candidates(self.weight, self.bias, x, candidates)

    @eager()
    def sample(self, x: Tensor, target: Tensor | None = None) -> ActiveSet:
        """The active rows of a training step on ``x``; every call is a new draw.

        Args:
            x: ``[*, in_features]``.
            target: as in :meth:`cross_entropy`, or None: no labels.
        """
        self.check_can_sample(x)
        flat = x.detach().reshape(-1, self.in_features)
        labels = torch.empty(len(flat), 0, dtype=torch.int64, device="cpu")
        if target is not None:
            parsed = as_target(target, x.shape[:-1], self.out_features, -100, torch.float32)
            if parsed is None:
                raise ValueError(
                    "target is a dense distribution over all classes; wanted indices or a sparse CSR tensor"
                )
            labels = parsed.labels
        return self.sampler.draw(self.weight, self.bias, flat, labels, self.training)

    def check_can_sample(self, input: Tensor) -> None:
        """Raises a RuntimeError if there is no sampled path for ``input`` ``[*, in_features]``."""
        check_can_sample(self, input)

    # --- what lazy logits ask of their owner ---

    def largest_logits(self, x: Tensor, k: int, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The ``k`` largest logits of ``x`` ``[B, in]`` and their classes, ``[B, k]``; exact, not differentiable.

        ``offset`` ``[N]`` is added to the logits.
        """
        with torch.no_grad():
            bias: Tensor | None = self.bias
            if offset is not None:
                bias = (offset if bias is None else bias + offset).to(self.weight.dtype)
            return ops.linear_topk(self._as_weight(x), self.weight, bias, k)

    def _as_weight(self, x: Tensor) -> Tensor:
        return x.to(self.weight.dtype).contiguous()


def lsh_layers(model: nn.Module) -> dict[str, LSHLinear]:
    """The LSH layers of a model by name; raises a ValueError where there is none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LSHLinear)}
    if not layers:
        raise ValueError("model has no LSH layer; swap layers in with torch_lsh.sparsify_(model)")
    return layers


def _check_config(config: LSHConfig | None, optional: bool = True) -> None:
    if not isinstance(config, LSHConfig) and not (optional and config is None):
        wanted = "LSHConfig or None" if optional else "LSHConfig"
        raise TypeError(f"config is a {type(config).__name__}; wanted {wanted}")


def _share_parameters(source: nn.Linear, target: nn.Linear) -> None:
    target.in_features, target.out_features = source.in_features, source.out_features
    target.weight = source.weight
    target.register_parameter("bias", source.bias)
