"""torch.compile, torch.export, jit and vmap: compiled training stays sampled and equals eager training."""

from __future__ import annotations

import copy
import gc
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear

N, WIDTH = 2_000, 8
BATCHES = (4, 4, 7, 4, 9, 5)


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    torch._dynamo.reset()
    counters.clear()


class Model(nn.Module):
    def __init__(self, **config):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(WIDTH, WIDTH)
        self.head = LSHLinear(WIDTH, N, config=LSHConfig(active=100, **config))

    def forward(self, x, y=None, **how):
        hidden = self.trunk(x).relu()
        return self.head(hidden) if y is None else self.head.cross_entropy(hidden, y, **how)


def batch(size):
    return torch.randn(size, WIDTH), torch.randint(0, N, (size,))


def eager(model):
    return lambda x, y: F.cross_entropy(model(x), y)


def loss_outside(model, backend):
    compiled = torch.compile(model, backend=backend)
    return lambda x, y: F.cross_entropy(compiled(x), y)


def loss_inside(model, backend):
    return torch.compile(lambda x, y: F.cross_entropy(model(x), y), backend=backend)


def compiled_in_place(model, backend):
    model.compile(backend=backend)
    return lambda x, y: F.cross_entropy(model(x), y)


def whole_graph(model, backend):
    return torch.compile(model, backend=backend, fullgraph=True)


def train(model, loss_of, optimizer, batches=BATCHES):
    torch.manual_seed(1)
    losses, graphs = [], []
    for size in batches:
        optimizer.zero_grad()
        loss = loss_of(*batch(size))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        graphs.append(counters["stats"]["unique_graphs"])
    return losses, graphs


@pytest.mark.parametrize(
    ("way", "in_backward"),
    [
        (loss_outside, False),
        (loss_inside, False),
        (compiled_in_place, False),
        (whole_graph, False),
        (whole_graph, True),
    ],
)
def test_compiled_training_is_eager_training(way, in_backward):
    runs = []
    for loss_of in (eager, lambda model: way(model, "aot_eager")):
        model = Model()
        optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.01, in_backward=in_backward)
        losses, graphs = train(model, loss_of(model), optimizer)
        runs.append((losses, model.state_dict()))
        if not in_backward:
            assert model.head.weight.grad.layout is torch.sparse_coo
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=0)
    # The first graph is for the first size, the second for any size; then there is nothing left to compile.
    assert graphs[0] == 1
    assert graphs[2] == graphs[-1] == 2


def test_the_whole_step_with_inductor():
    layer, twin = Model().head, Model().head
    x, y = batch(4)
    compiled = torch.compile(LSHLinear.cross_entropy, fullgraph=True)
    results = []
    for one, loss_of in ((layer, compiled), (twin, LSHLinear.cross_entropy)):
        leaf = x.clone().requires_grad_()
        loss = loss_of(one, leaf, y)
        loss.backward()
        results.append((loss, leaf.grad, one.weight.grad.to_dense()))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("name", "in_backward"), [("Lion", False), ("Adam", False), ("Adam", True)])
def test_backward_pass_and_optimizer_in_a_compiled_function_are_eager(name, in_backward):
    runs = []
    for compile_it in (lambda function: function, torch.compile):
        model = Model()
        optimizer = getattr(torch_lsh.optim, name)(model.parameters(), lr=0.01, in_backward=in_backward)

        def step(x, y, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        step, graphs = compile_it(step), []
        torch.manual_seed(1)
        for size in BATCHES:
            loss = step(*batch(size))
            graphs.append(counters["stats"]["unique_graphs"])
        runs.append((loss, list(model.parameters())))
    torch.testing.assert_close(runs[1], runs[0])
    assert graphs[2] == graphs[-1]  # nothing left to compile


@pytest.mark.parametrize(
    "how",
    [
        {"reduction": "sum"},
        {"reduction": "none"},
        {"label_smoothing": 0.1},
        {"ignore_index": 3},
        {"weight": torch.linspace(0.5, 2, N)},
        {"autocast": True},
        {"several": True},
        {"scope": "sample"},
    ],
    ids=lambda how: next(iter(how)),
)
def test_every_form_of_the_loss(how):
    config = {"scope": how.pop("scope")} if "scope" in how else {}
    autocast, several = how.pop("autocast", False), how.pop("several", False)
    x, y = batch(6)
    y[2] = 3
    if several:
        y = torch.stack([y, torch.randint(0, N, (6,))], 1)
        y[0, 1] = -100
    results = []
    for compiled in (False, True):
        model = Model(**config)
        loss_of = whole_graph(model, "aot_eager") if compiled else model
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(x, y, **how)
        loss.sum().backward()
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[1], results[0])


