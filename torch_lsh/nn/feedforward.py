"""LSHFeedForward: a wide MLP block that computes and updates only the hidden neurons that matter for a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import LSHConfig
from ..eager import eager
from ..row_sparse.parameters import note_forward
from ..row_sparse.transposed import transpose_
from ..sampling.active_set import ActiveSet
from .compiled import block_in_graph, handle_of
from .linear import LSHLinear
from .logits.tensor import SampledLogits
from .paths import SAMPLED
from .sampled_path import is_compiled, leaf_call, obstacle

# Modules that may stand between the two projections: each hidden neuron by itself, whichever others are there.
ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Dropout, nn.Identity)
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class DownProjection(nn.Module):
    """What ``nn.Linear(d_hidden, d_model)`` computes, its weight kept as ``[d_hidden, d_model]``.

    The weights of a hidden neuron are a row there, so the gradient of few active neurons is row-sparse. In a
    ``state_dict`` the weight is ``[d_model, d_hidden]`` as in ``nn.Linear``, and checkpoints load both ways.
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
        """A projection of the very same Parameters.

        The weight is transposed in place, so ``linear`` itself becomes unusable.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take(linear)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` of the very same Parameters. The weight is transposed back in place."""
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
        if prefix + "weight" in destination:  # a pruned or parametrized one is under other names, as it is kept
            destination[prefix + "weight"] = destination[prefix + "weight"].t()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if isinstance(weight, Tensor) and weight.dim() == 2:
            state_dict = {**state_dict, prefix + "weight": weight.detach().t().contiguous()}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def apply_block(
    x: Tensor, up: LSHLinear, middle: Sequence[nn.Module], down: DownProjection, sample: bool | None = None
) -> Tensor:
    """``down(middle(up(x)))``, from the active neurons alone where that is asked for and possible.

    Args:
        x: ``[*, d_model]``.
        up: the first projection, whose rows are the hidden neurons.
        middle: element-wise modules.
        down: the second projection.
        sample: see :func:`samples`.
    """
    sample = samples(up, sample)
    hooked = sample and any(is_hooked(module) for module in (up, *middle, down))
    if hooked:  # they see what they would see in a dense block
        up.paths.dense("a hook", "hooks")
    if not sample or hooked or isinstance(x, torch.fx.Proxy) or obstacle(up, x) is not None:
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
        hardest = up.sampler.hardest_rows(active, corrected=False)
        if hardest is not None:
            values = hidden.detach().to(torch.promote_types(hidden.dtype, torch.float32))
            hardest.find(values if values.mT.is_contiguous() else values.contiguous())
    if up.config.correction == "stratified":
        hidden = hidden * active.weights().to(hidden.dtype)
    return down.from_active(hidden, active.rows).reshape(*x.shape[:-1], down.out_features)


@eager()
def _choose_neurons(up: LSHLinear, down: DownProjection, x: Tensor) -> ActiveSet:
    note_forward(*up.parameters(), *down.parameters())
    if up.config.sampler in ("frequency", "in_batch"):
        raise ValueError(f"sampler is {up.config.sampler!r}, which needs labels; hidden neurons have none")
    up.paths.took(SAMPLED)
    if up.training:
        no_labels = torch.empty(len(x), 0, dtype=torch.int64, device="cpu")
        return up.sampler.draw(up.weight, up.bias, x.detach(), no_labels)
    return up.sampler.look_up(up.weight, up.bias, x)


def samples(up: LSHLinear, sample: bool | None) -> bool:
    """Whether a block is to compute active neurons only; None: in training, and where the scope is "sample"."""
    return up.training or up.config.scope == "sample" if sample is None else sample


