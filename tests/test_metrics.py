"""PrecisionAtK against a count by hand, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_lsh.metrics import PrecisionAtK


def by_hand(predictions, labels, k):
    """The definition of the XMC repository; rows are lists, -100 is padding."""
    labelled = [(p, {label for label in row if label >= 0}) for p, row in zip(predictions, labels)]
    labelled = [(p, row) for p, row in labelled if row]
    if not labelled:
        return math.nan
    return sum(len(row.intersection(p[:k])) / k for p, row in labelled) / len(labelled)


@st.composite
def batches(draw):
    """Batches of ``(classes, labels)``: distinct classes per row, as topk gives them; labels padded anywhere."""
    num_classes, found = draw(st.integers(5, 12)), draw(st.integers(3, 5))
    width = draw(st.integers(0, 4))
    rows = st.tuples(
        st.permutations(range(num_classes)).map(lambda order: order[:found]),
        st.lists(st.sampled_from([-100, *range(num_classes)]), min_size=width, max_size=width),
    )
    return draw(st.lists(st.lists(rows, max_size=5), max_size=3)), found, width


@settings(max_examples=80, deadline=None)
@given(batches())
def test_equals_a_count_by_hand(drawn):
    some_batches, found, width = drawn
    metric = PrecisionAtK((1, 3))
    for batch in some_batches:
        metric.update(
            torch.tensor([p for p, _ in batch], dtype=torch.int64).reshape(len(batch), found),
            torch.tensor([row for _, row in batch], dtype=torch.int64).reshape(len(batch), width),
        )
    rows = [row for batch in some_batches for row in batch]
    predictions, labels = [p for p, _ in rows], [row for _, row in rows]
    expected = {k: by_hand(predictions, labels, k) for k in (1, 3)}
    assert metric.compute() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        # the divisor is k also where a row has fewer labels
        ([[7, 8, 9]], [[7, -100]], {1: 1.0, 3: 1 / 3}),
        # rows without labels are left out of the mean
        ([[7, 8, 9], [1, 2, 3]], [[9, 8], [-100, -100]], {1: 0.0, 3: 2 / 3}),
        # a class that was not found (-1) is no hit for padding, however that is written
        ([[7, -1, -1]], [[3, -1]], {1: 0.0, 3: 0.0}),
        # classes beyond the largest k do not count
        ([[7, 8, 9, 5]], [[5]], {1: 0.0, 3: 0.0}),
        # no label anywhere
        ([[7, 8, 9]], [[-100]], {1: math.nan, 3: math.nan}),
    ],
)
def test_by_example(classes, labels, expected):
    metric = PrecisionAtK((1, 3))
    metric.update(torch.tensor(classes), torch.tensor(labels))
    assert metric.compute() == pytest.approx(expected, nan_ok=True)


def test_nothing_was_added():
    assert math.isnan(PrecisionAtK((5,)).compute()[5])


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        ((2, 2), (2, 1), r"classes has shape \(2, 2\); wanted \[B, k\] with k >= 3"),
        ((3,), (3, 1), "classes has shape"),
        ((2, 3), (3, 1), r"labels has shape \(3, 1\); wanted \[2, P\]"),
        ((2, 3), (2,), "labels has shape"),
    ],
)
def test_bad_shapes_are_named_and_change_nothing(classes, labels, message):
    metric = PrecisionAtK((1, 3))
    metric.update(torch.tensor([[7, 8, 9]]), torch.tensor([[7]]))
    before = metric.compute()
    with pytest.raises(ValueError, match=message):
        metric.update(torch.zeros(classes, dtype=torch.int64), torch.zeros(labels, dtype=torch.int64))
    assert metric.compute() == before


@pytest.mark.parametrize("ks", [(), (0, 1), (-1,)])
def test_bad_ks(ks):
    with pytest.raises(ValueError, match="wanted positive numbers"):
        PrecisionAtK(ks)
