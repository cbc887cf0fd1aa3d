"""Losses and rankings of weights that belong to no layer."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear, SamplerState, linear_cross_entropy, linear_topk, sampler_of

N, WIDTH = 2_000, 8


def operands(active=None, bias=True):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(N, WIDTH))
    sampler_of(weight, LSHConfig(active=active))
    return torch.randn(5, WIDTH, requires_grad=True), weight, nn.Parameter(torch.randn(N)) if bias else None


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch >= 2.13 has linear_cross_entropy")
def test_one_word_to_change():
    ours, theirs = (
        inspect.signature(function).parameters for function in (linear_cross_entropy, F.linear_cross_entropy)
    )
    shared = [name for name in theirs if name != "options"]
    assert [name for name in ours if name != "bias"] == shared
    assert all(ours[name].default == theirs[name].default and ours[name].kind == theirs[name].kind for name in shared)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "how",
    [{}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1}, {"ignore_index": 2}],
    ids=str,
)
def test_with_every_row_active_it_is_the_dense_loss(bias, how):
    x, weight, offset = operands(active=N, bias=bias)
    y = torch.tensor([1, 2, 3, 4, N - 1])
    leaves = [leaf for leaf in (x, weight, offset) if leaf is not None]
    got = linear_cross_entropy(x, weight, y, linear_bias=offset, **how)
    want = F.cross_entropy(F.linear(x, weight, offset), y, **how)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), leaves) for loss in (got, want)))


def test_it_is_the_loss_of_a_layer():
    x, weight, bias = operands(active=100)
    layer = LSHLinear.from_linear(nn.Linear(WIDTH, N), LSHConfig(active=100))
    layer.weight, layer.bias = weight, bias
    y = torch.arange(5)
    for _ in range(3):
        assert torch.equal(linear_cross_entropy(x, weight, y, linear_bias=bias), layer.cross_entropy(x, y))


def test_row_sparse_where_the_optimizer_takes_it_and_tables_follow():
    x, weight, _ = operands(active=100)
    optimizer = torch_lsh.optim.Adam([weight], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        linear_cross_entropy(x, weight, torch.arange(5)).backward()
        assert weight.grad.layout is torch.sparse_coo
        optimizer.step()
    assert sampler_of(weight).draws == 3
    found = linear_topk(x, weight, 1, exact=False).indices
    assert torch.equal(found, F.linear(x, weight).topk(1).indices)


def test_without_gradients_it_is_exact():
    x, weight, bias = operands(active=100)
    y = torch.arange(5)
    with torch.no_grad():
        want = F.cross_entropy(F.linear(x, weight, bias), y)
        torch.testing.assert_close(linear_cross_entropy(x, weight, y, bias), want)
    assert sampler_of(weight).draws == 0


def test_the_topk():
    x, weight, bias = operands()
    want = F.linear(x, weight, bias).topk(3)
    got = linear_topk(x, weight, 3, bias)
    torch.testing.assert_close((got.values, got.indices), (want.values, want.indices))
    compiled = torch.compile(linear_topk, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        got = compiled(x, weight, 3, bias=bias)
    torch.testing.assert_close((got.values, got.indices), (want.values, want.indices))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_in_whole_graphs(backend):
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        x, weight, bias = operands(active=100)
        optimizer = torch_lsh.optim.SGD([weight, bias], lr=0.1)

        def loss_of(x, y, weight=weight, bias=bias):
            return linear_cross_entropy(x * 2, weight, y, linear_bias=bias)

        if compiled:
            loss_of = torch.compile(loss_of, backend=backend, fullgraph=True)
        losses = []
        for size in (5, 5, 3, 4):
            optimizer.zero_grad()
            loss = loss_of(x[:size], torch.arange(size))
            loss.backward()
            assert weight.grad.layout is torch.sparse_coo
            optimizer.step()
            losses.append(loss.item())
        results.append((losses, weight, bias, x.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_nothing_keeps_a_weight_alive():
    x, weight, _ = operands(active=100)
    linear_cross_entropy(x, weight, torch.arange(5)).backward()
    reference = weakref.ref(weight)
    del weight
    gc.collect()
    assert reference() is None


def test_results_of_operations_are_refused():
    x, weight, _ = operands()
    for other in (weight * 2, weight.detach()):
        with pytest.raises(ValueError, match="result of an operation"):
            linear_cross_entropy(x, other, torch.arange(5))
    with pytest.raises(ValueError, match=r"wanted \(classes, features\)"):
        linear_cross_entropy(x, nn.Parameter(torch.zeros(3)), torch.arange(5))


# --- state ------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(N, WIDTH)
        self.state = SamplerState(self.embedding.weight, LSHConfig(active=100))

    def forward(self, x, y):
        return linear_cross_entropy(self.embedding(x), self.embedding.weight, y)


def train(model, steps, state=None):
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.01)
    if state is not None:
        model.load_state_dict(state[0])
        optimizer.load_state_dict(copy.deepcopy(state[1]))
    losses = []
    for step in steps:
        optimizer.zero_grad()
        y = torch.arange(step, step + 6)
        loss = model(y + 1, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    buffer = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), buffer)
    buffer.seek(0)
    return losses, torch.load(buffer)


def test_a_run_resumes_from_the_state_dict():
    torch.manual_seed(0)
    model = Tied()
    twin = copy.deepcopy(model)
    first, state = train(model, range(3))
    straight = train(model, range(3, 6), state)[0]
    assert train(Tied(), range(3, 6), state)[0] == straight
    # A copy has a sampler of its own, which goes on alike.
    assert train(twin, range(3))[0] == first
    assert list(model.state_dict()) == ["embedding.weight", "state._extra_state"]


def test_bias_has_one_value():
    weight, bias = torch.nn.Parameter(torch.randn(500, 4)), torch.zeros(500)
    with pytest.raises(TypeError, match="bias and linear_bias are given"):
        linear_cross_entropy(torch.randn(2, 4), weight, torch.tensor([0, 1]), bias, linear_bias=bias)


def test_rankings_of_a_weight_that_trains_densely_tell_nothing(recwarn):
    weight = nn.Parameter(torch.randn(300, 8))
    optimizer = torch.optim.Adam([weight], lr=1e-2)
    x, y = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])
    linear_topk(x, weight, 3)
    F.cross_entropy(x @ weight.T, y).backward()
    optimizer.step()
    assert not recwarn.list
    linear_cross_entropy(x, weight, y).backward()
    with pytest.warns(UserWarning, match="torch's Adam updates all 300 rows"):
        optimizer.step()
