"""Losses and rankings of a wide weight that belongs to no :class:`LSHLinear`: a tied embedding, a model's own head.

What :class:`LSHLinear` keeps beside its parameters, the sampler, is kept per weight here, for as long as the weight
lives. :class:`SamplerState` puts it into a model's ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import ops
from ..config import LSHConfig
from ..sampling.sampler import Sampler
from ..sampling.state import pack, unpack, without_foreign
from .compiled import Loss, call_loss, handle_of, in_graphs, shares_memory, wants_gradient
from .linear import LSHLinear
from .paths import Paths
from .sampled_path import is_compiled

_layers: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> an LSHLinear without parameters


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of ``F.linear(input, linear_weight, linear_bias)``, computed by the rows that matter.

    Takes the arguments of :func:`torch.nn.functional.linear_cross_entropy` (PyTorch 2.13 or newer). Where a gradient is
    wanted the loss is sampled, as that of an :class:`LSHLinear` in training mode; otherwise it is exact. The gradient
    of the weight is row-sparse where its optimizer takes that. Compiles with ``fullgraph=True``.

    Tables and random stream are kept per weight, so the weight has to outlive the call. :func:`sampler_of` sets how
    rows are drawn; :class:`SamplerState` saves the state.

    Args:
        input: ``[*, in_features]``.
        linear_weight: ``[N, in_features]``, a Parameter or another leaf of the autograd graph.
        target: class indices ``[*]``; or ``[*, P]`` padded with ``ignore_index``, where the labels of a sample share
            the target distribution equally; or a sparse CSR tensor ``[B, N]`` of probabilities.
        bias, linear_bias: ``[N]`` or None; two names of one argument, the second is PyTorch's.
        weight: ``[N]``, a weight per class, or None.
        reduction: "mean", "sum" or "none".
        ignore_index: the class index that stands for no label; None: -100.
        label_smoothing: 0 to 1.

    Returns:
        A scalar, or ``[*]`` for ``reduction="none"``.

    Raises:
        TypeError, ValueError: an argument does not fit, or the weight is no leaf.

    References:
        Spring & Shrivastava, "Scalable and Sustainable Deep Learning via Randomized Hashing", KDD 2017.

    >>> embedding = torch.nn.Embedding(5_000, 16)
    >>> hidden = embedding(torch.tensor([1, 2, 3]))
    >>> loss = linear_cross_entropy(hidden, embedding.weight, torch.tensor([2, 3, 4]))
    >>> loss.backward()
    """
    linear_bias = _one_bias(bias, linear_bias)
    loss = Loss(-100 if ignore_index is None else ignore_index, reduction, label_smoothing)
    if is_compiled():
        _check_leaf(linear_weight)
        wants_grad = wants_gradient(input, linear_weight, linear_bias)
        return call_loss(_HANDLE, input, linear_weight, linear_bias, target, weight, loss, wants_grad)
    return _loss_of_weight(input, linear_weight, linear_bias, target, weight, loss)


def _topk_in_graph(
    input: Tensor,
    outside: Callable[..., torch.return_types.topk],
    linear_weight: Tensor,
    k: int,
    bias: Tensor | None = None,
    *,
    exact: bool = True,
    candidates: int | None = None,
    recall: float = 0.95,
) -> torch.return_types.topk:
    if not is_compiled():
        return torch.topk(F.linear(input, linear_weight, bias), k)
    if not exact or wants_gradient(input, linear_weight, bias):
        return outside(input, linear_weight, k, bias, exact=exact, candidates=candidates, recall=recall)
    flat = input.reshape(-1, input.shape[-1]).to(linear_weight.dtype)
    values, classes = ops.linear_topk(flat, linear_weight, bias, k)
    shape = (*input.shape[:-1], k)
    return torch.return_types.topk((values.to(input.dtype).reshape(shape), classes.reshape(shape)))


@in_graphs(_topk_in_graph)
def linear_topk(
    input: Tensor,
    linear_weight: Tensor,
    k: int,
    bias: Tensor | None = None,
    *,
    exact: bool = True,
    candidates: int | None = None,
    recall: float = 0.95,
) -> torch.return_types.topk:
    """The ``k`` highest scoring rows of a weight, without an ``[B, N]`` tensor; see :meth:`LSHLinear.topk`.

    Args:
        input: ``[*, in_features]``.
        linear_weight: ``[N, in_features]``, a Parameter or another leaf of the autograd graph.
        k: 1 to N.
        bias: ``[N]`` or None.
        exact, candidates, recall: as in :meth:`LSHLinear.topk`.

    Returns:
        ``(values, indices)`` of shape ``[*, k]``, values in descending order.

    >>> embedding = torch.nn.Embedding(5_000, 16)
    >>> linear_topk(torch.randn(2, 16), embedding.weight, k=5).indices.shape
    torch.Size([2, 5])
    """
    return _layer(linear_weight, bias, training=False).topk(input, k, exact, candidates, recall)


