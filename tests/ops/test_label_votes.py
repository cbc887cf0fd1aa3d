"""label_votes against its twin."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops


def arguments(batch, rows, num_labels, k=7, kinds=2, also=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (rows,), generator=generator)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    labels = torch.randint(0, num_labels, (int(start[-1]),), generator=generator).int()
    chosen = torch.randint(-1, rows, (batch, k), generator=generator)
    # Sums of such weights are exact, in any order.
    weights = torch.randint(1, 9, (batch, k, kinds), generator=generator) / 8
    others = torch.randint(-1, num_labels, (batch, also), generator=generator)
    return chosen, weights, start, labels, num_labels, others


@pytest.mark.parametrize("sizes", [(0, 3, 5), (1, 1, 1), (9, 40, 6), (30, 200, 5000)])
@pytest.mark.parametrize("keep", [0, 1, 4, 100])
def test_is_its_twin(sizes, keep, threads):
    *some, others = arguments(*sizes)
    ours, theirs = (module.label_votes(*some, keep, others) for module in (ops, twins))
    for a, b in zip(ours, theirs):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_a_poll_leaves_nothing_behind():
    *small, others = arguments(5, 20, 10)
    wanted = ops.label_votes(*small, 4, others)
    *large, more = arguments(5, 20, 3000, kinds=5, seed=1)
    ops.label_votes(*large, 4, more)
    large[3] = large[3].clone()
    large[3][:] = 3000
    with pytest.raises(RuntimeError, match="the labels are damaged"):
        ops.label_votes(*large, 4, more)
    for a, b in zip(ops.label_votes(*small, 4, others), wanted):
        assert torch.equal(a, b)


def test_labels_without_weight_are_listed_once():
    rows, weights = torch.tensor([[0, 1, 2]]), torch.tensor([[[0.0], [-0.0], [0.0]]])
    labels = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 2, 4], dtype=torch.int32)
    found, votes = ops.label_votes(rows, weights, *labels, 6, 3, torch.tensor([[2, 5]]))
    assert found.tolist() == [[2, 4, 5, -1, -1]]
    assert votes.tolist() == [[[0.0]] * 5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.tensor([[2]])}, "rows holds 2; wanted 0 to 1"),
        ({1: torch.ones(1, 2, 1)}, r"weights has shape \[1, 2, 1\]; wanted 1 in dimension 1"),
        ({1: torch.ones(1, 1, 0)}, "wanted at least 1 in dimension 2"),
        ({2: torch.tensor([0, 9, 2])}, "the labels are damaged"),
        ({2: torch.tensor([], dtype=torch.int64)}, "label_start is empty"),
        ({3: torch.tensor([9, 9], dtype=torch.int32)}, "the labels are damaged"),
        ({4: -1}, "num_labels is -1"),
        ({5: -1}, "keep is -1"),
        ({6: torch.tensor([[4]])}, "also holds 4; wanted 0 to 3"),
        ({6: torch.ones(2, 1, dtype=torch.int64)}, r"also has shape \[2, 1\]; wanted 1"),
    ],
)
def test_bad_arguments(change, words):
    some = [torch.tensor([[0]]), torch.ones(1, 1, 1), torch.tensor([0, 1, 2]), torch.tensor([1, 2]).int(), 4, 1]
    some.append(torch.tensor([[0]]))
    assert ops.label_votes(*some)[0].tolist() == [[1, 0]]
    for place, value in change.items():
        some[place] = value
    with pytest.raises(RuntimeError, match=words):
        ops.label_votes(*some)
