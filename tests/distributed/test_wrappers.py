"""Wide layers in what people put around models, against nn.Linear in the same: two processes, all rows active."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.distributed import ShardedLSHLinear, clip_grad_norm_, exchange_rows_, row_parameters

from .processes import in_processes

D, N, B = 8, 501, 12


class Model(nn.Module):
    def __init__(self, kind: str, active: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(D, D), nn.ReLU())
        head = nn.Linear(D, N) if kind == "linear" else LSHLinear(D, N, config=LSHConfig(active=active))
        self.head = ShardedLSHLinear.shard_(head) if kind == "sharded" else head

    def forward(self, x: torch.Tensor):
        return self.head(self.trunk(x))


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, D, generator=generator), torch.randint(0, N, (B,), generator=generator)


def halves(rank: int, step: int) -> slice:
    return slice(rank * B // 2, (rank + 1) * B // 2)


def uneven(rank: int, step: int) -> slice:
    return slice(0, 4) if rank == 0 else slice(4, B)


def empty(rank: int, step: int) -> slice:
    return slice(0, 0) if rank == step % 2 else slice(0, B)


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y, reduction="sum") / 6


def loss_of_two(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits = model(x)
    return F.cross_entropy(logits, y) + 0.5 * F.cross_entropy(logits, (y + 1) % N)


def train(model: nn.Module, rank: int, parts=halves, loss_of=loss_of, clip=None, accumulate: int = 1) -> list[float]:
    """The loop of a user; returns the norms of gradients where they are clipped."""
    optimizer, norms = torch_lsh.optim.SGD(model.parameters(), lr=0.3), []
    for step in range(4):
        x, y = batch(step)
        part = parts(rank, step)
        last = (step + 1) % accumulate == 0
        with contextlib.nullcontext() if last else model.no_sync():
            loss_of(model, x[part], y[part]).backward()
        if last:
            if clip is not None:
                norms.append(float(clip(list(model.parameters()), 0.1)))
            optimizer.step()
            optimizer.zero_grad()
    return norms


def whole(model: Model) -> list[torch.Tensor]:
    """The parameters of a model, those of all shards together."""
    found = [model.state_dict()[name] for name in ("trunk.0.weight", "trunk.0.bias", "head.weight", "head.bias")]
    return [value.full_tensor() if hasattr(value, "full_tensor") else value.clone() for value in found]


def with_hook(model: nn.Module) -> DistributedDataParallel:
    wrapper = DistributedDataParallel(model)
    wrapper.register_comm_hook(None, fp16_compress_hook)
    return wrapper


def data_parallel(model: nn.Module) -> DistributedDataParallel:
    return DistributedDataParallel(model)


def left_out(model: Model, **options) -> nn.Module:
    """FSDP of all but the head."""
    mesh = init_device_mesh("cpu", (2,))
    if isinstance(model.head, nn.Linear) and not isinstance(model.head, LSHLinear):
        return fully_shard(model, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, ignored_params=row_parameters(model), **options)
    exchange_rows_(model)
    return model


def mixed(model: Model) -> nn.Module:
    """A trunk in bfloat16, whose output is float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    fully_shard(model.trunk, mesh=init_device_mesh("cpu", (2,)), mp_policy=policy)
    return left_out(model)


WRAPPERS = {
    "uneven batches": (data_parallel, {"parts": uneven}),
    "an empty batch": (data_parallel, {"parts": empty}),
    "accumulated": (data_parallel, {"accumulate": 2}),
    "two losses": (data_parallel, {"loss_of": loss_of_two}),
    "hook of communication": (with_hook, {}),
    "wrapped twice": (lambda model: DistributedDataParallel(DistributedDataParallel(model)), {}),
    "compiled": (lambda model: torch.compile(DistributedDataParallel(model), backend="eager"), {}),
    "loss compiled": (data_parallel, {"loss_of": torch.compile(loss_of, backend="eager")}),
    "clipped by PyTorch": (data_parallel, {"clip": torch.nn.utils.clip_grad_norm_}),
    "clipped": (data_parallel, {"clip": clip_grad_norm_}),
    "FSDP": (left_out, {}),
    "FSDP, not resharded": (lambda model: left_out(model, reshard_after_forward=False), {}),
    "FSDP, mixed precision": (mixed, {}),
    "FSDP, clipped": (left_out, {"clip": clip_grad_norm_}),
}