def sampler_of(weight: Tensor, config: LSHConfig | None = None) -> Sampler:
    """The sampler that :func:`linear_cross_entropy` uses for a weight; made at the first call.

    Args:
        weight: ``[N, in_features]``.
        config: settings to take over; None leaves them.

    >>> weight = torch.nn.Parameter(torch.randn(5_000, 16))
    >>> sampler_of(weight, LSHConfig(active=500)).config.active
    500
    """
    sampler = _kept(weight).sampler
    if config is not None:
        sampler.reconfigure(config)
    return sampler


class SamplerState(nn.Module):
    """Puts the sampler of a weight into the ``state_dict`` of the model that holds this module.

    A run that resumes from the ``state_dict`` then equals one that never stopped, bit for bit, as with
    :class:`LSHLinear`. Copies of the model have samplers of their own, which go on alike.

    Args:
        weight: ``[N, in_features]``, the weight that is passed to :func:`linear_cross_entropy`. The module does not
            register it: the weight stays where it is in the ``state_dict``.
        config: settings to take over; None leaves them.

    >>> model = torch.nn.Module()
    >>> model.embedding = torch.nn.Embedding(5_000, 16)
    >>> model.sampler_state = SamplerState(model.embedding.weight)
    >>> list(model.state_dict())
    ['embedding.weight', 'sampler_state._extra_state']
    """

    def __init__(self, weight: nn.Parameter, config: LSHConfig | None = None) -> None:
        super().__init__()
        self._weight = (weight,)  # a tuple, so that the Parameter is not registered
        sampler_of(weight, config)

    @property
    def weight(self) -> nn.Parameter:
        """The weight, which belongs to another module."""
        return self._weight[0]

    @property
    def sampler(self) -> Sampler:
        """The sampler of the weight."""
        return sampler_of(self._weight[0])

    def get_extra_state(self) -> Tensor:
        """The sampler's state, ``[n]`` uint8 of a size that follows from shape and settings."""
        self.sampler.fit(self._weight[0])
        return pack(self.sampler.state_dict(), **self.sampler.packed_sizes())

    def set_extra_state(self, state: Tensor) -> None:
        """Takes over what :meth:`get_extra_state` returned."""
        self.sampler.fit(self._weight[0])
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
        own = without_foreign(state_dict, f"{prefix}_extra_state", self.weight, unexpected_keys)
        super()._load_from_state_dict(own, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sampler": self.sampler}

    def __setstate__(self, state: dict[str, Any]) -> None:
        sampler = state.pop("_sampler")
        super().__setstate__(state)
        _kept(self._weight[0]).sampler = sampler


# --- the layer of a weight --------------------------------------------------------------------------------------------


def _kept(weight: Tensor) -> LSHLinear:
    """The layer that is kept for a weight, without its parameters, which would keep the weight alive."""
    layer = _layers.get(weight)
    if layer is None:
        if weight.dim() != 2:
            raise ValueError(f"linear_weight has shape {tuple(weight.shape)}; wanted (classes, features)")
        layer = LSHLinear(1, 1, bias=False, device="cpu")
        layer.register_parameter("weight", None)
        num_rows, width = weight.shape
        layer.sampler, layer.paths = Sampler(num_rows, width, LSHConfig()), Paths(num_rows, of_weight=True)
        _layers[weight] = layer
    return layer


def _layer(weight: Tensor, bias: Tensor | None, training: bool) -> LSHLinear:
    """The layer of a weight for one call: it shares sampler and warnings with the kept one."""
    _check_leaf(weight)
    layer = LSHLinear.__new__(LSHLinear)
    layer.__dict__.update(_kept(weight).__dict__)
    layer.__dict__.update(_parameters={"weight": weight, "bias": bias}, training=training)
    layer.out_features, layer.in_features = weight.shape
    return layer


def _one_bias(bias: Tensor | None, linear_bias: Tensor | None) -> Tensor | None:
    if bias is not None and linear_bias is not None:
        raise TypeError("bias and linear_bias are given; wanted one of them, they name the same argument")
    return bias if linear_bias is None else linear_bias


def _check_leaf(weight: Tensor) -> None:
    if not isinstance(weight, nn.Parameter) and not (weight.requires_grad and weight.is_leaf):
        raise ValueError(
            "linear_weight is the result of an operation, for which no tables can be kept; wanted a Parameter, "
            "as in linear_cross_entropy(hidden, embedding.weight, target)"
        )


def _loss_of_weight(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None, loss: Loss
) -> Tensor:
    training = wants_gradient(x, weight, bias)
    return _layer(weight, bias, training).cross_entropy(x, target, class_weight, **loss._asdict())


class _Weights:
    """Owner of the losses of all weights in compiled graphs."""

    def eager_loss(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None, loss: Loss
    ) -> Tensor:
        """:func:`linear_cross_entropy` of the weight itself, where a compiler passes an alias of it."""
        if weight not in _layers:
            weight = next((known for known in _layers if shares_memory(known, weight)), weight)
        return _loss_of_weight(x, weight, bias, target, class_weight, loss)


_WEIGHTS = _Weights()
_HANDLE = handle_of(_WEIGHTS)
