"""A layer whose rows are spread over processes, against the whole layer in one process."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.distributed import (
    ShardedLogits,
    ShardedLSHLinear,
    ShardedRows,
    average_gradients,
    clip_grad_norm_,
    exchange_rows_,
)
from torch_lsh.distributed.channel import Channel

from .processes import in_processes

D, N, B = 8, 501, 12  # 251 rows and 250


def make_whole(active: float = 1.0, **options) -> LSHLinear:
    torch.manual_seed(0)
    return LSHLinear(D, N, config=LSHConfig(active=active, rehash=torch_lsh.FixedInterval(2), **options))


def make_sharded(same_inputs: bool = False, active: float = 1.0, **options) -> ShardedLSHLinear:
    return ShardedLSHLinear.shard_(make_whole(active, **options), same_inputs=same_inputs)


def make_batch(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, D, generator=generator), torch.randint(0, N, (B,), generator=generator)


def part_of(rank: int, same_inputs: bool) -> slice:
    """Uneven parts of a batch."""
    return slice(0, B) if same_inputs else (slice(0, 4), slice(4, B))[rank]


def targets(y: torch.Tensor) -> dict[str, tuple[torch.Tensor, dict]]:
    """Targets of every form, with arguments of the loss."""
    several = torch.stack([y, (y + 7) % N, torch.full_like(y, -100)], 1)
    shares = F.one_hot(several[:, :2], N).sum(1) / 2
    return {
        "mean": (y, {}),
        "none": (y, {"reduction": "none"}),
        "sum": (y, {"reduction": "sum"}),
        "ignored": (torch.where(y % 3 == 0, -100, y), {}),
        "weighted": (y, {"weight": torch.linspace(0.5, 2, N)}),
        "several": (several, {"reduction": "sum"}),
        "probabilities": (shares.to_sparse_csr(), {}),
        "smoothed": (torch.where(y % 3 == 0, -100, y), {"label_smoothing": 0.2}),
        "smoothed and weighted": (y, {"label_smoothing": 0.2, "weight": torch.linspace(0.5, 2, N)}),
        "smoothed probabilities": (shares.to_sparse_csr(), {"label_smoothing": 0.2, "reduction": "none"}),
    }


def binary_targets(y: torch.Tensor) -> dict[str, tuple[torch.Tensor, dict]]:
    """Targets of binary cross entropy, with arguments of the loss."""
    several = torch.stack([y, (y + 7) % N, torch.full_like(y, -100)], 1)
    values = torch.zeros(B, N).scatter_(1, several[:, :2], torch.tensor([[0.5, 1.0]]).expand(B, 2))
    weights = {"weight": torch.linspace(0.5, 2, N), "pos_weight": torch.linspace(3, 1, N)}
    return {
        "padded": (several, {}),
        "values": (values.to_sparse_csr(), {"reduction": "sum"}),
        "weighted": (several, weights),
        "of every class": (values.to_sparse_csr(), {"reduction": "none"}),
    }


def reference(logits: torch.Tensor, target: torch.Tensor, **options) -> torch.Tensor:
    """The loss of the whole layer's logits."""
    if target.dim() == 2 and not target.is_floating_point():
        target = F.one_hot(target[:, :2], N).sum(1) / 2.0
    return F.cross_entropy(logits, target, **options)


def binary_reference(logits: torch.Tensor, target: torch.Tensor, **options) -> torch.Tensor:
    if not target.is_floating_point():
        target = F.one_hot(target[:, :2], N).sum(1).float()
    return F.binary_cross_entropy_with_logits(logits, target, **options)


# --- what the two processes do: each returns the largest differences from the whole layer -----------------------------


def apart(*pairs) -> float:
    """The largest difference, relative to the size of the numbers where that is over 1."""
    differences = [(one - other).abs().max() / other.abs().max().clamp(min=1) for one, other in pairs if one.numel()]
    return float(max(differences, default=0.0))


