"""Stochastic rounding to bfloat16, of weights and of moments."""

from __future__ import annotations

import pytest
import torch
import twins
from torch import nn

from torch_lsh import ops, optim

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
DTYPES = [(FLOAT32, BFLOAT16), (BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16)]  # of parameter and moments


def run(module, name, shape, dtypes, seed, widened=False):
    torch.manual_seed(0)
    parameter, first, second = (torch.rand(shape).to(dtype) for dtype in (dtypes[0], dtypes[1], dtypes[1]))
    rows = torch.randperm(shape[0])[: shape[0] // 2 + 1].sort()[0]
    gradient = torch.randn(len(rows), *shape[1:]).to(dtypes[0])
    if widened:
        parameter, first, second, gradient = (x.float() for x in (parameter, first, second, gradient))
    common = (parameter, first, second, rows, gradient)
    if name == "adam":
        module.row_sparse_adam_(*common, None, 0.1, 0.9, 0.999, 1e-8, 0.2, 0.5, 0.25, True, False, seed=seed)
    elif name == "adagrad":
        module.row_sparse_adagrad_(parameter, first, rows, gradient, 0.1, 1e-8, 0.3, True, seed=seed)
    elif name == "lion":
        module.row_sparse_lion_(parameter, first, rows, gradient, 0.1, 0.9, 0.99, 0.3, True, seed=seed)
    else:
        buffer = first if name == "momentum" else None
        module.row_sparse_sgd_(parameter, buffer, rows, gradient, 0.1, 0.9, 0.2, 0.3, True, False, seed=seed)
    return parameter, first, second


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("seed", [-1, 12345])
@pytest.mark.parametrize("name", ["adam", "sgd", "momentum", "adagrad", "lion"])
def test_operators_round_as_the_reference(simd_level, dtypes, seed, name):
    check_rounding(name, (30, 33), dtypes, seed)


@pytest.mark.parametrize("shape", [(1, 1), (40,)])
@pytest.mark.parametrize("name", ["adam", "sgd", "momentum", "adagrad", "lion"])
def test_operators_round_parameters_of_any_shape(shape, name):
    check_rounding(name, shape, (BFLOAT16, BFLOAT16), 12345)


def check_rounding(name, shape, dtypes, seed):
    ours, theirs = run(ops, name, shape, dtypes, seed), run(twins, name, shape, dtypes, seed)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=2**-7 if a.dtype is BFLOAT16 else 1e-5, atol=1e-6)
        # Sums in another order may fall on the other side of a boundary, seldom.
        if a.dtype is BFLOAT16:
            assert (a != b).float().mean() < 0.02 or a.numel() < 50


def test_rounding_is_right_on_average(simd_level):
    dtypes = (BFLOAT16, BFLOAT16)
    draws = [run(ops, "adam", (4, 8), dtypes, seed) for seed in range(300)]
    # The same step from the same bfloat16 numbers, stored in float32.
    wanted = run(twins, "adam", (4, 8), dtypes, -1, widened=True)
    for number in range(3):  # parameter and both moments
        values = torch.stack([draw[number].float() for draw in draws])
        mean, spacing = values.mean(0), 2.0 ** (values.abs().amax(0).log2().floor() - 7)
        assert ((values.amax(0) - values.amin(0)) <= spacing * 1.001).all()  # one of two neighbours
        assert ((mean - wanted[number].float()).abs() <= 4 * spacing / 2 / len(draws) ** 0.5).all()


def test_small_steps_arrive_only_with_stochastic_rounding():
    arrived = {}
    for stochastic in (True, False):
        weight = nn.Parameter(torch.ones(256, 16, dtype=BFLOAT16))
        optimizer = optim.SGD([weight], lr=1e-4, stochastic_rounding=stochastic)
        for _ in range(1000):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        arrived[stochastic] = 1 - weight.detach().float().mean()
    assert arrived[False] == 0
    # 1000 steps of 1e-4; 4,096 walks, each with a standard deviation below sqrt(1000 * 1e-4 * spacing)
    assert abs(arrived[True] - 0.1) < 5 * (1000 * 1e-4 * 2**-8) ** 0.5 / 4096**0.5


def test_special_values_survive(simd_level):
    weight = torch.tensor([[torch.nan, 0.0, 3.3895e38, -3.3895e38, 1e-40]], dtype=BFLOAT16)
    gradient = torch.zeros_like(weight)
    for seed in range(20):
        updated = weight.clone()
        ops.row_sparse_sgd_(updated, None, torch.tensor([0]), gradient, 0.1, 0.0, 0.0, 0.0, False, False, seed=seed)
        torch.testing.assert_close(updated, weight, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW, optim.Adagrad, optim.SGD, optim.Lion])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("dense", [False, True])
def test_moments_in_bfloat16_train_as_well(cls, dtype, dense):
    options = {"momentum": 0.9} if cls is optim.SGD else {}
    losses = {}
    for moment_dtype in (FLOAT32, BFLOAT16):
        torch.manual_seed(0)
        target = torch.randn(20, 8)
        weight = nn.Parameter(torch.zeros(20, 8, dtype=dtype))
        optimizer = cls([weight], lr=0.02, moment_dtype=moment_dtype, **options)
        for _ in range(200):
            gradient = (weight.detach().float() - target).to(dtype)
            rows = torch.arange(0, 20)
            weight.grad = gradient if dense else torch.sparse_coo_tensor(rows.view(1, -1), gradient, weight.shape)
            optimizer.step()
        state = optimizer.state[weight]
        assert all(value.dtype is moment_dtype for value in state.values() if value.shape == weight.shape)
        losses[moment_dtype] = (weight.detach().float() - target).square().mean()
    assert losses[BFLOAT16] < losses[FLOAT32] + 0.01


def test_runs_repeat_and_resume_exactly(tmp_path):
    def train(optimizer, weight, steps):
        for step in steps:
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)).to(weight.dtype)
            optimizer.step()

    def fresh():
        weight = nn.Parameter(torch.linspace(-1, 1, 60).view(20, 3).to(BFLOAT16))
        return weight, optim.Adam([weight], lr=1e-2, moment_dtype=BFLOAT16)

    whole, optimizer = fresh()
    train(optimizer, whole, range(20))
    half, first = fresh()
    train(first, half, range(10))
    torch.save([half.detach(), first.state_dict()], tmp_path / "state.pt")
    resumed, second = fresh()
    values, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.data.copy_(values)
    second.load_state_dict(state)
    assert second.state[resumed]["exp_avg_sq"].dtype is BFLOAT16
    train(second, resumed, range(10, 20))
    assert torch.equal(resumed, whole)


def test_bad_moment_dtype():
    with pytest.raises(
        ValueError, match=r"moment_dtype is torch.float16; wanted torch.float32, torch.bfloat16 or None"
    ):
        optim.Adam([nn.Parameter(torch.ones(2))], moment_dtype=torch.float16)
