"""``torch.func`` and ``torch.optim.swa_utils``."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, update_bn
from trainers import task


def test_functional_call():
    model = task.make_model()
    parameters = dict(model.named_parameters())
    x, y = next(iter(task.batches()))
    loss = F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)
    wanted = F.cross_entropy(task.make_model()(x), y)
    torch.testing.assert_close(loss, wanted, rtol=0, atol=0)
    gradients = torch.autograd.grad(loss, parameters.values())
    assert gradients[2].shape == model[2].weight.shape


def test_gradients_by_torch_func():
    """An exact loss in eval mode, where ``torch.func`` sees the dense layer."""
    model = task.make_model().eval()
    dense = task.torch_lsh.densify_(copy.deepcopy(model))
    x, y = next(iter(task.batches()))

    def loss(parameters, module):
        return F.cross_entropy(torch.func.functional_call(module, parameters, (x,)), y)

    got = torch.func.grad(loss)(dict(model.named_parameters()), model)
    wanted = torch.func.grad(loss)(dict(dense.named_parameters()), dense)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name])


def test_swa_utils():
    model = task.make_model()
    optimizer = task.make_optimizer(model)
    averaged = AveragedModel(model)
    weights = []
    for x, y in task.batches():
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
        weights.append(model[2].weight.detach().clone())
    task.assert_sampled(model)
    update_bn([x for x, _ in task.batches()], averaged)
    torch.testing.assert_close(averaged.module[2].weight, torch.stack(weights).mean(0))
    x = torch.randn(4, task.WIDTH)
    averaged.eval()
    wanted = F.linear(averaged.module[:2](x), averaged.module[2].weight, averaged.module[2].bias)
    assert torch.equal(averaged(x).topk(3).indices, wanted.topk(3).indices)
    assert torch.equal(averaged.module[2].topk(averaged.module[:2](x), 1, exact=False).indices, wanted.topk(1).indices)
