"""Ranking metrics against counts by hand, and against scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_lsh.metrics import PROPENSITY_CONSTANTS, PrecisionAtK, RankingMetrics, propensities


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


# --- all metrics ------------------------------------------------------------------------------------------------------

NAMES = ("precision", "recall", "ndcg", "mrr", "coverage", "psp", "psrecall", "psndcg")
# 1 / propensity of the classes 0 to 9 is 1, 2, 4, 5, 8, 10, 16, 20, 25, 40
INVERSE = [1, 2, 4, 5, 8, 10, 16, 20, 25, 40]


def log2(number):
    return math.log2(number)


def test_all_metrics_by_a_calculation_on_paper():
    """The last row has no label and counts nowhere."""
    metric = RankingMetrics(NAMES, (1, 3), 1 / torch.tensor(INVERSE, dtype=torch.float64))
    metric.update(torch.tensor([[4, 2, 7], [1, 5, 9]]), torch.tensor([[7, 2, -100, -100], [1, -100, 1, -100]]))
    metric.update(torch.tensor([[0, 3, 6], [1, 2, 3]]), torch.tensor([[8, 6, 5, 9], [-100, -100, -100, -100]]))
    two, three = 1 + 1 / log2(3), 1 + 1 / log2(3) + 1 / log2(4)
    paper = {
        "precision@1": (0 + 1 + 0) / 3,
        "precision@3": (2 / 3 + 1 / 3 + 1 / 3) / 3,
        "recall@1": (0 + 1 + 0) / 3,
        "recall@3": (2 / 2 + 1 / 1 + 1 / 4) / 3,
        "ndcg@1": (0 + 1 + 0) / 3,
        "ndcg@3": ((1 / log2(3) + 1 / log2(4)) / two + 1 + (1 / log2(4)) / three) / 3,
        "mrr@1": (0 + 1 + 0) / 3,
        "mrr@3": (1 / 2 + 1 + 1 / 3) / 3,
        # labels that occur: 7 2 1 8 6 5 9; found: 1, and then 2, 7, 6
        "coverage@1": 1 / 7,
        "coverage@3": 4 / 7,
        "psp@1": (0 + 2 + 0) / (20 + 2 + 40),
        "psp@3": (4 + 20 + 2 + 16) / (24 + 2 + 40 + 25 + 16),
        "psrecall@1": (0 + 2 + 0) / (20 / 2 + 2 + 40 / 4),
        "psrecall@3": (24 / 2 + 2 + 16 / 4) / (24 / 2 + 2 + (40 + 25 + 16) / 4),
        "psndcg@1": (0 + 2 + 0) / (20 + 2 + 40),
        "psndcg@3": ((4 / log2(3) + 20 / log2(4)) / two + 2 + 16 / log2(4) / three)
        / ((20 + 4 / log2(3)) / two + 2 + (40 + 25 / log2(3) + 16 / log2(4)) / three),
    }
    assert metric.compute() == pytest.approx(paper)


def test_equals_scikit_learn():
    """nDCG against ``ndcg_score``; MRR of rows with one label against the label ranking average precision."""
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    random = torch.Generator().manual_seed(0)
    scores = torch.rand(50, 12, generator=random)
    truth = (torch.rand(50, 12, generator=random) < 0.3).long()
    truth[torch.arange(50), torch.randint(12, (50,), generator=random)] = 1
    labels = torch.where(truth > 0, torch.arange(12), -100)
    metric = RankingMetrics(("ndcg", "mrr"), (1, 5, 12))
    metric.update(scores.argsort(1, descending=True), labels)
    for k in (1, 5, 12):
        expected = sklearn_metrics.ndcg_score(truth.numpy(), scores.numpy(), k=k)
        assert metric.compute()[f"ndcg@{k}"] == pytest.approx(expected)
    first = truth.argmax(1, keepdim=True)
    one = torch.zeros_like(truth).scatter(1, first, 1)
    metric = RankingMetrics(("mrr",), (12,))
    metric.update(scores.argsort(1, descending=True), first)
    expected = sklearn_metrics.label_ranking_average_precision_score(one.numpy(), scores.numpy())
    assert metric.compute()["mrr@12"] == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(batches(), st.integers(1, 3))
def test_batches_do_not_matter(drawn, size):
    some_batches, found, width = drawn
    rows = [row for batch in some_batches for row in batch]
    weights = 1 / torch.linspace(1, 9, 8).double()

    def measured(parts):
        metric = RankingMetrics(NAMES, (1, 3), weights)
        for part in parts:
            metric.update(
                torch.tensor([p for p, _ in part], dtype=torch.int64).reshape(len(part), found),
                torch.tensor([row for _, row in part], dtype=torch.int64).reshape(len(part), width),
            )
        return metric.compute()

    pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
    assert measured(pieces) == pytest.approx(measured([rows]), nan_ok=True)


def test_the_best_ranking_has_the_value_1():
    metric = RankingMetrics(NAMES[2:], (1, 3), 1 / torch.tensor(INVERSE, dtype=torch.float64))
    metric.update(torch.tensor([[9, 4, 0], [3, 1, 2]]), torch.tensor([[4, 0, 9], [3, -100, -100]]))
    result = metric.compute()
    assert result.pop("coverage@1") == 2 / 4
    assert result == pytest.approx(dict.fromkeys(result, 1.0))


def test_propensities_by_the_formula():
    """Jain et al.: 1 / (1 + C exp(-A log(N_l + B))), C = (log N - 1)(B + 1)^A."""
    for a, b in PROPENSITY_CONSTANTS.values():
        for count in (0, 7, 100_000):
            c = (math.log(490_449) - 1) * (b + 1) ** a
            expected = 1 / (1 + c * math.exp(-a * math.log(count + b)))
            assert propensities(torch.tensor([count]), 490_449, a, b).item() == pytest.approx(expected)


def test_a_label_unknown_to_training_counts_as_the_rarest():
    metric = RankingMetrics(("psp",), (1,), torch.tensor([0.5, 0.25]))
    metric.update(torch.tensor([[0], [1]]), torch.tensor([[0], [7]]))
    assert metric.compute() == {"psp@1": 2 / (2 + 4)}


def test_excluded_pairs_do_not_count():
    metric = RankingMetrics(("precision",), (1, 2))
    metric.update(
        torch.tensor([[4, 2, 7], [4, 2, 7]]), torch.tensor([[4, 7], [4, 7]]), excluded=torch.tensor([[0, 4], [0, 2]])
    )
    assert metric.compute() == {"precision@1": 1.0, "precision@2": (1 / 2 + 1 / 2) / 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": "precision"}, "wanted some of precision, recall"),
        ({"names": ("f1",)}, "wanted some of precision, recall"),
        ({"names": ()}, "wanted some of"),
        ({"names": ("psp",)}, r"propensities is None; wanted \[N\] for psp"),
        ({"names": ("psp",), "propensities": torch.tensor([0.5, 0.0])}, r"wanted \[N\] numbers in \(0, 1\]"),
        ({"names": ("psp",), "propensities": torch.tensor([[0.5]])}, r"wanted \[N\] numbers in \(0, 1\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RankingMetrics(**arguments)
