"""Columns of hashed text: counts and weighted features, against their twins."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops


def rows(count, columns, seed, dtype=torch.int32):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (count,), generator=generator)
    crow = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    col = torch.randint(0, columns, (int(crow[-1]),), generator=generator).to(dtype)
    return crow, col, torch.randn(len(col), generator=generator)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_weigh_columns_is_its_twin(count, dtype):
    generator = torch.Generator().manual_seed(count)
    crow, col, values = rows(count, 9, count, dtype)
    for least in (-1, 0):  # with and without columns that are no features
        feature_of = torch.randint(least, 5, (9,), generator=generator, dtype=torch.int32)
        arguments = (crow, col, values, feature_of, torch.rand(5, generator=generator))
        for ours, theirs in zip(ops.weigh_columns(*arguments), twins.weigh_columns(*arguments)):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs)


def test_weigh_columns_does_not_depend_on_the_number_of_threads():
    arguments = (*rows(1000, 50, 0), torch.arange(-10, 40, dtype=torch.int32), torch.rand(40))
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(ops.weigh_columns(*arguments))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("count", [0, 1, 60])
def test_count_columns_is_its_twin(count):
    crow, col, _ = rows(count, 11, count)
    labels = torch.arange(count, dtype=torch.int32) % 3
    for feature_of in (None, torch.randint(-1, 11, (11,), dtype=torch.int32)):
        ours, theirs = torch.ones(3, 11, dtype=torch.int32), torch.ones(3, 11, dtype=torch.int32)
        ops.count_columns_(ours, crow, col, labels, feature_of)
        twins.count_columns_(theirs, crow, col, labels, feature_of)
        assert torch.equal(ours, theirs)
        assert feature_of is not None or int(ours.sum()) == 33 + len(col)


INT = torch.tensor([0, 3], dtype=torch.int32)
TWO = torch.tensor([0, 1, 2])
COUNTS = torch.zeros(1, 3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    {
        "a column too many": (
            lambda: ops.weigh_columns(TWO, INT, torch.ones(2), torch.zeros(3, dtype=torch.int32), torch.ones(1)),
            "col has the column 3; wanted 0 to 2",
        ),
        "a feature too many": (
            lambda: ops.weigh_columns(TWO, INT, torch.ones(2), torch.ones(4, dtype=torch.int32), torch.ones(1)),
            "feature_of has the feature 1; wanted at most 0",
        ),
        "offsets beyond the end": (
            lambda: ops.weigh_columns(TWO + 1, INT, torch.ones(2), INT, torch.ones(4)),
            "crow runs from 1 to 3; wanted 0 to 2",
        ),
        "counts of a column too many": (
            lambda: ops.count_columns_(COUNTS, TWO, INT, torch.zeros_like(INT)),
            "col has the column 3; wanted 0 to 2",
        ),
        "counts of a feature too many": (
            lambda: ops.count_columns_(
                torch.zeros(1, 3, dtype=torch.int32), TWO, INT % 2, torch.zeros_like(INT), INT * 2
            ),
            "feature_of has the feature 6; wanted at most 2",
        ),
        "a label too many": (
            lambda: ops.count_columns_(torch.zeros(2, 4, dtype=torch.int32), TWO, INT, INT),
            "labels has the label 3; wanted 0 to 1",
        ),
        "a table of other bits": (
            lambda: ops.score_text(
                torch.zeros(0, dtype=torch.uint8),
                torch.tensor([0, 0]),
                *(3, 1, 0, 0, False, "log", 0, True, False),
                torch.zeros(4, 2),
                torch.zeros(1),
            ),
            "table has shape [4, 2]; wanted 8 in dimension 0",
        ),
    }.values(),
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(RuntimeError) as error:
        call()
    assert message in str(error.value)
