from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import torch_lsh

N, D = 20, 3


def gradients():
    """A dense and a row-sparse gradient with repeated rows, and the same two as dense ones."""
    table, bias = nn.Parameter(torch.zeros(N, D)), nn.Parameter(torch.zeros(D))
    rows, values = torch.tensor([4, 1, 4, 9]), torch.randn(4, D)
    table.grad, bias.grad = torch.sparse_coo_tensor(rows.view(1, -1), values, (N, D)), torch.randn(D)
    twins = [nn.Parameter(torch.zeros(N, D)), nn.Parameter(torch.zeros(D))]
    twins[0].grad, twins[1].grad = table.grad.to_dense(), bias.grad.clone()
    return [table, bias], twins


@pytest.mark.parametrize("norm_type", [0.0, 1.0, 2.0, 3.5, math.inf, -1.0, -math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("foreach", [None, False, True])
def test_norm_equals_pytorch(norm_type, max_norm, foreach):
    ours, theirs = gradients()
    norm = torch_lsh.clip_grad_norm_(ours, max_norm, norm_type, foreach=foreach)
    expected = nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    torch.testing.assert_close(norm, expected)
    assert ours[0].grad.is_sparse
    for parameter, twin in zip(ours, theirs):
        torch.testing.assert_close(parameter.grad.to_dense(), twin.grad)


def test_norm_is_that_of_the_sum_of_repeated_rows():
    weight = nn.Parameter(torch.zeros(5))
    weight.grad = torch.sparse_coo_tensor([[2, 2]], [3.0, -3.0], (5,))
    assert torch_lsh.clip_grad_norm_(weight, 1.0) == 0


def test_unique_rows_are_scaled_in_place():
    weight = nn.Parameter(torch.zeros(5))
    weight.grad = torch.sparse_coo_tensor([[3, 0]], [3.0, 4.0], (5,))  # unique, though not in order
    gradient = weight.grad
    assert torch_lsh.clip_grad_norm_(weight, 1.0) == 5
    assert weight.grad is gradient
    torch.testing.assert_close(weight.grad.to_dense(), torch.tensor([0.8, 0, 0, 0.6, 0]))


@pytest.mark.parametrize("foreach", [None, False, True])
def test_value_equals_pytorch(foreach):
    ours, theirs = gradients()
    torch_lsh.clip_grad_value_(ours, 0.3, foreach=foreach)
    nn.utils.clip_grad_value_(theirs, 0.3)
    for parameter, twin in zip(ours, theirs):
        torch.testing.assert_close(parameter.grad.to_dense(), twin.grad)


def test_clipped_gradients_train():
    (table, bias), (table_twin, bias_twin) = gradients()
    ours = torch_lsh.optim.SGD([table, bias], lr=1.0)
    theirs = torch.optim.SGD([table_twin, bias_twin], lr=1.0)
    torch_lsh.clip_grad_norm_([table, bias], 0.1)
    nn.utils.clip_grad_norm_([table_twin, bias_twin], 0.1)
    ours.step()
    theirs.step()
    torch.testing.assert_close(table, table_twin)
    torch.testing.assert_close(bias, bias_twin)


@pytest.mark.parametrize("norm_type", [2.0, math.inf])
def test_nothing_to_clip(norm_type):
    weight, none = nn.Parameter(torch.zeros(N, D)), nn.Parameter(torch.zeros(2))
    assert torch_lsh.clip_grad_norm_([none], 1.0, norm_type) == 0
    weight.grad = torch.sparse_coo_tensor(torch.empty(1, 0, dtype=torch.int64), torch.empty(0, D), (N, D))
    assert torch_lsh.clip_grad_norm_([weight, none], 1.0, norm_type) == 0
    torch_lsh.clip_grad_value_([weight, none], 1.0)


def test_generator_and_bfloat16():
    weight = nn.Parameter(torch.zeros(N, D, dtype=torch.bfloat16))
    weight.grad = torch.sparse_coo_tensor([[1, 1]], torch.ones(2, D), (N, D)).to(torch.bfloat16)
    norm = torch_lsh.clip_grad_norm_((p for p in [weight]), 1.0)
    assert float(norm) == pytest.approx(math.sqrt(12), rel=1e-2)
    assert weight.grad.dtype is torch.bfloat16
    assert float(weight.grad.to_dense().float().norm()) == pytest.approx(1, rel=2e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite(bad):
    weight = nn.Parameter(torch.zeros(5))
    weight.grad = torch.sparse_coo_tensor([[2]], [bad], (5,))
    with pytest.raises(RuntimeError, match="non-finite"):
        torch_lsh.clip_grad_norm_(weight, 1.0, error_if_nonfinite=True)
    assert not torch.isfinite(torch_lsh.clip_grad_norm_(weight, 1.0))


def test_other_sparse_tensors():
    weight = nn.Parameter(torch.ones(N, D))
    weight.grad = torch.full((N, D), 2.0).to_sparse()
    torch.testing.assert_close(torch_lsh.clip_grad_norm_(weight, 1.0), torch.full((N, D), 2.0).norm())
    torch.testing.assert_close(torch.linalg.vector_norm(weight.grad, dim=(0, 1)), weight.grad.to_dense().norm())
    with pytest.raises(NotImplementedError, match="along some dimensions"):
        torch.linalg.vector_norm(weight.grad, dim=0)
    with pytest.raises(NotImplementedError, match="wanted bounds around 0"):
        weight.grad.clamp_min_(1.0)


def test_loops_that_clip_as_in_pytorch_go_on_working():
    torch.manual_seed(0)
    layer = torch_lsh.LSHLinear(8, 3_000)
    optimizer = torch_lsh.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(2):  # accumulated: rows repeat
        nn.functional.cross_entropy(layer(10 * torch.randn(4, 8)), torch.randint(3_000, (4,))).backward()
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    assert layer.weight.grad.is_sparse
    assert nn.utils.clip_grad_norm_(layer.parameters(), 0.1) > 0.1
    optimizer.step()
    moved = sum((now.detach() - was).square().sum() for now, was in zip(layer.parameters(), before)).sqrt()
    assert float(moved) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("bounds", [(-0.1, 0.1), (None, 0.2), (-0.3, None), (0.5, 1.0), (None, -0.5)])
def test_clamps_of_a_hook(bounds):
    """Row-sparse gradients are clamped after repeated rows are summed; bounds beside 0 make them dense."""
    gradient = torch.sparse_coo_tensor(torch.tensor([[3, 1, 3]]), torch.randn(3, 2), (5, 2))
    clamped = gradient.clamp(*bounds)
    torch.testing.assert_close(clamped.to_dense(), gradient.to_dense().clamp(*bounds))
    assert (clamped.layout is torch.sparse_coo) == (not (bounds[0] or -1) > 0 and not (bounds[1] or 1) < 0)
    for name, bound in zip(("clamp_min", "clamp_max"), bounds):
        if bound is not None:
            one = getattr(gradient, name)(bound)
            torch.testing.assert_close(one.to_dense(), getattr(gradient.to_dense(), name)(bound))


def test_a_hook_that_clamps_leaves_gradients_row_sparse():
    layer = torch_lsh.LSHLinear(4, 500, config=torch_lsh.LSHConfig(active=50))
    optimizer = torch_lsh.optim.SGD(layer.parameters(), lr=0.1)
    layer.weight.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    nn.functional.cross_entropy(layer(torch.randn(8, 4)), torch.arange(8)).backward()
    assert layer.weight.grad.layout is torch.sparse_coo
    assert layer.weight.grad._values().abs().max() <= 1e-3
    optimizer.step()
