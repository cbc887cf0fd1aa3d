"""Rankings are exact and need no dense tensor."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from torch_lsh import LSHConfig, LSHLinear

N, D = 97, 6  # of the fixture "layer"


def dense(layer, x):
    return F.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("shape", [(5, D), (2, 3, D), (D,), (0, D)])
def test_best_classes(layer, shape):
    x = torch.randn(shape, dtype=torch.float64)
    z, logits = dense(layer, x), layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in (1, 5, N):
            got, expected = logits.topk(k), z.topk(k)
            assert isinstance(got, torch.return_types.topk)
            torch.testing.assert_close(got.values, expected.values)
            assert torch.equal(got.indices, expected.indices)
        assert torch.equal(logits.argmax(-1), z.argmax(-1))
        assert torch.equal(logits.argmax(dim=-1, keepdim=True), z.argmax(-1, keepdim=True))
        for got, expected in ((logits.max(-1), z.max(-1)), (torch.max(logits, -1, True), torch.max(z, -1, True))):
            torch.testing.assert_close(got.values, expected.values)
            assert torch.equal(got.indices, expected.indices)
        torch.testing.assert_close((logits / 2).amax(-1), z.amax(-1) / 2)
        if len(shape) == 3:
            assert torch.equal(logits.transpose(1, 2).argmax(1), z.argmax(-1))


def test_topk_values_have_gradients(layer):
    x = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(dense(layer, x).topk(3).values.sum(), [x, layer.weight])
    for got, want in zip(torch.autograd.grad(layer(x).topk(3).values.sum(), [x, layer.weight]), expected):
        torch.testing.assert_close(got, want)


def test_negative_temperature_turns_the_order_round(layer):
    x = torch.randn(4, D, dtype=torch.float64)
    with pytest.warns(UserWarning, match="topk"):
        assert torch.equal((layer(x) * -1.0).topk(3).indices, (-dense(layer, x)).topk(3).indices)


def test_no_dense_tensor_is_made(layer, monkeypatch):
    wide = LSHLinear(4, 1_000_000, config=LSHConfig(active=100))
    x, y = torch.randn(512, 4), torch.randint(0, 1_000_000, (512,))
    # [512, 1_000_000] floats would be 2 GB
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    F.cross_entropy(wide(x), y)
    wide(x[:64]).topk(5)
    wide.eval()
    with torch.no_grad():
        wide.cross_entropy(x[:64], y[:64])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB


@pytest.mark.parametrize("grad", [True, False])
def test_best_values_are_among_the_dense_ones(grad):
    """nanoGPT's filter keeps k classes, also where topk rounds otherwise than the product of all."""
    torch.manual_seed(0)
    layer = LSHLinear(64, 5_000)
    for k in (1, 20):
        with torch.set_grad_enabled(grad):
            logits = layer(torch.randn(50, 3, 64))[:, -1, :] / 0.7
        logits[logits < logits.topk(k).values[:, [-1]]] = -float("inf")
        assert (logits.isfinite().sum(-1) == k).all()
        logits = layer(torch.randn(50, 3, 64)).transpose(1, 2)
        assert ((logits == logits.amax(1, keepdim=True)).sum(1) == 1).all()
        assert ((logits == logits.amax(1, keepdim=True)).sum(1) == 1).all()  # of the dense ones


def test_logits_given_by_keyword(layer):
    x = torch.randn(4, D, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(torch.topk(input=layer(x), k=3).indices, dense(layer, x).topk(3).indices)
        assert torch.equal(torch.argmax(input=layer(x), dim=-1), dense(layer, x).argmax(-1))
    with pytest.warns(UserWarning, match="topk has no sampled path"):
        smallest = torch.topk(input=layer(x), k=3, largest=False)
    assert torch.equal(smallest.indices, dense(layer, x).topk(3, largest=False).indices)
    with pytest.raises(ValueError, match="k is 98; wanted 0 to 97"):
        layer(x).topk(98)