def is_hooked(module: nn.Module) -> bool:
    """Whether a forward or backward hook watches the module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


class _HasBlocks(nn.Module):
    """A module whose blocks are operators in graphs of ``torch.compile``."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.handle = handle_of(self)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__}
        del state["handle"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.handle = handle_of(self)

    def block(
        self, x: Tensor, position: int, up: LSHLinear, middle: Sequence[nn.Module], down: DownProjection, sample: Any
    ) -> Tensor:
        """:func:`apply_block`, which :meth:`eager_block` of a subclass computes outside of graphs."""
        # torch.func.functional_call replaces Parameters by other tensors, of which the tables know nothing.
        if is_compiled() and samples(up, sample) and isinstance(up.weight, nn.Parameter):
            parameters = [parameter for module in (up, *middle, down) for parameter in module.parameters()]
            return block_in_graph(self.handle, x, position, down.out_features, parameters)
        return apply_block(x, up, middle, down, sample)


class LSHFeedForward(_HasBlocks):
    """``Linear(d_model, d_hidden) -> activation -> Linear(d_hidden, d_model)``, trained through few hidden neurons.

    A training step draws active neurons: those with high pre-activations, found by hashing, and some random ones
    (``config.active``, ``config.random_fraction``). It computes and updates only their rows of the first weight and
    their columns of the second; all other neurons count as 0. Neurons with the largest sums of activations stay
    candidates for the next step (``config.carry``). ``config.correction`` "stratified" weighs the random neurons by
    their sampling probability, which makes the sum over all neurons unbiased, with much variance; "auto" and "even"
    mean "none" here.

    In ``eval()`` mode, ``scope="batch"`` computes all neurons, exactly as the dense block does. ``scope="sample"``
    computes the active ones, because a block trained so relies on few neurons per sample; none of them is random, and a
    sample's result does not depend on its batch. ``sample_in_eval`` overrides either. :meth:`exact` gives the result of
    the dense block in any mode.

    The first projection is an :class:`LSHLinear`. The second is kept transposed, but a ``state_dict`` holds both as
    ``nn.Linear`` has them: ``up.weight`` ``[d_hidden, d_model]``, ``up.bias``, ``down.weight`` ``[d_model, d_hidden]``,
    ``down.bias``; and ``up._extra_state``, the state of the sampler.

    Args:
        d_model: size of an input and of an output sample.
        d_hidden: hidden neurons.
        activation: ``"relu"``, ``"gelu"``, ``"silu"``, or a module that treats each hidden neuron by itself.
        bias: whether the projections have one.
        config: see :class:`torch_lsh.LSHConfig`. Scope "batch" is for speed; "sample" is SLIDE's.
        sample_in_eval: see above; None: where the scope is "sample".

    Shape:
        input and output ``[*, d_model]``; float32, float64 or bfloat16 on the CPU. Any other input that ``nn.Linear``
        takes is computed exactly, with one warning. A block with hooks on its parts is computed exactly, too.

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
        if isinstance(x, torch.fx.Proxy) and x.tracer.root is not self:
            return leaf_call(self, x)
        return self.block(x, 0, *self._parts())

    def _parts(self) -> tuple[LSHLinear, tuple[nn.Module], DownProjection, bool | None]:
        return self.up, (self.activation,), self.down, self.training or self.sample_in_eval

    def eager_block(self, x: Tensor, position: int) -> Tensor:
        """The result for ``x`` ``[*, d_model]``, for :func:`torch_lsh.nn.compiled.block_in_graph`."""
        return apply_block(x, *self._parts())

    def exact(self, x: Tensor) -> Tensor:
        """The result of the dense block for ``x`` ``[*, d_model]``; differentiable."""
        return apply_block(x, self.up, (self.activation,), self.down, sample=False)


class LSHSequential(_HasBlocks, nn.Sequential):
    """An ``nn.Sequential`` that computes wide feed-forward blocks among its modules as one.

    A block is an :class:`LSHLinear`, element-wise modules and a :class:`DownProjection`, computed as by
    :class:`LSHFeedForward`. :func:`torch_lsh.sparsify_` makes these containers. Called by itself, each module
    computes what it does in the dense model, so slices and children give exact results.
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
                input = self.block(input, position, *self._parts(modules, position, stop))
                position = stop
        return input

    def _parts(self, modules: Sequence[nn.Module], position: int, stop: int | None) -> Any:
        up, *middle, down = modules[position:stop]
        return up, middle, down, self.training or self.sample_in_eval

    def eager_block(self, x: Tensor, position: int) -> Tensor:
        """The result of the block that begins at ``position``, for :func:`torch_lsh.nn.compiled.block_in_graph`."""
        modules = list(self)
        stop = block_end(modules, position, LSHLinear, DownProjection)
        return apply_block(x, *self._parts(modules, position, stop))


def block_end(modules: Sequence[nn.Module], start: int, up: type, down: type) -> int | None:
    """The end of the block of ``up``, element-wise modules and ``down`` that begins at ``start``; None: none does."""
    if type(modules[start]) is not up:
        return None
    for stop in range(start + 1, len(modules)):
        if type(modules[stop]) not in ELEMENTWISE:
            return stop + 1 if type(modules[stop]) is down and stop > start + 1 else None
    return None