def losses(rank: int, same_inputs: bool, loss_of=F.cross_entropy, reference=reference, targets=targets):
    layer, (x, y), found = make_sharded(same_inputs), make_batch(), {}
    part, own = part_of(rank, same_inputs), layer.shards.own
    for name, (target, options) in targets(y).items():
        whole = make_whole()
        inputs = x.clone().requires_grad_()
        logits = F.linear(inputs, whole.weight, whole.bias)
        parts = [part] if same_inputs else [part_of(0, False), part_of(1, False)]
        rows = target.to_dense() if target.layout is torch.sparse_csr else target
        wanted = [reference(logits[p], rows[p], **options) for p in parts]
        (sum(loss.sum() for loss in wanted) / len(parts)).backward()
        mine = x[part].clone().requires_grad_()
        labels = rows[part].to_sparse_csr() if target.layout is torch.sparse_csr else target[part]
        layer.zero_grad()
        loss = loss_of(layer(mine), labels, **options)
        loss.sum().backward()
        found[name] = apart(
            (loss, wanted[0 if same_inputs else rank]),
            (mine.grad, inputs.grad[part] * len(parts)),
            (layer.weight.grad, whole.weight.grad[own]),
            (layer.bias.grad, whole.bias.grad[own]),
        )
        with torch.no_grad():
            exact = loss_of(layer.eval()(x[part]), labels, **options)
        found[f"{name} in eval"] = apart((exact, wanted[0 if same_inputs else rank]))
        layer.train()
    return found


BINARY = F.binary_cross_entropy_with_logits, binary_reference, binary_targets


def rankings(rank: int, same_inputs: bool):
    layer, whole, (x, _) = make_sharded(same_inputs), make_whole(), make_batch()
    with torch.no_grad():  # equal scores in both shards
        whole.weight[450:], whole.bias[450:] = whole.weight[:51], whole.bias[:51]
    layer.load_state_dict(whole.state_dict())
    x = x[part_of(rank, same_inputs)]
    dense = F.linear(x, whole.weight, whole.bias)
    values, classes = dense.sort(dim=1, descending=True, stable=True)
    found = {}
    for k in (1, 5, 300, N):
        best = layer(x).topk(k)
        found[k] = apart((best.values, values[:, :k]), (best.indices, classes[:, :k]))
    found["argmax"] = apart((torch.argmax(layer(x), dim=-1), classes[:, 0]), (layer(x).argmax(-1), classes[:, 0]))
    found["max"] = apart((torch.max(layer(x), -1)[0], values[:, 0]), (layer(x).max(-1).indices, classes[:, 0]))
    found["approximate"] = apart((layer.topk(x, 3, exact=False, candidates=N).indices, classes[:, :3]))
    found["leading dimensions"] = apart((layer(x.view(2, -1, D)).topk(2).values, values[:, :2].view(2, -1, 2)))
    return found


def dense_values(rank: int, same_inputs: bool):
    layer, whole, (x, _) = make_sharded(same_inputs), make_whole(), make_batch()
    part = part_of(rank, same_inputs)
    mine, inputs = x[part].clone().requires_grad_(), x.clone().requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logits = layer(mine) * 2
        layer(mine).sin()
    logits.sin().sum().backward()
    wanted = F.linear(inputs, whole.weight, whole.bias) * 2
    wanted.sin().sum().backward()
    gradient = layer.weight.grad * (1 if same_inputs else 2)
    whole_gradient = whole.weight.grad[layer.shards.own]
    pairs = (logits, wanted[part]), (mine.grad, inputs.grad[part]), (gradient, whole_gradient)
    return apart(*pairs), [str(warning.message) for warning in caught]


