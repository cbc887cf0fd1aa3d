from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from torch_lsh import optim
from torch_lsh.row_sparse import parameters as row_sparse
from torch_lsh.row_sparse.changed_rows import ChangedRows


class PlainLion(torch.optim.Optimizer):
    """Lion in plain PyTorch, for dense gradients."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, maximize=False, fused=False):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient = -parameter.grad if group["maximize"] else parameter.grad
                average = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * (beta1 * average + (1 - beta1) * gradient).sign())
                average.mul_(beta2).add_(gradient, alpha=1 - beta2)


PAIRS = [
    pytest.param(optim.Adam, torch.optim.Adam, {}, id="adam"),
    pytest.param(optim.Adam, torch.optim.Adam, {"weight_decay": 0.1, "maximize": True, "eps": 1e-3}, id="adam-l2-max"),
    pytest.param(optim.AdamW, torch.optim.AdamW, {"weight_decay": 0.3, "betas": (0.7, 0.95)}, id="adamw"),
    pytest.param(optim.SGD, torch.optim.SGD, {}, id="sgd"),
    pytest.param(optim.SGD, torch.optim.SGD, {"weight_decay": 0.1, "maximize": True}, id="sgd-l2-max"),
    pytest.param(optim.SGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}, id="momentum"),
    pytest.param(optim.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, id="nesterov"),
    pytest.param(optim.Adagrad, torch.optim.Adagrad, {}, id="adagrad"),
    pytest.param(
        optim.Adagrad,
        torch.optim.Adagrad,
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "maximize": True},
        id="adagrad-options",
    ),
    pytest.param(optim.Lion, PlainLion, {}, id="lion"),
    pytest.param(optim.Lion, PlainLion, {"betas": (0.7, 0.8), "weight_decay": 0.3, "maximize": True}, id="lion-max"),
]
OURS = [pytest.param(p.values[0], p.values[2], id=p.id) for p in PAIRS]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
N, D = 37, 5


def sparse(parameter, rows, values):
    return torch.sparse_coo_tensor(torch.as_tensor(rows).view(1, -1), values, parameter.shape, check_invariants=True)


def row_sparse_of(dense):
    return sparse(dense, torch.arange(len(dense)), dense.clone())


def assert_close(a, b, dtype=torch.float32):
    torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype] * 10, atol=TOLERANCE[dtype])


def random_step(optimizer, parameters, rows=8):
    for parameter in parameters:
        touched = torch.randperm(len(parameter))[:rows].sort()[0]
        parameter.grad = sparse(parameter, touched, torch.randn(rows, *parameter.shape[1:]).to(parameter.dtype))
    optimizer.step()


def snapshot(optimizer):
    return copy.deepcopy(optimizer.state_dict())


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for number in a["state"]:
        assert a["state"][number].keys() == b["state"][number].keys()
        for name, value in a["state"][number].items():
            assert torch.equal(value, b["state"][number][name]), name
            assert value.dtype is b["state"][number][name].dtype
    assert a["param_groups"] == b["param_groups"]


# --- optimizers against torch.optim ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(N, D), (N,), (N, 2, 3)])
def test_all_rows_equal_the_dense_step(ours, theirs, options, dtype, shape):
    a = nn.Parameter(torch.randn(shape, dtype=dtype))
    b = nn.Parameter(a.detach().clone())
    mine, oracle = ours([a], lr=0.05, **options), theirs([b], lr=0.05, **options)
    for _ in range(7):
        b.grad = torch.randn(shape, dtype=dtype)
        a.grad = row_sparse_of(b.grad)
        mine.step()
        oracle.step()
        assert_close(a.detach(), b.detach(), dtype)


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_switching_between_dense_and_row_sparse_keeps_the_state(ours, theirs, options):
    a, b = nn.Parameter(torch.randn(N, D)), nn.Parameter(torch.zeros(N, D))
    b.data.copy_(a)
    mine, oracle = ours([a], lr=0.05, **options), theirs([b], lr=0.05, **options)
    for step in range(8):
        b.grad = torch.randn(N, D)
        a.grad = row_sparse_of(b.grad) if step % 3 else b.grad.clone()
        mine.step()
        oracle.step()
        assert_close(a.detach(), b.detach())


def test_lazy_steps_equal_sparse_adam():
    a = nn.Parameter(torch.randn(N, D))
    b = nn.Parameter(a.detach().clone())
    mine, oracle = optim.Adam([a], lr=0.05), torch.optim.SparseAdam([b], lr=0.05)
    for _ in range(10):
        rows = torch.randint(0, N, (9,))  # with repetition
        a.grad = sparse(a, rows, torch.randn(9, D))
        b.grad = a.grad.clone()
        mine.step()
        oracle.step()
        assert_close(a.detach(), b.detach())


@pytest.mark.parametrize(("ours", "options"), OURS)
def test_other_rows_do_not_move(ours, options):
    weight = nn.Parameter(torch.randn(N, D))
    optimizer = ours([weight], lr=0.1, **options)
    before = weight.detach().clone()
    weight.grad = sparse(weight, [3, 30], torch.randn(2, D))
    optimizer.step()
    changed = (weight.detach() != before).any(1).nonzero().squeeze(1)
    assert changed.tolist() == [3, 30]


@pytest.mark.parametrize(("ours", "options"), OURS)
def test_empty_gradients_and_zero_grad(ours, options):
    weight = nn.Parameter(torch.randn(N, D))
    optimizer = ours([weight], lr=0.1, **options)
    before = weight.detach().clone()
    weight.grad = sparse(weight, torch.empty(0, dtype=torch.int64), torch.empty(0, D))
    optimizer.step()
    assert torch.equal(weight, before)
    random_step(optimizer, [weight])
    optimizer.zero_grad(set_to_none=False)
    assert weight.grad._nnz() == 0
    optimizer.step()
    optimizer.zero_grad()
    assert weight.grad is None
    optimizer.step()


def test_accumulated_gradients_are_summed_first():
    table = nn.Embedding(N, D, sparse=True)
    twin = copy.deepcopy(table)
    twin.sparse = False
    mine, oracle = optim.Adagrad(table.parameters(), lr=0.1), torch.optim.Adagrad(twin.parameters(), lr=0.1)
    for _ in range(3):
        for model in (table, twin):
            model(torch.tensor([1, 5, 5, 7])).square().sum().backward()
            model(torch.tensor([7, 1])).sum().backward()
        assert table.weight.grad.is_sparse
        mine.step()
        oracle.step()
        mine.zero_grad()
        oracle.zero_grad()
        assert_close(table.weight.detach(), twin.weight.detach())


def test_row_sparse_plus_dense_is_a_dense_step():
    weight = nn.Parameter(torch.randn(N, D))
    twin = nn.Parameter(weight.detach().clone())
    mine, oracle = optim.Adam([weight], lr=0.1), torch.optim.Adam([twin], lr=0.1)
    (torch.nn.functional.embedding(torch.tensor([1, 4]), weight, sparse=True).sum() + weight.square().sum()).backward()
    (torch.nn.functional.embedding(torch.tensor([1, 4]), twin).sum() + twin.square().sum()).backward()
    assert not weight.grad.is_sparse
    mine.step()
    oracle.step()
    assert_close(weight.detach(), twin.detach())


def test_groups_schedulers_and_closure():
    a, b, c = (nn.Parameter(torch.randn(N, D)) for _ in range(3))
    twins = [nn.Parameter(p.detach().clone()) for p in (a, b, c)]
    mine = optim.AdamW([{"params": [a, b], "lr": 0.2}, {"params": [c], "weight_decay": 0.5}], lr=torch.tensor(0.01))
    oracle = torch.optim.AdamW(
        [{"params": twins[:2], "lr": 0.2}, {"params": twins[2:], "weight_decay": 0.5}], lr=torch.tensor(0.01)
    )
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (mine, oracle)]
    for _ in range(6):

        def closure():
            for index, (parameter, twin) in enumerate(zip((a, b, c), twins)):
                twin.grad = torch.randn(N, D)
                parameter.grad = twin.grad.clone() if index == 1 else row_sparse_of(twin.grad)
            return torch.tensor(3.5)

        assert mine.step(closure) == 3.5
        oracle.step()
        for scheduler in schedulers:
            scheduler.step()
        for parameter, twin in zip((a, b, c), twins):
            assert_close(parameter.detach(), twin.detach())
    assert mine.param_groups[0]["lr"] == pytest.approx(0.2 / 8)


def test_hooks_run_once_per_step():
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # PyTorch wraps the step of a class at its first instance
    weight, bias = nn.Parameter(torch.zeros(N, D)), nn.Parameter(torch.zeros(N))
    optimizer = optim.Adam([weight, bias])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    bias.grad = torch.ones(N)
    random_step(optimizer, [weight])
    assert calls == ["before", "after"]


def test_a_hook_before_the_step_may_change_its_arguments():
    weight = nn.Parameter(torch.zeros(N, D))
    optimizer = optim.Adam([weight])
    changing = optimizer.register_step_pre_hook(lambda self, arguments, named: ((self, lambda: 7), named))
    assert optimizer.step() == 7
    changing.remove()
    optimizer.register_step_pre_hook(lambda *_: 3)
    with pytest.raises(RuntimeError, match=r"returned 3; wanted None or \(args, kwargs\)"):
        optimizer.step()


def test_the_profiler_sees_the_step():
    optimizer = optim.Adam([nn.Parameter(torch.zeros(N, D))])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert "Optimizer.step#Adam.step" in {event.key for event in profile.key_averages()}


# --- dense steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_dense_step_with_strided_gradients(ours, theirs, options):
    """PyTorch's fused steps read a gradient's memory as if it were contiguous."""
    a = nn.Parameter(torch.randn(6, 4))
    b = nn.Parameter(a.detach().clone())
    mine, oracle = ours([a], lr=0.1, **options), theirs([b], lr=0.1, fused=False, **options)
    for _ in range(3):
        a.grad = torch.randn(4, 6).T
        b.grad = a.grad.clone()
        mine.step()
        oracle.step()
        assert_close(a.detach(), b.detach())


def test_fused_is_chosen_where_it_can_run_and_nowhere_else():
    contiguous, strided = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2, 3).T)
    for optimizer, parameter, expected in [
        (optim.Adam([contiguous]), contiguous, True),
        (optim.Adam([contiguous], foreach=True), contiguous, False),
        (optim.Adam([contiguous], fused=False), contiguous, False),
        (optim.Adam([strided]), strided, False),
    ]:
        parameter.grad = torch.ones_like(parameter)
        with torch.profiler.profile() as profile:
            optimizer.step()
        assert ("aten::_fused_adam_" in {event.key for event in profile.key_averages()}) is expected
        assert not optimizer.param_groups[0]["fused"]


def test_momentum_of_a_parameter_that_joins_later():
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer = optim.SGD([a, b], lr=1.0, momentum=0.5)
    a.grad = torch.ones(3)
    optimizer.step()
    b.grad = torch.ones(3)
    optimizer.step()
    assert a.tolist() == [-2.5] * 3
    assert b.tolist() == [-1.0] * 3


def test_grad_scaler_unscales_row_sparse_gradients():
    weight, bias = nn.Parameter(torch.zeros(N, D)), nn.Parameter(torch.zeros(D))
    optimizer = optim.SGD([weight, bias], lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    weight.grad, bias.grad = sparse(weight, [2], torch.full((1, D), 8.0)), torch.full((D,), 8.0)
    scaler.step(optimizer)
    assert weight[2].tolist() == [-1.0] * D
    assert bias.tolist() == [-1.0] * D


# --- bfloat16 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_sparse_gradient", [False, True])
@pytest.mark.parametrize("shape", [(N, D), (N,), (4, 3, 2, 2)])
def test_bfloat16_has_float32_state(row_sparse_gradient, shape):
    weight = nn.Parameter(torch.randn(shape).to(torch.bfloat16))
    twin = nn.Parameter(weight.detach().float())
    mine, oracle = optim.Adam([weight], lr=0.05), torch.optim.Adam([twin], lr=0.05)
    for _ in range(5):
        gradient = torch.randn(shape).to(torch.bfloat16)
        weight.grad = row_sparse_of(gradient) if row_sparse_gradient else gradient
        twin.grad = gradient.float()
        twin.data.copy_(weight)
        mine.step()
        oracle.step()
        assert torch.equal(weight, twin.to(torch.bfloat16)) or (weight - twin).abs().max() < 2**-6
    for name in ("exp_avg", "exp_avg_sq"):
        assert mine.state[weight][name].dtype is torch.float32
        assert_close(mine.state[weight][name], oracle.state[twin][name])


def test_bfloat16_state_resumes_exactly():
    weight = nn.Parameter(torch.randn(N, D).to(torch.bfloat16))
    optimizer = optim.Adam([weight], lr=0.05, catch_up=True)
    for _ in range(300):  # more steps than bfloat16 can count
        random_step(optimizer, [weight], 3)
    resumed = optim.Adam([nn.Parameter(weight.detach().clone())], lr=0.05, catch_up=True)
    resumed.load_state_dict(snapshot(optimizer))
    assert_same_state(resumed.state_dict(), optimizer.state_dict())


# --- catch-up -------------------------------------------------------------------------------------------------------


def catch_up_oracle(optimizer, weight, gradients, lr, betas, eps, weight_decay):
    """Row by row: decay at every step, movement at steps with a gradient."""
    w, m, v = weight.double().clone(), torch.zeros(N, D).double(), torch.zeros(N, D).double()
    for step, (rows, values) in enumerate(gradients, 1):
        g = torch.zeros(N, D).double().index_add_(0, rows, values.double())
        touched = torch.zeros(N, 1, dtype=torch.bool).index_fill_(0, rows, True)
        if optimizer is optim.AdamW:
            w *= 1 - lr * weight_decay
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        move = lr / (1 - betas[0] ** step) * m / ((v / (1 - betas[1] ** step)).sqrt() + eps)
        w = torch.where(touched, w - move, w)
    return w, m, v


@pytest.mark.parametrize("ours", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize("flush", ["flush", "dense"])
def test_catch_up_is_the_decay_of_the_missed_steps(ours, flush):
    weight = nn.Parameter(torch.randn(N, D, dtype=torch.float64))
    decay = 0.5 if ours is optim.AdamW else 0.0
    options = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": decay}
    optimizer = ours([weight], catch_up=True, **options)
    start = weight.detach().clone()
    gradients = []
    for _ in range(12):
        rows = torch.randperm(N)[:4].sort()[0]
        gradients.append((rows, torch.randn(4, D, dtype=torch.float64)))
        weight.grad = sparse(weight, *gradients[-1])
        optimizer.step()
    if flush == "dense":
        gradients.append((torch.arange(N), torch.randn(N, D, dtype=torch.float64)))
        weight.grad = gradients[-1][1]
        optimizer.step()
        assert (optimizer.state[weight]["last_step"] == 13).all()
    else:
        optimizer.flush()
        optimizer.flush()  # nothing is left
    w, m, v = catch_up_oracle(ours, start, gradients, **options)
    assert_close(weight.detach(), w, torch.float64)
    assert_close(optimizer.state[weight]["exp_avg"], m, torch.float64)
    assert_close(optimizer.state[weight]["exp_avg_sq"], v, torch.float64)


def test_catch_up_survives_the_state_of_a_plain_optimizer():
    weight = nn.Parameter(torch.randn(N, D))
    plain = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.randn(N, D)
    plain.step()
    optimizer = optim.Adam([weight], lr=0.1, catch_up=True)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["catch_up"] is True
    moments = optimizer.state[weight]["exp_avg"].clone()
    weight.grad = sparse(weight, [4], torch.zeros(1, D))
    optimizer.step()
    weight.grad = sparse(weight, [5], torch.zeros(1, D))
    optimizer.step()
    assert_close(optimizer.state[weight]["exp_avg"][4], 0.9 * moments[4])
    assert_close(optimizer.state[weight]["exp_avg"][5], 0.81 * moments[5])


# --- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "options"), OURS)
def test_resumes_exactly(ours, options):
    if ours in (optim.Adam, optim.AdamW):
        options = {**options, "catch_up": True}
    parameters = [nn.Parameter(torch.randn(N, D)), nn.Parameter(torch.randn(N))]
    optimizer = ours(parameters, lr=0.1, **options)
    for _ in range(3):
        random_step(optimizer, parameters)
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    resumed = ours(copies, lr=0.3)
    resumed.load_state_dict(snapshot(optimizer))
    for optimizer_, parameters_ in ((optimizer, parameters), (resumed, copies)):
        torch.manual_seed(5)
        for _ in range(3):
            random_step(optimizer_, parameters_)
    assert all(torch.equal(a, b) for a, b in zip(parameters, copies))
    assert_same_state(resumed.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_state_goes_to_torch_and_back(ours, theirs, options):
    a = nn.Parameter(torch.randn(N, D))
    b = nn.Parameter(a.detach().clone())
    first, oracle = ours([a], lr=0.1, **options), theirs([b], lr=0.1, **options)

    def both(mine, mine_is_dense):
        b.grad = torch.randn(N, D)
        a.grad = b.grad.clone() if mine_is_dense else row_sparse_of(b.grad)
        mine.step()
        oracle.step()
        assert_close(a.detach(), b.detach())

    for _ in range(2):
        both(first, False)
    plain = theirs([a], lr=0.9)
    plain.load_state_dict(first.state_dict())
    for _ in range(2):
        both(plain, True)
    back = ours([a], lr=0.9)
    back.load_state_dict(plain.state_dict())
    for _ in range(2):
        both(back, False)
    both(back, True)


@pytest.mark.parametrize(("ours", "options"), OURS)
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_go_on_alike(ours, options, how):
    weight = nn.Parameter(torch.randn(N, D))
    optimizer = ours([weight], lr=0.1, **options)
    random_step(optimizer, [weight])
    twin = pickle.loads(pickle.dumps(optimizer)) if how == "pickle" else copy.deepcopy(optimizer)
    copied = twin.param_groups[0]["params"][0]
    assert copied is not weight
    assert row_sparse.wants_row_sparse(copied)
    for optimizer_, weight_ in ((optimizer, weight), (twin, copied)):
        torch.manual_seed(5)
        random_step(optimizer_, [weight_])
    assert torch.equal(weight, copied)


def test_parameter_added_later():
    a, b = nn.Parameter(torch.randn(N, D)), nn.Parameter(torch.randn(N, D))
    for ours in (optim.Adam, optim.AdamW, optim.SGD, optim.Adagrad, optim.Lion):
        optimizer = ours([a], lr=0.1)
        optimizer.add_param_group({"params": [b], "lr": 0.2})
        assert row_sparse.wants_row_sparse(b)
        before = b.detach().clone()
        random_step(optimizer, [a, b])
        assert not torch.equal(b, before)


def test_state_memory_is_not_touched_before_its_rows_are():
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1])
    weight = nn.Parameter(torch.empty(2_000_000, 16))
    optimizer = optim.Adam([weight], lr=0.1)
    weight.grad = sparse(weight, [7, 1_999_999], torch.ones(2, 16))
    optimizer.step()
    with open("/proc/self/statm") as file:
        after = int(file.read().split()[1])
    assert (after - before) * 4096 < 30e6  # of 256 MB
    assert optimizer.state[weight]["exp_avg"].data_ptr() % 64 == 0
    assert optimizer.state[weight]["exp_avg"][8:12].abs().sum() == 0


# --- the agreement with layers --------------------------------------------------------------------------------------


def test_marks_what_it_can_update_for_as_long_as_it_lives():
    weight, strided = nn.Parameter(torch.randn(N, D)), nn.Parameter(torch.randn(D, N).T)
    half = nn.Parameter(torch.randn(N, D).half())
    optimizer = optim.SGD([weight, strided, half], lr=0.1)
    assert row_sparse.wants_row_sparse(weight)
    assert not row_sparse.wants_row_sparse(strided)
    assert not row_sparse.wants_row_sparse(half)
    del optimizer
    gc.collect()
    assert not row_sparse.wants_row_sparse(weight)
    amsgrad = optim.Adam([weight], amsgrad=True)
    assert not row_sparse.wants_row_sparse(weight)  # so layers give it the dense gradients that it needs
    weight.grad = torch.randn(N, D)
    amsgrad.step()


@pytest.mark.parametrize(("ours", "options"), OURS)
def test_records_the_rows(ours, options):
    weight = nn.Parameter(torch.randn(N, D))
    changed = ChangedRows(weight)
    optimizer = ours([weight], lr=0.1, **options)
    weight.grad = sparse(weight, [9, 2, 9], torch.randn(3, D))
    optimizer.step()
    assert changed.take().tolist() == [2, 9]
    weight.grad = torch.randn(N, D)
    optimizer.step()
    rows = changed.take()
    assert rows is None or len(rows) == N


def test_zero_grad_takes_gradients_away_or_zeroes_them():
    weight, bias = nn.Parameter(torch.randn(N, D)), nn.Parameter(torch.randn(N))
    optimizer = optim.Adam([{"params": [weight]}, {"params": [bias]}])
    for keep in (True, False):
        weight.grad, bias.grad = sparse(weight, [1], torch.randn(1, D)), torch.randn(N)
        optimizer.zero_grad(set_to_none=not keep)
        if keep:
            assert weight.grad.to_dense().count_nonzero() == 0
            assert bias.grad.count_nonzero() == 0
        else:
            assert weight.grad is None
            assert bias.grad is None


@pytest.mark.parametrize("dense", [False, True])
def test_autograd_notices_the_step(dense):
    weight = nn.Parameter(torch.randn(N, D))
    optimizer = optim.SGD([weight], lr=0.1)
    x = torch.randn(3, D, requires_grad=True)
    product = (x @ weight.T).sum()
    weight.grad = torch.randn(N, D) if dense else sparse(weight, [1], torch.randn(1, D))
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize(
    ("make", "gradient", "message"),
    [
        (lambda p: optim.Adam([p], amsgrad=True), lambda p: row_sparse_of(p), "amsgrad=True does not work"),
        (lambda p: optim.SGD([p], differentiable=True), lambda p: row_sparse_of(p), "differentiable=True does not"),
        (lambda p: optim.Adam([p]), lambda p: p.to_sparse(), "wanted a dense tensor or a sparse COO tensor with one"),
    ],
)
def test_unsupported_gradients_are_refused_before_anything_moves(make, gradient, message):
    other, weight = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(N, D))
    optimizer = make(weight)
    optimizer.add_param_group({"params": [other]})
    other.grad, before = torch.ones(3), other.detach().clone()
    weight.grad = gradient(weight.detach().clone())
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert torch.equal(other, before)


def test_row_out_of_range_is_refused_before_anything_moves():
    weight, other = nn.Parameter(torch.randn(N, D)), nn.Parameter(torch.randn(3))
    optimizer = optim.Adam([other, weight])
    other.grad, before = torch.ones(3), other.detach().clone()
    weight.grad = torch.sparse_coo_tensor(torch.tensor([[1, 2]]), torch.ones(2, D), (N, D), check_invariants=False)
    weight.grad._indices()[0, 1] = N
    with pytest.raises(RuntimeError, match=f"rows 1 to {N}; wanted 0 to {N - 1}"):
        optimizer.step()
    assert torch.equal(other, before)


def test_non_finite_gradients_stay_in_their_rows():
    weight = nn.Parameter(torch.zeros(N, D))
    optimizer = optim.Adam([weight])
    weight.grad = sparse(weight, [1, 5], torch.tensor([[float("nan")] * D, [1.0] * D]))
    optimizer.step()
    assert weight[1].isnan().all()
    assert weight[5].isfinite().all()


@pytest.mark.parametrize(("rows", "message"), [([3, 1], "strictly increasing"), ([2, 9], "wanted 0 to 4")])
def test_a_gradient_that_is_wrongly_marked_as_coalesced_is_refused(rows, message):
    weight = torch.nn.Parameter(torch.zeros(5, 2))
    weight.grad = torch.sparse_coo_tensor(
        torch.tensor([rows]), torch.ones(2, 2), (5, 2), is_coalesced=True, check_invariants=False
    )
    with pytest.raises(RuntimeError, match=message):
        optim.Adam([weight]).step()
    assert torch.equal(weight.detach(), torch.zeros(5, 2))


def test_moment_dtype_of_a_group_is_checked():
    group = {"params": [torch.nn.Parameter(torch.zeros(3))], "moment_dtype": torch.float16}
    with pytest.raises(ValueError, match=r"moment_dtype is torch\.float16; wanted"):
        optim.Adam([group])


def test_adagrad_shares_its_state_before_the_first_step():
    weight = nn.Parameter(torch.zeros(N, D))
    optimizer = optim.Adagrad([weight], initial_accumulator_value=0.5)
    assert len(optimizer.state) == 0
    optimizer.share_memory()
    assert optimizer.state[weight]["sum"].is_shared()
    assert (optimizer.state[weight]["sum"] == 0.5).all()
    random_step(optimizer, [weight])
    assert optimizer.state[weight]["step"] == 1


def test_state_of_other_strides_is_brought_into_rows():
    weight = nn.Parameter(torch.zeros(N, D))
    optimizer = optim.SGD([weight], momentum=0.5)
    random_step(optimizer, [weight])
    buffer = optimizer.state[weight]["momentum_buffer"]
    optimizer.state[weight]["momentum_buffer"] = buffer.T.contiguous().T
    weight.grad = sparse(weight, [0], torch.zeros(1, D))
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].is_contiguous()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"][1:], buffer[1:])


def test_a_parameter_without_row_sparse_update_is_named():
    weight = nn.Parameter(torch.randn(D, N).T)
    weight.grad = sparse(weight, [1], torch.randn(1, D))
    with pytest.raises(RuntimeError, match="wanted a contiguous float32, float64 or bfloat16 tensor"):
        optim.SGD([weight]).step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr is -1\.0; wanted 0 or more"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0\.9, 1\.0\); wanted two numbers from 0 to below 1"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1; wanted 0 or more"),
    ],
)
def test_bad_options_of_lion(options, message):
    with pytest.raises(ValueError, match=message):
        optim.Lion([nn.Parameter(torch.zeros(3))], **options)


@pytest.mark.parametrize("tensor", [torch.zeros(N, D).half(), torch.zeros(D, N).T, torch.zeros(())])
def test_lion_refuses_what_it_cannot_update(tensor):
    other, weight = nn.Parameter(torch.zeros(3)), nn.Parameter(tensor)
    other.grad, weight.grad = torch.ones(3), torch.ones_like(tensor)
    with pytest.raises(RuntimeError, match="wanted a contiguous float32, float64 or bfloat16 tensor"):
        optim.Lion([other, weight]).step()
    assert torch.equal(other, torch.zeros(3))
