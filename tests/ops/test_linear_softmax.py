from __future__ import annotations

import math

import pytest
import torch

from torch_lsh import ops


def compared(dtype, log_weight, batch=6, count=700, labels=2):
    """Loss and gradient of the logits, and both in float64, where rows with this weight are labels of samples."""
    torch.manual_seed(0)
    x, weight = torch.randn(batch, 8, dtype=dtype), torch.randn(1000, 8, dtype=dtype)
    rows = torch.randperm(1000)[:count].sort().values
    numbers = torch.promote_types(dtype, torch.float32)
    log_weights, shares = torch.randn(count, dtype=numbers), torch.rand(batch, labels, dtype=numbers)
    positions = torch.randint(count, (batch, labels))
    positions[0, -1], positions[-1] = -1, positions[-1, 0]  # none, and one twice
    log_weights[positions[positions >= 0]] = log_weight
    loss, slopes, scale = ops.linear_softmax_loss(x, weight, None, rows, log_weights, positions, shares)

    logits = (x.double() @ weight[rows].double().T).requires_grad_()
    own_weights = log_weights.double().expand(batch, -1).clone()
    for weights, own in zip(own_weights, positions):
        weights[own[own >= 0]] = 0
    log_z = (logits + own_weights).logsumexp(1, keepdim=True)
    losses = (shares.double() * (log_z - logits.gather(1, positions.clamp(min=0)))).masked_fill(positions < 0, 0)
    losses.sum().backward()
    return (loss, slopes, slopes * scale), (losses.detach().sum(1), logits.grad.T)


def assert_as_in_float64(found, wanted):
    loss, slopes, gradient = found
    rounding = 2.0**-8 if slopes.dtype is torch.bfloat16 else 1e-4
    torch.testing.assert_close(loss.double(), wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted[1], rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("log_weight", [-math.inf, -1e30, -100.0, -61.0, -30.0, 30.0, 59.0])
def test_a_label_weighs_one_whatever_the_weight_of_its_row(simd_level, dtype, log_weight):
    assert_as_in_float64(*compared(dtype, log_weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("log_weight", [61.0, 100.0, 1000.0, 1e30])
def test_weights_that_overflow_but_at_labels(simd_level, dtype, log_weight):
    """Alone in a batch, no sample has another one's label for a negative."""
    assert_as_in_float64(*compared(dtype, log_weight, batch=1, labels=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("factor", [1e3, -1e3])
@pytest.mark.parametrize("batch", [9, 40])
def test_a_sample_with_huge_logits_leaves_the_others_alone(simd_level, dtype, factor, batch):
    """Its exponentials are relative to another maximum than those of the others."""
    torch.manual_seed(0)
    x, weight = torch.randn(batch, 8, dtype=dtype), torch.randn(900, 8, dtype=dtype)
    rows, positions = torch.arange(700), torch.randint(700, (batch, 2))
    shares = torch.rand(batch, 2, dtype=torch.promote_types(dtype, torch.float32))
    calm, wild = x.clone(), x.clone()
    wild[4] *= factor
    others = torch.arange(batch) != 4
    for one, other in zip(
        *(ops.linear_softmax_loss(some, weight, None, rows, None, positions, shares) for some in (calm, wild))
    ):
        assert torch.equal(one[..., others], other[..., others])
    loss, slopes, scale = ops.linear_softmax_loss(wild, weight, None, rows, None, positions, shares)
    log_p = (wild[4].double() @ weight[:700].double().T).log_softmax(0)
    wanted = -(shares[4].double() * log_p[positions[4]]).sum()
    torch.testing.assert_close(loss[4].double(), wanted, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-3)
    softmax = (slopes * scale)[:, 4].double().scatter_add(0, positions[4], shares[4].double()) / shares[4].sum()
    rounding = 2.0**-8 if slopes.dtype is torch.bfloat16 else 1e-3
    torch.testing.assert_close(softmax, log_p.exp(), rtol=1e-2, atol=rounding)


@pytest.mark.parametrize("with_weights", [False, True])
def test_exponentials_are_accurate_over_their_whole_range(simd_level, with_weights):
    """Samples enough for several vectors, one, and some numbers; rows of 0 tell the size of logits."""
    z = torch.cat([-torch.logspace(-6, 1.9, 15_000), torch.logspace(-6, 1.4, 5_000)])
    z[:: len(z) // 8] = 0
    log_weights, logits = (z, torch.zeros(len(z))) if with_weights else (None, z)
    ones = torch.ones(53, 1)
    slopes = ops.linear_softmax_loss(
        ones, logits[:, None], None, torch.arange(len(z)), log_weights, torch.zeros(53, 1, dtype=torch.long), ones
    )[1]
    wanted = z[1:, None].double().exp().float().expand(-1, 53)
    torch.testing.assert_close(slopes[1:], wanted, rtol=4e-7, atol=2e-38)
