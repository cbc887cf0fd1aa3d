"""Row-sparse gradients under DistributedDataParallel, in two processes."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh import EmbeddingBag, LSHConfig, LSHLinear
from torch_lsh.distributed import average_gradients, broadcast_parameters, exchange_rows_

from .processes import in_processes

D, N, B, FEATURES = 8, 500, 12, 40


def make_model(active: float = 60, seed: int = 0, carry: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    head = LSHLinear(D, N, config=LSHConfig(active=active, carry=carry, rehash=torch_lsh.FixedInterval(3)))
    return nn.Sequential(EmbeddingBag(FEATURES, D, mode="sum"), nn.Linear(D, D), nn.ReLU(), head)


def make_batches(count: int, seed: int = 1, size: int = B) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(0, FEATURES, (size, 3), generator=generator),
            torch.randint(0, N, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def half(batches, rank: int):
    part = slice(rank * B // 2, (rank + 1) * B // 2)
    return [(x[part], y[part]) for x, y in batches]


def train(model: nn.Module, batches, accumulate: int = 1, average=lambda parameters: None, skips_head: bool = False):
    """The loop of a user; returns the parameters and the layouts of the last gradients."""
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.05)
    for number, (x, y) in enumerate(batches):
        last = (number + 1) % accumulate == 0
        with contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
            if skips_head:
                model(x, skips_head=True).sum().backward()
            else:
                F.cross_entropy(model(x), y).backward()
        if last:
            average(model.parameters())
            layouts = [parameter.grad.layout for parameter in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()], layouts


class TwoWays(nn.Module):
    """A model that need not use its head."""

    def __init__(self) -> None:
        super().__init__()
        *trunk, self.head = make_model()
        self.trunk = nn.Sequential(*trunk)

    def forward(self, x: torch.Tensor, skips_head: bool = False) -> torch.Tensor:
        hidden = self.trunk(x)
        return hidden if skips_head else self.head(hidden)


# --- what the two processes do ----------------------------------------------------------------------------------------


def wrapped(rank: int, before: bool = True, **options) -> tuple[DistributedDataParallel, object]:
    model = make_model(seed=rank)  # different, so that it shows who copies parameters
    exchange = exchange_rows_(model) if before else None
    wrapper = DistributedDataParallel(model, **options)
    return wrapper, exchange or exchange_rows_(wrapper)


def by_hand(rank: int, accumulate: int = 1):
    model = make_model()
    broadcast_parameters(model)
    return train(model, half(make_batches(6), rank), accumulate, average_gradients)


def wrappers(rank: int):
    ways = {
        "before": {},
        "after": {"before": False},
        "finds unused": {"find_unused_parameters": True},
        "static graph": {"static_graph": True},
        "gradients as views": {"gradient_as_bucket_view": True},
    }
    return {name: train(wrapped(rank, **way)[0], half(make_batches(6), rank)) for name, way in ways.items()}


def all_active(rank: int):
    model = make_model(active=1.0)
    exchange_rows_(model)
    return train(DistributedDataParallel(model), half(make_batches(4), rank))[0]


def carrying(rank: int):
    model = make_model(carry=0.5)
    exchange_rows_(model)
    train(DistributedDataParallel(model), half(make_batches(4), rank))
    return model[3].sampler.carried


def skipping(rank: int):
    """Process 1 does not use the head."""
    model = TwoWays()
    exchange_rows_(model)
    wrapper = DistributedDataParallel(model, find_unused_parameters=True)
    return train(wrapper, half(make_batches(3), rank), skips_head=rank == 1)


def uneven(rank: int, of_all: bool):
    """Process 0 runs out of inputs after two batches, and process 1 after four."""
    wrapper, _ = wrapped(rank)
    with wrapper.join(divide_by_initial_world_size=of_all):
        optimizer = torch_lsh.optim.SGD(wrapper.parameters(), lr=0.5)
        for x, y in half(make_batches(4), rank)[: 2 + 2 * rank]:
            F.cross_entropy(wrapper(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in wrapper.parameters()]


def untold(rank: int):
    """A wrapper that was not told: dense with a warning, and nothing is left when it is gone."""
    model = make_model()
    optimizer = torch_lsh.optim.SGD(model.parameters(), lr=0.1)
    wrapper = DistributedDataParallel(model)
    (x, y), seen = make_batches(1)[0], []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            F.cross_entropy(wrapper(x), y).backward()
        seen.append(([str(warning.message) for warning in caught], model[3].weight.grad.layout))
        optimizer.zero_grad()
    del wrapper
    gc.collect()
    F.cross_entropy(model(x), y).backward()
    return seen, model[3].weight.grad.layout


def gone(rank: int):
    """What is left of an exchange when its wrapper is gone, and in copies."""
    wrapper, exchange = wrapped(rank)
    model, (x, y) = wrapper.module, make_batches(1)[0]
    train(wrapper, make_batches(1))
    sent = exchange.bytes_sent
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    del wrapper
    for one in (model, *copies):
        optimizer = torch_lsh.optim.SGD(one.parameters(), lr=0.1)  # noqa: F841  # as long as it lives, rows are updated
        one.zero_grad()
        if rank == 0:  # nobody answers an exchange
            F.cross_entropy(one(x), y).backward()
            assert one[3].weight.grad.layout is torch.sparse_coo
    # Another wrapper begins anew.
    wrapper = DistributedDataParallel(model)
    begun = exchange.bytes_sent
    train(wrapper, make_batches(1))
    return sent, exchange.bytes_sent - begun


def errors(rank: int):
    with pytest.raises(ValueError, match="no layer with row-sparse gradients"):
        exchange_rows_(nn.Linear(2, 2))
    wrapper, _ = wrapped(rank)
    optimizer = torch_lsh.optim.SGD(wrapper.parameters(), lr=0.1, in_backward=True)  # noqa: F841  # as long as it lives
    x, y = make_batches(1)[0]
    loss = F.cross_entropy(wrapper(x), y)
    with pytest.raises(RuntimeError, match="updated in the backward pass"):
        loss.backward()
    model = make_model() if rank == 0 else nn.Sequential(nn.Linear(2, 2), LSHLinear(D, N + 1))
    exchange_rows_(model)
    with pytest.raises(RuntimeError, match="wanted the same in all"):
        DistributedDataParallel(model)


def bytes_of_a_step(rank: int):
    """A head of 200,000 rows with 2,000 active; its bytes beside those of the dense gradient."""
    head = LSHLinear(32, 200_000, config=LSHConfig(active=2_000, sampler="uniform"))
    model = nn.Sequential(nn.Linear(4, 32), head)
    exchange = exchange_rows_(model)
    wrapper = DistributedDataParallel(model)
    optimizer = torch_lsh.optim.SGD(wrapper.parameters(), lr=0.1)
    before = exchange.bytes_sent
    F.cross_entropy(wrapper(torch.randn(4, 4)), torch.arange(4) + 10 * rank).backward()
    optimizer.step()
    return exchange.bytes_sent - before, head.weight.nbytes + head.bias.nbytes


def work(rank: int):
    return {
        "by hand": by_hand(rank),
        "wrappers": wrappers(rank),
        "accumulated by hand": by_hand(rank, accumulate=2),
        "accumulated": train(wrapped(rank)[0], half(make_batches(6), rank), accumulate=2),
        "all active": all_active(rank),
        "carrying": carrying(rank),
        "skipping": skipping(rank),
        "uneven": [uneven(rank, of_all) for of_all in (True, False)],
        "untold": untold(rank),
        "gone": gone(rank),
        "errors": errors(rank),
        "bytes": bytes_of_a_step(rank),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_processes(work, 2, tmp_path_factory.mktemp("processes"))


# --- what must have come out ------------------------------------------------------------------------------------------


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def is_by_rows(layouts) -> bool:
    """Whether the bag and the head have row-sparse gradients, and the layer between has dense ones."""
    rows, dense = torch.sparse_coo, torch.strided
    return layouts == [rows, dense, dense, rows, rows]


@pytest.mark.parametrize("way", ["before", "after", "finds unused", "static graph", "gradients as views"])
def test_an_unchanged_loop_equals_one_that_averages(results, way):
    for result in results:
        assert is_by_rows(result["wrappers"][way][1])
        assert_equal(result["wrappers"][way][0], result["by hand"][0])
    assert_equal(results[0]["wrappers"][way][0], results[1]["wrappers"][way][0])


def test_gradients_are_accumulated_without_exchange(results):
    for result in results:
        assert is_by_rows(result["accumulated"][1])
        for one, other in zip(result["accumulated"][0], result["accumulated by hand"][0]):
            torch.testing.assert_close(one, other)
    assert_equal(results[0]["accumulated"][0], results[1]["accumulated"][0])


def test_two_processes_equal_one_with_both_halves(results):
    alone = train(make_model(active=1.0), make_batches(4))[0]
    for one, other in zip(results[0]["all active"], alone):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert_equal(results[0]["all active"], results[1]["all active"])


def test_processes_carry_over_the_same_rows(results):
    first, second = (result["carrying"] for result in results)
    assert torch.equal(first, second)
    assert len(first.unique()) == len(first) == 30


def test_a_process_need_not_use_the_head(results):
    assert_equal(results[0]["skipping"][0], results[1]["skipping"][0])
    assert all(torch.sparse_coo in result["skipping"][1] for result in results)
    started = [parameter.detach() for parameter in TwoWays().parameters()]
    assert not any(torch.equal(one, other) for one, other in zip(results[1]["skipping"][0], started))


@pytest.mark.parametrize("of_all", [True, False])
def test_inputs_may_run_out(results, of_all):
    assert_equal(results[0]["uneven"][not of_all], results[1]["uneven"][not of_all])


def test_means_of_uneven_inputs_differ(results):
    of_all, of_some = results[0]["uneven"]
    assert not torch.equal(of_all[-1], of_some[-1])


def test_dense_exchange_warns_once_and_ends_with_the_wrapper(results):
    for result in results:
        (first, second), layout_afterwards = result["untold"]
        assert [layout for _, layout in (first, second)] == [torch.strided] * 2
        assert len(first[0]) == 1
        assert "exchange_rows_(model) before the model is wrapped" in first[0][0]
        assert second[0] == []
        assert layout_afterwards is torch.sparse_coo


def test_without_the_wrapper_nothing_is_exchanged(results):
    for sent, then in (result["gone"] for result in results):
        assert sent > 0
        assert then > 0


def test_bytes_are_those_of_the_rows(results):
    for sent, dense in (result["bytes"] for result in results):
        # 4 labels and 2,000 random rows: 32 weights, a bias, and their number for either; kinds and counts.
        assert sent == 2_004 * (32 * 4 + 4 + 2 * 8) + 3 * 16
        assert dense / sent > 80
