"""Centroids and classifiers of labels, and products with them, against their twins, and what they promise."""

from __future__ import annotations

import math

import pytest
import torch
import twins

from torch_lsh import ops


def random_csr(rows, columns, density, seed, whole=False):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, columns, generator=generator)
    if whole:
        dense = torch.randint(-3, 4, (rows, columns), generator=generator).float()
    csr = (dense * (torch.rand(rows, columns, generator=generator) < density)).to_sparse_csr()
    return csr.crow_indices().clone(), csr.col_indices().int(), csr.values().clone()


def training_rows(rows, columns, labels, seed=0):
    start, members, _ = random_csr(labels, rows, 0.3, seed + 1)
    positive = torch.rand(len(members), generator=torch.Generator().manual_seed(seed)) < 0.4
    return random_csr(rows, columns, 0.2, seed), (start, members), positive


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 17, 5), (60, 33, 700)])
def test_sums_are_those_of_the_twin(shape, threads):
    rows, columns, labels = shape
    matrix = random_csr(rows, columns, 0.3, 0, whole=True)
    start, members, _ = random_csr(labels, rows, 0.3, 1)
    for threshold, unit in ((0.0, True), (0.1234, True), (1.0, False)):
        ours = ops.sum_rows(*matrix, columns, start, members, threshold, unit)
        theirs = twins.sum_rows(*matrix, columns, start, members, threshold, unit)
        for some, wanted in zip(ours, theirs):
            torch.testing.assert_close(some, wanted)


@pytest.mark.parametrize("shape", [(1, 1), (40, 17), (17, 300), (3, 0)])
def test_columns_are_those_of_the_twin(shape):
    rows, columns = shape
    matrix = random_csr(rows, columns, 0.3, 0)
    for some, wanted in zip(ops.transpose_rows(*matrix, columns), twins.transpose_rows(*matrix, columns)):
        assert some.dtype == wanted.dtype
        assert torch.equal(some, wanted)


@pytest.mark.parametrize("shape", [(3, 2, 1), (30, 17, 20)])
def test_classifiers_are_those_of_the_twin(shape, threads):
    rows, columns, labels = shape
    matrix, members, positive = training_rows(rows, columns, labels)
    for rest in ((3, 0.01, 5), (10, 0.01, 5, 0.05)):
        ours = ops.fit_linear_rows(*matrix, columns, *members, positive, torch.tensor([0.1, 0.7]), *rest)
        theirs = twins.fit_linear_rows(*matrix, columns, *members, positive, torch.tensor([0.1, 0.7]), *rest)
        for some, wanted in zip(ours, theirs):
            torch.testing.assert_close(some, wanted, rtol=1e-4, atol=1e-5)


def test_passes_end_when_one_adds_too_little():
    """No pass adds more than all of them have, so that the first one is the last."""
    matrix, members, positive = training_rows(50, 20, 10)
    _, _, one, _ = ops.fit_linear_rows(*matrix, 20, *members, positive, COSTS, 1, 0.0, 0)
    _, _, more, _ = ops.fit_linear_rows(*matrix, 20, *members, positive, COSTS, 9, 0.0, 0)
    _, _, ended, _ = ops.fit_linear_rows(*matrix, 20, *members, positive, COSTS, 9, 0.0, 0, tolerance=1.1)
    assert torch.equal(ended, one)
    assert not torch.equal(ended, more)


def test_classifiers_minimise_the_squared_hinge_loss():
    """Gradient descent on the primal problem ends at the same weights."""
    matrix, (start, members), positive = training_rows(60, 12, 1)
    _, columns, weights, bias = ops.fit_linear_rows(
        *matrix, 12, start, members, positive, torch.tensor([0.1, 0.5]), 2000, 0.0, 0
    )
    x = torch.sparse_csr_tensor(*matrix, (60, 12)).to_dense().double()[members.long()]
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    y = positive.double() * 2 - 1
    w = torch.zeros(13, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        value = w.square().sum() / 2 + 0.5 * (1 - y * (x @ w)).clamp(min=0).square().sum()
        value.backward()
        return value

    optimizer.step(objective)
    ours = torch.zeros(13, dtype=torch.float64).index_put_((columns.long(),), weights[1].double())
    ours[12] = bias[1, 0]
    torch.testing.assert_close(ours, w.detach(), rtol=0, atol=0.02)


def test_small_weights_are_left_out():
    matrix, members, positive = training_rows(50, 20, 10)
    everything = ops.fit_linear_rows(*matrix, 20, *members, positive, COSTS, 5, 0.0, 0)
    start, columns, weights, bias = ops.fit_linear_rows(*matrix, 20, *members, positive, COSTS, 5, 0.2, 0)
    kept = (everything[2].abs() > 0.2).any(0)
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(weights, everything[2][:, kept])
    assert torch.equal(columns, everything[1][kept])
    assert torch.equal(bias, everything[3])
    assert start[-1] == len(columns)


def test_a_label_without_rows_has_no_weights():
    matrix = random_csr(4, 3, 0.9, 0)
    nothing = torch.zeros(3, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
    start, columns, weights, bias = ops.fit_linear_rows(
        *matrix, 3, *nothing, torch.empty(0, dtype=torch.bool), COSTS, 5, 0.0, 0
    )
    assert start.tolist() == [0, 0, 0]
    assert len(columns) == 0
    assert weights.shape == (2, 0)
    assert bias.tolist() == [[0, 0], [0, 0]]
    assert ops.sum_rows(*matrix, 3, *nothing, 0.0)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(3, 2, 1), (30, 17, 20), (60, 130, 5)])
