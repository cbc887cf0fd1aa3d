"""Losses written by hand: logsumexp, single classes picked by index, margins of labels."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from torch_lsh import LSHConfig, LSHLinear, SampledLogits

N, D, B = 97, 6, 5
Y = torch.tensor([0, 2, 96, 6, 2])
COLUMN = Y.unsqueeze(1)
DOUBLES = {"dtype": torch.float64}


def layer_of(training=True, active=1.0, **options) -> LSHLinear:
    torch.manual_seed(0)
    return LSHLinear(D, N, config=LSHConfig(active=active, **options), **DOUBLES).train(training)


def inputs() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(B, D, **DOUBLES, requires_grad=True)


def subtracted_in_place(z):
    z[range(B), Y] -= 0.3
    return F.cross_entropy(4 * z, Y)


def subtracted_from_some(z):
    some = torch.tensor([3, 1, 0])
    z[some, Y[some]] -= 0.3
    return F.cross_entropy(4 * z, Y)


def arc_face(z):
    target = z.gather(1, COLUMN)
    return F.cross_entropy(4 * z.scatter(1, COLUMN, torch.cos(torch.acos(0.5 * target.tanh()) + 0.3)), Y)


def scattered_in_place(z):
    z.scatter_(1, COLUMN, torch.linspace(-1, 1, B, **DOUBLES).view(B, 1))
    z.scatter_add_(1, COLUMN, torch.full((B, 1), 0.1, **DOUBLES))
    return F.cross_entropy(z, Y)


def several_added(z):
    two = torch.stack([Y, (Y + 1) % N], 1)
    return F.cross_entropy(z.scatter_add(1, two, torch.linspace(-1, 1, 2 * B, **DOUBLES).view(B, 2)), Y)


def picked_of_sequences(z):
    z = z.view(1, B, N).log_softmax(-1)
    return -z[torch.zeros(B, dtype=torch.int64), torch.arange(B), Y].mean()


LOSSES = {
    "partition function and label": lambda z: F.cross_entropy(z, Y) + (z.logsumexp(-1) - z[range(B), Y]).mean(),
    "z-loss": lambda z: F.cross_entropy(z, Y) + 0.1 * torch.logsumexp(z, dim=1, keepdim=True).pow(2).mean(),
    "z-loss of a tuple": lambda z: F.cross_entropy(2 * z, Y) + 0.1 * z.logsumexp((1,)).pow(2).sum(),
    "log_softmax by index": lambda z: -z.log_softmax(-1)[range(B), Y].mean(),
    "log_softmax by tensors": lambda z: -z.log_softmax(1)[torch.arange(B), Y].mean(),
    "log_softmax of some": lambda z: -z.log_softmax(1)[[4, 1, 1], [3, -1, 5]].sum(),
    "log_softmax of sequences": picked_of_sequences,
    "softmax by index": lambda z: -z.softmax(-1)[range(B), Y].log().mean(),
    "margin": lambda z: F.cross_entropy(4 * (z - 0.3 * F.one_hot(Y, N)), Y),
    "margin first": lambda z: F.cross_entropy(4 * (-0.3 * F.one_hot(Y, N) + z), Y),
    "margin in place": lambda z: F.cross_entropy(4 * z.sub_(F.one_hot(Y, N), alpha=2), Y),
    "margins of some": lambda z: F.cross_entropy(z - torch.where(Y > 2, 1.0, 0.0).unsqueeze(1) * F.one_hot(Y, N), Y),
    "subtracted in place": subtracted_in_place,
    "subtracted from some": subtracted_from_some,
    "ArcFace": arc_face,
    "scattered in place": scattered_in_place,
    "several added": several_added,
}


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("name", LOSSES)
def test_with_all_rows_it_is_the_dense_loss(name, scope):
    x, layer = inputs(), layer_of(scope=scope)
    wanted = LOSSES[name](F.linear(x, layer.weight, layer.bias))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = LOSSES[name](layer(x))
    torch.testing.assert_close(loss, wanted)
    places = [x, layer.weight, layer.bias]
    for got, want in zip(torch.autograd.grad(loss, places), torch.autograd.grad(wanted, places)):
        torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOSSES)
def test_in_evaluation_it_is_exact(name):
    x, layer = inputs(), layer_of(False, active=20)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(LOSSES[name](layer(x)), LOSSES[name](F.linear(x, layer.weight, layer.bias)))


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("name", LOSSES)
def test_with_few_rows_it_is_sampled(name, scope):
    x, layer = inputs(), layer_of(active=20, scope=scope)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LOSSES[name](layer(x)).backward()
    assert layer.paths.counts["dense"] == 0
    assert layer.paths.last == "sampled"


def test_the_partition_function_takes_the_rows_of_the_loss_before():
    x, layer = inputs(), layer_of(active=20)
    z = layer(x)
    F.cross_entropy(z, Y)
    assert torch.equal(z.logsumexp(-1), z.logsumexp(-1))
    assert layer.sampler.draws == 1


def test_the_partition_function_is_estimated_without_bias():
    x, layer = inputs(), layer_of(active=40)
    want = F.linear(x, layer.weight, layer.bias).logsumexp(-1).exp()
    draws = []
    for _ in range(400):
        z = layer(x)
        F.cross_entropy(z, Y)
        draws.append(z.logsumexp(-1).exp().detach())
    got = torch.stack(draws)
    assert ((got.mean(0) - want).abs() < 4 * got.std(0) / 20).all()


def test_the_partition_function_before_a_loss_is_dense():
    """Labels are not known then, and may not be among active rows."""
    x, layer = inputs(), layer_of(active=20)
    for _ in range(2):
        with pytest.warns(UserWarning, match="logsumexp before a loss on the same logits has no sampled path"):
            partition = (z := layer(x)).logsumexp(-1)
        torch.testing.assert_close(partition, F.linear(x, layer.weight, layer.bias).logsumexp(-1))
        F.cross_entropy(z, Y)
        layer.paths.why.clear()
        with torch.no_grad():
            layer.weight.add_(1)  # as an optimizer: the active rows are those of another step


def test_single_classes_are_exact_in_training():
    x, layer = inputs(), layer_of(active=20)
    want = F.linear(x, layer.weight, layer.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(layer(x)[range(B), Y], want[range(B), Y])
        torch.testing.assert_close(layer(x)[[[0], [3]], [[1, -1]]], want[[[0], [3]], [[1, -1]]])
    with pytest.raises(IndexError, match="index holds class 97"):
        layer(x)[range(B), Y + 1]


@pytest.mark.filterwarnings("ignore")
def test_other_indices_and_sums_are_dense():
    x, layer = inputs(), layer_of()
    dense = F.linear(x, layer.weight, layer.bias)
    full = torch.randn(B, N, **DOUBLES)
    learned = (0.3 * F.one_hot(Y, N)).double().requires_grad_()
    for got, want in (
        (layer(x) + full, dense + full),
        (layer(x) - learned, dense - learned),
        (layer(x).scatter(1, Y.expand(2, 5)[:, :3], 0.5), dense.scatter(1, Y.expand(2, 5)[:, :3], 0.5)),
        (layer(x).logsumexp(0), dense.logsumexp(0)),
        (layer(x).logsumexp((0, 1)), dense.logsumexp((0, 1))),
    ):
        assert not isinstance(got, SampledLogits)
        torch.testing.assert_close(got, want)


def test_margins_are_ranked_right():
    x, layer = inputs(), layer_of(False)
    with pytest.warns(UserWarning, match="argmax"):
        got = (layer(x) - 9 * F.one_hot(Y, N)).argmax(-1)
    assert torch.equal(got, (F.linear(x, layer.weight, layer.bias) - 9 * F.one_hot(Y, N)).argmax(-1))
