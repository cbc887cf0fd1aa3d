"""sparsify_ and densify_: what they swap, what they leave alone, and that everything tied to a layer stays tied."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear, densify_, sparsify_
from torch_lsh.nn import convert

N, D = 211, 8
CONFIG = LSHConfig(active=30)


def every_layer(module, name):
    return True


def sparsified(model, config=CONFIG):
    return sparsify_(model, config, every_layer)


def types(model):
    return {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}


# --- what is swapped --------------------------------------------------------------------------------------------------


def test_the_model_itself_may_be_the_layer():
    linear = nn.Linear(D, N)
    layer = sparsified(linear)
    assert type(layer) is LSHLinear
    assert layer.config is CONFIG
    back = densify_(layer)
    assert type(back) is nn.Linear
    for swapped in (layer, back):
        assert swapped.weight is linear.weight
        assert swapped.bias is linear.bias


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.sequence = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, N))
        self.list = nn.ModuleList([nn.Linear(D, N), nn.Sequential(OrderedDict(deep=nn.Linear(D, N, bias=False)))])
        self.dict = nn.ModuleDict({"a": nn.Linear(D, N), "b": nn.Identity()})

    def forward(self, x):
        logits = self.sequence(x), self.list[0](x), self.list[1](x), self.dict["a"](x)
        return sum(F.cross_entropy(z, torch.zeros(len(x), dtype=torch.int64)) for z in logits)


@pytest.mark.filterwarnings("ignore:torch_lsh.* outputs of the layer")  # hidden layers are swapped, too
def test_layers_are_found_in_containers_at_any_depth():
    model = Nested()
    names = list(types(model))
    keys = list(model.state_dict())
    parameters = list(model.parameters())
    assert len(names) == 5
    expected = model.eval()(torch.ones(3, D))
    assert sparsified(model) is model
    assert types(model) == dict.fromkeys(names, LSHLinear)
    assert [key for key in model.state_dict() if "_extra_state" not in key] == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    # containers run what was swapped, not what they were built with
    torch.testing.assert_close(model(torch.ones(3, D)), expected)
    assert densify_(model) is model
    assert types(model) == dict.fromkeys(names, nn.Linear)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(torch.ones(3, D)), expected)


def test_filter_receives_module_and_name():
    model = Nested()
    seen = {}

    def only_the_list(module, name):
        seen[name] = module
        return name.startswith("list.")

    sparsify_(model, CONFIG, only_the_list)
    assert seen.keys() == types(model).keys()  # nothing but linear layers is asked about
    assert all(type(module) is nn.Linear for module in seen.values())
    assert {name for name, kind in types(model).items() if kind is LSHLinear} == {"list.0", "list.1.deep"}
    assert model.list[0].weight is seen["list.0"].weight
    # a second call finds the rest, and keeps what is swapped already
    kept = model.list[0]
    sparsified(model)
    assert model.list[0] is kept
    assert set(types(model).values()) == {LSHLinear}


def own_forward():
    linear = nn.Linear(D, N)
    linear.forward = lambda x: x
    return linear


def with_buffer():
    linear = nn.Linear(D, N)
    linear.register_buffer("mask", torch.ones(N))
    return linear


class Doubling(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubling(D, N),
        lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(D, N),  # that of nn.MultiheadAttention
        lambda: parametrizations.weight_norm(nn.Linear(D, N)),
        lambda: nn.utils.weight_norm(nn.Linear(D, N)),
        lambda: prune.l1_unstructured(nn.Linear(D, N), "weight", 0.5),
        own_forward,
        with_buffer,
        lambda: nn.Bilinear(D, D, N),
    ],
    ids=["subclass", "attention", "parametrized", "weight norm", "pruned", "own forward", "buffer", "other module"],
)
def test_what_is_more_than_a_linear_layer_is_left_alone(make):
    """These compute something else than ``weight`` and ``bias`` say, or hold state that a new layer would not have."""
    model = nn.Sequential(make())
    module, keys = model[0], list(model.state_dict())
    sparsified(model)
    assert model[0] is module
    assert list(model.state_dict()) == keys


def test_flags_are_kept():
    model = nn.Sequential(nn.Linear(D, N), nn.Linear(D, N))
    model[0].eval()
    model[1].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    for convert_ in (sparsified, densify_):
        convert_(model)
        assert [module.training for module in model] == [False, True]
        assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, False]
    sparsified(model)
    F.cross_entropy(model[1](torch.randn(3, D, requires_grad=True)), torch.arange(3)).backward()
    assert model[1].weight.grad is None


@pytest.mark.parametrize(("dtype", "bias"), [(torch.float32, True), (torch.float64, False), (torch.bfloat16, True)])
def test_round_trip_gives_exactly_the_outputs_of_before(dtype, bias):
    model = nn.Sequential(nn.Linear(D, N, bias).to(dtype))
    x = torch.randn(5, D).to(dtype)
    expected = model(x)
    sparsified(model)
    assert torch.equal(model(x).dense(), expected)
    densify_(model)
    assert torch.equal(model(x), expected)
    assert repr(model[0]) == repr(nn.Linear(D, N, bias))


def test_checkpoints_go_both_ways():
    dense = nn.Sequential(nn.Linear(D, D), nn.Linear(D, N))
    sparse = sparsify_(nn.Sequential(nn.Linear(D, D), nn.Linear(D, N)), CONFIG, lambda module, name: name == "1")
    sparse.load_state_dict(dense.state_dict(), strict=True)
    x = torch.randn(5, D)
    assert torch.equal(sparse.eval()(x).argmax(-1), dense(x).argmax(-1))
    other = nn.Sequential(nn.Linear(D, D), nn.Linear(D, N))
    assert other.load_state_dict(sparse.state_dict(), strict=False).unexpected_keys == ["1._extra_state"]
    assert torch.equal(other(x), dense(x))


# --- what is tied to a layer ------------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """A causal language model as Hugging Face writes them: tied weights, shifted labels, the loss inside."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(N, D)
        self.body = nn.GRU(D, D, batch_first=True)
        self.head = nn.Linear(D, N, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids, labels, num_items=None):
        logits = self.head(self.body(self.embedding(ids))[0][:, slice(0, None), :])
        logits = logits.float()
        shifted = F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
        logits, shifted = logits.view(-1, N), shifted.view(-1).to(logits.device)
        reduction = "mean" if num_items is None else "sum"
        loss = F.cross_entropy(logits, shifted, ignore_index=-100, reduction=reduction)
        return loss if num_items is None else loss / num_items