def test_classifiers_of_dense_rows_are_those_of_the_twin(shape, threads, simd_level):
    rows, columns, labels = shape
    _, members, positive = training_rows(rows, columns, labels)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    ours = ops.fit_dense_rows(x, *members, positive, 0.7, 3, 5)
    for some, wanted in zip(ours, twins.fit_dense_rows(x, *members, positive, 0.7, 3, 5)):
        torch.testing.assert_close(some, wanted, rtol=1e-4, atol=1e-5)


def test_classifiers_of_no_dense_rows_and_of_no_labels():
    nothing = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.bool)
    weights, bias = ops.fit_dense_rows(torch.ones(0, 5), torch.zeros(4, dtype=torch.int64), *nothing, 1.0, 3, 0)
    assert weights.tolist() == [[0] * 5] * 3
    assert bias.tolist() == [0] * 3
    weights, bias = ops.fit_dense_rows(torch.ones(2, 5), torch.zeros(1, dtype=torch.int64), *nothing, 1.0, 3, 0)
    assert weights.shape == (0, 5)
    assert bias.shape == (0,)


def test_classifiers_of_dense_and_of_sparse_rows_are_the_same():
    matrix, members, positive = training_rows(80, 12, 9)
    dense = torch.sparse_csr_tensor(*matrix, (80, 12)).to_dense()
    weights, bias = ops.fit_dense_rows(dense, *members, positive, 0.5, 2000, 0)
    start, columns, values, of_sparse = ops.fit_linear_rows(
        *matrix, 12, *members, positive, torch.tensor([0.5]), 2000, 0.0, 1
    )
    wanted = torch.sparse_csr_tensor(start, columns, values[0], (9, 12)).to_dense()
    torch.testing.assert_close(weights, wanted, rtol=0, atol=0.02)
    torch.testing.assert_close(bias, of_sparse[0], rtol=0, atol=0.02)


@pytest.mark.parametrize("batch", [0, 1, 9])
def test_products_are_those_of_the_twin(batch, threads):
    start, columns, values = random_csr(batch, 25, 0.3, 0, whole=True)
    matrix = random_csr(40, 25, 0.4, 1, whole=True)
    rows = torch.randint(-1, 40, (batch, 6), generator=torch.Generator().manual_seed(2))
    ours = ops.sparse_dot(start, columns.long(), values, *matrix, 25, rows)
    assert torch.equal(ours, twins.sparse_dot(start, columns.long(), values, *matrix, 25, rows))
    narrow = random_csr(40, 5, 0.4, 3, whole=True)  # what queries leave behind would show in a narrower matrix
    one = torch.tensor([0, 1]), torch.tensor([4]), torch.ones(1)
    some = torch.arange(40).view(1, 40)
    assert torch.equal(ops.sparse_dot(*one, *narrow, 5, some), twins.sparse_dot(*one, *narrow, 5, some))


@pytest.mark.parametrize("shape", [(200, 5), (64, 300)])
def test_products_with_rows_that_queries_share(shape, threads):
    """Rows are spread out in place of queries; what they leave behind would show."""
    batch, count = shape
    start, columns, values = random_csr(batch, 25, 0.1, 0, whole=True)
    matrix = random_csr(count, 25, 0.6, 1, whole=True)
    rows = torch.randint(-1, count, (batch, 6), generator=torch.Generator().manual_seed(2))
    ours = ops.sparse_dot(start, columns.long(), values, *matrix, 25, rows)
    assert torch.equal(ours, twins.sparse_dot(start, columns.long(), values, *matrix, 25, rows))
    damaged = matrix[0], matrix[1].clone(), matrix[2]
    damaged[1][matrix[0][rows[0].max()]] = -1
    with pytest.raises(RuntimeError, match="row_columns is damaged"):
        ops.sparse_dot(start, columns.long(), values, *damaged, 25, rows)