class Model(nn.Module):
    """A trunk and a head, which may be whole or sharded."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.trunk, self.head = nn.Linear(D, D), head

    def forward(self, x: torch.Tensor):
        return self.head(self.trunk(x).relu())


def train(model: nn.Module, parts: slice, seeds=range(4), optimizer=None, clip=lambda parameters: None):
    optimizer = optimizer or torch_lsh.optim.Adam(model.parameters(), lr=0.05)
    for seed in seeds:
        x, y = make_batch(seed)
        F.cross_entropy(model(x[parts]), y[parts]).backward()
        clip(model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def halves(rank: int) -> slice:
    return slice(rank * B // 2, (rank + 1) * B // 2)


WRAPPERS = {
    "plain": {},
    "in backward": {"in_backward": True},
    "finds unused": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
}


def data_parallel(rank: int, in_backward: bool = False, **options):
    model = Model(make_sharded())
    exchange_rows_(model)
    wrapper = DistributedDataParallel(model, **options)
    groups = [{"params": model.trunk.parameters()}, {"params": model.head.parameters(), "in_backward": in_backward}]
    train(wrapper, halves(rank), optimizer=torch_lsh.optim.Adam(groups, lr=0.05))
    alone = Model(make_whole())
    train(alone, slice(0, B))
    own = model.head.shards.own
    return apart(
        (model.trunk.weight, alone.trunk.weight),
        (model.head.weight, alone.head.weight[own]),
        (model.head.bias, alone.head.bias[own]),
    )


def clipped(rank: int, norm: float):
    """SGD, because Adam does not see by what its gradients are scaled."""
    model, alone = Model(make_sharded()), Model(make_whole())
    exchange_rows_(model)
    norms = [[], []]
    ways = (
        (DistributedDataParallel(model), halves(rank), clip_grad_norm_),
        (alone, slice(0, B), torch_lsh.clip_grad_norm_),
    )
    for found, (one, part, clip) in zip(norms, ways):
        optimizer = torch_lsh.optim.SGD(one.parameters(), lr=0.5)
        train(one, part, optimizer=optimizer, clip=lambda p, clip=clip, found=found: found.append(clip(p, 0.1, norm)))
    own = model.head.shards.own
    return apart(*zip(*norms), (model.trunk.weight, alone.trunk.weight), (model.head.weight, alone.head.weight[own]))


def without_samples(rank: int):
    """Process 0 has none."""
    layer, (x, y) = make_sharded(), make_batch()
    part = slice(0, 0) if rank == 0 else slice(0, B)
    mine, inputs = x[part].clone().requires_grad_(), x.clone().requires_grad_()
    loss = F.cross_entropy(layer(mine), y[part], reduction="sum")
    loss.backward()
    whole = make_whole()
    F.cross_entropy(F.linear(inputs, whole.weight, whole.bias), y, reduction="sum").backward()
    pairs = (layer.weight.grad * 2, whole.weight.grad[layer.shards.own]), (mine.grad, inputs.grad[part])
    return apart(*pairs), layer(x[part]).topk(2).values.shape


def messages(rank: int) -> list[tuple[bool, int]]:
    """Whether messages of changing lengths arrive, and how many collectives each takes."""
    channel, found = Channel(), []
    for lengths in ((0, 0), (5, 30), (32, 16), (10, 11), (3, 7), (3, 20), (300_000, 5), (2, 200_000)):
        before = channel.calls
        sent = [torch.full((length,), number, dtype=torch.uint8) for number, length in enumerate(lengths)]
        numbers, came = channel.gather_messages([rank, -1], [sent[rank][:2], sent[rank][2:]])
        arrived = all(torch.equal(one[:length], part) for one, length, part in zip(came, lengths, sent))
        found.append((arrived and numbers == [[0, -1], [1, -1]], channel.calls - before))
    return found


def collectives(rank: int) -> list[int]:
    """How many collectives the head takes in training steps, and then in a ranking."""
    layer, (x, y), counts = make_sharded(active=60), make_batch(), []
    for count in (6, 6, 5, 4):
        before = layer.channel.calls
        F.cross_entropy(layer(x[:count].clone().requires_grad_()), y[:count]).backward()
        counts.append(layer.channel.calls - before)
    before = layer.channel.calls
    layer(x[:4]).topk(3)
    return [*counts, layer.channel.calls - before]


def estimates(rank: int, scope: str):
    """The mean over draws of the sampled partition function, beside the exact one."""
    layer, (x, y) = make_sharded(active=60, scope=scope, random_fraction=0.5, carry=0.0), make_batch()
    part = halves(rank)
    with torch.no_grad():
        exact = F.cross_entropy(layer.eval()(x[part]), y[part], reduction="none")
        layer.train()
        drawn = [F.cross_entropy(layer(x[part]), y[part], reduction="none") for _ in range(200)]
    # exp(loss) = Z / exp(logit of the label), which is linear in the estimate of Z.
    ratios = torch.stack(drawn).exp() / exact.exp()
    return ratios.mean(0), ratios.std(0) / math.sqrt(200), layer.sampler.draws


def labels_alone(rank: int, correction: str):
    """The active rows are the labels of all, all of which are in the first shard."""
    options = {"active": 60, "sampler": "in_batch", "correction": correction}
    layer, whole, (x, y) = make_sharded(**options), make_whole(**options), make_batch()
    counts = torch.arange(1, N + 1)
    for one in (layer, whole):
        one.set_label_counts(counts)
    found = []
    for smoothing in (0.0, 0.2):
        part = halves(rank)
        loss = F.cross_entropy(layer(x[part]), y[part] // 3, reduction="sum", label_smoothing=smoothing)
        wanted = F.cross_entropy(whole(x), y // 3, reduction="none", label_smoothing=smoothing)
        loss.backward()
        wanted.sum().backward()
        found += [(loss, wanted[part].sum()), (layer.weight.grad * 2, whole.weight.grad[layer.shards.own].clone())]
    return apart(*found)


def errors(rank: int):
    with pytest.raises(ValueError, match="out_features is 1, which gives some of 2 processes none"):
        ShardedLSHLinear(D, 1)
    with pytest.raises(TypeError, match="linear is a ReLU"):
        ShardedLSHLinear.shard_(nn.ReLU())
    layer = make_sharded()
    with pytest.raises(ValueError, match=r"input has shape \(3, 5\); wanted 8 features"):
        layer(torch.zeros(3, 5))
    with pytest.raises(TypeError, match=r"input has dtype torch.float64; wanted torch.float32"):
        layer(torch.zeros(3, D, dtype=torch.float64))
    with pytest.raises(ValueError, match="k is 502; wanted 1 to 501"):
        layer(torch.zeros(3, D)).topk(502)
    with pytest.raises(IndexError, match="target holds class 501"):
        F.cross_entropy(layer(torch.zeros(1, D)), torch.tensor([N]))
    with pytest.raises(ValueError, match="a tensor has 500 rows; wanted 501"):
        layer.load_state_dict(nn.Linear(D, N - 1).state_dict())
    optimizer, (x, y) = torch_lsh.optim.SGD(layer.parameters(), lr=0.1), make_batch()
    logits = layer(x)
    F.cross_entropy(logits, y).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="were changed"):
        F.cross_entropy(logits, y)
    with pytest.warns(UserWarning, match="ranked by the new ones"):
        logits.argmax(-1)
    even = ShardedLSHLinear(D, 2 * N)  # shards of equal shape, which DistributedDataParallel takes for copies
    wrapper = DistributedDataParallel(nn.Sequential(nn.Linear(D, D), even))
    with pytest.raises(RuntimeError, match=r"call torch_lsh.distributed.exchange_rows_\(model\)"):
        wrapper(torch.zeros(1, D))


def styles(rank: int):
    mesh = init_device_mesh("cpu", (2,))
    x, y = make_batch()
    model = parallelize_module(Model(make_whole(active=60)), mesh, {"head": ShardedRows()})
    logits = model(x)
    F.cross_entropy(logits, y).backward()
    best = logits.topk(3).indices
    columns = parallelize_module(Model(make_whole(active=60)), mesh, {"head": ColwiseParallel()})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        local = columns(x)
    whole = Model(make_whole()).eval()(x)
    views = logits.view(3, -1, N).float().contiguous().view(-1, N)  # as losses of language models
    return (
        isinstance(logits, ShardedLogits) and isinstance(views, ShardedLogits),
        apart((best, whole.topk(3).indices), (local, whole.dense()[:, model.head.shards.own])),
        [str(warning.message) for warning in caught],
    )


def initial(rank: int, count: int) -> torch.Tensor:
    """A new layer in ``count`` processes, gathered."""
    torch.manual_seed(5 + rank)
    mesh = init_device_mesh("cpu", (count,))
    layer = ShardedLSHLinear(D, 9_001, mesh=mesh)
    return layer.state_dict()["weight"].full_tensor()


def whole_state(state: dict) -> dict:
    """A nested state_dict with whole tensors in place of sharded ones."""

    def whole(value):
        if isinstance(value, dict):
            return whole_state(value)
        return value.full_tensor() if isinstance(value, DTensor) else value

    return {key: whole(value) for key, value in state.items()}


def checkpointed(active: float = 60) -> tuple[Model, torch.optim.Optimizer]:
    model = Model(make_sharded(same_inputs=True, active=active, sampler="lsh"))
    return model, torch_lsh.optim.Adam(model.parameters(), lr=0.05)


class Save:
    """Trains in some processes, saves, and trains on."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, rank: int):
        model, optimizer = checkpointed()
        train(model, slice(0, B), optimizer=optimizer)
        saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
        dcp.save(saved, checkpoint_id=self.folder)
        saved = copy.deepcopy(whole_state(saved))
        train(model, slice(0, B), seeds=range(4, 8), optimizer=optimizer)
        return saved, whole_state(model.state_dict()), initial(rank, dist.get_world_size())


