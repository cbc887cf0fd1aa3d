"""What does not fit is a readable error before anything changes, or does what nn.Linear does; it never crashes.

Shapes, dtypes and ranges of targets and inputs are in test_linear.py, those of the operators in ops/.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import HashTableConfig, LSHConfig, LSHLinear
from torch_lsh.index.hash_tables import HashTableIndex

N, D, B = 150, 6, 4
NAN, INF = float("nan"), float("inf")
SCOPES = pytest.mark.parametrize("scope", ["batch", "sample"])


def make_layer(scope="batch", **options):
    # Buckets that hold all their rows: tables are the same after updates as after a rebuild.
    config = LSHConfig(active=30, scope=scope, index=HashTableConfig(hashes_per_table=2, bucket_size=N))
    return LSHLinear(D, N, config=config, **options)


def everything(layer):
    """Copies of all that a call might change."""
    tables = {} if layer.sampler.tables is None else layer.sampler.tables.state_dict()
    state = {"draws": layer.sampler.draws}  # not state_dict(), which drops the tables
    values = [*layer.parameters(), *tables.values(), *state.values()]
    tensors = [value.detach().clone() for value in values if torch.is_tensor(value) and not value.is_meta]
    return tensors, {name: value for name, value in state.items() if not torch.is_tensor(value)}


def assert_unchanged(layer, before):
    tensors, state = everything(layer)
    assert state == before[1]
    assert len(tensors) == len(before[0])
    assert all(torch.equal(a, b) for a, b in zip(tensors, before[0]))


def used_layer(scope):
    """A layer in the middle of training: with tables, and rows that changed since they were built."""
    layer = make_layer(scope)
    optimizer = torch_lsh.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(2):
        F.cross_entropy(layer(torch.randn(B, D)), torch.arange(B)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer, optimizer


def indices(*rows):
    return torch.tensor(rows)


def csr(*columns):
    """A multi-hot target with one label per row."""
    start = torch.arange(len(columns) + 1)
    return torch.sparse_csr_tensor(start, torch.tensor(columns), torch.ones(len(columns)), (len(columns), N))


CALLS = {
    "class out of range": (lambda m, x: F.cross_entropy(m(x), indices(0, 1, 2, N)), IndexError, f"class {N}; wanted"),
    "negative class": (lambda m, x: F.cross_entropy(m(x), indices(0, 1, 2, -1)), IndexError, "class -1; wanted"),
    "-100 where another class is ignored": (
        lambda m, x: F.cross_entropy(m(x), indices(0, 1, 2, -100), ignore_index=7),
        IndexError,
        "class -100; wanted",
    ),
    "class out of range in CSR": (lambda m, x: F.cross_entropy(m(x), csr(0, 1, 2, N)), IndexError, f"class {N}"),
    "negative class in CSR": (lambda m, x: F.cross_entropy(m(x), csr(0, 1, -1, 2)), IndexError, "class -1"),
    "too few rows in CSR": (lambda m, x: F.cross_entropy(m(x), csr(0, 1)), ValueError, r"target has shape \(2, 150\)"),
    "nll_loss, class out of range": (
        lambda m, x: F.nll_loss(F.log_softmax(m(x), 1), indices(0, 1, 2, N)),
        IndexError,
        f"class {N}",
    ),
    "nll_loss, int32": (
        lambda m, x: F.nll_loss(F.log_softmax(m(x), 1), indices(0, 1, 2, 3).int()),
        TypeError,
        "target has dtype torch.int32; wanted torch.int64",
    ),
    "bce, class out of range": (
        lambda m, x: F.binary_cross_entropy_with_logits(m(x), indices([0], [1], [2], [N])),
        IndexError,
        f"class {N}",
    ),
    "bce, CSR of another shape": (
        lambda m, x: F.binary_cross_entropy_with_logits(m(x), csr(0, 1)),
        ValueError,
        "target has shape",
    ),
    "bce, reduction": (
        lambda m, x: F.binary_cross_entropy_with_logits(m(x), csr(0, 1, 2, 3), reduction="most"),
        ValueError,
        "'most' is not a valid value for reduction",
    ),
    "bce, pos_weight": (
        lambda m, x: F.binary_cross_entropy_with_logits(m(x), csr(0, 1, 2, 3), pos_weight=torch.ones(3)),
        ValueError,
        r"pos_weight has shape \(3,\); wanted \(150,\)",
    ),
    "class weights": (
        lambda m, x: F.cross_entropy(m(x), indices(0, 1, 2, 3), weight=torch.ones(N + 1)),
        ValueError,
        r"weight has shape \(151,\); wanted \(150,\)",
    ),
    "reduction": (
        lambda m, x: F.cross_entropy(m(x), indices(0, 1, 2, 3), reduction="most"),
        ValueError,
        "'most' is not a valid value for reduction",
    ),
    "label smoothing": (
        lambda m, x: F.cross_entropy(m(x), indices(0, 1, 2, 3), label_smoothing=1.5),
        ValueError,
        "label_smoothing is 1.5; wanted 0 to 1",
    ),
    "integers": (lambda m, x: m(x.long()), TypeError, "input has dtype torch.int64; wanted torch.float32"),
    "float16": (lambda m, x: m(x.half()), TypeError, "input has dtype torch.float16; wanted torch.float32"),
    "complex": (lambda m, x: m(x.to(torch.complex64)), TypeError, "input has dtype torch.complex64"),
    "a number": (lambda m, x: m(torch.tensor(1.0)), ValueError, r"input has shape \(\); wanted 6 features"),
    "no tensor": (lambda m, x: m([1.0] * D), TypeError, "input is a list; wanted a tensor"),
    "topk of integers": (lambda m, x: m.topk(x.long(), 2, exact=False), TypeError, "input has dtype torch.int64"),
    "sample of another width": (lambda m, x: m.sample(x[:, 1:]), ValueError, r"input has shape \(4, 5\)"),
    "sample with probabilities": (lambda m, x: m.sample(x, torch.ones(B, N)), ValueError, "target is a dense"),
    "sample, class out of range": (lambda m, x: m.sample(x, indices(0, 1, 2, N)), IndexError, f"class {N}"),
    "input elsewhere": (lambda m, x: m(x.to("meta")), RuntimeError, "meta"),
    "target elsewhere": (
        lambda m, x: F.cross_entropy(m(x), indices(0, 1, 2, 3).to("meta")),
        RuntimeError,
        "target is on meta; wanted cpu",
    ),
    "class weights elsewhere": (
        lambda m, x: F.cross_entropy(m(x), indices(0, 1, 2, 3), weight=torch.ones(N, device="meta")),
        RuntimeError,
        "weight is on meta; wanted cpu",
    ),
    "topk of input elsewhere": (lambda m, x: m.topk(x.to("meta"), 2, exact=False), RuntimeError, "a tensor on meta"),
    "sample of input elsewhere": (lambda m, x: m.sample(x.to("meta")), RuntimeError, "a tensor on meta"),
    "sample of sparse input": (lambda m, x: m.sample(x.to_sparse()), RuntimeError, "layout torch.sparse_coo"),
}


@pytest.mark.filterwarnings("ignore:torch_lsh. a tensor on meta")
@SCOPES
@pytest.mark.parametrize("name", CALLS)
def test_a_readable_error_before_anything_changes(scope, name):
    call, error, message = CALLS[name]
    layer, _ = used_layer(scope)
    before = everything(layer)
    with pytest.raises(error, match=message):
        call(layer, torch.randn(B, D))
    assert_unchanged(layer, before)


# --- numbers that are none --------------------------------------------------------------------------------------------


@SCOPES
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_non_finite_input_is_as_in_nn_linear(scope, value, label_smoothing):
    layer = LSHLinear(D, N, config=LSHConfig(active=1.0, scope=scope))
    linear = layer.to_linear()
    x, y = torch.randn(B, D), torch.arange(B)
    x[1, 2] = x[3, 1] = value
    y[3] = -100  # what is ignored is ignored
    options = {"label_smoothing": label_smoothing, "reduction": "none"}
    expected = F.cross_entropy(linear(x), y, **options)
    assert expected.isnan().tolist() == [False, True, False, False]
    for training in (True, False):
        layer.train(training)
        torch.testing.assert_close(F.cross_entropy(layer(x), y, **options), expected, equal_nan=True)
        with torch.no_grad():
            torch.testing.assert_close(F.cross_entropy(layer(x), y, **options), expected, equal_nan=True)
    # the gradient shows it, too: a step with it does not go unnoticed
    F.cross_entropy(layer.train()(x), y).backward()
    assert layer.weight.grad.isnan().any()


@SCOPES
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_tables_stay_usable_after_non_finite_input(scope, value):
    layer, optimizer = used_layer(scope)
    x, y = torch.randn(B, D), torch.arange(B)
    bad = x.clone()
    bad[1, 2] = value
    loss = F.cross_entropy(layer(bad), y, reduction="none")
    assert loss.isnan().tolist() == [False, True, False, False]
    values, classes = layer.topk(bad, 3, exact=False)
    assert ((classes >= -1) & (classes < N)).all()
    torch.testing.assert_close(values[[0, 2, 3]], layer.topk(x, 3, exact=False).values[[0, 2, 3]])
    # nothing of it was kept: training goes on
    F.cross_entropy(layer(x), y).backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    layer.rehash()
    before = layer.sampler.tables.state_dict()["row_buckets"].clone()
    layer.rehash(full=True)
    assert torch.equal(layer.sampler.tables.state_dict()["row_buckets"], before)


@SCOPES
@pytest.mark.parametrize("value", [NAN, INF])
def test_non_finite_weights_spoil_their_rows_only(scope, value):
    layer, _ = used_layer(scope)
    x, y = torch.randn(B, D), torch.arange(20, 20 + B)
    with torch.no_grad():
        layer.weight[7, 1] = value
        layer.bias[8] = value
    logits = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x).topk(5).values, logits.topk(5).values, equal_nan=True)
    for _ in range(30):
        state = layer.sampler.state_dict()
        rows = layer.sample(x, y).rows
        assert ((rows >= -1) & (rows < N)).all()
        layer.sampler.load_state_dict(state)  # the same draw again
        loss = F.cross_entropy(layer(x), y, reduction="none")
        active = logits.gather(1, rows.clamp(min=0).expand(B, -1)).masked_fill(rows < 0, 0)
        assert torch.equal(loss.isnan(), (active.isnan() | (active == INF)).any(1))
    # repaired rows are found again
    with torch.no_grad():
        layer.weight[7] = 10 * x[0]
        layer.bias[8] = 0
    assert layer.topk(x[:1], 1, exact=False).indices.item() == 7


# --- what nn.Linear takes and has no sampled path ---------------------------------------------------------------------


def transposed_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    return layer


def strided_bias(layer):
    layer.bias = nn.Parameter(torch.randn(2 * N)[::2])
    return layer


DENSE = {
    "float16": (lambda layer: layer.half(), lambda x: x.half(), "torch.float16"),
    "transposed weight": (transposed_weight, lambda x: x, "a weight or bias that is not contiguous"),
    "strided bias": (strided_bias, lambda x: x, "a weight or bias that is not contiguous"),
    "sparse input": (lambda layer: layer, lambda x: x.to_sparse_csr(), "input of layout torch.sparse_csr"),
}


@pytest.mark.parametrize("name", DENSE)
def test_what_has_no_sampled_path_is_nn_linear_with_one_warning(name):
    change_layer, change_input, what = DENSE[name]
    layer = change_layer(make_layer())
    linear = layer.to_linear()
    x, y = change_input(torch.randn(B, D)), torch.arange(B)
    expected = F.cross_entropy(linear(x), y)
    expected_grads = torch.autograd.grad(expected, [*linear.parameters()])
    with pytest.warns(UserWarning, match=f"torch_lsh: {what} has no sampled path") as warned:
        loss, best = F.cross_entropy(layer(x), y), layer.topk(x, 3)  # two calls, one warning
    assert torch.equal(best.indices, linear(x).topk(3).indices)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert torch.equal(loss, expected)
    for a, b in zip(torch.autograd.grad(loss, [*layer.parameters()]), expected_grads, strict=True):
        assert torch.equal(a, b)
    before = everything(layer)
    for call in (lambda: layer.sample(x), lambda: layer.topk(x, 3, exact=False)):
        with pytest.raises(RuntimeError, match=f"{what} has no sampled path"):
            call()
    assert_unchanged(layer, before)


def test_autocast_to_float16_is_nn_linear():
    layer = make_layer()
    x, y = torch.randn(B, D), torch.arange(B)
    with torch.autocast("cpu", torch.float16):
        expected = F.cross_entropy(layer.to_linear()(x), y)
        with pytest.warns(UserWarning, match="torch_lsh: torch.float16 has no sampled path"):
            assert torch.equal(F.cross_entropy(layer(x), y), expected)
    assert layer.sampler.draws == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_autocast_does_not_hide_a_wrong_dtype(dtype):
    """It converts floating tensors other than float64; nn.Linear raises for these, too."""
    layer = make_layer()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=f"input has dtype {dtype}"):
        F.cross_entropy(layer(torch.ones(B, D, dtype=dtype)), torch.arange(B))
    assert layer.sampler.draws == 0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:torch_lsh. a layer without weights")
@pytest.mark.parametrize(("in_features", "out_features"), [(D, 0), (0, N)])
def test_layers_without_weights_are_nn_linear(in_features, out_features):
    layer = LSHLinear(in_features, out_features)
    linear = layer.to_linear()
    x, ignored = torch.randn(B, in_features), torch.full((B,), -100)
    for mode in (True, False):
        layer.train(mode)
        for call in (
            lambda m: m(x).softmax(-1),
            lambda m: m(x).topk(0).indices,
            lambda m: F.cross_entropy(m(x), ignored),
            lambda m: m(x).sum(),
        ):
            torch.testing.assert_close(call(layer), call(linear), equal_nan=True)
    with pytest.raises(RuntimeError, match="a layer without weights has no sampled path"):
        layer.sample(x)
    assert layer.rehash() == 0


@SCOPES
def test_input_that_is_not_contiguous(scope):
    layer = LSHLinear(D, N, config=LSHConfig(active=1.0, scope=scope), dtype=torch.float64)
    base, y = torch.randn(D, 2 * B, dtype=torch.float64), torch.arange(B)
    results = []
    for make in (lambda: base.T[::2], lambda: base.T[::2].contiguous()):
        x = make().requires_grad_()
        loss = F.cross_entropy(layer(x), y)
        results.append((loss, *torch.autograd.grad(loss, [x, layer.weight, layer.bias])))
        assert layer.topk(x, 2, exact=False).indices.shape == (B, 2)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@SCOPES
def test_one_sample_without_a_batch_dimension(scope):
    layer = LSHLinear(D, N, config=LSHConfig(active=1.0, scope=scope), dtype=torch.float64)
    x, y = torch.randn(D, dtype=torch.float64, requires_grad=True), torch.tensor(3)
    results = []
    for module in (layer, layer.to_linear()):
        loss = F.cross_entropy(module(x), y)
        results.append((loss, *torch.autograd.grad(loss, [x, *module.parameters()])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    layer.reconfigure(LSHConfig(active=30, scope=scope))
    assert F.cross_entropy(layer(x), y).shape == ()
    assert layer.topk(x, 2, exact=False).indices.shape == (2,)
    assert 3 in layer.sample(x, y).rows


@SCOPES
def test_labels_of_bytes_are_taken_as_by_pytorch(scope):
    layer = LSHLinear(D, N, config=LSHConfig(active=1.0, scope=scope))
    x, y = torch.randn(B, D), torch.arange(B, dtype=torch.uint8)
    torch.testing.assert_close(F.cross_entropy(layer(x), y), F.cross_entropy(layer.to_linear()(x), y))


@SCOPES
@pytest.mark.parametrize("row_sparse", [False, True])
@pytest.mark.parametrize(
    "frozen", [("weight",), ("bias",), ("x",), ("weight", "bias"), ("weight", "bias", "x")], ids=str
)
def test_what_is_frozen_gets_no_gradient(scope, row_sparse, frozen):
    config = LSHConfig(active=1.0, scope=scope)
    layer = LSHLinear(D, N, config=config, dtype=torch.float64)
    optimizer = torch_lsh.optim.SGD(layer.parameters(), lr=0.1) if row_sparse else None
    linear = nn.Linear(D, N, dtype=torch.float64)
    linear.load_state_dict(layer.state_dict(), strict=False)  # all but the state of the sampler
    x, y = torch.randn(B, D, dtype=torch.float64), torch.arange(B)
    grads = []
    for module in (layer, linear):
        leaves = {"weight": module.weight, "bias": module.bias, "x": x.clone().requires_grad_()}
        for name in frozen:
            leaves[name].requires_grad_(False)
        loss = F.cross_entropy(module(leaves["x"]), y)
        assert loss.requires_grad == (len(frozen) < 3)
        if loss.requires_grad:
            loss.backward()
        grads.append({name: leaf.grad for name, leaf in leaves.items()})
    for name in grads[0]:
        assert (grads[0][name] is None) == (name in frozen)
        if name not in frozen:
            torch.testing.assert_close(grads[0][name].to_dense(), grads[1][name])
    if optimizer is not None:
        before = layer.weight.clone()
        optimizer.step()
        assert torch.equal(layer.weight, before) == ("weight" in frozen)


# --- other devices ----------------------------------------------------------------------------------------------------
# No other device can be counted on where tests run, so "meta" stands in: tensors that are not on the CPU.


def test_a_layer_moved_to_another_device_and_back():
    layer, _ = used_layer("batch")
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.to("meta")
    with pytest.warns(UserWarning, match="a tensor on meta has no sampled path"):
        assert layer(torch.empty(2, D, device="meta")).is_meta
    for call in (
        lambda: layer.rehash(),
        lambda: layer.sample(torch.randn(2, D)),
        lambda: layer.sample(torch.empty(2, D, device="meta")),
        lambda: layer.topk(torch.empty(2, D, device="meta"), 2, exact=False),
    ):
        before = everything(layer)
        with pytest.raises(RuntimeError, match="on meta"):
            call()
        assert_unchanged(layer, before)
    layer.to_empty(device="cpu").load_state_dict(state)
    x = 10 * layer.weight[[5]].detach()
    assert layer.topk(x, 1, exact=False).indices.item() == layer(x).argmax().item()


def test_the_index_names_the_device():
    index = HashTableIndex(N, D)
    with pytest.raises(ValueError, match="weight is on meta"):
        index.build(torch.empty(N, D, device="meta"))
    assert not index.is_built


# --- settings ---------------------------------------------------------------------------------------------------------


@SCOPES
@pytest.mark.parametrize(("active", "rows"), [(10**12, N), (N, N), (1.0, N), (0.5, 75), (1e-9, 1), (1, 1), (None, N)])
def test_active_rows(scope, active, rows):
    config = LSHConfig(active=active, scope=scope)
    wanted = rows if active is not None or scope == "batch" else 128
    assert config.active_rows(N) == wanted
    chosen = LSHLinear(D, N, config=config).sample(torch.randn(1, D), torch.tensor([3])).rows
    assert 3 in chosen
    # labels are always in; the random rows that the correction needs come on top
    assert wanted <= chosen.numel() <= wanted + 1


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("active", 0, ValueError),
        ("active", -3, ValueError),
        ("active", 0.0, ValueError),
        ("active", -0.1, ValueError),
        ("active", 1.01, ValueError),
        ("active", NAN, ValueError),
        ("active", "10", TypeError),
        ("active", True, TypeError),
        ("active", np.int64(5), TypeError),  # cannot be written to a model file
        ("random_fraction", -0.1, ValueError),
        ("random_fraction", 1.1, ValueError),
        ("random_fraction", NAN, ValueError),
        ("random_fraction", None, TypeError),
        ("carry", 1.1, ValueError),
        ("carry", "all", TypeError),
        ("seed", 2**63, ValueError),
        ("seed", -(2**63) - 1, ValueError),
        ("seed", 1.5, TypeError),
        ("seed", None, TypeError),
        ("rehash", 50, ValueError),
        ("index", "simhash", TypeError),
    ],
)
def test_settings_that_mean_nothing(field, value, error):
    with pytest.raises(error, match=f"{field} is"):
        LSHConfig(**{field: value})


@pytest.mark.parametrize("hash", ["simhash", "dwta", "learned"])
@pytest.mark.parametrize("seed", [-(2**63), -1, 10**13, 2**63 - 1])
def test_any_64_bit_seed(hash, seed):
    layer = LSHLinear(D, N, config=LSHConfig.from_options(hash, active=30, seed=seed))
    again = LSHLinear(D, N, config=LSHConfig.from_options(hash, active=30, seed=seed))
    again.load_state_dict(layer.state_dict())
    x = torch.randn(B, D)
    draws = [layer.sample(x).rows for _ in range(2)]
    assert torch.equal(again.sample(x).rows, draws[0])
    assert not torch.equal(*draws)
