"""torch.utils.checkpoint: loss and gradient are those of one draw, and the random stream moves once."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear

N, WIDTH = 2_000, 8


def train(use_reentrant, compiled=False):
    torch.manual_seed(0)
    trunk, head = nn.Linear(WIDTH, WIDTH), LSHLinear(WIDTH, N, config=LSHConfig(active=100))
    optimizer = torch_lsh.optim.SGD([*trunk.parameters(), *head.parameters()], lr=0.1)

    def loss_of(x, y):
        hidden = F.dropout(trunk(x), 0.5)
        return head.cross_entropy(hidden, y) if compiled else F.cross_entropy(head(hidden), y)

    if compiled:
        torch._dynamo.reset()
        loss_of = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    results = []
    for _ in range(3):
        optimizer.zero_grad()
        x, y = torch.randn(8, WIDTH, requires_grad=True), torch.randint(0, N, (8,))
        # Two parts with the same labels: they are told apart by their inputs.
        for part in x.chunk(2):
            if use_reentrant is None:
                loss = loss_of(part, y[:4])
            else:
                loss = checkpoint(loss_of, part, y[:4], use_reentrant=use_reentrant)
            results.append(loss)
        sum(results[-2:]).backward()
        optimizer.step()
        results += [x.grad, head.sampler.draws]
    return [*results, head.weight, trunk.weight]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_checkpoint_changes_nothing(use_reentrant, compiled):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch_lsh: the loss is estimated from sampled rows although gradients")
        results = train(use_reentrant, compiled)
    torch.testing.assert_close(results, train(None, compiled), rtol=0, atol=0)


def test_a_draw_inside_of_a_backward_pass_that_repeats_none_is_new():
    layer, draws = LSHLinear(WIDTH, N, config=LSHConfig(active=100)), []
    x = torch.randn(4, WIDTH, requires_grad=True)
    x.register_hook(lambda _: draws.append(F.cross_entropy(layer(torch.ones(4, WIDTH)), torch.arange(4))))
    x.sum().backward()
    assert len(draws) == layer.sampler.draws == 1


def test_draws_are_kept_until_the_weight_changes():
    head = LSHLinear(WIDTH, N, config=LSHConfig(active=100))
    optimizer = torch_lsh.optim.SGD(head.parameters(), lr=0.1)
    rows = []
    draw = head.sampler.draw

    def note(*args, **options):
        active = draw(*args, **options)
        rows.append(weakref.ref(active.rows))
        return active

    head.sampler.draw = note
    for _ in range(4):
        losses = [
            checkpoint(lambda x: F.cross_entropy(head(x), torch.arange(4)), torch.randn(4, WIDTH), use_reentrant=False)
            for _ in range(3)
        ]
        sum(losses).backward()
        del losses
        gc.collect()
        assert len({id(one()) for one in rows if one() is not None}) <= 3
        optimizer.step()
        optimizer.zero_grad()
    assert head.sampler.draws == 12