class Load:
    """Loads into other processes, or into as many, and trains on."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, rank: int):
        model, optimizer = checkpointed()
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
        dcp.load(state, checkpoint_id=self.folder)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        loaded = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
        loaded = copy.deepcopy(whole_state(loaded))
        train(model, slice(0, B), seeds=range(4, 8), optimizer=optimizer)
        return loaded, whole_state(model.state_dict())


def default_device(rank: int, device: str) -> list[torch.Tensor]:
    """What a layer, its state and the exchange of gradients give under a default device."""
    layer, (x, y) = make_sharded(active=0.2), make_batch()
    x, y = x[part_of(rank, False)], y[part_of(rank, False)]
    other = nn.Parameter(torch.zeros(3))
    other.grad = torch.full((3,), float(rank))
    torch.manual_seed(0)
    with torch.device(device):
        optimizer = torch_lsh.optim.Adam(layer.parameters(), lr=0.1)
        for _ in range(3):
            train_on(layer, optimizer, x, y)
        average_gradients([other])
        found = [layer.weight, other.grad, layer.eval()(x).topk(3).indices, F.cross_entropy(layer(x), y)]
        layer.load_state_dict(layer.state_dict())
        return [*found, ShardedLSHLinear(D, N, device="cpu").weight]


def train_on(layer, optimizer, x, y) -> None:
    optimizer.zero_grad()
    F.cross_entropy(layer(x), y).backward()
    optimizer.step()


class Work:
    """All of the above in two processes; loads what four saved, and saves and loads itself."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, rank: int):
        return {
            "losses": [losses(rank, same) for same in (False, True)],
            "binary losses": [losses(rank, same, *BINARY) for same in (False, True)],
            "rankings": [rankings(rank, same) for same in (False, True)],
            "dense": [dense_values(rank, same) for same in (False, True)],
            "data parallel": {name: data_parallel(rank, **way) for name, way in WRAPPERS.items()},
            "clipped": [clipped(rank, norm) for norm in (2.0, math.inf)],
            "without samples": without_samples(rank),
            "messages": messages(rank),
            "collectives": collectives(rank),
            "estimates": {scope: estimates(rank, scope) for scope in ("batch", "sample")},
            "labels alone": [labels_alone(rank, correction) for correction in ("stratified", "none")],
            "errors": errors(rank),
            "styles": styles(rank),
            "initial": initial(rank, 2),
            "default device": apart(*zip(*(default_device(rank, device) for device in ("cpu", "meta")))),
            "loaded": Load(f"{self.folder}/four")(rank),
            "saved": Save(f"{self.folder}/two")(rank)[:2],
            "resumed": Load(f"{self.folder}/two")(rank),
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def of_four(folder):
    (folder / "4").mkdir()
    return in_processes(Save(f"{folder}/four"), 4, folder / "4")


@pytest.fixture(scope="module")
def results(folder, of_four):
    (folder / "2").mkdir()
    return in_processes(Work(str(folder)), 2, folder / "2")


# --- what must have come out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_inputs", [False, True])
@pytest.mark.parametrize("name", list(targets(torch.zeros(B, dtype=torch.int64))))
def test_losses_and_gradients_are_those_of_the_whole_layer(results, name, same_inputs):
    for result in results:
        assert result["losses"][same_inputs][name] < 1e-5
        assert result["losses"][same_inputs][f"{name} in eval"] < 1e-5


@pytest.mark.parametrize("same_inputs", [False, True])
@pytest.mark.parametrize("name", list(binary_targets(torch.zeros(B, dtype=torch.int64))))
def test_binary_losses_and_gradients_are_those_of_the_whole_layer(results, name, same_inputs):
    for result in results:
        assert result["binary losses"][same_inputs][name] < 1e-5
        assert result["binary losses"][same_inputs][f"{name} in eval"] < 1e-5


@pytest.mark.parametrize("same_inputs", [False, True])
def test_rankings_are_those_of_the_whole_layer(results, same_inputs):
    for result in results:
        assert max(result["rankings"][same_inputs].values()) < 1e-5, result["rankings"]


@pytest.mark.parametrize("same_inputs", [False, True])
def test_other_functions_get_dense_values_with_one_warning(results, same_inputs):
    for difference, messages in (result["dense"][same_inputs] for result in results):
        assert difference < 1e-4
        assert len(messages) == 1
        assert "mul__ has no sampled path, so all 501 outputs of the layer are computed" in messages[0]


@pytest.mark.parametrize("way", WRAPPERS)
def test_training_with_data_parallel_equals_one_process(results, way):
    assert all(result["data parallel"][way] < 1e-4 for result in results)


def test_gradients_are_clipped_by_the_norm_of_the_whole_model(results):
    assert all(max(result["clipped"]) < 1e-5 for result in results)


def test_a_process_may_have_no_samples(results):
    assert [result["without samples"] for result in results] == [
        (pytest.approx(0, abs=1e-5), torch.Size([size, 2])) for size in (0, B)
    ]


def test_messages_of_expected_length_take_one_collective(results):
    for result in results:
        arrived, collectives = zip(*result["messages"])
        assert all(arrived)
        assert collectives == (1, 2, 1, 1, 1, 2, 2, 1)


def test_a_step_takes_four_collectives(results):
    assert all(result["collectives"] == [5, 4, 4, 4, 2] for result in results)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_sampled_losses_are_unbiased(results, scope):
    for mean, error, draws in (result["estimates"][scope] for result in results):
        assert draws == 200
        assert (error > 0).all()
        assert ((mean - 1).abs() < 4.5 * error).all()


def test_a_shard_without_active_rows(results):
    assert all(max(result["labels alone"]) < 1e-5 for result in results)


def test_styles_of_tensor_parallelism(results):
    for is_sharded, difference, messages in (result["styles"] for result in results):
        assert is_sharded
        assert difference < 1e-5
        assert len(messages) == 1
        assert "torch_lsh.distributed.ShardedRows" in messages[0]


def test_another_default_device_changes_nothing(results):
    assert all(result["default device"] == 0 for result in results)


def test_initial_weights_do_not_depend_on_the_processes(results, of_four):
    for result in results:
        assert torch.equal(result["initial"], of_four[0][2])
    assert len(of_four[0][2].unique(dim=0)) == 9_001


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for key in one:
        if isinstance(one[key], dict):
            assert_equal_states(one[key], other[key])
        elif isinstance(one[key], torch.Tensor):
            assert torch.equal(one[key], other[key]), key


def test_two_processes_load_what_four_saved(results, of_four):
    for result in results:
        loaded, saved = dict(result["loaded"][0]["model"]), dict(of_four[0][0]["model"])
        # Of the hardest rows of four shards, two have room for some fewer.
        rows, all_rows = (state.pop("head.sampler_carried").nonzero() for state in (loaded, saved))
        assert len(rows) >= len(all_rows) - 2
        assert torch.isin(rows, all_rows).all()
        assert_equal_states(loaded, saved)
        assert_equal_states(result["loaded"][0]["optimizer"]["state"], of_four[0][0]["optimizer"]["state"])
    state = of_four[0][0]["optimizer"]["state"]["head.weight"]
    assert state["exp_avg"].shape == (N, D)
    assert (of_four[0][0]["model"]["head.sampler_carried"] > 0).any()


def test_a_resumed_run_equals_one_that_never_stopped(results):
    for result in results:
        assert_equal_states(result["resumed"][0]["model"], result["saved"][0]["model"])
        assert_equal_states(result["resumed"][1], result["saved"][1])
