"""LSHFeedForward and sampled blocks of nn.Sequential against the dense block."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

import torch_lsh
from torch_lsh import FixedInterval, LSHConfig, LSHFeedForward, LSHLinear, RehashScheduler, densify_, sparsify_
from torch_lsh.nn.feedforward import DownProjection, LSHSequential

N, D, B = 301, 13, 7
KEYS = ["up.weight", "up.bias", "down.weight", "down.bias"]


def weights_of(module):
    """The keys of a state_dict but for those of samplers."""
    return [key for key in module.state_dict() if not key.endswith("_extra_state")]


ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def dense_block(activation="relu", bias=True, dtype=torch.float32):
    names = {"up": nn.Linear(D, N, bias), "activation": ACTIVATIONS[activation](), "down": nn.Linear(N, D, bias)}
    model = nn.Sequential()
    for name, module in names.items():
        model.add_module(name, module)
    return model.to(dtype)


def make_pair(config, activation="relu", bias=True, dtype=torch.float32):
    dense = dense_block(activation, bias, dtype)
    block = LSHFeedForward(D, N, activation, bias, dtype=dtype, config=config)
    block.load_state_dict(dense.state_dict())
    return dense, block


def assert_same_gradients(block, dense, tolerance):
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    for name, parameter in dense.named_parameters():
        got = gradients[name].to_dense()
        got = got if got.shape == parameter.shape else got.t()
        torch.testing.assert_close(got, parameter.grad, rtol=tolerance, atol=tolerance)


# --- every neuron active: the dense block -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_with_every_neuron_active_it_equals_the_dense_block(simd_level, dtype, scope, activation):
    check_equal_to_dense(dtype, scope, activation, bias=True, correction="auto")


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("correction", ["auto", "stratified"])
def test_with_every_neuron_active_settings_change_nothing(threads, scope, bias, correction):
    check_equal_to_dense(torch.float32, scope, "relu", bias, correction)


def check_equal_to_dense(dtype, scope, activation, bias, correction):
    config = LSHConfig(active=1.0, scope=scope, correction=correction)
    dense, block = make_pair(config, activation, bias, dtype)
    x = torch.randn(2, B, D, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(part) for module, part in zip((block, dense), inputs)]
    torch.testing.assert_close(*outputs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert_same_gradients(block, dense, TOLERANCE[dtype])


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_gradcheck(scope):
    _, block = make_pair(LSHConfig(active=1.0, scope=scope), "gelu", dtype=torch.float64)

    def output(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters)), (x,))

    names, parameters = zip(*block.named_parameters())
    x = torch.randn(2, D, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(output, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_only_active_neurons_take_part(scope):
    """The output and the gradients are those of a dense block in which all other neurons are 0."""
    dense, block = make_pair(LSHConfig(active=30, scope=scope, carry=0), dtype=torch.float64)
    x = torch.randn(B, D, dtype=torch.float64)
    rows = copy.deepcopy(block).up.sample(x).rows  # the same draw
    assert rows.shape[-1] <= 30
    mask = torch.zeros(B, N, dtype=torch.float64)
    for b in range(B):
        own = rows if scope == "batch" else rows[b]
        mask[b, own[own >= 0]] = 1
    assert 0 < mask.sum() <= 30 * B
    expected = dense.down(dense.activation(dense.up(x)) * mask)
    output = block(x)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(block, dense, 1e-10)
    touched = block.down.weight.grad.abs().sum(1) > 0
    assert not touched[mask.sum(0) == 0].any()


def test_stratified_correction_estimates_the_dense_block():
    dense, block = make_pair(LSHConfig(active=150, correction="stratified", random_fraction=0.5, carry=0))
    x = torch.randn(B, D)
    with torch.no_grad():
        outputs = torch.stack([block(x) for _ in range(400)])
    error = (outputs.mean(0) - dense(x)).abs()
    assert outputs.std(0).min() > 0
    assert (error < 5 * outputs.std(0) / 400**0.5).all()


def test_neurons_with_high_pre_activations_are_found():
    block = LSHFeedForward(32, 8192, config=LSHConfig(active=0.05, random_fraction=0.1))
    x = torch.randn(4, 32)
    scores = F.linear(x, block.up.weight, block.up.bias).clamp(min=0).sum(0)
    found = torch.isin(scores.topk(50).indices, block.up.sample(x).rows).float().mean()
    assert found > 0.15  # a uniform draw finds 0.05


# --- optimizers and tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_gradients_are_row_sparse_for_our_optimizers_only(scope):
    for optimizer_type, sparse in ((torch_lsh.optim.Adam, True), (torch.optim.Adam, False)):
        block = LSHFeedForward(D, N, config=LSHConfig(active=30, scope=scope))
        optimizer = optimizer_type(block.parameters(), lr=1e-2)
        before = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
        block(torch.randn(B, D)).square().sum().backward()
        weights = (block.up.weight, block.up.bias, block.down.weight)
        assert [parameter.grad.is_sparse for parameter in weights] == [sparse] * 3
        touched = torch.unique(block.down.weight.grad.coalesce().indices()[0]) if sparse else None
        optimizer.step()
        if sparse:
            assert len(touched) <= (30 if scope == "batch" else 30 * B)
            untouched = torch.ones(N, dtype=torch.bool).index_fill_(0, touched, False)
            for name in ("up.weight", "up.bias", "down.weight"):
                assert torch.equal(block.get_parameter(name)[untouched], before[name][untouched])
        assert not torch.equal(block.down.weight, before["down.weight"])


@pytest.mark.parametrize("optimizer_type", [torch_lsh.optim.Adam, torch.optim.Adam, torch_lsh.optim.SGD])
def test_training_lowers_the_loss(optimizer_type):
    torch.manual_seed(2)
    x, target = torch.randn(64, D), torch.randn(64, D)
    block = LSHFeedForward(D, N, config=LSHConfig(active=60))
    optimizer = optimizer_type(block.parameters(), lr=2.0 if optimizer_type is torch_lsh.optim.SGD else 1e-2)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(block(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_tables_follow_the_weights():
    block = LSHFeedForward(D, N, bias=False, config=LSHConfig(active=30, carry=0))
    x = torch.ones(1, D)
    block(x)
    with torch.no_grad():
        block.up.weight[123] = 10.0
    assert 123 in block.eval().up.sample(x).rows  # in eval() mode tables follow every edit
    assert 123 in block.train().up.sample(x).rows
    state = {name: value.clone() for name, value in block.state_dict().items()}
    state["up.weight"][[123, 77]] = state["up.weight"][[77, 123]]
    block.load_state_dict(state)
    assert 77 in block.up.sample(x).rows


def test_rehash_scheduler_finds_blocks():
    block = LSHFeedForward(D, N, config=LSHConfig(active=30))
    optimizer = torch_lsh.optim.Adam(block.parameters(), lr=0.1)
    scheduler = RehashScheduler(nn.Sequential(block), FixedInterval(2))
    codes = []
    for _ in range(2):
        block(torch.randn(B, D)).sum().backward()
        optimizer.step()
        codes.append(block.up.sampler.tables.state_dict()["row_buckets"].clone())
        scheduler.step()
    assert torch.equal(*codes)
    assert not torch.equal(codes[1], block.up.sampler.tables.state_dict()["row_buckets"])


def test_largest_activations_are_carried_over():
    block = LSHFeedForward(D, N, config=LSHConfig(active=40, carry=0.5))
    x = torch.randn(B, D)
    active = copy.deepcopy(block).up.sample(x)
    block(x)
    sums = F.relu(F.linear(x, block.up.weight, block.up.bias)).sum(0)[active.rows]
    assert torch.equal(block.up.sampler.carried, active.rows[sums.topk(20).indices])
    block.eval()(torch.randn(B, D))
    assert torch.equal(block.up.sampler.carried, active.rows[sums.topk(20).indices])


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_eval_is_exact_in_scope_batch():
    dense, block = make_pair(LSHConfig(active=20), "gelu")
    x = torch.randn(3, B, D)
    assert not torch.allclose(block(x), dense(x))
    torch.testing.assert_close(block.exact(x), dense(x))
    block.eval()
    torch.testing.assert_close(block(x), dense(x))
    block.sample_in_eval = True
    assert not torch.allclose(block(x), dense(x))
    torch.testing.assert_close(block.exact(x), dense(x))


def test_eval_in_scope_sample_depends_on_nothing_but_the_sample():
    dense, block = make_pair(LSHConfig(active=20, scope="sample"))
    x = torch.randn(B, D)
    block(x)
    block.eval()
    draws = block.up.sampler.draws
    whole = block(x)
    assert not torch.allclose(whole, dense(x))
    torch.testing.assert_close(torch.cat([block(part) for part in x.split(2)]), whole)
    assert torch.equal(block(x), whole)
    assert block.up.sampler.draws == draws
    block.sample_in_eval = False
    torch.testing.assert_close(block(x), dense(x))


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_same_seed_same_result_whatever_the_threads(scope):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        block = LSHFeedForward(64, 2000, "gelu", config=LSHConfig(active=200, scope=scope))
        for _ in range(2):
            output = block(torch.randn(50, 64))
            output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in block.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- checkpoints and copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_checkpoints_go_both_ways(assign):
    dense, block = dense_block("gelu"), LSHFeedForward(D, N, "gelu")
    x = torch.randn(B, D)
    assert weights_of(block) == list(dense.state_dict()) == KEYS
    assert block.state_dict()["down.weight"].shape == (D, N)
    file = io.BytesIO()
    torch.save(dense.state_dict(), file)
    file.seek(0)
    block.load_state_dict(torch.load(file), strict=True, assign=assign)
    torch.testing.assert_close(block.exact(x), dense(x))
    assert block.down.weight.shape == (N, D)
    assert block.down.weight.is_contiguous()
    assert isinstance(block.down.weight, nn.Parameter)
    other = dense_block("gelu")
    assert other.load_state_dict(block.state_dict(), strict=False, assign=assign) == ([], ["up._extra_state"])
    torch.testing.assert_close(other(x), dense(x))


@pytest.mark.filterwarnings("ignore:torch_lsh")
@pytest.mark.parametrize(
    "change", [lambda down: prune.l1_unstructured(down, "weight", 0.5), parametrizations.weight_norm]
)
def test_a_pruned_or_parametrized_projection_trains_and_is_saved(change):
    x, (_, block) = torch.randn(B, D), make_pair(LSHConfig(active=1.0))
    change(block.down)
    block(x).sum().backward()
    other = LSHFeedForward(D, N)
    change(other.down)
    other.load_state_dict(block.state_dict())
    assert torch.equal(other.exact(x), block.exact(x))


def test_bad_checkpoints_are_refused():
    block = LSHFeedForward(D, N)
    state = block.state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for down\.weight"):
        block.load_state_dict({**state, "down.weight": torch.zeros(D, N + 1)})
    with pytest.raises(RuntimeError, match=r"Missing key.*down\.weight"):
        block.load_state_dict({key: value for key, value in state.items() if key != "down.weight"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*down\.x"):
        block.load_state_dict({**state, "down.x": torch.zeros(1)})


def test_copies():
    block = LSHFeedForward(D, N, "gelu", config=LSHConfig(active=40))
    x = torch.randn(B, D)
    block(x)
    for clone in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert clone.down.weight is not block.down.weight
        assert torch.equal(clone(x), copy.deepcopy(block)(x))
        assert torch.equal(clone.eval()(x), block.exact(x))


# --- conversion -------------------------------------------------------------------------------------------------------

CONFIG = LSHConfig(active=1.0)


def every_layer(module, name):
    return True


def model_with_blocks(dtype=torch.float64):
    block = nn.Sequential(nn.Linear(D, N), nn.GELU(), nn.Dropout(0.0), nn.Linear(N, D))
    return nn.Sequential(nn.Linear(D, D), nn.Linear(D, N), nn.ReLU(), nn.Linear(N, D), nn.Tanh(), block).to(dtype)


def blocks_of(model):
    return [name for name, module in model.named_modules() if isinstance(module, DownProjection)]


def test_blocks_are_swapped_and_back():
    model = model_with_blocks()
    x = torch.randn(B, D, dtype=torch.float64)
    parameters, keys, expected = list(model.parameters()), list(model.state_dict()), model(x)
    assert sparsify_(model, CONFIG, lambda module, name: name in ("1", "5.0")) is model
    assert blocks_of(model) == ["3", "5.3"]
    assert [name for name, module in model.named_modules() if isinstance(module, LSHLinear)] == ["1", "5.0"]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert weights_of(model) == keys
    dense = model_with_blocks()
    assert dense.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in (model, model.eval(), dense):
            torch.testing.assert_close(again(x), expected)
    model.train()
    torch.testing.assert_close(nn.Sequential(*model[:2])(x).dense(), dense[:2](x))  # children by themselves
    torch.testing.assert_close(model[2:](dense[:2](x)), expected)
    assert densify_(model) is model
    assert type(model) is type(model[5]) is nn.Sequential
    assert {type(module) for module in (model[1], model[3], model[5][0], model[5][3])} == {nn.Linear}
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    torch.testing.assert_close(model(x), expected)


def test_feed_forward_is_made_dense():
    block = LSHFeedForward(D, N, "gelu", sample_in_eval=True)
    x = torch.randn(B, D)
    expected, parameters = block.exact(x), list(block.parameters())
    model = nn.ModuleDict({"block": block})
    densify_(model)
    assert type(model["block"]) is nn.Sequential
    assert weights_of(model["block"]) == KEYS
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model["block"](x), expected)
    pickle.loads(pickle.dumps(model))


def test_swapped_block_trains_as_the_dense_one():
    """With every neuron active, step by step, with an optimizer made before the swap and some steps old."""
    x = torch.randn(B, D, dtype=torch.float64)
    results = []
    for steps in ("dddddddd", "dsssddss"):
        torch.manual_seed(5)
        model = model_with_blocks()
        optimizer = torch_lsh.optim.Adam(model.parameters(), lr=1e-2)
        for step in steps:
            if step == "s":
                sparsify_(model, CONFIG, lambda module, name: name in ("1", "5.0"))
            else:
                densify_(model)
            assert len(blocks_of(model)) == (2 if step == "s" else 0)
            loss = model(x).square().mean()  # an old graph lives on while the model is converted
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(densify_(model).state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD])
def test_optimizer_checkpoints_of_the_dense_model_load(optimizer_type):
    x = torch.randn(B, D, dtype=torch.float64)
    options = {"momentum": 0.9} if optimizer_type is torch.optim.SGD else {}
    dense = model_with_blocks()
    optimizer = optimizer_type(dense.parameters(), lr=1e-2, **options)
    dense(x).square().mean().backward()
    optimizer.step()
    model = sparsify_(model_with_blocks(), CONFIG, lambda module, name: name in ("1", "5.0"))
    model.load_state_dict(dense.state_dict())
    other = optimizer_type(model.parameters(), lr=1e-2, **options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module, its in ((dense, optimizer), (model, other)):
        its.zero_grad()
        module(x).square().mean().backward()
        its.step()
    for key, value in dense.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-9, atol=1e-9)


def test_gradients_are_transposed_with_the_weight():
    model = model_with_blocks()
    model(torch.randn(B, D, dtype=torch.float64)).sum().backward()
    expected = model[3].weight.grad.clone()
    sparsify_(model, CONFIG, lambda module, name: name == "1")
    assert torch.equal(model[3].weight.grad, expected.t())
    densify_(model)
    assert torch.equal(model[3].weight.grad, expected)


def narrow():
    return nn.Sequential(nn.Linear(N, D), nn.ReLU(), nn.Linear(D, N))


def tied():
    model = nn.Sequential(nn.Linear(D, N), nn.ReLU(), nn.Linear(N, D), nn.Linear(N, D))
    model[3].weight = model[2].weight
    return model


def twice():
    linear = nn.Linear(N, D)
    return nn.Sequential(nn.Linear(D, N), nn.ReLU(), linear, nn.Linear(D, N), nn.ReLU(), linear)


def hooked():
    model = nn.Sequential(nn.Linear(D, N), nn.ReLU(), nn.Linear(N, D))
    model[1].register_forward_hook(lambda *_: None)
    return model


class Doubling(nn.Sequential):
    def forward(self, input):
        return 2 * super().forward(input)


class OwnReLU(nn.ReLU):
    pass


@pytest.mark.parametrize(
    "make",
    [
        narrow,
        tied,
        twice,
        hooked,
        lambda: Doubling(nn.Linear(D, N), nn.ReLU(), nn.Linear(N, D)),
        lambda: nn.Sequential(nn.Linear(D, N), OwnReLU(), nn.Linear(N, D)),
        lambda: nn.Sequential(nn.Linear(D, N), nn.Softmax(-1), nn.Linear(N, D)),
        lambda: nn.Sequential(nn.Linear(D, N), nn.LayerNorm(N), nn.ReLU(), nn.Linear(N, D)),
        lambda: nn.Sequential(nn.Linear(D, N), nn.Linear(N, D)),
        lambda: nn.Sequential(nn.Linear(D, N), nn.ReLU()),
    ],
    ids=["narrow", "tied", "twice", "hooked", "subclass", "own", "softmax", "norm", "no activation", "no down"],
)
def test_what_is_no_wide_block_is_no_block(make):
    model = make()
    sparsify_(model, CONFIG, every_layer)
    assert blocks_of(model) == []
    assert not isinstance(model, LSHSequential)


def test_swap_is_measured(monkeypatch):
    measured = []

    def speedup(*shape):
        measured.append(shape[:3])
        return 2.0 if shape[1] == 5000 else 0.5

    monkeypatch.setattr(torch_lsh.nn.speedup, "block_speedup", speedup)
    monkeypatch.setattr(torch_lsh.nn.speedup, "linear_speedup", lambda *_: 2.0)

    def block(hidden):
        return nn.Sequential(nn.Linear(D, hidden), nn.ReLU(), nn.Linear(hidden, D))

    model = sparsify_(nn.ModuleList([block(4000), block(5000), block(6000)]))
    assert blocks_of(model) == ["1.2"]
    assert measured == [(D, 5000, D), (D, 6000, D)]
    assert type(model[2][0]) is nn.Linear  # not worth it as a block, and no output layer


def test_compiled_block_trains():
    block = LSHFeedForward(D, N, config=LSHConfig(active=30, carry=0))
    twin, x = copy.deepcopy(block), torch.randn(B, D)
    compiled = torch.compile(twin, backend="eager")
    for _ in range(2):
        expected = block(x)
        torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    assert (twin.up.weight.grad.abs().sum(1) > 0).sum() <= 30


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("made", ["block", "swapped"])
def test_a_whole_graph_trains_as_the_eager_block(made, in_backward):
    torch.manual_seed(0)
    config = LSHConfig(active=30)
    if made == "block":
        block: nn.Module = LSHFeedForward(D, N, "gelu", config=config)
    else:
        block = sparsify_(make_pair(config)[0], config, filter_fn=lambda module, name: name == "up")
        assert isinstance(block, LSHSequential)
    model = nn.Sequential(nn.Linear(D, D), block, nn.Linear(D, 3))
    runs = []
    for compile_it in (lambda model: model, lambda model: torch.compile(model, backend="aot_eager", fullgraph=True)):
        copied = copy.deepcopy(model)
        optimizer = torch_lsh.optim.Adam(copied.parameters(), lr=0.01, in_backward=in_backward)
        trained = compile_it(copied)
        for size in (4, 4, 7, 5):
            loss = trained(torch.randn(2, size, D, generator=torch.Generator().manual_seed(size))).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        runs.append([loss, *copied.parameters()])
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_whole_graph_of_inductor(autocast):
    block, x = LSHFeedForward(D, N, config=LSHConfig(active=30)), torch.randn(B, D)
    twin, found = copy.deepcopy(block), []
    for one in (block, torch.compile(twin, fullgraph=True)):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = one(leaf)
        out.float().sum().backward()
        found.append((out, leaf.grad))
    torch.testing.assert_close(*found)
    torch.testing.assert_close(twin.down.weight.grad.to_dense(), block.down.weight.grad.to_dense())
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(twin.eval(), fullgraph=True)(x), block.eval()(x))


# --- what has no sampled path -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch_lsh")
@pytest.mark.parametrize("training", [True, False])
def test_symbolic_traces(training):
    x, (dense, block) = torch.randn(B, D), make_pair(LSHConfig(active=30))
    swapped = sparsify_(copy.deepcopy(dense), LSHConfig(active=30), filter_fn=lambda module, name: name == "up")
    for model in (block, swapped):  # their parts are nodes of the graph
        torch.testing.assert_close(torch.fx.symbolic_trace(model.train(training))(x), dense(x))
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), block))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert block.up.paths.last != "sampled"
    traced(x)
    assert (block.up.paths.last == "sampled") == training


def test_hooks_of_the_parts_see_the_dense_values():
    dense, block = make_pair(LSHConfig(active=20))
    x, seen = torch.randn(B, D), []
    block.activation.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(block(x), dense(x))
    torch.testing.assert_close(seen[0], dense[:2](x))


def test_other_dtypes_and_devices_are_computed_exactly():
    block = LSHFeedForward(D, N, config=LSHConfig(active=20)).half()
    with pytest.warns(UserWarning, match="float16 has no sampled path"):
        assert block(torch.randn(2, D).half()).dtype is torch.float16
    block = LSHFeedForward(D, N, device="meta")
    with pytest.warns(UserWarning, match="a tensor on meta has no sampled path"):
        assert block(torch.empty(2, D, device="meta")).shape == (2, D)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_bfloat16_and_autocast(scope):
    config = LSHConfig(active=1.0, scope=scope)
    dense, block = make_pair(config)
    x = torch.randn(B, D)
    outputs = []
    for module in (dense, block):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(module(x))
        outputs[-1].float().square().sum().backward()
    assert outputs[1].dtype is torch.bfloat16
    torch.testing.assert_close(*outputs, rtol=5e-2, atol=2e-2)
    torch.testing.assert_close(block.up.weight.grad, dense.up.weight.grad, rtol=1e-1, atol=1e-1)
    block.to(torch.bfloat16)
    output = block(x.bfloat16())
    assert output.dtype is torch.bfloat16
    torch.testing.assert_close(output, outputs[0], rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch_and_single_sample(scope, training):
    block = LSHFeedForward(D, N, config=LSHConfig(active=20, scope=scope)).train(training)
    x = torch.randn(0, D, requires_grad=True)
    block(x).sum().backward()
    assert block(x).shape == (0, D)
    assert block(torch.randn(D)).shape == (D,)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(2, D + 1), ValueError, "input has shape"),
        (torch.randn(2, D).double(), TypeError, "input has dtype torch.float64"),
        ("x", TypeError, "input is a str"),
    ],
)
def test_bad_input(x, error, message):
    block = LSHFeedForward(D, N, config=LSHConfig(active=20))
    state = block.up.sampler.state_dict()
    with pytest.raises(error, match=message):
        block(x)
    assert block.up.sampler.state_dict() == state


def test_bad_arguments():
    with pytest.raises(ValueError, match="activation is 'tanhh'; wanted one of 'relu', 'gelu', 'silu'"):
        LSHFeedForward(D, N, "tanhh")
    with pytest.raises(TypeError, match="activation is a builtin_function_or_method"):
        LSHFeedForward(D, N, torch.relu)
    with pytest.raises(TypeError, match="config is a dict"):
        LSHFeedForward(D, N, config={"active": 3})


# --- SLIDE's setting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_sparse_hidden_layer_feeds_a_sparse_output_layer(scope):
    """Sparse input, a hidden layer and an output layer of which each step touches few rows, as in SLIDE."""
    features, labels = 500, 400
    config = LSHConfig(active=60, scope=scope, rehash=FixedInterval(10))
    bag = torch_lsh.EmbeddingBag(features, D, mode="sum")
    block = LSHFeedForward(D, N, "relu", config=config)
    output = LSHLinear(D, labels, config=config)
    model = nn.Sequential(bag, block, output)
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    own = torch.randint(features, (labels, 4), generator=generator)  # each label has features of its own
    touched = {"block.up": [], "block.down": [], "output": []}
    for _ in range(400 if scope == "batch" else 150):  # a batch has few neurons for all its samples
        y = torch.randint(labels, (32,), generator=generator)
        loss = F.cross_entropy(model(own[y]), y)
        loss.backward()
        for name, layer in (("block.up", block.up), ("block.down", block.down), ("output", output)):
            touched[name].append(layer.weight.grad._indices().unique().numel() / len(layer.weight))
        assert all(parameter.grad.is_sparse for parameter in (bag.weight, block.up.weight, output.weight))
        optimizer.step()
        optimizer.zero_grad()
    # 60 rows, and in the output layer the labels and random rows beside them
    assert scope == "sample" or max(touched["block.up"] + touched["block.down"]) <= 60 / N
    assert scope == "sample" or max(touched["output"]) < 0.25
    model.eval()
    hits = (model(own).argmax(1) == torch.arange(labels)).float().mean()
    assert hits > 0.5
