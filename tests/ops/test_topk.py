"""linear_topk and rows_topk, the layers on top of them, and QuantizedLinear."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
import twins
from torch import nn

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear, QuantizedLinear, ops, quantize_

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int8]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-5, torch.int8: 1e-5}
# One group of few samples, of one to three vectors, and several groups, at every vector size.
BATCHES = [0, 1, 2, 3, 4, 5, 8, 13, 17, 48, 50, 101]


def problem(batch, rows, width, dtype, bias=True):
    """x, weight, bias and scale of a layer whose logits are about 1."""
    x = torch.randn(batch, width) / width**0.5
    weight, scale = torch.randn(rows, width), None
    b = torch.randn(rows) if bias else None
    if dtype is torch.int8:
        scale = weight.abs().amax(1) / 127
        weight = (weight / scale.unsqueeze(1)).round().to(torch.int8)
    else:
        x, weight, b = x.to(dtype), weight.to(dtype), None if b is None else b.to(dtype)
    return x, weight, b, scale


def exact_logits(x, weight, bias, scale):
    logits = x.double() @ weight.double().T
    logits = logits if scale is None else logits * scale.double()
    return logits if bias is None else logits + bias.double()


def assert_is_topk(result, logits, k, tolerance):
    values, classes = result
    expected = logits.topk(k).values
    torch.testing.assert_close(values.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(values.double(), logits.gather(1, classes), rtol=tolerance, atol=tolerance)
    assert (values.diff(dim=1) <= 0).all()
    assert all(row.unique().numel() == k for row in classes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 33, 128])
def test_equals_the_dense_product_with_topk(simd_level, dtype, width):
    for rows in (1, 9, 515):
        for batch in BATCHES:
            arguments = problem(batch, rows, width, dtype, bias=batch % 2 == 0)
            logits = exact_logits(*arguments)
            x, weight, bias, scale = arguments
            for k in {1, min(5, rows), min(100, rows), rows}:
                assert_is_topk(ops.linear_topk(x, weight, bias, k, scale), logits, k, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_reference(dtype):
    x, weight, bias, scale = problem(7, 300, 20, dtype)
    for k in (1, 5, 300):
        values, classes = ops.linear_topk(x, weight, bias, k, scale)
        expected, expected_classes = twins.linear_topk(x, weight, bias, k, scale)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(classes, expected_classes)
        assert values.dtype is expected.dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 4, 40])
def test_the_number_of_threads_changes_nothing(simd_level, dtype, batch):
    arguments = problem(batch, 3000, 70, dtype)
    x, weight, bias, scale = arguments
    rows = torch.randint(-1, 3000, (batch, 200))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((*ops.linear_topk(x, weight, bias, 9, scale), *ops.rows_topk(x, weight, bias, rows, 9, scale)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_the_lower_class_comes_first_among_equals(simd_level, threads, batch):
    weight = torch.arange(400).remainder(4).float().unsqueeze(1)  # the logits 0 1 2 3 0 1 2 3 ...
    values, classes = ops.linear_topk(torch.ones(batch, 1), weight, None, 150)
    expected = [*range(3, 400, 4), *range(2, 200, 4)]
    assert classes.tolist() == [expected] * batch
    assert values.tolist() == [[3.0] * 100 + [2.0] * 50] * batch
    zeros = ops.linear_topk(torch.ones(batch, 1), torch.tensor([[-0.0], [0.0], [-0.0]]), None, 3)
    assert zeros[1].tolist() == [[0, 1, 2]] * batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_nan_is_the_largest_and_infinities_have_their_place(simd_level, threads, dtype, batch):
    weight = torch.linspace(-1, 1, 500).to(dtype).unsqueeze(1)
    for row, value in ((3, math.nan), (450, math.nan), (7, math.inf), (400, -math.inf), (401, -math.inf)):
        weight[row] = value
    x = torch.ones(batch, 1, dtype=dtype)
    values, classes = ops.linear_topk(x, weight, None, 500)
    torch.testing.assert_close(values[0].to(dtype), weight[:, 0].topk(500).values, equal_nan=True)
    assert classes[:, :4].tolist() == [[3, 450, 7, 499]] * batch
    assert classes[:, -2:].tolist() == [[400, 401]] * batch
    for k in (1, 2, 3):
        assert torch.equal(ops.linear_topk(x, weight, None, k)[1], classes[:, :k])


def test_a_sample_of_nan_leaves_the_others_alone(simd_level):
    x, weight, bias, _ = problem(20, 300, 8, torch.float32)
    expected = ops.linear_topk(x, weight, bias, 4)
    x[5] = math.nan
    values, classes = ops.linear_topk(x, weight, bias, 4)
    assert values[5].isnan().all()
    assert classes[5].tolist() == [0, 1, 2, 3]
    others = torch.arange(20) != 5
    assert torch.equal(values[others], expected[0][others])
    assert torch.equal(classes[others], expected[1][others])


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_rows_in_order_of_their_logits(threads, order):
    weight = torch.arange(2000.0).unsqueeze(1)
    weight = weight if order == "ascending" else weight.flip(0)
    values, _ = ops.linear_topk(torch.ones(5, 1), weight, None, 7)
    assert values.tolist() == [[1999.0, 1998, 1997, 1996, 1995, 1994, 1993]] * 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_candidates(simd_level, threads, dtype):
    for batch in (0, 1, 6):
        x, weight, bias, scale = problem(batch, 200, 37, dtype)
        rows = torch.stack([torch.randperm(200)[:60] for _ in range(batch)]) if batch else torch.empty(0, 60).long()
        rows[:, ::3] = -1
        for k in (1, 5, 40, 70):
            values, classes = ops.rows_topk(x, weight, bias, rows, k, scale)
            expected, expected_classes = twins.rows_topk(x, weight, bias, rows, k, scale)
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(classes, expected_classes)
    assert (
        ops.rows_topk(*problem(2, 5, 3, torch.float32)[:3], torch.empty(2, 0).long(), 2)[1].tolist() == [[-1, -1]] * 2
    )


def test_opcheck():
    for dtype in DTYPES:
        x, weight, bias, scale = problem(3, 40, 6, dtype)
        torch.library.opcheck(torch.ops.torch_lsh.linear_topk, (x, weight, bias, 5, scale))
        torch.library.opcheck(torch.ops.torch_lsh.rows_topk, (x, weight, None, torch.tensor([[1, -1]] * 3), 2, scale))


X, WEIGHT = torch.zeros(2, 4), torch.zeros(3, 4)
INT8, SCALE = torch.zeros(3, 4, dtype=torch.int8), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.linear_topk(X, WEIGHT, None, 0), "k is 0; wanted 1 to 3"),
        (lambda: ops.linear_topk(X, WEIGHT, None, 4), "k is 4; wanted 1 to 3"),
        (lambda: ops.linear_topk(X.double(), WEIGHT, None, 1), "x has dtype Double; wanted Float"),
        (lambda: ops.linear_topk(X.half(), WEIGHT.half(), None, 1), "weight has dtype Half; wanted Float, Double or"),
        (lambda: ops.linear_topk(X[0], WEIGHT, None, 1), r"x has shape \[4\]; wanted 2"),
        (lambda: ops.linear_topk(X, WEIGHT[:, :3].contiguous(), None, 1), r"weight has shape \[3, 3\]; wanted 4"),
        (lambda: ops.linear_topk(X, torch.zeros(4, 3).T, None, 1), "weight is not contiguous"),
        (lambda: ops.linear_topk(X, WEIGHT, torch.zeros(2), 1), r"bias has shape \[2\]; wanted 3"),
        (lambda: ops.linear_topk(X, WEIGHT, torch.zeros(3).double(), 1), "bias has dtype Double; wanted Float"),
        (lambda: ops.linear_topk(X, INT8, None, 1), "scale is missing; wanted with weights of dtype Char"),
        (lambda: ops.linear_topk(X, WEIGHT, None, 1, SCALE), "scale is given; wanted with weights of dtype Char"),
        (lambda: ops.linear_topk(X, INT8, None, 1, SCALE[:2]), r"scale has shape \[2\]; wanted 3"),
        (lambda: ops.linear_topk(X.bfloat16(), INT8, None, 1, SCALE), "x has dtype BFloat16; wanted Float"),
        (lambda: ops.rows_topk(X, WEIGHT, None, torch.tensor([[3], [0]]), 1), "rows holds 3; wanted at most 2"),
        (lambda: ops.rows_topk(X, WEIGHT, None, torch.tensor([[0]]), 1), r"rows has shape \[1, 1\]; wanted 2"),
        (lambda: ops.rows_topk(X, WEIGHT, None, torch.tensor([[0], [0]]), 0), "k is 0; wanted at least 1"),
    ],
)
def test_operators_name_the_bad_argument(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layer_topk_equals_linear(dtype):
    layer = LSHLinear(24, 700, dtype=dtype).eval()
    x = torch.randn(3, 2, 24, dtype=dtype)
    values, classes = layer.topk(x, 6)
    logits = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    tolerance = 1e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(values.double(), logits.topk(6).values, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(values.double(), logits.gather(-1, classes), rtol=tolerance, atol=tolerance)
    assert values.dtype is dtype


def test_layer_topk_under_autocast():
    layer = LSHLinear(24, 700).eval()
    x = torch.randn(5, 24)
    expected = layer.topk(x, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, classes = layer.topk(x.bfloat16(), 6)
    assert values.dtype is torch.bfloat16
    torch.testing.assert_close(values.float(), expected.values, rtol=2e-2, atol=2e-2)
    assert (classes[:, 0] == expected.indices[:, 0]).float().mean() > 0.5


# --- SignCodeIndex ---


def test_approximate_topk_is_exact_where_everything_is_scored():
    layer = LSHLinear(8, 500).eval()
    x = torch.randn(4, 8)
    exact, found = layer.topk(x, 15), layer.topk(x, 15, exact=False)  # 512 candidates
    torch.testing.assert_close(found.values, exact.values)
    assert torch.equal(found.indices, exact.indices)
    assert found.values.requires_grad
    with pytest.raises(ValueError, match="candidates is 3; wanted at least k, which is 15"):
        layer.topk(x, 15, exact=False, candidates=3)


@pytest.mark.parametrize("recorded", [True, False])
def test_the_sketch_follows_the_weights(recorded):
    layer = LSHLinear(16, 3000, config=LSHConfig(active=300))
    optimizer = torch_lsh.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(4, 16)
    layer.topk(x, 1, exact=False, candidates=1)
    if recorded:
        for _ in range(50):
            F.cross_entropy(layer(x), torch.tensor([11, 2000, 0, 2999])).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        if not recorded:
            layer.weight[[11, 2000, 0, 2999]] = 10 * x
        found = layer.topk(x, 1, exact=False, candidates=30).indices
        assert torch.equal(found, layer.topk(x, 1).indices)
    copied = copy.deepcopy(layer)
    assert torch.equal(copied.topk(x, 1, exact=False, candidates=30).indices, found)


def common_mean(batch, width):
    return 0.5 * torch.randn(batch, width) + 2 * torch.randn(width)


@pytest.mark.parametrize("trained", [True, False])
def test_a_layer_knows_what_its_inputs_have_in_common(trained):
    torch.manual_seed(5)
    layer, inputs = LSHLinear(64, 20_000), common_mean(600, 64)
    with torch.no_grad():
        layer.weight.normal_()
    if trained:
        F.cross_entropy(layer(inputs[:500]), torch.zeros(500, dtype=torch.int64))
        layer = pickle.loads(pickle.dumps(layer.eval()))
        layer.topk(torch.zeros(1, 64), 1, exact=False)  # says nothing, then
    else:
        layer.eval().topk(inputs[:500], 1, exact=False)
    best = layer.topk(inputs[500:], 10).indices
    found = layer.topk(inputs[500:], 10, exact=False, candidates=200).indices
    assert (best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean() > 0.95


def test_the_mean_of_inputs_is_resumed_and_follows_training():
    torch.manual_seed(6)
    layer, inputs = LSHLinear(64, 2_000, config=LSHConfig(active=1_500)), common_mean(300, 64)
    F.cross_entropy(layer(inputs), torch.zeros(300, dtype=torch.int64))
    resumed = LSHLinear(64, 2_000, config=layer.config)
    resumed.load_state_dict(layer.state_dict())
    resumed.sampler.load_state_dict(layer.sampler.state_dict())
    for one in (layer, resumed):
        one.topk(torch.zeros(1, 64), 1, exact=False)
    assert torch.equal(layer._sketch._mean_query, inputs.sum(0) / 301)
    assert torch.equal(resumed._sketch._factors, layer._sketch._factors)
    optimizer = torch_lsh.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(5):  # which change most rows
        F.cross_entropy(layer(-inputs), torch.zeros(300, dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad()
    layer.topk(torch.zeros(1, 64), 1, exact=False)
    assert (layer._sketch._mean_query * inputs.mean(0)).sum() < 0


SKETCH = (torch.zeros(2, 8), torch.zeros(2, 1, 64, dtype=torch.uint8), torch.zeros(2, 2, 64).bfloat16())


def test_sketch_opcheck():
    torch.library.opcheck(torch.ops.torch_lsh.sketch_candidates, (*SKETCH, 100, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.sketch_candidates(*SKETCH, 64, 1), "num_rows is 64; wanted what fills 2 blocks"),
        (lambda: ops.sketch_candidates(*SKETCH, 129, 1), "num_rows is 129; wanted what fills 2 blocks"),
        (lambda: ops.sketch_candidates(*SKETCH, 100, 101), "count is 101; wanted 1 to 100"),
        (lambda: ops.sketch_candidates(torch.zeros(2, 16), *SKETCH[1:], 100, 1), r"x has shape \[2, 16\]; wanted 8"),
        (lambda: ops.sketch_candidates(SKETCH[0], SKETCH[1].int(), SKETCH[2], 100, 1), "codes has dtype Int"),
    ],
)
def test_sketch_operator_names_the_bad_argument(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


# --- QuantizedLinear ---


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
    with pytest.warns(UserWarning, match="softmax has no sampled path"):
        torch.testing.assert_close(layer(x).softmax(-1), expected.softmax(-1))
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
    half = QuantizedLinear.from_linear(linear.bfloat16()).bfloat16()
    assert half.scale.dtype is torch.float32
    assert half.topk(torch.randn(2, 5).bfloat16(), 2).values.dtype is torch.bfloat16


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
