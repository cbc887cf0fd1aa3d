"""LSHFeedForward: a wide MLP block that computes and updates only the hidden neurons that matter for a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import LSHConfig
from ..row_sparse.parameters import note_forward
from ..row_sparse.transposed import transpose_
from ..sampling.active_set import ActiveSet, choose_active_rows, needs_index
from .linear import LSHLinear
from .logits.tensor import SampledLogits

# Modules that may stand between the two projections: each hidden neuron by itself, whichever others are there.
ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Dropout, nn.Identity)
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class DownProjection(nn.Module):
    """What ``nn.Linear(d_hidden, d_model)`` computes, its weight kept as ``[d_hidden, d_model]``.

    There the weights of a hidden neuron are a row, so that few active neurons make a row-sparse gradient. In a
    ``state_dict`` the weight is ``[d_model, d_hidden]`` as that of ``nn.Linear``, and checkpoints load both ways.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, d_hidden: int, d_model: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self._take(nn.Linear(d_hidden, d_model, bias, device, dtype))

    def _take(self, linear: nn.Linear) -> None:
        self.in_features, self.out_features = linear.in_features, linear.out_features
        transpose_(linear.weight)  # type: ignore[arg-type]
        self.weight = linear.weight  # type: ignore[assignment]
        self.register_parameter("bias", linear.bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> DownProjection:
        """Takes the very same Parameters over from ``linear``, whose weight is transposed in place: ``linear`` itself
        is of no use any more.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take(linear)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` of the very same Parameters; the weight is transposed back, in place."""
        linear = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(linear)
        linear.in_features, linear.out_features = self.in_features, self.out_features
        transpose_(self.weight)
        linear.weight = self.weight
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight.t(), self.bias)

    def from_active(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """``[B, d_model]`` from the active neurons alone.

        Args:
            hidden: ``[B, A]`` their activations.
            rows: ``[A]``, or ``[B, A]`` padded with -1: which neurons they are.
        """
        if rows.dim() == 1:
            active = ops.gather_rows(self.weight, rows)
            out = hidden @ active if active.dtype is torch.bfloat16 else ops.product(hidden, active)
        else:
            present = rows >= 0
            crow = F.pad(present.sum(1).cumsum(0), (1, 0))
            out = ops.embedding_bag(self.weight, crow, rows[present], hidden[present])
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"].t()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if isinstance(weight, Tensor) and weight.dim() == 2:
            state_dict = {**state_dict, prefix + "weight": weight.detach().t().contiguous()}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def apply_block(
    x: Tensor, up: LSHLinear, middle: Sequence[nn.Module], down: DownProjection, sample: bool | None = None
) -> Tensor:
    """``down(middle(up(x)))``, from the active neurons alone where that is wanted and can be.

    Args:
        x: ``[*, d_model]``.
        up: its rows are the hidden neurons, and it chooses the active ones.
        middle: element-wise modules.
        down: of as many hidden neurons.
        sample: whether from the active neurons; None: in training, and where the scope is "sample".
    """
    if sample is None:
        sample = up.training or up.config.scope == "sample"
    # Hooks of the parts see what they would see in a dense block.
    if not sample or up._obstacle(x) is not None or any(is_hooked(module) for module in (up, *middle, down)):
        hidden = up(x)
        hidden = hidden.dense() if isinstance(hidden, SampledLogits) else hidden
        for module in middle:
            hidden = module(hidden)
        return down(hidden)
    flat = x.reshape(-1, up.in_features)
    active = _choose_neurons(up, down, flat)
    hidden = up.active_logits(flat, active.rows)
    for module in middle:
        hidden = module(hidden)
    if up.training:
        keep = up.keeper_of_hardest_rows(active, corrected=False)
        if keep is not None:
            values = hidden.detach().to(torch.promote_types(hidden.dtype, torch.float32))
            keep(ops.positive_sums(values if values.mT.is_contiguous() else values.contiguous()))
    if up.config.correction == "stratified":
        hidden = hidden * active.weights().to(hidden.dtype)
    return down.from_active(hidden, active.rows).reshape(*x.shape[:-1], down.out_features)


@torch.compiler.disable
def _choose_neurons(up: LSHLinear, down: DownProjection, x: Tensor) -> ActiveSet:
    for parameter in (*up.parameters(), *down.parameters()):
        note_forward(parameter)
    if up.config.sampler in ("frequency", "in_batch"):
        raise ValueError(f"sampler is {up.config.sampler!r}, which needs labels; hidden neurons have none")
    no_labels = torch.empty(len(x), 0, dtype=torch.int64)
    if up.training:
        return up.draw_active_rows(x.detach(), no_labels)
    # Nothing random, and the draws of training go on as if there had been no evaluation.
    config = replace(up.config, random_fraction=0.0)
    index = up._synchronised_index() if needs_index(config, up.out_features) else None
    return choose_active_rows(index, x.detach(), no_labels, up.out_features, config, seed=0)


def is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


class LSHFeedForward(nn.Module):
    """``Linear(d_model, d_hidden) -> activation -> Linear(d_hidden, d_model)``, trained through few hidden neurons.

    A training step chooses active neurons, those with high pre-activations as hashing finds them and some random ones
    (``config.active``, ``config.random_fraction``), and computes and updates only those: their rows of the first weight
    and their columns of the second. Neurons with the largest sums of activations stay candidates for the next step
    (``config.carry``). The other neurons count as 0, whatever the activation gives them; ``config.correction``
    "stratified" weighs the random neurons by their sampling probability, so that the sum over all neurons is estimated
    without bias, but with much variance; "auto" and "even" are "none" here.

    In ``eval()`` mode with ``scope="batch"`` all neurons are computed, exactly as the dense block does; with
    ``scope="sample"``, where a trained block relies on the few neurons that a sample had at a time, the active ones, as
    in training but without random ones (so nothing is left to chance, and a sample's result does not depend on its
    batch). ``sample_in_eval`` changes either. :meth:`exact` is what the dense block gives, in any mode.

    The first projection is an :class:`LSHLinear`, whose hash tables follow its weights as they do in an output layer.
    The second is kept transposed, but in a ``state_dict`` both are as in ``nn.Linear``: ``up.weight``
    ``[d_hidden, d_model]``, ``up.bias``, ``down.weight`` ``[d_model, d_hidden]``, ``down.bias``.

    Args:
        d_model: size of an input and of an output sample.
        d_hidden: hidden neurons.
        activation: ``"relu"``, ``"gelu"``, ``"silu"``, or a module that treats each hidden neuron by itself.
        bias: whether the projections have one.
        config: see :class:`torch_lsh.LSHConfig`. Scope "batch" is for speed; "sample" is SLIDE's.
        sample_in_eval: see above; None: where the scope is "sample".

    Shape:
        input and output ``[*, d_model]``; float32, float64 or bfloat16 on the CPU. Anything else that ``nn.Linear``
        takes is computed exactly, with one warning, and so is a block with hooks on its parts, without one.

    Raises:
        TypeError, ValueError: an argument or the input does not fit.

    References:
        Spring & Shrivastava, "Scalable and Sustainable Deep Learning via Randomized Hashing", KDD 2017;
        Chen et al., "SLIDE: In Defense of Smart Algorithms over Hardware Acceleration", MLSys 2020.

    >>> block = LSHFeedForward(16, 5_000, "gelu", config=LSHConfig(active=0.02))
    >>> x = torch.randn(4, 7, 16)
    >>> block(x).shape
    torch.Size([4, 7, 16])
    >>> torch.equal(block.eval()(x), block.exact(x))
    True
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        activation: str | nn.Module = "relu",
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        config: LSHConfig | None = None,
        sample_in_eval: bool | None = None,
    ) -> None:
        super().__init__()
        if isinstance(activation, str):
            if activation not in _ACTIVATIONS:
                raise ValueError(f"activation is {activation!r}; wanted one of {', '.join(map(repr, _ACTIVATIONS))}")
            activation = _ACTIVATIONS[activation]()
        if not isinstance(activation, nn.Module):
            raise TypeError(f"activation is a {type(activation).__name__}; wanted a name or a torch.nn.Module")
        self.up = LSHLinear(d_model, d_hidden, bias, device, dtype, config=config)
        self.activation = activation
        self.down = DownProjection(d_hidden, d_model, bias, device, dtype)
        self.sample_in_eval = sample_in_eval

    @property
    def config(self) -> LSHConfig:
        return self.up.config

    def forward(self, x: Tensor) -> Tensor:
        return apply_block(x, self.up, (self.activation,), self.down, self.training or self.sample_in_eval)

    def exact(self, x: Tensor) -> Tensor:
        """What the dense block gives for ``x`` ``[*, d_model]``; differentiable."""
        return apply_block(x, self.up, (self.activation,), self.down, sample=False)


class LSHSequential(nn.Sequential):
    """An ``nn.Sequential`` in which an :class:`LSHLinear`, element-wise modules and a :class:`DownProjection` in a row
    are one block, computed as :class:`LSHFeedForward` does: :func:`torch_lsh.sparsify_` makes it.

    Every module computes by itself what that of the dense model does, so slices and children give exact results.
    """

    sample_in_eval: bool | None = None

    def forward(self, input: Tensor) -> Tensor:
        modules = list(self)
        position = 0
        while position < len(modules):
            module, stop = modules[position], block_end(modules, position, LSHLinear, DownProjection)
            if stop is None:
                input = module(input)
                position += 1
            else:
                *middle, down = modules[position + 1 : stop]
                sample = self.training or self.sample_in_eval
                input = apply_block(input, module, middle, down, sample)  # type: ignore[arg-type]
                position = stop
        return input


def block_end(modules: Sequence[nn.Module], start: int, up: type, down: type) -> int | None:
    """Where the block of ``up``, element-wise modules and ``down`` ends that begins at ``start``; None: none does."""
    if type(modules[start]) is not up:
        return None
    for stop in range(start + 1, len(modules)):
        if type(modules[stop]) not in ELEMENTWISE:
            return stop + 1 if type(modules[stop]) is down and stop > start + 1 else None
    return None
