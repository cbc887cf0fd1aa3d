"""Optimizers that update rows during the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import twins
from torch import nn

import torch_lsh
from torch_lsh import ops, optim

OPTIMIZERS = [
    (optim.Adam, {}),
    (optim.AdamW, {"weight_decay": 0.1}),
    (optim.Adagrad, {}),
    (optim.SGD, {"momentum": 0.9}),
    (optim.Lion, {"weight_decay": 0.1}),
]
CONFIG = torch_lsh.LSHConfig(active=64)


class Model(nn.Module):
    def __init__(self, config=CONFIG, dtype=torch.float32):
        super().__init__()
        self.input = torch_lsh.EmbeddingBag(300, 16, mode="sum", dtype=dtype)
        self.hidden = nn.Linear(16, 16, dtype=dtype)
        self.output = torch_lsh.LSHLinear(16, 2_000, dtype=dtype, config=config)

    def forward(self, x):
        return self.output(F.relu(self.hidden(self.input(x))))


def train(model, optimizer, steps=6, autocast=False):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randint(0, 300, (10, 7), generator=generator)
        y = torch.randint(0, 2_000, (10,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("mode", ["float64", "float32", "bfloat16", "autocast"])
def test_the_same_as_with_gradients(cls, options, scope, mode):
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(mode, torch.float32)
    config = torch_lsh.LSHConfig(active=64, scope=scope)
    torch.manual_seed(0)
    first = Model(config, dtype)
    second = copy.deepcopy(first)
    before = copy.deepcopy(first.state_dict())
    train(first, cls(first.parameters(), lr=1e-2, **options), autocast=mode == "autocast")
    train(second, cls(second.parameters(), lr=1e-2, in_backward=True, **options), autocast=mode == "autocast")
    tolerance = {"float64": 1e-12, "float32": 1e-5}.get(mode, 2e-3)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert not torch.equal(a, before[name])


def test_no_gradient_is_left_and_tables_follow():
    model = Model()
    optimizer = optim.Adam(model.parameters(), lr=1e-1, in_backward=True)
    train(model, optimizer, steps=1)
    x, y = torch.randint(0, 300, (10, 7)), torch.randint(0, 2_000, (10,))
    F.cross_entropy(model(x), y).backward()
    assert model.output.weight.grad is None
    assert model.output.bias.grad is None
    assert model.input.weight.grad is None
    assert model.hidden.weight.grad is not None
    assert 0 < model.output.rehash() < 2_000  # the touched rows alone


def test_a_second_backward_before_step_is_an_error():
    model = Model()
    optimizer = optim.Adam(model.parameters(), lr=1e-2, in_backward=True)
    x, y = torch.randint(0, 300, (10, 7)), torch.randint(0, 2_000, (10,))
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match="got a second gradient since the last step"):
        F.cross_entropy(model(x), y).backward()
    optimizer.step()
    F.cross_entropy(model(x), y).backward()


def test_a_weight_that_also_gets_a_dense_gradient_is_an_error():
    layer = torch_lsh.LSHLinear(16, 2_000, config=CONFIG)
    optimizer = optim.Adam(layer.parameters(), lr=1e-2, in_backward=True)
    x, y = torch.randn(4, 16), torch.randint(0, 2_000, (4,))
    (F.cross_entropy(layer(x), y) + layer.weight.square().sum()).backward()
    with pytest.raises(RuntimeError, match="got a second gradient since the last step"):
        optimizer.step()


def test_may_be_set_per_group():
    model = Model()
    optimizer = optim.Adam(
        [{"params": model.output.parameters(), "in_backward": True}, {"params": model.input.parameters()}], lr=1e-2
    )
    x, y = torch.randint(0, 300, (10, 7)), torch.randint(0, 2_000, (10,))
    F.cross_entropy(model(x), y).backward()
    assert model.output.weight.grad is None
    assert model.input.weight.grad is not None
    optimizer.step()


def test_learning_rate_schedules_and_closures_work():
    model = Model()
    optimizer = optim.SGD(model.parameters(), lr=1.0, in_backward=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    x, y = torch.randint(0, 300, (10, 7)), torch.randint(0, 2_000, (10,))

    def closure():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    before = model.output.weight.detach().clone()
    assert optimizer.step(closure).item() > 0
    assert not torch.equal(model.output.weight, before)
    scheduler.step()
    before = model.output.weight.detach().clone()
    optimizer.step(closure)
    assert torch.equal(model.output.weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("count", "batch", "width"), [(1, 1, 1), (70, 33, 40), (100, 300, 17), (5, 0, 3), (0, 4, 3)])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_as_two_factors_equal_reference(simd_level, dtype, count, batch, width, transposed):
    parameter, first, second = (torch.rand(120, width, dtype=dtype) for _ in range(3))
    rows = torch.randperm(120)[:count].sort()[0]
    left, right = torch.randn(count, batch, dtype=dtype), torch.randn(batch, width, dtype=dtype)
    left = left.T.contiguous().T if transposed else left
    results = []
    for module in (ops, twins):
        p, m, v = (t.clone() for t in (parameter, first, second))
        q, b, r, s, t, a = (t.clone() for t in (parameter, first) * 3)
        module.row_sparse_adam_(
            p, m, v, rows, left, None, 0.1, 0.9, 0.999, 1e-3, 0.2, 0.5, 0.25, True, False, factor=right
        )
        module.row_sparse_sgd_(q, b, rows, left, 0.1, 0.9, 0.2, 0.3, True, True, factor=right)
        module.row_sparse_adagrad_(r, s, rows, left, 0.1, 1e-3, 0.3, True, factor=right)
        module.row_sparse_lion_(t, a, rows, left, 0.1, 0.9, 0.99, 0.3, True, factor=right)
        results.append((p, m, v, q, b, r, s, t, a))
    tolerance = 1e-4 if dtype is torch.float32 else 1e-11
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("parameter", "gradient", "factor", "message"),
    [
        (torch.rand(9, 3).bfloat16(), torch.rand(2, 4), torch.rand(4, 3), "factor is given for a parameter of dtype"),
        (torch.rand(9, 3), torch.rand(2, 4), torch.rand(5, 3), "factor has shape"),
        (torch.rand(9, 3), torch.rand(2, 4), torch.rand(4, 2), "factor has shape"),
        (torch.rand(9, 3), torch.rand(2, 4), torch.rand(4, 3).double(), "factor has dtype Double; wanted Float"),
        (torch.rand(9, 3), torch.rand(1, 4), torch.rand(4, 3), "gradient has shape"),
        (torch.rand(9), torch.rand(2, 4), torch.rand(4, 3), "parameter has shape"),
    ],
)
def test_bad_factors_are_named(parameter, gradient, factor, message):
    with pytest.raises(RuntimeError, match=message):
        ops.row_sparse_sgd_(
            parameter, None, torch.tensor([1, 2]), gradient, 0.1, 0.0, 0.0, 0.0, False, False, factor=factor
        )


def test_a_gradient_scaler_is_refused():
    layer = torch_lsh.LSHLinear(16, 2_000, config=CONFIG)
    optimizer = optim.SGD(layer.parameters(), in_backward=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(F.cross_entropy(layer(torch.randn(4, 16)), torch.arange(4))).backward()
    with pytest.raises(RuntimeError, match=r"in_backward=True.*GradScaler"):
        scaler.step(optimizer)


@pytest.mark.parametrize("scope", ["batch", "sample", "feed-forward", "bag"])
def test_a_backward_pass_for_the_input_alone_leaves_the_parameters_alone(scope):
    if scope == "feed-forward":
        layer = torch_lsh.LSHFeedForward(16, 2_000)
    elif scope == "bag":
        layer = torch_lsh.EmbeddingBag(30, 16, mode="sum")
    else:
        layer = torch_lsh.LSHLinear(16, 2_000, config=torch_lsh.LSHConfig(active=64, scope=scope))

    def loss_of(x):
        if scope == "feed-forward":
            return layer(x).square().sum()
        if scope == "bag":
            return (layer(torch.arange(8).view(4, 2)) * x).sum()
        return F.cross_entropy(layer(x), torch.arange(4))

    optimizer = optim.Adam(layer.parameters(), in_backward=True)
    x = torch.randn(4, 16, requires_grad=True)
    before = copy.deepcopy(list(layer.parameters()))
    loss = loss_of(x)
    (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward(inputs=[x], retain_graph=True)
    torch.testing.assert_close(x.grad, gradient, rtol=0, atol=0)
    weight = layer.down.weight if scope == "feed-forward" else layer.weight
    (of_weight,) = torch.autograd.grad(loss, weight, retain_graph=True)
    assert of_weight.layout is torch.sparse_coo
    assert of_weight.coalesce().values().any()
    assert all(torch.equal(one, other) for one, other in zip(before, layer.parameters()))
    loss.backward(inputs=[weight], retain_graph=True)
    assert weight.grad is None
    changed = [not torch.equal(one, other) for one, other in zip(before, layer.parameters())]
    assert changed == [parameter is weight for parameter in layer.parameters()]
    optimizer.step()
    loss_of(x).backward()
    optimizer.step()
