"""QuantizedLinear and quantize_: int8 weights for serving."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import LSHLinear, QuantizedLinear, quantize_


def quantised(in_features=24, out_features=700, bias=True):
    linear = nn.Linear(in_features, out_features, bias).eval()
    return linear, QuantizedLinear.from_linear(linear)


@pytest.mark.parametrize("bias", [True, False])
def test_quantised_weights_are_the_nearest(bias):
    linear, layer = quantised(bias=bias)
    assert (layer.weight - linear.weight).abs().le(layer.scale.unsqueeze(1) * 0.5001).all()
    assert layer.weight_int8.abs().amax(1).eq(127).all()
    assert (layer.bias is None) == (not bias)


def test_quantised_topk_is_exact_for_the_quantised_weights():
    _, layer = quantised()
    x = torch.randn(3, 2, 24)
    logits = F.linear(x.double(), layer.weight_int8.double() * layer.scale.double().unsqueeze(1), layer.bias.double())
    for best in (layer.topk(x, 6), layer(x).topk(6), torch.topk(layer(x), 6)):
        torch.testing.assert_close(best.values.double(), logits.topk(6).values, rtol=1e-5, atol=1e-5)
        assert torch.equal(best.indices, logits.topk(6).indices)
    assert torch.equal(layer(x).argmax(-1), logits.argmax(-1))


def test_everything_else_computes_with_the_weights_converted_back():
    _, layer = quantised()
    x, y = torch.randn(3, 24), torch.tensor([1, 2, 3])
    expected = F.linear(x, layer.weight, layer.bias)
    with pytest.warns(UserWarning, match="exp has no sampled path"):
        torch.testing.assert_close(layer(x).exp(), expected.exp())
    torch.testing.assert_close(F.cross_entropy(layer(x), y), F.cross_entropy(expected, y))


def test_quantised_checkpoints_load(tmp_path):
    _, layer = quantised()
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = quantised()[1]
    other.load_state_dict(torch.load(tmp_path / "layer.pt"))
    x = torch.randn(3, 24)
    assert all(torch.equal(a, b) for a, b in zip(layer.topk(x, 5), other.topk(x, 5)))


def test_a_row_of_zeros_and_other_dtypes():
    linear = nn.Linear(5, 3).eval()
    linear.weight.data[1] = 0
    layer = QuantizedLinear.from_linear(linear)
    assert layer.weight[1].eq(0).all()
    assert layer.bfloat16().topk(torch.randn(2, 5).bfloat16(), 2).values.dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_casts_leave_scales_and_biases_as_they_are(dtype):
    layer = quantised()[1]
    before = copy.deepcopy(layer.state_dict())
    for name, buffer in layer.to(dtype).state_dict().items():
        assert torch.equal(buffer, before[name])


def test_quantize_swaps_lsh_layers_only():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), LSHLinear(16, 500)).eval()
    x = torch.randn(4, 8)
    expected = model(x).argmax(-1)
    assert quantize_(model) is model
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, QuantizedLinear]
    assert (model(x).argmax(-1) == expected).float().mean() >= 0.75
    assert model(x).topk(3).values.requires_grad is False
    both = quantize_(nn.Sequential(nn.Linear(8, 16), LSHLinear(16, 50)), filter_fn=lambda module, name: name == "0")
    assert [type(module) for module in both] == [QuantizedLinear, LSHLinear]
    assert isinstance(quantize_(LSHLinear(4, 50)), QuantizedLinear)


def test_quantised_layers_cannot_be_trained_and_check_their_input():
    layer = quantised()[1]
    with pytest.raises(RuntimeError, match="cannot be trained"):
        layer.train()(torch.randn(2, 24))
    layer.eval()
    with pytest.raises(ValueError, match="wanted 24 features"):
        layer(torch.randn(2, 23))
    with pytest.raises(TypeError, match=r"input is torch\.float64"):
        layer(torch.randn(2, 24).double())
    with pytest.raises(ValueError, match="k is 701; wanted 1 to 700"):
        layer.topk(torch.randn(2, 24), 701)
    with pytest.raises(ValueError, match=r"wanted torch\.int8"):
        quantize_(nn.Linear(2, 2), dtype=torch.float16)
    with pytest.raises(TypeError, match="input is a list; wanted a tensor"):
        layer([1.0] * 24)
    with pytest.raises(TypeError, match=r"linear is a Conv1d; wanted torch\.nn\.Linear"):
        QuantizedLinear.from_linear(nn.Conv1d(1, 1, 1))
    with pytest.raises(ValueError, match=r"weight is torch\.float32 on meta; wanted floating point on the CPU"):
        QuantizedLinear.from_linear(nn.Linear(2, 3, device="meta"))
    broken = LSHLinear(4, 50)
    broken.weight.data[7, 2] = math.nan
    model = nn.Sequential(LSHLinear(4, 4), broken)
    with pytest.raises(ValueError, match="not finite"):
        quantize_(model)
    assert [type(module) for module in model] == [LSHLinear, LSHLinear]


def test_a_quantised_classifier_predicts_and_is_saved(tmp_path):
    train, test = torch_lsh.data.synthetic_xmc(64, 32, num_features=200, num_labels=500)
    model = torch_lsh.models.XMCClassifier(200, 500, hidden=16)
    expected = model.predict(test, 3)
    quantize_(model)
    scores, classes = model.predict(test, 3)
    torch.testing.assert_close(scores, expected[0], rtol=0.05, atol=0.05)
    model.save(tmp_path / "model.pt")
    loaded = torch_lsh.models.XMCClassifier.load(tmp_path / "model.pt")
    assert isinstance(loaded.output, QuantizedLinear)
    assert torch.equal(loaded.predict(test, 3)[1], classes)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.fit(train, epochs=1, progress=False)


def test_public_names():
    assert torch_lsh.QuantizedLinear is torch_lsh.nn.QuantizedLinear
    assert torch_lsh.quantize_ is quantize_


@pytest.mark.parametrize("bias", [True, False])
def test_chosen_rows(bias):
    _, layer = quantised(bias=bias)
    x = torch.randn(3, 24)
    z = F.linear(x, layer.weight, layer.bias)
    rows = torch.tensor([5, 699, 5])
    torch.testing.assert_close(layer.active_logits(x, rows), z[:, rows])
    per_sample = torch.tensor([[1, 2], [3, -1], [-1, 698]])
    expected = z.gather(1, per_sample.clamp(min=0)) * (per_sample >= 0)
    torch.testing.assert_close(layer.active_logits(x, per_sample), expected)


@pytest.mark.parametrize(
    ("warn", "message"),
    [
        (lambda layer: layer.paths.say("stale"), "ranked by the new ones"),
        (lambda layer: layer.paths.dense("sum"), "sum has no sampled path"),
    ],
)
def test_warnings_appear_once_per_layer(recwarn, warn, message):
    _, layer = quantised()
    warn(layer)
    warn(layer)
    assert len(recwarn) == 1
    assert message in str(recwarn[0].message)


def test_repr():
    assert repr(quantised()[1]) == "QuantizedLinear(in_features=24, out_features=700, bias=True)"


def test_losses_of_a_layer_in_training_mode_are_exact():
    _, layer = quantised()
    x, y = torch.randn(3, 24), torch.tensor([1, 2, 3])
    logits = layer(x)
    layer.train()
    torch.testing.assert_close(F.cross_entropy(logits, y), F.cross_entropy(F.linear(x, layer.weight, layer.bias), y))


@pytest.mark.parametrize("name", ["weight_int8", "scale", "bias"])
def test_approximate_topk_follows_edits_in_place(name):
    layer, x = quantised(out_features=5_000)[1], torch.rand(4, 24)
    layer.weight_int8[7] = 1
    layer.topk(x, 1, candidates=8, exact=False)
    getattr(layer, name)[7] = 100
    assert (layer.topk(x, 1, candidates=8, exact=False).indices == 7).all()