def test_one_layer_twice_in_one_graph_draws_twice_and_nothing_is_dropped():
    model, twin = Model(), Model()
    x, y = batch(4)

    def thrice(model, x, y):
        model.head.cross_entropy(x, y)  # the result has no use, but the random stream moves
        return model.head.cross_entropy(x, y), model.head.cross_entropy(x, y)

    compiled = torch.compile(thrice, backend="aot_eager", fullgraph=True)
    got, want = compiled(model, x, y), thrice(twin, x, y)
    assert got[0] != got[1]
    assert model.head.sampler.draws == 3
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    # x needs no gradient, so that the graph has no use for the backward operator either.
    for first, second in (got, want):
        (first + second).backward()
    torch.testing.assert_close(model.head.weight.grad, twin.head.weight.grad)


def test_hooks_of_the_weight_see_its_gradient():
    model, seen = Model(), []
    model.head.weight.register_hook(lambda gradient: seen.append(gradient.shape))
    model.head.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad is not None))
    whole_graph(model, "aot_eager")(*batch(4)).backward()
    assert seen == [(N, WIDTH), True]


def test_a_frozen_head():
    model = Model()
    model.head.requires_grad_(False)
    whole_graph(model, "aot_eager")(*batch(4)).backward()
    assert model.head.weight.grad is None
    assert model.trunk.weight.grad.any()


def test_gradients_accumulate_and_a_graph_runs_twice():
    model, twin = Model(), Model()
    loss_of = whole_graph(model, "aot_eager")
    x, y = batch(4)
    for one in (loss_of, twin):
        loss = one(x, y)
        loss.backward(retain_graph=True)
        loss.backward()
    torch.testing.assert_close(model.head.weight.grad.to_dense(), twin.head.weight.grad.to_dense())
    torch.testing.assert_close(model.trunk.weight.grad, twin.trunk.weight.grad)


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_backward_pass_for_some_tensors_leaves_the_others_alone(in_backward):
    layer, items = LSHLinear(WIDTH, N), nn.Embedding(N, WIDTH)
    optimizer = torch_lsh.optim.Adam([*layer.parameters(), *items.parameters()], in_backward=in_backward)
    before = copy.deepcopy([*layer.parameters(), *items.parameters()])

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss_of(x, weight, y):
        return layer.cross_entropy(x, y) + torch_lsh.linear_cross_entropy(x, weight, y)

    x, y = batch(4)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(x, items.weight, y), x)
    assert gradient.any()
    loss_of(x, items.weight, y).backward(inputs=[x])
    assert x.grad.any()
    parameters = [*layer.parameters(), *items.parameters()]
    assert all(parameter.grad is None for parameter in parameters)
    assert all(torch.equal(one, other) for one, other in zip(before, parameters))
    loss_of(x, items.weight, y).backward(inputs=[items.weight])
    optimizer.step()
    assert [torch.equal(one, other) for one, other in zip(before, parameters)] == [True, True, False]


def test_without_gradients_and_in_eval_mode():
    model = Model()
    loss_of = whole_graph(model, "aot_eager")
    x, y = batch(4)
    with torch.no_grad():
        assert not loss_of(x, y).requires_grad
    model.eval()
    torch.testing.assert_close(loss_of(x, y), F.cross_entropy(model(x).dense(), y))
    logits = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(logits, model(x).dense())


def test_steps_without_a_backward_pass_keep_nothing():
    loss_of = whole_graph(Model(), "aot_eager")
    for _ in range(3):
        loss_of(*batch(4))
    gc.collect()
    assert not any(type(one).__name__ == "_Step" for one in gc.get_objects())


def test_a_copy_trains_its_own_parameters():
    model = Model()
    other = copy.deepcopy(model)
    loss_of = torch.compile(lambda model, x, y: model(x, y), backend="aot_eager", fullgraph=True)
    for one in (model, other):
        loss_of(one, *batch(4)).backward()
        assert one.head.weight.grad is not None
        one.zero_grad()
    assert counters["stats"]["unique_graphs"] == 1


