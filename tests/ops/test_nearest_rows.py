"""nearest_rows against its twin."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops

EVERYTHING = 2**62


def random_rows(rows, columns, density, seed, exact):
    """CSR arrays; with ``exact`` values whose sums of products float32 has."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, columns, generator=generator)
    if exact:
        dense = torch.randint(-3, 4, (rows, columns), generator=generator).float()
    # As in text, some columns are in most rows and most are in few.
    share = density * torch.linspace(4, 0, columns).clamp(max=0.9 / density)
    csr = (dense * (torch.rand(rows, columns, generator=generator) < share)).to_sparse_csr()
    return csr.crow_indices().clone(), csr.col_indices().clone(), csr.values().clone()


def index_of(rows, columns):
    start, column, value = rows
    row = torch.repeat_interleave(torch.arange(len(start) - 1), start.diff())
    order = column.argsort(stable=True)
    column_start = torch.zeros(columns + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(column, minlength=columns), 0, out=column_start[1:])
    return start, column.int(), value, column_start, row[order].int(), value[order]


@pytest.mark.parametrize("shape", [(1, 1), (2, 70), (200, 40), (2000, 300)])
@pytest.mark.parametrize(
    "limits", [(1, 1, 0), (5, 5, 100), (5, 20, 1000), (64, 256, EVERYTHING), (10, 9999, 50), (9, 0, 99)]
)
def test_is_its_twin(shape, limits, threads):
    rows, columns = shape
    index = index_of(random_rows(rows, columns, 0.05, 0, exact=True), columns)
    queries = random_rows(17, columns, 0.1, 1, exact=True)
    ours = ops.nearest_rows(*queries, *index, *limits)
    theirs = twins.nearest_rows(*queries, *index, *limits)
    for some, wanted in zip(ours, theirs):
        assert some.dtype == wanted.dtype
        assert torch.equal(some, wanted)


def test_without_limits_it_is_exact(threads):
    index = index_of(random_rows(3000, 100, 0.05, 0, exact=False), 100)
    queries = random_rows(50, 100, 0.1, 1, exact=False)
    values, rows = ops.nearest_rows(*queries, *index, 10, 3000, EVERYTHING)
    matrix = torch.sparse_csr_tensor(*index[:3], (3000, 100)).to_dense()
    products = torch.sparse_csr_tensor(*queries, (50, 100)).to_dense() @ matrix.T
    full = (products != 0).sum(1) >= 10
    assert full.sum() > 30
    torch.testing.assert_close(values[full], products.topk(10).values[full])
    torch.testing.assert_close(values[full], products.gather(1, rows.clamp(min=0))[full])


def test_few_postings_find_most_of_the_nearest():
    index = index_of(random_rows(5000, 300, 0.02, 0, exact=False), 300)
    queries = random_rows(50, 300, 0.05, 1, exact=False)
    exact = ops.nearest_rows(*queries, *index, 10, 5000, EVERYTHING)[0].clamp(min=0).sum()
    none, few, more = (
        ops.nearest_rows(*queries, *index, 10, 40, postings)[0].clamp(min=0).sum() for postings in (0, 1000, 5000)
    )
    assert none < few < more <= exact
    assert more > 0.9 * exact


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, torch.inf, torch.nan])
@pytest.mark.parametrize("postings", [0, EVERYTHING])
def test_of_many_equal_ones_the_first_are_found(value, postings):
    """Neither their number nor a value beyond all others hides rows, be they read by row or by column."""
    count = 3000
    two = torch.tensor([[1.0, 0], [value, 0]])[(torch.arange(count) >= 1000).long()]
    start, column = torch.arange(count + 1), torch.zeros(count, dtype=torch.int64)
    query = torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1)
    for others in (0, 4 * count):  # empty rows
        index = index_of((torch.cat([start, start[-1:].expand(others)]), column, two[:, 0].clone()), 2)
        values, rows = ops.nearest_rows(*query, *index, 3, 3, postings)
        first = 1000 if value > 1 or value != value else 0
        assert rows.tolist() == [[first, first + 1, first + 2]]
        assert torch.equal(values.nan_to_num(), two[first : first + 3, 0].nan_to_num().expand(1, 3))


