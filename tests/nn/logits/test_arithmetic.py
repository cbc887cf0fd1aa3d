"""Temperatures, priors, masks and soft-caps: part of the recipe, so losses and rankings see them."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from torch_lsh import LSHConfig, LSHLinear, SampledLogits

N, D = 97, 6
PRIOR = torch.linspace(-1, 1, N, dtype=torch.float64)
ODD = torch.arange(N) % 2 == 1

STEPS = {
    "temperature": lambda z: z / 0.7,
    "temperature of samples": lambda z: z / torch.tensor([[0.5], [1.0], [2.0], [3.0]], dtype=torch.float64),
    "prior": lambda z: z + PRIOR,
    "scaled prior": lambda z: (2 * z - PRIOR) * 3,
    "prior of samples": lambda z: z + torch.arange(4, dtype=torch.float64).view(4, 1),
    "mask": lambda z: z.masked_fill(ODD, -torch.inf),
    "mask by a large number": lambda z: torch.where(ODD, -1e9, z),
    "additive mask": lambda z: z + torch.where(ODD, -torch.inf, 0.0).double(),
    "soft-cap": lambda z: 2 * torch.tanh(z / 2),
    "soft-cap and mask": lambda z: (2 * torch.tanh(z / 2)).masked_fill(ODD, -torch.inf) / 0.7,
}


def in_place(z):
    z.mul_(0.5)
    z /= 2
    z += PRIOR
    z.sub_(1)
    z[:, 1] = -torch.inf
    z[..., [3, 5]] = -1e9
    z.masked_fill_(PRIOR > 0.9, -torch.inf)
    return z


STEPS["in place"] = in_place


def layer_of(training: bool = True, active: float = 1.0, **options) -> LSHLinear:
    torch.manual_seed(0)
    config = LSHConfig(active=active, **options)
    return LSHLinear(D, N, config=config, dtype=torch.float64).train(training)


@pytest.fixture(params=STEPS, ids=str)
def step(request):
    return STEPS[request.param]


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_the_loss_sees_the_steps(step, scope):
    x, y = torch.randn(4, D, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2, 4, 6])
    layer = layer_of(scope=scope)
    expected = F.cross_entropy(step(F.linear(x, layer.weight, layer.bias).clone()), y)
    wanted = torch.autograd.grad(expected, [x, layer.weight, layer.bias])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for training in (True, False):
            logits = step(layer.train(training)(x))
            assert isinstance(logits, SampledLogits)
            loss = F.cross_entropy(logits, y)
            torch.testing.assert_close(loss, expected)
            for got, want in zip(torch.autograd.grad(loss, [x, layer.weight, layer.bias]), wanted):
                torch.testing.assert_close(got, want)
        with torch.no_grad():
            torch.testing.assert_close(F.cross_entropy(step(layer(x)), y), expected)


def test_rankings_see_the_steps(step):
    x, layer = torch.randn(4, D, dtype=torch.float64), layer_of(False)
    for grad in (True, False):
        with warnings.catch_warnings(), torch.set_grad_enabled(grad):
            warnings.simplefilter("error")
            z = step(F.linear(x, layer.weight, layer.bias).clone())
            for function in (lambda z: z, lambda z: z.softmax(-1), lambda z: z.log_softmax(-1), lambda z: 2 * z):
                got, want = function(step(layer(x))), function(z)
                assert isinstance(got, SampledLogits)
                assert torch.equal(got.argmax(-1), want.argmax(-1))
                best, wanted = got.topk(5), want.topk(5)
                assert torch.equal(best.indices, wanted.indices)
                torch.testing.assert_close(best.values, wanted.values)
                torch.testing.assert_close(got.max(-1).values, want.max(-1).values)
                torch.testing.assert_close(got.dense(), want)


def test_gradients_of_ranked_probabilities(step):
    x, layer = torch.randn(4, D, dtype=torch.float64, requires_grad=True), layer_of(False)
    places = [x, layer.weight]
    want = step(F.linear(x, layer.weight, layer.bias).clone()).softmax(-1).topk(3).values
    got = step(layer(x)).softmax(-1).topk(3).values
    for one, other in zip(torch.autograd.grad(got.log().sum(), places), torch.autograd.grad(want.log().sum(), places)):
        torch.testing.assert_close(one, other)


def test_tensors_that_learn_get_gradients():
    layer, x, y = layer_of(), torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    prior, temperature = PRIOR.clone().requires_grad_(), torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    wanted = torch.autograd.grad(
        F.cross_entropy((F.linear(x, layer.weight, layer.bias) + prior) / temperature, y), [prior, temperature]
    )
    logits = (layer(x) + prior) / temperature
    for loss in (F.cross_entropy(logits, y), F.nll_loss(logits.log_softmax(-1), y)):
        for got, want in zip(torch.autograd.grad(loss, [prior, temperature], retain_graph=True), wanted):
            torch.testing.assert_close(got, want)
    dense = torch.autograd.grad(F.cross_entropy(Same.apply(logits), y), [prior, temperature])
    for got, want in zip(dense, wanted):
        torch.testing.assert_close(got, want)


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_steps_in_place_stay_in_the_graph():
    layer, x, y = layer_of(), torch.randn(4, D, dtype=torch.float64), torch.tensor([0, 2, 4, 6])
    want = torch.autograd.grad(F.cross_entropy(in_place(F.linear(x, layer.weight, layer.bias)), y), layer.weight)[0]
    got = torch.autograd.grad(F.cross_entropy(Same.apply(in_place(layer(x))), y), layer.weight)[0]
    torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(in_place(layer(x)).dense(), in_place(F.linear(x, layer.weight, layer.bias)))
    logits = layer(x)
    assert logits.mul_(2) is logits
    torch.testing.assert_close(logits.dense(), 2 * F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("fill", [1e9, 0.0, torch.inf])
@pytest.mark.filterwarnings("ignore")
def test_a_mask_that_does_not_hide_is_ranked_right(fill):
    layer, x = layer_of(False), torch.randn(4, D, dtype=torch.float64)
    got, want = (z.masked_fill(ODD, fill) for z in (layer(x), F.linear(x, layer.weight, layer.bias)))
    torch.testing.assert_close(got.topk(60).values, want.topk(60).values)
    torch.testing.assert_close(got.max(-1).values, want.max(-1).values)


@pytest.mark.filterwarnings("ignore")
def test_factors_of_classes_are_ranked_right():
    layer, x = layer_of(False), torch.randn(4, D, dtype=torch.float64)
    assert torch.equal((layer(x) * PRIOR).argmax(-1), (F.linear(x, layer.weight, layer.bias) * PRIOR).argmax(-1))


def test_metadata_computes_nothing():
    layer, x = layer_of(), torch.randn(2, 3, D, dtype=torch.float64)
    dense = F.linear(x, layer.weight, layer.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for logits, wanted in ((layer(x), dense), (layer(x).transpose(1, 2), dense.transpose(1, 2))):
            assert logits.stride() == wanted.stride() == logits.dense().stride()
            assert logits.is_contiguous() == wanted.is_contiguous()
            assert logits.dim_order() == wanted.dim_order()
            assert logits.stride(-1) == wanted.stride(-1)
            assert logits.storage_offset() == 0
            assert torch.result_type(logits, 1) is torch.float64
            assert not logits.is_sparse


def test_single_logits_are_exact_in_training():
    x = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    layer, rows = layer_of(active=10), torch.randint(N, (4, 3))
    want = F.linear(x, layer.weight, layer.bias).gather(1, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = layer(x).gather(1, rows)
    torch.testing.assert_close(got, want)
    for one, other in zip(*(torch.autograd.grad(value.sum(), [x, layer.weight]) for value in (got, want))):
        torch.testing.assert_close(one, other)
    for wrong in (torch.full((4, 1), N), torch.full((4, 1), -1)):
        with pytest.raises(IndexError, match="index holds class"):
            layer(x).gather(1, wrong)