@pytest.mark.filterwarnings("error:torch_lsh")  # the loss must not fall back to the dense layer
@pytest.mark.parametrize("num_items", [None, 7])
def test_causal_language_model_with_tied_weights(num_items):
    model = LanguageModel()
    ids = torch.randint(0, N, (2, 6))
    labels = ids.masked_fill(torch.rand(2, 6) < 0.2, -100)
    expected = model(ids, labels, num_items)
    expected_grads = torch.autograd.grad(expected, list(model.parameters()))
    sparsify_(model, LSHConfig(active=1.0), lambda module, name: name == "head")
    assert model.head.weight is model.embedding.weight
    got = model(ids, labels, num_items)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got, list(model.parameters())), expected_grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch_lsh.optim.Adam])
def test_tied_weights_train_together(optimizer_type):
    model = sparsify_(LanguageModel(), CONFIG, lambda module, name: name == "head")
    optimizer = optimizer_type(model.parameters(), lr=0.05)
    ids = torch.randint(0, N, (1, 12))
    losses = []
    for _ in range(25):
        loss = model(ids, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert model.head.weight is model.embedding.weight
    assert losses[-1] < 0.3 * losses[0]
    # the tables follow what the embedding's gradient changed, too
    model.eval()
    x = 10 * model.embedding.weight[[3]].detach()
    found = model.head.topk(x, 1, exact=False).values[0, 0]
    assert found >= model.head(x).dense()[0, 3] * (1 - 1e-6)


def test_a_module_that_is_registered_twice_is_swapped_once():
    shared = nn.Linear(D, N)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": shared, "c": nn.ModuleList([shared, shared])})
    calls = []
    sparsify_(model, CONFIG, lambda module, name: calls.append(name) or True)
    assert calls == ["a.0"]
    layers = [model["a"][0], model["b"], *model["c"]]
    assert type(layers[0]) is LSHLinear
    assert all(layer is layers[0] for layer in layers)
    densify_(model)
    assert type(model["b"]) is nn.Linear
    assert model["b"] is model["a"][0] is model["c"][1]


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch_lsh.optim.Adam])
def test_an_optimizer_made_before_goes_on(optimizer_type):
    model = nn.Sequential(nn.Linear(4, D), nn.ReLU(), nn.Linear(D, N))
    optimizer = optimizer_type(model.parameters(), lr=1e-2)
    x, y = torch.randn(6, 4), torch.arange(6)

    def step():
        F.cross_entropy(model(x), y).backward()
        layouts = {parameter.grad.layout for parameter in model.parameters()}
        optimizer.step()
        optimizer.zero_grad()
        return layouts

    assert step() == {torch.strided}
    weight = model[2].weight
    moment = optimizer.state[weight]["exp_avg"].clone()
    sparsify_(model, CONFIG, lambda module, name: name == "2")
    assert torch.equal(optimizer.state[model[2].weight]["exp_avg"], moment)
    before = weight.detach().clone()
    layouts = step()
    # each optimizer gets the gradients that it can take
    assert (torch.sparse_coo in layouts) == (optimizer_type is torch_lsh.optim.Adam)
    assert optimizer.state[weight]["step"] == 2
    moved = (weight != before).any(1)
    assert moved[y].all()
    assert not torch.equal(optimizer.state[weight]["exp_avg"][y], moment[y])
    densify_(model)
    assert step() == {torch.strided}
    assert optimizer.state[weight]["step"] == 3


