"""Targets: every form is parsed into labels and shares; what does not fit is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torch_lsh.nn.logits.targets import as_target, multi_hot

N, BATCH = 10, torch.Size([3])


def parse(target, ignore_index=-100):
    return as_target(target, BATCH, N, ignore_index, torch.float64)


@pytest.mark.parametrize(
    ("target", "ignore_index", "labels", "shares", "complete"),
    [
        (torch.tensor([1, 2, 9]), -100, [[1], [2], [9]], [[1], [1], [1]], True),
        (torch.tensor([1, 2, 9], dtype=torch.uint8), -100, [[1], [2], [9]], [[1], [1], [1]], True),
        (torch.tensor([1, -100, 9]), -100, [[1], [-1], [9]], [[1], [0], [1]], False),
        (torch.tensor([1, 2, 9]), 2, [[1], [-1], [9]], [[1], [0], [1]], False),
        (torch.tensor([[1, 2], [3, 4], [5, 6]]), -100, [[1, 2], [3, 4], [5, 6]], [[0.5, 0.5]] * 3, True),
        (
            torch.tensor([[1, 2], [3, -100], [-100, -100]]),
            -100,
            [[1, 2], [3, -1], [-1, -1]],
            [[0.5, 0.5], [1, 0], [0, 0]],
            False,
        ),
    ],
)
def test_indices(target, ignore_index, labels, shares, complete):
    parsed = parse(target, ignore_index)
    assert parsed.labels.tolist() == labels
    assert parsed.shares.tolist() == shares
    assert parsed.complete == complete
    assert parsed.several == (len(labels[0]) > 1)
    assert not parsed.probabilities


def test_repeated_labels_are_the_mean_of_their_one_hot_vectors():
    """As a distribution in PyTorch's sense, dense or CSR, would have it."""
    labels = torch.tensor([[1, 1, 1, 2], [3, 3, -100, -100], [4, 5, -100, -100]])
    dense = torch.stack([F.one_hot(row[row >= 0], N).double().mean(0) for row in labels])
    for target in (labels, dense.to_sparse_csr()):
        parsed = parse(target)
        spread = torch.zeros(3, N, dtype=torch.float64)
        spread.scatter_add_(1, parsed.labels.clamp(min=0), parsed.shares)
        assert torch.equal(spread, dense)


def test_csr():
    dense = torch.zeros(3, N)
    dense[0, 4], dense[0, 6], dense[2, 1] = 0.25, 0.75, 1.0
    parsed = parse(dense.to_sparse_csr())
    assert parsed.labels.tolist() == [[4, 6], [-1, -1], [1, -1]]
    assert parsed.shares.tolist() == [[0.25, 0.75], [0, 0], [1, 0]]
    assert parsed.several
    assert parsed.probabilities
    assert torch.equal(multi_hot(parsed, N), (dense > 0).double())
    empty = as_target(torch.zeros(0, N).to_sparse_csr(), torch.Size([0]), N, -100, torch.float64)
    assert empty.labels.shape == (0, 0)


def test_dense_distributions_are_left_to_the_caller():
    assert parse(torch.rand(3, N)) is None


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([1, 2, 3], TypeError, "target is a list; wanted a tensor"),
        (torch.arange(3, device="meta"), RuntimeError, "target is on meta; wanted cpu"),
        (torch.zeros(3, N + 1).to_sparse_csr(), ValueError, r"target has shape \(3, 11\); wanted \(3, 10\)"),
        (torch.rand(3), ValueError, "wanted class indices"),
        (torch.arange(3, dtype=torch.int32), TypeError, r"target has dtype torch.int32; wanted torch.int64"),
        (torch.arange(4), ValueError, r"target has shape \(4,\); wanted \(3,\)"),
        (torch.tensor([1, 2, 10]), IndexError, "target holds class 10; wanted 0 to 9"),
        (torch.tensor([1, -100, 10]), IndexError, "target holds class 10; wanted 0 to 9"),
        (torch.tensor([1, -2, 3]), IndexError, "target holds class -2; wanted 0 to 9, or -100 for none"),
    ],
)
def test_bad_targets_are_named(target, error, message):
    with pytest.raises(error, match=message):
        parse(target)
