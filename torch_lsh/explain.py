"""explain: which layers of a model are trained by samples, which are not and why, and what their last step did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from .nn.convert import why_left_dense
from .nn.linear_with_sampler import LinearWithSampler
from .nn.paths import Paths
from .nn.quantized import QuantizedLinear
from .nn.speedup import NARROW
from .nn.tied import follows_optimizer, tied_embeddings
from .row_sparse.parameters import in_data_parallel, marked_optimizers, wants_row_sparse


@dataclass(frozen=True)
class LayerPath:
    """What :func:`explain` says about one layer.

    Attributes:
        name: of the layer in the model; "" is the model itself.
        kind: the name of its class.
        shape: inputs and outputs.
        swapped: whether it is a layer of this library.
        last: the path of the last result: "sampled", "exact", "ranked", "ranked active rows", "dense"; None: none yet.
        paths: results by path.
        notes: why something takes all rows and what to do about it; what gradients look like; tied embeddings.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    swapped: bool
    last: str | None = None
    paths: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{self.name or '(the model)'}: {self.kind}({self.shape[0]:,} -> {self.shape[1]:,})"
        if not self.swapped:
            return "\n".join([f"{head}, dense", *(f"    {note}" for note in self.notes)])
        counts = ", ".join(f"{path} {count:,}" for path, count in self.paths.items() if not path.startswith("why: "))
        lines = [f"last result {self.last or 'none yet'}" + (f" ({counts})" if counts else ""), *self.notes]
        return "\n".join([head, *(f"    {line}" for line in lines)])


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found.

    Attributes:
        layers: the wide layers, and those of this library.
        narrow: linear layers with too few outputs to gain.
    """

    layers: tuple[LayerPath, ...]
    narrow: int = 0

    def __str__(self) -> str:
        lines = [str(layer) for layer in self.layers] or ["no wide linear layer"]
        if self.narrow:
            lines.append(f"{self.narrow} linear layers with fewer than {NARROW:,} outputs stay dense")
        return "\n".join(lines)


def explain(model: nn.Module) -> Explanation:
    """Prints which layers of ``model`` are trained by samples, which are not and why, and what they did last.

    Args:
        model: any module.

    Returns:
        The same as an object.

    Raises:
        TypeError: ``model`` is no module.

    >>> import torch_lsh
    >>> model = nn.Sequential(nn.Linear(16, 32), torch_lsh.LSHLinear(32, 20_000))
    >>> explanation = explain(model)
    1: LSHLinear(32 -> 20,000)
        last result none yet
        dense gradients: no optimizer of torch_lsh.optim has the weight
    1 linear layers with fewer than 4,096 outputs stay dense
    >>> explanation.layers[0].swapped
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; wanted torch.nn.Module")
    layers, narrow = [], 0
    for name, module in model.named_modules():
        if isinstance(module, (LinearWithSampler, QuantizedLinear)):
            layers.append(_swapped(model, name, module))
        elif isinstance(module, nn.Linear) and module.out_features >= NARROW:
            shape = (module.in_features, module.out_features)
            reason = why_left_dense(module)
            note = f"it {reason}" if reason else "torch_lsh.sparsify_ was not called on it"
            layers.append(LayerPath(name, type(module).__name__, shape, False, notes=(note,)))
        elif isinstance(module, nn.Linear):
            narrow += 1
    explanation = Explanation(tuple(layers), narrow)
    print(explanation)
    return explanation


def _swapped(model: nn.Module, name: str, module: LinearWithSampler | QuantizedLinear) -> LayerPath:
    paths: Paths = module.paths
    shape = (module.in_features, module.out_features)
    notes = list(paths.why.values())
    if isinstance(module, LinearWithSampler):
        notes = [*_about_gradients(module.weight), *_about_embeddings(model, module.weight), *notes]
    return LayerPath(name, type(module).__name__, shape, True, paths.last, dict(paths.counts), tuple(notes))


def _about_gradients(weight: Tensor) -> Iterator[str]:
    if not weight.requires_grad:
        return
    names = sorted({type(optimizer).__name__ for optimizer in marked_optimizers(weight)})
    if wants_row_sparse(weight):
        yield f"row-sparse gradients, for torch_lsh.optim.{' and '.join(names)}"
    elif in_data_parallel(weight):
        yield "dense gradients, for DistributedDataParallel"
    elif names:
        yield "dense gradients: another optimizer stepped last"
    else:
        yield "dense gradients: no optimizer of torch_lsh.optim has the weight"


def _about_embeddings(model: nn.Module, weight: Tensor) -> Iterator[str]:
    for name, embedding in tied_embeddings(model, weight):
        row_sparse = embedding.sparse or follows_optimizer(embedding)
        yield f"tied with {name}" + (
            "" if row_sparse else ", whose gradients are dense; call torch_lsh.sparsify_(model)"
        )