def test_hooks_move_along():
    """Also their handles: what was registered before the swap can be removed after it."""
    model = nn.Sequential(nn.Linear(D, N))
    calls = []
    register = [
        (model[0].register_forward_pre_hook, lambda *_: calls.append("before")),
        (model[0].register_forward_hook, lambda *_: calls.append("after")),
        (model[0].register_state_dict_pre_hook, lambda *_: calls.append("save")),
        (model[0].register_load_state_dict_post_hook, lambda *_: calls.append("load")),
    ]
    handles = [method(hook) for method, hook in register]
    handles.append(
        model[0].register_forward_hook(lambda m, a, k, o: calls.append(f"after {sorted(k)}"), with_kwargs=True)
    )
    for convert_ in (sparsified, densify_):
        convert_(model)
        calls.clear()
        model(torch.randn(2, D))
        assert calls == ["before", "after", "after []"]
        model.load_state_dict(model.state_dict())
        assert calls[3:] == ["save", "load"]
    sparsified(model)
    for handle in handles:
        handle.remove()
    calls.clear()
    model(torch.randn(2, D))
    model.load_state_dict(model.state_dict())
    assert calls == []


def test_backward_hooks_move_along_and_see_the_gradient_of_the_whole_output():
    model = nn.Sequential(nn.Linear(D, N))
    x, y = torch.randn(2, D, requires_grad=True), torch.tensor([1, 2])
    seen = []
    model[0].register_full_backward_hook(lambda module, inputs, outputs: seen.append((*inputs, *outputs)))
    model[0].register_full_backward_pre_hook(lambda module, outputs: seen.append(outputs))
    F.cross_entropy(model(x), y).backward()
    expected = seen.copy()
    assert len(expected) == 2
    sparsified(model)
    seen.clear()
    with pytest.warns(UserWarning, match="a full backward hook has no sampled path"):
        F.cross_entropy(model(x), y).backward()
    for got, want in zip(seen, expected, strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


# --- what pays --------------------------------------------------------------------------------------------------------


def test_by_default_what_pays_is_swapped(monkeypatch):
    asked = []

    def why_dense(linear, config):
        asked.append((linear.out_features, config))
        return None if linear.out_features > 50 else "is narrow"

    monkeypatch.setattr(convert, "why_dense", why_dense)
    model = sparsify_(nn.Sequential(nn.Linear(D, 30), nn.Linear(30, 70)), CONFIG)
    assert asked == [(30, CONFIG), (70, CONFIG)]
    assert [type(module) for module in model] == [nn.Linear, LSHLinear]
    assert model[1].config is CONFIG


@pytest.mark.parametrize(
    ("name", "arguments"), [("model", ("lm", None, None)), ("config", (nn.Linear(4, 9), {}, None))]
)
def test_arguments_are_checked_first(name, arguments):
    with pytest.raises(TypeError, match=f"{name} is a (str|dict); wanted"):
        torch_lsh.sparsify_(*arguments)
    with pytest.raises(TypeError, match="filter_fn is 'head'; wanted"):
        torch_lsh.sparsify_(nn.Linear(4, 9), filter_fn="head")
    for function in (torch_lsh.densify_, torch_lsh.quantize_):
        with pytest.raises(TypeError, match="model is a int; wanted"):
            function(5)
