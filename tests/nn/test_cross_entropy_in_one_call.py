"""LSHLinear.cross_entropy, which makes no lazy logits, against F.cross_entropy of the layer's logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_lsh import LSHConfig, LSHLinear, optim
from torch_lsh.nn.logits.tensor import SampledLogits


def steps(one_call: bool, shape: tuple[int, ...], training: bool, **loss: object) -> tuple[list[object], object]:
    torch.manual_seed(0)
    layer = LSHLinear(8, 2_000, config=LSHConfig(active=64)).train(training)
    optimizer = optim.Adam(layer.parameters(), in_backward=True)
    found: list[object] = []
    for _ in range(3):
        x, y = torch.randn(*shape, 8, requires_grad=True), torch.randint(2_000, shape)
        if one_call:
            value = layer.cross_entropy(x, y, **loss)
        else:
            logits = layer(x)
            value = F.cross_entropy(logits.movedim(-1, 1) if len(shape) > 1 else logits, y, **loss)
        value.sum().backward()
        optimizer.step()
        found += value.flatten().tolist() + x.grad.flatten().tolist()
    return found, layer.paths.counts


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("loss", [{}, {"reduction": "none"}, {"label_smoothing": 0.1}], ids=str)
def test_the_same_as_of_lazy_logits(shape, training, loss):
    assert steps(True, shape, training, **loss) == steps(False, shape, training, **loss)


def test_a_dense_target_takes_the_dense_logits():
    layer, x, shares = LSHLinear(8, 50), torch.randn(3, 8), torch.rand(3, 50)
    with pytest.warns(UserWarning, match="cross_entropy"):
        loss = layer.cross_entropy(x, shares)
    assert torch.equal(loss, F.cross_entropy(F.linear(x, layer.weight, layer.bias), shares))


def hooked(layer: LSHLinear, seen: list[object]) -> None:
    layer.register_forward_hook(lambda module, args, result: seen.append(type(result)))


def replaced(layer: LSHLinear, seen: list[object]) -> None:
    forward = layer.forward

    def other(x: torch.Tensor) -> torch.Tensor:
        result = forward(x)
        seen.append(type(result))
        return result

    layer.forward = other


@pytest.mark.parametrize("change", [hooked, replaced])
def test_what_wraps_forward_sees_the_lazy_logits(change):
    layer, seen = LSHLinear(8, 2_000, config=LSHConfig(active=64)), []
    change(layer, seen)
    layer.cross_entropy(torch.randn(3, 8), torch.tensor([1, 2, 3])).backward()
    assert seen == [SampledLogits]


def test_hooks_of_all_modules_run():
    layer, seen = LSHLinear(8, 2_000, config=LSHConfig(active=64)), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, result: seen.append(module))
    try:
        layer.cross_entropy(torch.randn(3, 8), torch.tensor([1, 2, 3]))
    finally:
        hook.remove()
    assert seen == [layer]
