"""LSHLinear as an nn.Linear, and its sampled losses against the dense ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import FixedInterval, LSHConfig, LSHLinear
from torch_lsh.sampling.synchronised_index import SynchronisedIndex

N, D, B = 301, 13, 7
EVERY_ROW = {scope: LSHConfig(active=1.0, scope=scope) for scope in ("batch", "sample")}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def make_pair(config, dtype=torch.float32, bias=True):
    linear = nn.Linear(D, N, bias=bias).to(dtype)
    layer = LSHLinear(D, N, bias=bias, dtype=dtype, config=config)
    layer.load_state_dict(linear.state_dict())
    return linear, layer


def gradients(module, loss_of, x):
    x = x.clone().requires_grad_()
    module.zero_grad()
    loss = loss_of(module(x))
    loss.sum().backward()
    return [loss.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]


def assert_same_training(config, loss_of, dtype=torch.float32, bias=True, x=None, dense_loss_of=None):
    linear, layer = make_pair(config, dtype, bias)
    x = torch.randn(B, D, dtype=dtype) if x is None else x
    expected = gradients(linear, dense_loss_of or loss_of, x)
    for got, want in zip(gradients(layer, loss_of, x), expected):
        torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_with_every_row_active_training_equals_dense(simd_level, dtype, scope):
    y = torch.randint(0, N, (B,))
    assert_same_training(LSHConfig(active=1.0, scope=scope), lambda logits: F.cross_entropy(logits, y), dtype, True)


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("correction", ["none", "stratified", "even", "auto"])
@pytest.mark.parametrize("bias", [True, False])
def test_with_every_row_active_settings_change_nothing(threads, scope, correction, bias):
    y = torch.randint(0, N, (B,))
    config = LSHConfig(active=1.0, scope=scope, correction=correction)
    assert_same_training(config, lambda logits: F.cross_entropy(logits, y), torch.float32, bias)


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_options_of_cross_entropy(scope, reduction, label_smoothing, weighted):
    y = torch.randint(0, N, (B,))
    y[2] = y[5] = 11
    weight = torch.rand(N, dtype=torch.float64) if weighted else None
    assert_same_training(
        EVERY_ROW[scope],
        lambda logits: F.cross_entropy(
            logits, y, weight=weight, ignore_index=11, reduction=reduction, label_smoothing=label_smoothing
        ),
        torch.float64,
    )


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_csr_target_equals_dense_probabilities(scope, label_smoothing):
    y = (torch.rand(B, N, dtype=torch.float64) < 0.02).double()
    y[3] = 0  # a row without labels
    for reduction in ("mean", "sum", "none"):
        assert_same_training(
            EVERY_ROW[scope],
            lambda z, r=reduction: F.cross_entropy(z, y.to_sparse_csr(), reduction=r, label_smoothing=label_smoothing),
            torch.float64,
            dense_loss_of=lambda z, r=reduction: F.cross_entropy(z, y, reduction=r, label_smoothing=label_smoothing),
        )


@pytest.mark.parametrize(
    ("scope", "sampler"), [("batch", "lsh"), ("sample", "lsh"), ("batch", "frequency"), ("batch", "in_batch")]
)
def test_labels_of_any_strides(scope, sampler):
    """A column of a table, every other sample: what data parallel loops and loaders give."""
    layer = LSHLinear(D, N, config=LSHConfig(active=20, scope=scope, sampler=sampler))
    table = torch.randint(0, N, (B, 4))
    x = torch.randn(B, D)
    for labels in (table[:, 1], table[:, ::2], table.T[:2].T):
        for model in (layer.train(), layer.eval()):
            state = layer.sampler.state_dict()
            loss = F.cross_entropy(model(x), labels)
            layer.sampler.load_state_dict(state)
            torch.testing.assert_close(loss, F.cross_entropy(model(x), labels.contiguous()))
    F.binary_cross_entropy_with_logits(layer.train()(x), table[:, ::2]).backward()


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_padded_targets_share_the_distribution_equally(scope):
    y = torch.full((B, 4), -100)
    y[0, :2], y[1, 0], y[4, :4] = torch.tensor([5, 9]), 300, torch.tensor([1, 2, 3, 4])
    shares = torch.zeros(B, N, dtype=torch.float64)
    for b in range(B):
        labels = y[b][y[b] >= 0]
        shares[b, labels] = 1 / max(1, len(labels))
    assert_same_training(
        EVERY_ROW[scope],
        lambda z: F.cross_entropy(z, y),
        torch.float64,
        dense_loss_of=lambda z: F.cross_entropy(z, shares, reduction="sum") / 3,  # 3 rows have labels
    )


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy_with_csr_target(scope, reduction, weighted):
    y = (torch.rand(B, N) < 0.02).double()
    weight = torch.rand(N).double() if weighted else None
    pos_weight = torch.rand(N).double() if weighted else None
    options = {"weight": weight, "reduction": reduction, "pos_weight": pos_weight}
    assert_same_training(
        EVERY_ROW[scope],
        lambda z: F.binary_cross_entropy_with_logits(z, y.to_sparse_csr(), **options),
        torch.float64,
        dense_loss_of=lambda z: F.binary_cross_entropy_with_logits(z, y, **options),
    )


def test_log_softmax_and_nll_loss():
    y = torch.randint(0, N, (B,))
    assert_same_training(EVERY_ROW["batch"], lambda z: F.nll_loss(F.log_softmax(z, dim=-1), y), torch.float64)
    assert_same_training(EVERY_ROW["batch"], lambda z: nn.NLLLoss()(z.log_softmax(1), y), torch.float64)


def test_language_model_shapes():
    x = torch.randn(3, 5, D, dtype=torch.float64)
    y = torch.randint(0, N, (3, 5))
    y[0, 1] = -100
    config = EVERY_ROW["batch"]

    def hugging_face(z):
        z = z.double()
        return F.cross_entropy(z[..., :-1, :].contiguous().view(-1, N), y[..., 1:].contiguous().view(-1))

    assert_same_training(config, hugging_face, torch.float64, x=x)
    assert_same_training(config, lambda z: F.cross_entropy(z.transpose(1, 2), y), torch.float64, x=x)
    assert_same_training(config, lambda z: F.cross_entropy(z.transpose(1, 2), y, reduction="none"), torch.float64, x=x)
    assert_same_training(config, lambda z: F.cross_entropy(z.flatten(0, 1) / 0.7, y.flatten()), torch.float64, x=x)
    assert_same_training(config, lambda z: F.cross_entropy(z[y >= 0], y[y >= 0]), torch.float64, x=x)


def test_temperature_may_be_learned():
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    linear, layer = make_pair(EVERY_ROW["batch"], torch.float64)
    x, y = torch.randn(B, D, dtype=torch.float64), torch.randint(0, N, (B,))
    grads = []
    for module in (linear, layer):
        temperature.grad = None
        F.cross_entropy(module(x) / temperature, y).backward()
        grads.append(temperature.grad)
    torch.testing.assert_close(*grads)


def test_gradcheck_through_the_layer():
    _, layer = make_pair(EVERY_ROW["sample"], torch.float64)
    y = torch.randint(0, N, (2,))

    def loss(x, weight, bias):
        logits = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return F.cross_entropy(logits, y)

    x = torch.randn(2, D, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(loss, (x, layer.weight, layer.bias), fast_mode=True)


def test_it_is_an_nn_linear():
    layer = LSHLinear(D, N)
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias", "_extra_state"]
    torch.manual_seed(3)
    expected = nn.Linear(D, N)
    torch.manual_seed(3)
    layer = LSHLinear(D, N)
    assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(layer.bias, expected.bias)
    nn.Linear(D, N).load_state_dict(layer.state_dict(), strict=False)
    layer.load_state_dict(nn.Linear(D, N).state_dict())
    assert "index=HashTableConfig()" in repr(layer)
    assert LSHLinear(D, N, bias=False).bias is None


def test_copies():
    layer = LSHLinear(D, N, config=LSHConfig(active=50))
    layer.sample(torch.randn(2, D))
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(clone.weight, layer.weight)
        assert clone.weight is not layer.weight
        x = torch.randn(4, D)
        assert torch.equal(clone.eval()(x).topk(3).indices, layer(x).topk(3).indices)
        assert clone.config == layer.config
        assert torch.equal(clone.train().sample(x).rows, copy.deepcopy(layer).sample(x).rows)


def test_bfloat16_and_autocast():
    layer = LSHLinear(D, N, config=EVERY_ROW["batch"]).to(torch.bfloat16)
    x, y = torch.randn(B, D), torch.randint(0, N, (B,))
    loss = F.cross_entropy(layer(x.bfloat16()), y)
    assert loss.dtype is torch.bfloat16
    loss.backward()
    assert layer.weight.grad.dtype is torch.bfloat16
    linear, layer = make_pair(EVERY_ROW["batch"])
    losses = []
    for module in (linear, layer):
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(x)
            assert logits.dtype is torch.bfloat16
            loss = F.cross_entropy(logits, y)
        assert loss.dtype is torch.float32
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(linear.weight.grad, layer.weight.grad, rtol=5e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("given", "stored", "autocast"),
    [
        (torch.float32, torch.float32, "of all"),
        (torch.bfloat16, torch.float32, "of all"),
        (torch.bfloat16, torch.bfloat16, "of all"),
        (torch.float32, torch.bfloat16, "of the layer"),
        (torch.float32, torch.float32, "of the layer"),
        (torch.float32, torch.float32, "of the loss"),
        (torch.bfloat16, torch.bfloat16, "of nothing"),
    ],
)
@pytest.mark.parametrize("cast", [False, True])
def test_cross_entropy_in_bfloat16_is_one_step(monkeypatch, given, stored, autocast, cast):
    """No product and softmax apart, and dtypes as PyTorch has them."""
    monkeypatch.delattr("torch_lsh.ops.gather_matmul")
    linear = nn.Linear(D, N).to(stored)
    layer = LSHLinear.from_linear(copy.deepcopy(linear), EVERY_ROW["batch"])
    x, y = torch.randn(B, D).to(given).requires_grad_(), torch.randint(0, N, (B,))
    results = []
    for module in (linear, layer):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast in ("of all", "of the layer")):
            logits = module(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast in ("of all", "of the loss")):
            loss = F.cross_entropy(logits.float() if cast else logits, y)
        results.append([loss, *torch.autograd.grad(loss, [x, *module.parameters()])])
    tolerance = 1e-6 if autocast == "of the loss" else 2**-5
    for expected, result in zip(*results):
        assert result.dtype is expected.dtype
        assert (result - expected).norm() < tolerance * expected.norm()


def test_eval_mode_is_exact():
    linear, layer = make_pair(LSHConfig(active=20), torch.float64)
    linear.eval(), layer.eval()
    x, y = torch.randn(B, D, dtype=torch.float64), torch.randint(0, N, (B,))
    y[1] = -100
    weight = torch.rand(N, dtype=torch.float64)
    for smoothing in (0.0, 0.2):
        for reduction in ("mean", "sum", "none"):
            options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
            expected = F.cross_entropy(linear(x), y, **options)
            torch.testing.assert_close(F.cross_entropy(layer(x), y, **options), expected)
            with torch.no_grad():
                torch.testing.assert_close(F.cross_entropy(layer(x), y, **options), expected)


def test_sampled_loss_with_stratified_correction_estimates_the_full_one():
    linear, layer = make_pair(LSHConfig(active=150, correction="stratified", random_fraction=0.5))
    x, y = torch.randn(B, D), torch.randint(0, N, (B,))
    exact = F.cross_entropy(linear(x), y)
    estimates = torch.stack([F.cross_entropy(layer(x), y).detach() for _ in range(50)])
    assert estimates.std() > 0
    assert abs(estimates.mean() - exact) < 0.05


@pytest.mark.parametrize("correction", ["none", "stratified", "even", "auto"])
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_with_every_row_a_label_training_equals_dense(scope, correction):
    """No row is left to be drawn."""
    linear, layer = make_pair(LSHConfig(active=1.0, scope=scope, correction=correction))
    x, y = torch.randn(N, D), torch.arange(N)
    torch.testing.assert_close(F.cross_entropy(layer(x), y), F.cross_entropy(linear(x), y))


@pytest.mark.parametrize("correction", ["none", "stratified", "even", "auto"])
@pytest.mark.parametrize("loss", [F.cross_entropy, F.binary_cross_entropy_with_logits])
def test_losses_of_no_samples(correction, loss):
    layer = LSHLinear(D, N, config=LSHConfig(active=60, correction=correction))
    x, y = torch.randn(0, D, requires_grad=True), torch.empty(0, 2, dtype=torch.int64)
    total = loss(layer(x), y, reduction="sum")
    total.backward()
    assert total == 0
    assert x.grad.shape == (0, D)
    assert loss(layer(x), y).isnan()


SEVERAL = torch.tensor([[3, 40], [40, -100], [-100, -100], [7, 7], [299, 1]])


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("scale", [1.0, 2.0])  # fused with the layer, and apart
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_even_correction_lets_active_rows_stand_for_all(scope, scale, loss):
    config = LSHConfig(active=60, scope=scope, correction="even", sampler="uniform")
    layer, x = LSHLinear(D, N, dtype=torch.float64, config=config), torch.randn(5, D, dtype=torch.float64)
    active = copy.deepcopy(layer).sample(x, SEVERAL)
    expected = []
    for b, labels in enumerate(SEVERAL):
        rows = active.rows[b] if scope == "sample" else active.rows
        rows = rows[rows >= 0]
        logits = scale * F.linear(x[b], layer.weight[rows], layer.bias[rows])
        own = torch.isin(rows, labels)
        weights = torch.where(own, 1.0, N / len(rows)).double()
        at_labels = scale * F.linear(x[b], layer.weight, layer.bias)[labels[labels >= 0]]
        if loss == "cross_entropy":
            log_z = (logits + weights.log()).logsumexp(0)
            expected.append((log_z - at_labels).mean() if len(at_labels) else 0 * log_z)
        else:
            counts = torch.tensor([(labels == row).sum() for row in rows], dtype=torch.float64)
            expected.append((weights * (F.softplus(logits) - counts * logits)).sum())
    expected = torch.stack(expected)
    if loss == "cross_entropy":
        expected = expected.sum() / 4
        result = F.cross_entropy(scale * layer(x), SEVERAL)
    else:
        expected = expected.sum() / (5 * N)
        result = F.binary_cross_entropy_with_logits(scale * layer(x), SEVERAL)
    torch.testing.assert_close(result, expected)
    wanted = torch.autograd.grad(expected, [layer.weight, layer.bias])
    for gradient, other in zip(torch.autograd.grad(result, [layer.weight, layer.bias]), wanted):
        torch.testing.assert_close(gradient, other)


def test_several_labels_are_corrected_evenly_by_default():
    losses = {}
    for correction in ("auto", "even", "none", "stratified"):
        torch.manual_seed(0)
        layer = LSHLinear(D, N, config=LSHConfig(active=60, correction=correction))
        x = torch.randn(5, D)
        losses[correction] = (
            F.cross_entropy(layer(x), SEVERAL).item(),
            F.cross_entropy(layer(x), SEVERAL[:, 0]).item(),
        )
    assert losses["auto"] == (losses["even"][0], losses["stratified"][1])
    assert losses["none"][0] < losses["auto"][0] - 0.1


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_only_active_rows_get_gradients(scope):
    layer = LSHLinear(D, N, config=LSHConfig(active=20, scope=scope))
    x, y = torch.randn(B, D), torch.arange(B)
    F.cross_entropy(layer(x), y).backward()
    touched = layer.weight.grad.abs().sum(1) > 0
    assert touched[y].all()
    assert touched.sum() <= (B if scope == "sample" else 1) * 27


def test_same_seed_same_rows_whatever_the_threads():
    x, y = torch.randn(B, D), torch.arange(B)
    draws = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        layer = LSHLinear(D, N, config=LSHConfig(active=40))
        draws.append([layer.sample(x, y).rows for _ in range(3)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*draws))
    assert not torch.equal(draws[0][0], draws[0][1])


def retrieved(layer, x):
    """The best class that the tables, brought in step with the weights, know for x."""
    layer.rehash()
    rows = layer.sampler.tables.query(x, 20)
    return rows[0, layer.active_logits(x, rows)[0].masked_fill(rows[0] < 0, -torch.inf).argmax()].item()


def test_tables_follow_edits_and_checkpoints():
    layer = LSHLinear(D, N, bias=False, config=LSHConfig(active=60))
    x = torch.ones(1, D)
    layer.sample(x)
    with torch.no_grad():
        layer.weight[123] = 10.0
    assert retrieved(layer, x) == 123
    assert 123 in layer.sample(x).rows
    state = {"weight": layer.weight.detach().clone()}
    state["weight"][[123, 77]] = state["weight"][[77, 123]]
    layer.load_state_dict(state)
    assert 77 in layer.sample(x).rows
    assert retrieved(layer, x) == 77
    layer.weight = nn.Parameter(torch.randn(N, D).index_fill_(0, torch.tensor([5]), 10.0))
    assert 5 in layer.sample(x).rows


@pytest.mark.parametrize("fused", [False, True])
def test_dense_optimizer_rehashes_by_policy(fused):
    layer = LSHLinear(D, N, config=LSHConfig(active=60, rehash=FixedInterval(3)))
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, fused=fused)
    x, y = torch.randn(B, D), torch.randint(0, N, (B,))
    rehashes = []
    layer.sample(x)
    built = layer.sampler.tables.state_dict()["row_buckets"].clone()
    for _ in range(7):
        F.cross_entropy(layer(x), y).backward()
        assert not layer.weight.grad.is_sparse
        optimizer.step()
        optimizer.zero_grad()
        rehashes.append(layer.sampler.rehashes)
    assert rehashes == [0, 0, 1, 1, 1, 2, 2]
    assert not torch.equal(layer.sampler.tables.state_dict()["row_buckets"], built)


@pytest.mark.parametrize("dense", ["bias", "weight"])
def test_an_optimizer_of_its_own_for_the_bias_leaves_the_policy(dense, monkeypatch):
    """The one that records nothing must not make every step build the tables anew."""
    layer = LSHLinear(D, N, config=LSHConfig(active=60, rehash=FixedInterval(3)))
    weight, bias = torch_lsh.optim.Adam, torch.optim.Adam
    if dense == "weight":
        weight, bias = bias, weight
    optimizers = [weight([layer.weight], lr=1e-2), bias([layer.bias], lr=1e-2)]
    x, y = torch.randn(B, D), torch.randint(0, N, (B,))
    synchronise, calls, rehashes = SynchronisedIndex.synchronise, [], []

    def counted(index, *arguments, **options):
        calls.append(index)
        return synchronise(index, *arguments, **options)

    monkeypatch.setattr(SynchronisedIndex, "synchronise", counted)
    for _ in range(7):
        F.cross_entropy(layer(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        rehashes.append(layer.sampler.rehashes)
    assert rehashes == [0, 0, 0, 1, 1, 1, 2]
    assert len(calls) == 1 + 2


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.randn(2, D + 1), torch.tensor([1, 2]), ValueError, "input has shape"),
        (torch.randn(2, D).double(), torch.tensor([1, 2]), TypeError, "input has dtype torch.float64"),
        (torch.randn(2, D), torch.tensor([1, N]), IndexError, f"class {N}; wanted 0 to {N - 1}"),
        (torch.randn(2, D), torch.tensor([1, -5]), IndexError, "class -5"),
        (torch.randn(2, D), torch.tensor([1, 2, 3]), ValueError, "target has shape"),
        (torch.randn(2, D), torch.tensor([1, 2], dtype=torch.int32), TypeError, "target has dtype torch.int32"),
        (torch.randn(2, D), torch.tensor([1.0, 2.0]), ValueError, "target has shape"),
        (torch.randn(2, D), "y", TypeError, "target is a str"),
        (torch.randn(2, D), torch.eye(2, N + 1).to_sparse_csr(), ValueError, "target has shape"),
    ],
)
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_bad_input(scope, x, y, error, message):
    layer = LSHLinear(D, N, config=LSHConfig(active=30, scope=scope))
    state = layer.sampler.state_dict()
    with pytest.raises(error, match=message):
        F.cross_entropy(layer(x), y)
    assert layer.sampler.state_dict() == state


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_empty_batch_is_as_in_pytorch(scope):
    linear, layer = make_pair(LSHConfig(active=30, scope=scope))
    x, y = torch.randn(0, D), torch.empty(0, dtype=torch.int64)
    for reduction in ("mean", "sum", "none"):
        got, expected = (F.cross_entropy(module(x), y, reduction=reduction) for module in (layer, linear))
        torch.testing.assert_close(got, expected, equal_nan=True)
    assert layer(x).topk(3).indices.shape == (0, 3)
    assert layer.topk(x, 3, exact=False).indices.shape == (0, 3)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_nan_stays_nan_and_does_not_crash(scope):
    layer = LSHLinear(D, N, config=LSHConfig(active=30, scope=scope))
    x = torch.randn(3, D)
    x[1, 2] = float("nan")
    loss = F.cross_entropy(layer(x), torch.tensor([1, 2, 3]), reduction="none")
    assert loss.isnan().tolist() == [False, True, False]


def test_more_active_rows_than_the_layer_has_means_all():
    assert LSHConfig(active=10**9).active_rows(N) == N
    y = torch.randint(0, N, (B,))
    assert_same_training(LSHConfig(active=10**9), lambda z: F.cross_entropy(z, y), torch.float64)


def test_meta_device_behaves_as_nn_linear():
    layer = LSHLinear(D, N, device="meta")
    with pytest.warns(UserWarning, match="a tensor on meta has no sampled path"):
        assert layer(torch.empty(2, D, device="meta")).shape == (2, N)


@pytest.mark.parametrize("k", [0, N + 1])
def test_topk_checks_k(k):
    layer = LSHLinear(D, N)
    for exact in (True, False):
        with pytest.raises(ValueError, match=f"k is {k}; wanted 1 to {N}"):
            layer.topk(torch.randn(1, D), k, exact=exact)


def test_approximate_topk_pads_what_it_does_not_find():
    layer = LSHLinear(D, 3, config=LSHConfig(active=2))
    values, indices = layer.topk(torch.randn(5, D), 3, exact=False)
    assert values.shape == indices.shape == (5, 3)
    assert torch.equal(indices < 0, values.isinf())


def test_bad_config():
    with pytest.raises(TypeError, match="config is a dict"):
        LSHLinear(D, N, config={"active": 3})
    with pytest.raises(TypeError, match="linear is a Conv1d"):
        LSHLinear.from_linear(nn.Conv1d(1, 1, 1))
    for field, value in [("scope", "x"), ("active", 0), ("active", 1.5), ("correction", "x")]:
        with pytest.raises(ValueError, match=f"{field} is"):
            torch_lsh.LSHConfig(**{field: value})


@pytest.mark.parametrize(
    "options", [{}, {"hash": "learned"}, {"mips": True, "balance": True}, {"sampler": "frequency"}, {"scope": "sample"}]
)
def test_training_after_inference_mode(options):
    layer = LSHLinear(D, 2_000, config=LSHConfig.from_options(active=50, rehash=FixedInterval(2), **options))
    optimizer = torch_lsh.optim.Adam(layer.parameters())
    x, y = torch.randn(B, D), torch.randint(0, 2_000, (B,))
    for _ in range(4):
        with torch.inference_mode():
            F.cross_entropy(layer(x), y)
            layer.topk(x, 3, exact=False)
        F.cross_entropy(layer(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        layer.topk(x, 3, exact=False)
    layer.rehash(full=True)


@pytest.mark.parametrize(("k", "candidates", "name"), [("3", None, "k"), (2.5, None, "k"), (3, "9", "candidates")])
def test_topk_takes_whole_numbers(k, candidates, name):
    with pytest.raises(TypeError, match=f"{name} is .*; wanted an int"):
        LSHLinear(D, N).topk(torch.randn(B, D), k, exact=False, candidates=candidates)


@pytest.mark.parametrize("touches", [0, 256])
def test_rehash_checks_touches(touches):
    with pytest.raises(ValueError, match=f"touches is {touches}; wanted 1 to 255"):
        LSHLinear(D, N, config=LSHConfig(active=20)).rehash(touches=touches)


@pytest.mark.parametrize("in_backward", [False, True])
def test_gradients_in_distributed_data_parallel_are_dense(tmp_path, in_backward):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Sequential(torch_lsh.EmbeddingBag(20, D, mode="sum"), LSHLinear(D, N, config=LSHConfig(active=20)))
        parallel = nn.parallel.DistributedDataParallel(model)
        optimizer = torch_lsh.optim.SGD(model.parameters(), lr=0.5, in_backward=in_backward)
        before = copy.deepcopy(model.state_dict())
        F.cross_entropy(parallel(torch.randint(0, 20, (B, 3))), torch.randint(0, N, (B,))).backward()
        assert all(torch.equal(now, before[name]) for name, now in model.named_parameters())
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), before[name] - 0.5 * parameter.grad)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"hash": "learned"}, {"sampler": "frequency"}])
@pytest.mark.parametrize("rows", [250, 400])
def test_resized(options, rows):
    layer = LSHLinear(D, N, config=LSHConfig.from_options(active=50, **options))
    x = torch.randn(B, D)

    def use(last):
        F.cross_entropy(layer(x), torch.full((B,), last)).backward()
        layer.topk(x, 3, exact=False)

    for _ in range(2):
        use(N - 1)
    layer.weight, layer.bias = nn.Parameter(torch.randn(rows, D)), nn.Parameter(torch.zeros(rows))
    with pytest.warns(UserWarning, match="a weight of shape"):
        assert layer(x).shape == (B, rows)  # as in nn.Linear
    layer.out_features = rows
    for _ in range(2):
        use(rows - 1)


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("active", [20, 1.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_with_all_labels_ignored_the_loss_is_nan_and_gradients_are_0(scope, active, training, label_smoothing):
    layer = LSHLinear(D, N, config=LSHConfig(active=active, scope=scope)).train(training)
    x = torch.randn(B, D, requires_grad=True)
    loss = F.cross_entropy(layer(x), torch.full((B,), -100), label_smoothing=label_smoothing)
    assert loss.isnan()
    loss.backward()
    for tensor in (x, layer.weight, layer.bias):
        assert not tensor.grad.any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hash": "simhash_hadamard", "sketch_bits": 64},
        {"hash": "simhash", "mips": True, "balance": True},
        {"hash": "cross_polytope"},
        {"hash": "dwta"},
        {"hash": "learned"},
    ],
)
def test_any_default_dtype(options):
    x, y = torch.randn(B, D), torch.randint(0, 900, (B,))
    torch.set_default_dtype(torch.float64)
    try:
        layer = LSHLinear(D, 900, config=LSHConfig.from_options(active=20, **options), dtype=torch.float32)
        F.cross_entropy(layer(x), y).backward()
        layer.rehash(full=True)
        layer.topk(x, 3, exact=False)
        assert layer.stats(x, k=2).recall is not None
    finally:
        torch.set_default_dtype(torch.float32)


def test_approximate_topk_under_autocast():
    layer, x = LSHLinear(D, N), torch.randn(B, D)
    expected = layer.topk(x, 3, exact=False)
    layer.sampler.forget()
    with torch.autocast("cpu", torch.bfloat16):
        got = layer.topk(x, 3, exact=False)
    assert torch.equal(got.indices, expected.indices)


def test_a_batch_that_came_first_in_inference_mode_can_be_trained_on():
    layer, x, y = LSHLinear(4, 300), torch.randn(23, 4), torch.randint(300, (23,))  # no other test has 23 samples
    with torch.inference_mode():
        F.cross_entropy(layer(x), y, label_smoothing=0.1)
    F.cross_entropy(layer(x), y, label_smoothing=0.1).backward()
    assert layer.weight.grad is not None