def test_a_search_leaves_nothing_behind():
    """Sums are kept from call to call, also between matrices of different sizes and after an error."""
    small, large = (index_of(random_rows(rows, 50, 0.1, rows, exact=True), 50) for rows in (30, 3000))
    queries = random_rows(8, 50, 0.2, 1, exact=True)
    wanted = ops.nearest_rows(*queries, *small, 5, 20, 1000)
    ops.nearest_rows(*queries, *large, 5, 20, 1000)
    damaged = list(large)
    damaged[4] = large[4].clone()
    damaged[4][500] = 3000
    with pytest.raises(RuntimeError, match="the index is damaged"):
        ops.nearest_rows(*queries, *damaged, 5, 20, EVERYTHING)
    for ours, before in zip(ops.nearest_rows(*queries, *small, 5, 20, 1000), wanted):
        assert torch.equal(ours, before)


def test_queries_without_columns_and_without_queries():
    index = index_of(random_rows(30, 10, 0.1, 0, exact=True), 10)
    empty = torch.empty(0, dtype=torch.int64)
    values, rows = ops.nearest_rows(torch.tensor([0, 0]), empty, torch.empty(0), *index, 3, 3, 10)
    assert values.tolist() == [[-torch.inf] * 3]
    assert rows.tolist() == [[-1] * 3]
    assert ops.nearest_rows(torch.tensor([0]), empty, torch.empty(0), *index, 3, 3, 10)[1].shape == (0, 3)
    nothing = index_of((torch.tensor([0]), empty, torch.empty(0)), 10)
    one = torch.tensor([0, 1]), torch.tensor([4]), torch.ones(1)
    assert ops.nearest_rows(*one, *nothing, 2, 2, 10)[1].tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.tensor([0, 1, 3])}, "crow runs from 0 to 3; wanted 0 to 2"),
        ({0: torch.tensor([0, 3, 2])}, "crow decreases at 2"),
        ({0: torch.tensor([], dtype=torch.int64)}, "crow is empty"),
        ({1: torch.tensor([1, 4])}, r"col\[1\] is 4; wanted 0 to 3"),
        ({1: torch.tensor([2, 2])}, r"col\[1\] is 2 after 2; wanted increasing columns"),
        ({1: torch.tensor([1, 2], dtype=torch.int32)}, "col has dtype Int; wanted Long"),
        ({2: torch.ones(3)}, r"values has shape \[3\]; wanted 2"),
        ({3: torch.tensor([0, 9, 3]), 11: 0}, "wanted increasing offsets in row_start"),
        ({4: torch.tensor([0, 1], dtype=torch.int32)}, "row_values has shape"),
        ({4: torch.tensor([1, 4, 2], dtype=torch.int32), 11: 0}, "the index is damaged"),
        ({4: torch.tensor([-1, 2, 2], dtype=torch.int32), 11: 0}, "the index is damaged"),
        ({6: torch.tensor([0, 5, 1, 2, 3])}, r"column_start\[1\] is no offset"),
        ({7: torch.tensor([0, 0, 7], dtype=torch.int32)}, "rows 0 to 1 in column_rows"),
        ({9: 0}, "k is 0"),
        ({10: 1}, "candidates is 1; wanted 0, or at least k, 2"),
        ({11: -1}, "max_postings is -1"),
    ],
)
def test_bad_arguments(change, words):
    index = [
        torch.tensor([0, 2, 3]),
        torch.tensor([1, 2, 2], dtype=torch.int32),
        torch.ones(3),
        torch.tensor([0, 0, 1, 3, 3]),
        torch.tensor([0, 0, 1], dtype=torch.int32),
        torch.ones(3),
    ]
    arguments = [torch.tensor([0, 2]), torch.tensor([1, 2]), torch.ones(2), *index, 2, 2, 10]
    assert ops.nearest_rows(*arguments)[1].tolist() == [[0, 1]]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=words):
        ops.nearest_rows(*arguments)