def wrapped(rank: int, name: str) -> dict[str, tuple[float, dict, object]]:
    """The largest differences from nn.Linear in the same wrapper, and the paths that losses took."""
    wrap, options = WRAPPERS[name]
    linear = Model("linear")
    norms = train(wrap(linear), rank, **options)
    found = {}
    for kind in ("lsh", "sharded"):
        model = Model(kind)
        if wrap not in (left_out, mixed) and not name.startswith("FSDP"):
            exchange_rows_(model)
        own_norms = train(wrap(model), rank, **options)
        pairs = [*zip(whole(model), whole(linear), strict=True), (torch.tensor(own_norms), torch.tensor(norms))]
        apart = max(float((one - other).abs().max()) for one, other in pairs if one.numel() > 0)
        found[kind] = apart, dict(model.head.paths.counts)
    return found


# --- what is not compared with nn.Linear ------------------------------------------------------------------------------


def explained(rank: int):
    """A sharded layer in explain and stats; a copy; a dense optimizer."""
    model = Model("sharded", active=60)
    exchange_rows_(model)
    wrapper = DistributedDataParallel(model)
    optimizer = torch_lsh.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch(0)
    F.cross_entropy(wrapper(x), y).backward()
    with contextlib.redirect_stdout(io.StringIO()):
        explanation = torch_lsh.explain(model)
    wrapper.eval()(x).topk(3)
    copied = copy.deepcopy(model)
    del optimizer
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
        F.cross_entropy(copied.train()(x), y).backward()
        optimizer.step()
    stats = model.head.stats(x, k=3)
    messages = [str(warning.message) for warning in caught]
    return explanation, stats.paths, stats.recall.mean, messages


def without_layer(rank: int):
    """A weight that no layer owns, for which the model has a SamplerState."""

    class Tied(nn.Module):
        def __init__(self, sampled: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.trunk = nn.Embedding(N, D, sparse=sampled), nn.Linear(D, D)
            if sampled:
                self.state = torch_lsh.SamplerState(self.embedding.weight, LSHConfig(active=1.0))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            hidden = self.trunk(self.embedding(x)).relu()
            if hasattr(self, "state"):
                return torch_lsh.linear_cross_entropy(hidden, self.embedding.weight, y)
            return F.cross_entropy(F.linear(hidden, self.embedding.weight), y)

    weights, layouts = [], []
    for sampled in (True, False):
        model = Tied(sampled)
        names = exchange_rows_(model).names if sampled else []
        wrapper = DistributedDataParallel(model)
        optimizer = torch_lsh.optim.SGD(model.parameters(), lr=0.3)
        for seed in range(3):
            y = batch(seed)[1][halves(rank, 0)]
            wrapper((y * 3) % N, y).backward()
            layouts.append(model.embedding.weight.grad.layout)
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model.embedding.weight.detach())
        assert names == (["embedding.weight"] if sampled else [])
    return float((weights[0] - weights[1]).abs().max()), layouts[:3]


def refused(rank: int):
    model = Model("sharded")
    exchange_rows_(model)
    wrapper = DistributedDataParallel(model)
    with pytest.raises(RuntimeError, match="wanted a loop of equal length"), wrapper.join():
        pass


def work(rank: int):
    return {
        "wrapped": {name: wrapped(rank, name) for name in WRAPPERS},
        "explained": explained(rank),
        "without layer": without_layer(rank),
        "refused": refused(rank),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_processes(work, 2, tmp_path_factory.mktemp("processes"))


# --- what must have come out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lsh", "sharded"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_training_equals_that_of_a_linear_layer(results, name, kind):
    for apart, paths in (result["wrapped"][name][kind] for result in results):
        assert apart < (1e-3 if name in ("hook of communication", "FSDP, mixed precision") else 1e-5)
        assert paths == {"sampled": 8 if name == "two losses" else 4}


def test_a_sharded_layer_is_explained(results):
    for explanation, paths, recall, messages in (result["explained"] for result in results):
        (head,) = explanation.layers
        assert (head.name, head.kind, head.shape, head.last) == ("head", "ShardedLSHLinear", (D, N), "sampled")
        assert head.notes == ("row-sparse gradients, for torch_lsh.optim.SGD",)
        assert paths == {"sampled": 1, "ranked": 1}
        assert 0 < recall <= 1
        assert len(messages) == 1
        assert "take torch_lsh.optim.SGD" in messages[0]


def test_rows_of_a_weight_without_layer_are_exchanged(results):
    for apart, layouts in (result["without layer"] for result in results):
        assert apart < 1e-5
        assert layouts == [torch.sparse_coo] * 3