def test_other_parameters_than_the_layers_are_dense():
    model, (x, y) = Model(), batch(4)
    others = {name: parameter.detach() * 2 for name, parameter in model.named_parameters()}
    loss_of = torch.compile(lambda others, x, y: torch.func.functional_call(model, others, (x, y)), backend="aot_eager")
    hidden = F.linear(x, others["trunk.weight"], others["trunk.bias"]).relu()
    want = F.cross_entropy(F.linear(hidden, others["head.weight"], others["head.bias"]), y)
    torch.testing.assert_close(loss_of(others, x, y), want)


def test_lazy_logits_in_a_whole_graph_name_the_remedy():
    with pytest.raises(Exception, match=r"layer.cross_entropy\(x, target\)"):
        torch.compile(Model(), backend="eager", fullgraph=True)(batch(4)[0])


# --- eval models in every kind of graph -------------------------------------------------------------------------------


class Ranking(nn.Module):
    def __init__(self, head, **how):
        super().__init__()
        self.head, self.how = head, how

    def forward(self, x):
        return self.head.topk(x, 3, **self.how)


def exported(model, x):
    return torch.export.export(model, (x,)).module()


def traced(model, x):
    return torch.jit.trace(model, (x,))


def compiled(model, x):
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def mapped(model, x):
    return torch.vmap(model)


def exported_to_onnx(model, x):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    file = torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto.SerializeToString()
    session = runtime.InferenceSession(file)

    def run(x):
        out = [torch.from_numpy(one) for one in session.run(None, {session.get_inputs()[0].name: x.numpy()})]
        return out[0] if len(out) == 1 else out

    return run


@pytest.mark.parametrize("graph", [exported, traced, compiled, mapped, exported_to_onnx])
@pytest.mark.parametrize("quantised", [False, True])
def test_eval_models(graph, quantised):
    model, x = Model().eval(), torch.randn(4, WIDTH)
    if quantised:
        model = torch_lsh.quantize_(model)
    with torch.no_grad():
        want = model(x).dense()
        torch.testing.assert_close(graph(model, x)(x), want)
        if graph is not mapped:
            values, classes = graph(Ranking(model.head), x)(x)
            best = model.head.topk(x, 3)
            torch.testing.assert_close((values, classes), (best.values, best.indices))


@pytest.mark.skipif("TORCH_LSH_SLOW" not in os.environ, reason="takes 20 seconds; TORCH_LSH_SLOW=1 runs it")
def test_the_whole_model_compiled_ahead_of_time():
    model = nn.ModuleDict({"float32": Model().head.eval(), "int8": torch_lsh.quantize_(Model().eval()).head})

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return [self.model["float32"](x), *self.model["float32"].topk(x, 3), *self.model["int8"].topk(x, 3)]

    x = torch.randn(4, WIDTH)
    with torch.no_grad():
        program, fast_to_compile = (
            torch.export.export(Both().eval(), (x,)),
            {"aot_inductor.compile_wrapper_opt_level": "O0"},
        )
        package = torch._inductor.aoti_compile_and_package(program, inductor_configs=fast_to_compile)
        want = [model["float32"](x).dense(), *model["float32"].topk(x, 3), *model["int8"].topk(x, 3)]
        torch.testing.assert_close(list(torch._inductor.aoti_load_package(package)(x)), want)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_of_the_compiler(mode):
    runs = []
    for compile_it in (lambda model: model, lambda model: torch.compile(model, mode=mode, dynamic=True)):
        model = Model()
        losses, graphs = train(model, eager(compile_it(model)), torch_lsh.optim.Adam(model.parameters()), (4, 7))
        runs.append(losses)
        assert model.head.stats().paths["sampled"] == 2
    assert graphs == [1, 1]  # dynamic=True: one graph for any size
    torch.testing.assert_close(*runs)


def test_the_approximate_topk_in_a_whole_graph():
    head, x = Model().head.eval(), torch.randn(4, WIDTH)
    with torch.no_grad():
        got = compiled(Ranking(head, exact=False, candidates=50), x)(x)
        torch.testing.assert_close(got, head.topk(x, 3, exact=False, candidates=50))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("quantised", [False, True])
def test_script_leaves_the_callers_model_alone(quantised, bias):
    model, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), LSHLinear(WIDTH, N, bias)), torch.randn(4, WIDTH)
    if quantised:
        model = torch_lsh.quantize_(model.eval())
    kind = type(model[1])
    scripted = torch.jit.script(model)
    assert type(model[1]) is kind
    torch.testing.assert_close(scripted(x), model(x).dense())
