"""Cross entropy: exact evaluation, its keywords, gradients of higher order, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.nn.logits import recipe

N, D = 97, 6  # of the fixture "layer"


def dense(layer, x):
    return F.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_exact_loss_in_several_blocks_is_the_same(monkeypatch, label_smoothing):
    layer = LSHLinear(D, 2500).eval()
    x, y = torch.randn(3, D), torch.tensor([0, 1024, 2499])
    monkeypatch.setattr(recipe, "BLOCK_ELEMENTS", 1)  # blocks have at least 1,024 rows
    with torch.no_grad():
        for weight in (None, torch.rand(2500)):
            options = {"weight": weight, "label_smoothing": label_smoothing}
            torch.testing.assert_close(
                F.cross_entropy(layer(x), y, **options), F.cross_entropy(dense(layer, x), y, **options)
            )


def test_cross_entropy_module_and_keywords(layer):
    layer.reconfigure(LSHConfig(active=1.0))
    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    expected = F.cross_entropy(dense(layer, x), y)
    torch.testing.assert_close(nn.CrossEntropyLoss()(layer(x), y), expected)
    torch.testing.assert_close(F.cross_entropy(input=layer(x), target=y), expected)
    torch.testing.assert_close(layer.cross_entropy(x, y), expected)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_second_derivatives_are_refused(layer, scope):
    layer.reconfigure(LSHConfig(active=20, scope=scope))
    x, y = torch.randn(4, D, dtype=torch.float64, requires_grad=True), torch.arange(4)
    with pytest.raises(RuntimeError, match=r"create_graph=True.*logits.dense\(\)"):
        torch.autograd.grad(F.cross_entropy(layer(x), y), x, create_graph=True)
    (slope,) = torch.autograd.grad(F.cross_entropy(layer(x).dense(), y), x, create_graph=True)
    assert slope.requires_grad


@pytest.mark.parametrize(
    "how", [{}, {"label_smoothing": 0.1}, {"ignore_index": 2, "weight": torch.linspace(1, 2, N).double()}]
)
def test_second_derivatives_of_exact_losses(layer, how):
    x, y = torch.randn(4, D, dtype=torch.float64, requires_grad=True), torch.arange(4)
    found = []
    for logits in (layer.eval()(x), dense(layer, x)):
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, y, **how), x, create_graph=True)
        found.append((slope, torch.autograd.grad(slope.square().sum(), [x, layer.weight])))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_loss(layer, use_reentrant):
    layer.reconfigure(LSHConfig(active=1.0))
    x, y = torch.randn(4, D, dtype=torch.float64, requires_grad=True), torch.arange(4)
    loss = torch.utils.checkpoint.checkpoint(F.cross_entropy, layer(x), y, use_reentrant=use_reentrant)
    loss.backward()
    wanted = torch.autograd.grad(F.cross_entropy(dense(layer, x), y), [x, layer.weight])
    torch.testing.assert_close((x.grad, layer.weight.grad), wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"size_average": False}, {"reduce": False}])
def test_deprecated_arguments_take_the_dense_path(layer, options):
    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    torch.testing.assert_close(F.cross_entropy(layer(x), y, **options), F.cross_entropy(dense(layer, x), y, **options))


def test_arguments_are_checked(layer):
    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    for options, error, message in (
        ({"reduction": "most"}, ValueError, "'most' is not a valid value for reduction"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5; wanted 0 to 1"),
        ({"weight": torch.ones(3)}, ValueError, r"weight has shape \(3,\); wanted \(97,\)"),
        ({"weight": torch.ones(N, device="meta")}, RuntimeError, "weight is on meta; wanted cpu"),
        ({"weight": torch.ones(N).requires_grad_()}, RuntimeError, "weight requires a gradient"),
    ):
        with pytest.raises(error, match=message):
            F.cross_entropy(layer(x), y, **options)


def test_a_layer_without_a_sampler_computes_exact_losses_in_training(layer):
    class Exact(LSHLinear):
        sampler = property(lambda self: None, lambda self, sampler: None)

    exact = Exact(D, N, dtype=torch.float64)
    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    torch.testing.assert_close(F.cross_entropy(exact(x), y), F.cross_entropy(dense(exact, x), y))
