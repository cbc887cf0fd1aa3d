"""Parameters that are transposed in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torch_lsh.row_sparse.transposed import transpose_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["none", "dense", "sparse"])
def test_the_gradient_follows(dtype, layout):
    values, gradient = torch.randn(2, 5, dtype=dtype), torch.randn(2, 5, dtype=dtype)
    weight = nn.Parameter(values.clone())
    if layout != "none":
        weight.grad = gradient.to_sparse() if layout == "sparse" else gradient.clone()
    version = weight._version
    transpose_(weight)
    assert torch.equal(weight, values.T)
    assert weight.is_contiguous()
    assert weight._version > version
    assert weight.grad is None if layout == "none" else torch.equal(weight.grad, gradient.T)


def test_a_graph_of_an_earlier_step_does_not_stop_the_next():
    weight = nn.Parameter(torch.ones(2, 5))
    kept = weight.sum()
    kept.backward()
    transpose_(weight)
    (2 * weight).sum().backward()
    assert torch.equal(weight.grad, torch.full((5, 2), 3.0))


@pytest.mark.parametrize("fused", [False, True])
def test_state_follows_at_the_next_step(fused):
    weight, square, other = (nn.Parameter(torch.randn(shape)) for shape in [(2, 5), (3, 3), (2, 5)])
    twins = [nn.Parameter(p.detach().clone()) for p in (weight, square, other)]
    optimizer, oracle = (torch.optim.Adam(p, lr=0.1, fused=fused) for p in ([weight, square, other], twins))
    for step in range(2):
        for parameter, twin in zip((weight, square, other), twins):
            twin.grad = torch.randn(twin.shape)
            parameter.grad = twin.grad.clone() if parameter.shape == twin.shape else twin.grad.T.contiguous()
        optimizer.step()
        oracle.step()
        if step == 0:
            transpose_(weight)
    torch.testing.assert_close(weight.T, twins[0])
    torch.testing.assert_close(other, twins[2])
    assert optimizer.state[weight]["exp_avg"].shape == (5, 2)