COSTS = torch.tensor([0.3, 1.0])
MATRIX = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1], dtype=torch.int32), torch.ones(3)
MEMBERS = torch.tensor([0, 1, 2]), torch.tensor([1, 0], dtype=torch.int32)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, torch.ones(3), r"rows has shape \[3\]; wanted 2 dimension"),
        (0, torch.ones(1, 3), r"label_rows\[0\] is 1; wanted 0 to 0"),
        (0, torch.ones(2, 3).double(), "rows has dtype Double; wanted Float"),
        (0, torch.ones(3, 2).t(), "rows is not contiguous"),
        (1, torch.tensor([0, 1]), "label_start runs from 0 to 1; wanted 0 to 2"),
        (3, torch.tensor([True]), r"positive has shape \[1\]; wanted 2"),
        (4, 0.0, "cost is 0; wanted a positive number"),
        (4, 1e-60, "cost is 1e-60; wanted a positive number"),  # as a float32, 0
        (4, math.nan, "cost is nan; wanted a positive number"),
        (5, 0, "passes is 0; wanted at least 1"),
    ],
)
def test_bad_arguments_of_fit_dense_rows(place, value, words):
    arguments = [torch.ones(2, 3), *MEMBERS, torch.tensor([True, False]), 1.0, 1, 0]
    ops.fit_dense_rows(*arguments)
    arguments[place] = value
    with pytest.raises(RuntimeError, match=words):
        ops.fit_dense_rows(*arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.tensor([0, 2, 4])}, "row_start runs from 0 to 4; wanted 0 to 3"),
        ({0: torch.tensor([0, 4, 3])}, "row_start decreases at 2"),
        ({1: torch.tensor([0, 3, 1], dtype=torch.int32)}, r"row_columns\[1\] is 3; wanted 0 to 2"),
        ({2: torch.ones(2)}, r"row_values has shape \[2\]; wanted 3"),
        ({3: -1}, "num_columns is -1"),
        ({4: torch.tensor([1, 2])}, "label_start runs from 1 to 2"),
        ({4: torch.tensor([], dtype=torch.int64)}, "label_start is empty"),
        ({5: torch.tensor([1, 2], dtype=torch.int32)}, r"label_rows\[1\] is 2; wanted 0 to 1"),
        ({6: torch.tensor([True])}, r"positive has shape \[1\]; wanted 2"),
        ({6: torch.tensor([1, 0])}, "positive has dtype Long; wanted Bool"),
        ({7: torch.tensor([0.0])}, r"costs\[0\] is 0; wanted positive numbers that increase"),
        ({7: torch.tensor([2.0, 1.0])}, r"costs\[1\] is 1; wanted positive numbers that increase"),
        ({7: torch.tensor([])}, "costs is empty"),
        ({8: 0}, "passes is 0"),
        ({9: -1.0}, "threshold is -1"),
        ({11: -0.5}, "tolerance is -0.5; wanted at least 0"),
    ],
)
def test_bad_arguments_of_fit_linear_rows(change, words):
    arguments = [*MATRIX, 3, *MEMBERS, torch.tensor([True, False]), COSTS, 1, 0.0, 0, 0.0]
    ops.fit_linear_rows(*arguments)
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=words):
        ops.fit_linear_rows(*arguments)
    if max(change) < 6:
        with pytest.raises(RuntimeError, match=words):
            ops.sum_rows(*arguments[:6], 0.0)
    if max(change) < 4:
        with pytest.raises(RuntimeError, match=words):
            ops.transpose_rows(*arguments[:4])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.tensor([0, 2])}, "crow runs from 0 to 2; wanted 0 to 1"),
        ({1: torch.tensor([3])}, r"col\[0\] is 3; wanted 0 to 2"),
        ({2: torch.ones(2)}, r"values has shape \[2\]; wanted 1"),
        ({3: torch.tensor([0, 9, 3])}, r"row_start\[\d\] is no offset"),
        ({4: torch.tensor([7, 7, 7], dtype=torch.int32)}, "row_columns is damaged"),
        ({5: torch.ones(2)}, "row_values has shape"),
        ({7: torch.tensor([[2]])}, "rows holds 2; wanted 0 to 1"),
        ({7: torch.tensor([[1], [1]])}, r"rows has shape \[2, 1\]; wanted 1"),
    ],
)
def test_bad_arguments_of_sparse_dot(change, words):
    arguments = [torch.tensor([0, 1]), torch.tensor([2]), torch.ones(1), *MATRIX, 3, torch.tensor([[0, 1]])]
    assert ops.sparse_dot(*arguments).tolist() == [[1.0, 0.0]]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=words):
        ops.sparse_dot(*arguments)
