"""Several Python threads: everything made at first use is whole when another thread sees it; training is for one."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

import torch_lsh
from torch_lsh import HashTableConfig, LSHConfig, LSHLinear, ops
from torch_lsh.models import TextClassifier

THREADS = 8
N, D = 400, 16


def together(work, count=THREADS):
    """The results of ``work(i)`` in threads that begin at the same moment."""
    barrier = threading.Barrier(count)

    def run(number):
        torch.set_num_threads(1)
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def layer_with(**options):
    return LSHLinear(D, N, config=LSHConfig(active=50, **options)).eval()


# What each makes at its first use: sign codes; hash tables; codes of int8 weights; the lazy logits of an exact top-k.
FIRST_USES = {
    "approximate top-k": (layer_with, lambda layer, x: layer.topk(x, 5, exact=False)),
    "approximate top-k with candidates": (layer_with, lambda layer, x: layer.topk(x, 5, exact=False, candidates=100)),
    "quantised": (
        lambda: torch_lsh.quantize_(layer_with(), filter_fn=lambda module, name: True),
        lambda layer, x: layer.topk(x, 5, exact=False),
    ),
    "exact top-k": (layer_with, lambda layer, x: layer(x).topk(5)),
    "hash tables": (
        lambda: layer_with(index=HashTableConfig(hashes_per_table=2, bucket_size=N)),
        lambda layer, x: layer.sampler.look_up(layer.weight, layer.bias, x).rows,
    ),
}


@pytest.mark.parametrize("name", FIRST_USES)
def test_first_use_in_eval_mode(name):
    make, use = FIRST_USES[name]
    for attempt in range(5):
        torch.manual_seed(attempt)
        layer = make()
        inputs = [torch.randn(4, D) for _ in range(THREADS)]
        # A layer learns from the first inputs that it sees, so compare with what does not depend on them.
        exact = [F.linear(x, layer.weight, layer.bias) for x in inputs]
        with torch.no_grad():
            results = together(lambda i, layer=layer, inputs=inputs: use(layer, inputs[i]))
        for logits, result in zip(exact, results):
            if torch.is_tensor(result):
                assert len(result.unique()) == len(result)
                assert ((result >= 0) & (result < N)).all()
            else:
                check_best(logits, result)


def check_best(logits, result):
    best = logits.topk(5)
    shared = [len(set(a) & set(b)) for a, b in zip(result.indices.tolist(), best.indices.tolist())]
    assert sum(shared) >= 0.75 * 5 * len(shared)  # unfinished codes: about 0.3
    torch.testing.assert_close(result.values, logits.gather(1, result.indices), rtol=1e-4, atol=1e-4)


def test_look_ups_without_the_lock():
    """From 256 inputs on, threads look up without a lock, while others may still build the index that they take."""
    for attempt in range(3):
        torch.manual_seed(attempt)
        layer = layer_with()
        inputs = torch.randn(THREADS, 4, 96, D)

        def use(i, layer=layer, inputs=inputs):
            with torch.no_grad():
                return [layer.topk(x, 5, exact=False) for x in inputs[i]]

        for of_thread, results in zip(inputs, together(use)):
            for x, result in zip(of_thread, results):
                check_best(F.linear(x, layer.weight, layer.bias).detach(), result)


def test_first_use_of_a_text_classifier():
    texts = ["a fine film", "good fun", "dull and long", "a bad film"] * 10
    model = TextClassifier().fit(texts, ["pos", "pos", "neg", "neg"] * 10)
    expected = model.top_k(texts[:4], 2)[0].tolist()
    for _ in range(3):
        fresh = copy.deepcopy(model)
        for labels, _ in together(lambda i, fresh=fresh: fresh.top_k(texts[:4], 2)):
            assert labels.tolist() == expected


def test_instruction_set_and_pool_at_first_use():
    x, weight = torch.randn(64, D), torch.randn(5000, D)
    expected = ops.product(x, weight.T)
    for result in together(lambda i: [ops.product(x, weight.T) for _ in range(20)]):
        assert all(torch.equal(one, expected) for one in result)


def test_training_from_two_threads_at_once_is_an_error():
    layer = layer_with(index=HashTableConfig(hashes_per_table=2)).train()
    inside, leave = threading.Event(), threading.Event()

    class Waits(torch.Tensor):
        """An input at whose use a draw waits for the other thread."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            inside.set()
            leave.wait(10)
            return super().__torch_function__(function, types, args, kwargs or {})

    def draw(x):
        return layer.sampler.draw(layer.weight, layer.bias, x, torch.tensor([[3]]))

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(draw, torch.randn(1, D).as_subclass(Waits))
        assert inside.wait(10)
        with pytest.raises(RuntimeError, match="these rows are trained by two threads at once; wanted one at a time"):
            draw(torch.randn(1, D))
        leave.set()
        assert 3 in first.result().rows
    # Then, and from another thread, training goes on.
    assert 3 in draw(torch.randn(1, D)).rows
    with ThreadPoolExecutor(1) as pool:
        assert 3 in pool.submit(draw, torch.randn(1, D)).result().rows


def test_copies_train_at_the_same_time():
    layer = layer_with(index=HashTableConfig(hashes_per_table=2)).train()
    copies = [copy.deepcopy(layer) for _ in range(2)]

    def train(number):
        mine = copies[number]
        optimizer = torch_lsh.optim.Adam(mine.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(0)
        for _ in range(10):
            x = torch.randn(4, D, generator=generator)
            F.cross_entropy(mine(x), torch.arange(4)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return mine.weight.detach()

    assert torch.equal(*together(train, 2))
