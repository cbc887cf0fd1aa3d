"""QuantizedLinear: a wide output layer with int8 weights, for serving."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..eager import eager
from ..index.lookup import LookupIndex
from ..sampling.look_ups import LookUps
from .casts import without_cast
from .logits.recipe import Recipe
from .logits.tensor import SampledLogits
from .paths import Paths
from .sampled_path import is_compiled, is_traced, is_transformed, leaf_call
from .topk_arguments import check_topk

_BLOCK_ROWS = 16384  # rows quantised at a time
_LARGEST = 127  # the largest magnitude of a quantised weight; -128 has no counterpart


class QuantizedLinear(nn.Module):
    """A linear layer with int8 weights and one scale per row, for serving: ``weight[n] ~ scale[n] * weight_int8[n]``.

    It takes a quarter of the memory of float32, and of the time of small batches, which is spent reading weights.
    Inputs, sums, scales and biases are float32. ``forward`` returns lazy logits, as an :class:`LSHLinear` in ``eval()``
    mode does: ``topk``, ``argmax`` and ``max`` are exact for the quantised weights and make no ``[*, out_features]``
    tensor. Any other function computes with the weights converted back. No gradient flows through the layer.

    :meth:`from_linear` and :func:`torch_lsh.quantize_` make one. The ``state_dict`` holds ``weight_int8``, ``scale``
    and ``bias``.

    Args:
        in_features: size of an input sample.
        out_features: N, the number of classes.
        bias: whether the layer adds a bias.

    Shape:
        input ``[*, in_features]`` float32 or bfloat16 on the CPU; output ``[*, out_features]`` of the same dtype.

    >>> linear = nn.Linear(16, 1_000).eval()
    >>> layer = QuantizedLinear.from_linear(linear)
    >>> bool((layer.weight - linear.weight).abs().max() <= layer.scale.max() / 1.99)
    True
    >>> layer(torch.randn(4, 16)).topk(5).indices.shape
    torch.Size([4, 5])
    """

    sampler: None = None  # no training

    # For torch.jit.script, which compiles the layer as its dense product.
    __jit_ignored_attributes__ = ["sampler", "paths"]  # noqa: RUF012  (PyTorch reads a list)
    __jit_unused_properties__ = ["weight"]  # noqa: RUF012

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # Annotated here: torch.jit.script cannot read annotations of the class that are strings.
        self.weight_int8: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight_int8", torch.zeros(out_features, in_features, dtype=torch.int8, device="cpu"))
        self.register_buffer("scale", torch.zeros(out_features, dtype=torch.float32, device="cpu"))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float32, device="cpu") if bias else None)
        self.paths = Paths(out_features)
        make = functools.partial(LookupIndex, out_features, in_features)
        self._look_ups = LookUps(make, read=self._floating, others=self._scales)

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear) -> QuantizedLinear:
        """Makes a layer with the weights of ``linear``, rounded to the nearest; ``linear`` does not change.

        Args:
            linear: a linear layer with floating point weights on the CPU.

        Raises:
            TypeError: ``linear`` is not a linear layer.
            ValueError: its parameters are not floating point on the CPU, or its weights are not finite.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is a {type(linear).__name__}; wanted torch.nn.Linear")
        for name, tensor in linear.named_parameters():
            if tensor.device.type != "cpu" or not tensor.is_floating_point():
                raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; wanted floating point on the CPU")
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None)
        for begin in range(0, linear.out_features, _BLOCK_ROWS):
            rows = slice(begin, begin + _BLOCK_ROWS)
            weight = linear.weight[rows].float()
            if not weight.isfinite().all():
                raise ValueError("weight holds numbers that are not finite; wanted finite ones")
            scale = weight.abs().amax(1) / _LARGEST if weight.shape[1] else weight.new_zeros(len(weight))
            layer.scale[rows] = scale
            # A row of zeros has scale 0.
            layer.weight_int8[rows] = (weight / torch.where(scale > 0, scale, 1).unsqueeze(1)).round_().to(torch.int8)
        if layer.bias is not None:
            layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The weights ``[out_features, in_features]`` converted back to float32, a new tensor at every access."""
        return self.weight_int8 * self.scale.unsqueeze(1)

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Both, the weights converted back."""
        return self.weight, self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._look_ups.forget_inputs()

    def forward(self, input: Tensor) -> Tensor:
        """Returns lazy logits ``[*, out_features]``.

        Args:
            input: ``[*, in_features]`` float32 or bfloat16.

        Raises:
            RuntimeError: the layer is in training mode.
            TypeError: the input has another dtype or device.
            ValueError: the input has another width.
        """
        if torch.jit.is_scripting():
            return self._all_logits(input)
        return self._eager_logits(input)

    @torch.jit.unused
    def _eager_logits(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return self._all_logits(input) if input.tracer.root is self else leaf_call(self, input)
        self._check(input)
        if is_traced() or is_transformed():
            return self._all_logits(input.detach())
        recipe = Recipe(input.detach(), self, input.dtype, input.dtype, input.dim() - 1, detached=True)
        return SampledLogits.from_recipe(recipe)

    def _check(self, input: Tensor) -> None:
        if self.training:
            raise RuntimeError(
                "a quantised layer cannot be trained; call model.eval(), or train the float model and quantise it again"
            )
        if not isinstance(input, Tensor):
            raise TypeError(f"input is a {type(input).__name__}; wanted a tensor")
        if input.dtype not in (torch.float32, torch.bfloat16) or input.device.type != "cpu":
            raise TypeError(f"input is {input.dtype} on {input.device}; wanted float32 or bfloat16 on the CPU")
        if input.dim() < 1 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"input has shape {tuple(input.shape)}; wanted {self.in_features} features in the last dimension"
            )

    def _all_logits(self, input: Tensor) -> Tensor:
        """The logits ``[*, out_features]``, computed by operators of PyTorch alone."""
        logits = F.linear(input.float(), self.weight_int8.float()) * self.scale
        bias = self.bias
        if bias is not None:
            logits = logits + bias
        return logits.to(input.dtype)

    def topk(
        self, x: Tensor, k: int, exact: bool = True, candidates: int | None = None, recall: float = 0.95
    ) -> torch.return_types.topk:
        """Returns ``torch.topk(self(x), k)``, or the best of candidates; see :meth:`torch_lsh.LSHLinear.topk`.

        Exact and approximate scores are those of the quantised weights. Where ``exact=False`` builds its index, the
        weights are converted to float32 for a moment. Exported graphs are exact.

        Args:
            x: ``[*, in_features]``.
            k: 1 to ``out_features``.
            exact, candidates, recall: as in :meth:`torch_lsh.LSHLinear.topk`.

        Returns:
            ``(values, indices)`` of shape ``[*, k]``, values in descending order.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        check_topk(k, self.out_features, candidates, recall)
        if is_traced() and not is_compiled():
            return torch.topk(self._all_logits(x), k)
        if not exact:
            return self._topk_of_candidates(x, k, candidates, recall)
        if not is_compiled():
            return torch.topk(self(x), k)
        return self._shaped(x, *self.largest_logits(x.reshape(-1, self.in_features), k))

    @eager()
    def _topk_of_candidates(self, x: Tensor, k: int, candidates: int | None, recall: float) -> torch.return_types.topk:
        self._check(x)
        with torch.no_grad():
            flat = x.detach().reshape(-1, self.in_features).float().contiguous()
            of_layer = (self.weight_int8, self.bias, flat, None)
            rows: Tensor | None
            if candidates is None:
                rows = self._look_ups.find_for_recall(*of_layer, k, recall)
            else:
                rows = self._look_ups.find(*of_layer, candidates)
            if rows is None:
                return self._shaped(x, *self.largest_logits(flat, k))
            return self._shaped(x, *ops.rows_topk(flat, self.weight_int8, self.bias, rows, k, self.scale))

    def _shaped(self, x: Tensor, values: Tensor, classes: Tensor) -> torch.return_types.topk:
        shape = (*x.shape[:-1], values.shape[-1])
        return torch.return_types.topk((values.to(x.dtype).reshape(shape), classes.reshape(shape)))

    def _floating(self, weight_int8: Tensor) -> Tensor:
        return weight_int8 * self.scale.unsqueeze(1)

    def _scales(self) -> tuple[Tensor]:
        return (self.scale,)

    # --- what lazy logits ask for ---

    def largest_logits(self, x: Tensor, k: int, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the ``k`` largest logits of ``x`` ``[B, in_features]`` and their classes, ``[B, k]`` each.

        ``offset`` ``[N]`` is added to the logits.
        """
        bias = self.bias
        if offset is not None:
            bias = offset.float() if bias is None else bias + offset.float()
        return ops.linear_topk(x.float().contiguous(), self.weight_int8, bias, k, self.scale)

    def active_logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Returns the logits ``[B, A]`` of rows ``[A]``, or of rows ``[B, A]`` padded with -1, whose logits are 0."""
        present = rows.clamp(min=0)
        weight = self.weight_int8[present] * self.scale[present].unsqueeze(-1)
        logits = (x.float().unsqueeze(1) @ weight.mT).squeeze(1)
        if self.bias is not None:
            logits = logits + self.bias[present]
        return logits * (rows >= 0)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        super()._apply(without_cast(fn), recurse)  # scales and biases stay float32
        return self
