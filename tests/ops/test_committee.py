"""fit_committee and committee_scores against their twins in float64, by autograd."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops


def candidates(rows, width, size, seed=0):
    """Values, which there are not, and which are right."""
    generator = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(rows, width, size, generator=generator) + torch.arange(size)
    none = torch.rand(rows, width, generator=generator) < 0.3
    right = torch.rand(rows, width, generator=generator) < 0.2
    return values, none, right


def layers(size, units=64, seed=0):
    """Each unit is active for about half of the candidates: where it is for all, the slopes of its bias add up to 0,
    and what rounding leaves of them decides which way Adam goes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(units, size, generator=generator).sign() * (1 + torch.rand(units, size, generator=generator))
    bias, output = 0.1 * torch.randn(units, generator=generator), torch.randn(units, generator=generator)
    return weight / size**0.5, bias, output


def order(rows, epochs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(rows, generator=generator) for _ in range(epochs)])


# Values that fill no vector, or more than a block of a product; candidates beyond a block; batches of a single row.
SIZES = [
    (1, 1, 1, 64, 5),
    (7, 19, 5, 64, 3),
    (40, 90, 19, 64, 32),
    (5, 300, 19, 32, 2),
    (6, 20, 300, 96, 4),
    (9, 33, 2, 64, 1),
]


@pytest.mark.parametrize("sizes", SIZES)
def test_trains_as_its_twin(sizes, simd_level):
    rows, width, size, units, batch = sizes
    some = *candidates(rows, width, size), order(rows, 3), batch, *layers(size, units), 0.01, 0.05
    for ours, theirs in zip(ops.fit_committee(*some), twins.fit_committee(*some)):
        assert ours.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("sizes", [(0, 5, 3, 64), (3, 0, 3, 64), *(sizes[:4] for sizes in SIZES)])
def test_scores_as_its_twin(sizes, simd_level, threads):
    rows, width, size, units = sizes
    values, none, _ = candidates(rows, width, size)
    some = values, none, torch.randn(size), torch.rand(size) + 0.1, *layers(size, units)
    torch.testing.assert_close(ops.committee_scores(*some), twins.committee_scores(*some), rtol=1e-4, atol=1e-4)


def test_any_number_of_threads_gives_the_same_bits():
    some = *candidates(300, 90, 19), order(300, 2), 32, *layers(19), 0.015, 0.001
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4, 8):
            torch.set_num_threads(threads)
            weight, bias, output, mean, deviation = ops.fit_committee(*some)
            scores = ops.committee_scores(*some[:2], mean, deviation, weight, bias, output)
            made.append((weight, bias, output, mean, deviation, scores))
    finally:
        torch.set_num_threads(before)
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other))


def test_what_is_no_candidate_does_not_count():
    values, none, right = candidates(20, 9, 5)
    some = order(20, 2), 4, *layers(5), 0.01, 0.0
    expected = ops.fit_committee(values, none, right & ~none, *some)
    values[none] = torch.nan
    made = ops.fit_committee(values, none, right | none, *some)
    assert all(torch.equal(a, b) for a, b in zip(made, expected))
    scores = ops.committee_scores(values, none, *made[3:], *made[:3])
    assert torch.equal(scores == -torch.inf, none)
    assert scores[~none].isfinite().all()


@pytest.mark.parametrize("which", ["all right", "none right", "no candidates", "no rows"])
def test_nothing_to_tell_apart_changes_nothing(which):
    values, none, right = candidates(20, 9, 5)
    right[:], none[:] = which == "all right", which == "no candidates"
    before = layers(5)
    rows = order(20, 2) if which != "no rows" else torch.zeros(2, 0, dtype=torch.int64)
    *made, mean, deviation = ops.fit_committee(values, none, right, rows, 4, *before, 0.01, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(made, before))
    assert mean.isfinite().all()
    assert (deviation > 0).all()


def test_values_that_are_constant_have_no_deviation():
    values, none, right = candidates(50, 20, 3)
    values[:, :, 1] = 12345.678
    values[:, :, 2] *= 1e-7
    *_, mean, deviation = ops.fit_committee(values, none, right, order(50, 1), 4, *layers(3), 0.01, 0.0)
    assert float(mean[1]) == float(values[0, 0, 1])
    assert deviation[1:].tolist() == [1, 1]
    torch.testing.assert_close(deviation[0], values[:, :, 0][~none].std(correction=0))


def test_scores_far_apart_are_no_trouble():
    """Exponentials that would overflow, or become 0."""
    values, none, right = candidates(40, 30, 4)
    weight, bias, output = layers(4)
    made = ops.fit_committee(values, none, right, order(40, 4), 8, weight * 1e3, bias, output * 1e3, 0.01, 0.0)
    assert all(some.isfinite().all() for some in made)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.ones(2, 3)}, r"values has shape \[2, 3\]; wanted 3 dimension"),
        ({0: torch.ones(2, 3, 1).double()}, "values has dtype Double; wanted Float"),
        ({1: torch.zeros(2, 4, dtype=torch.bool)}, r"none has shape \[2, 4\]; wanted 3 in dimension 1"),
        ({2: torch.zeros(1, 3, dtype=torch.bool)}, r"right has shape \[1, 3\]; wanted 2 in dimension 0"),
        ({2: torch.zeros(2, 3)}, "right has dtype Float; wanted Bool"),
        ({3: torch.tensor([[2]])}, r"order\[0\] is 2; wanted 0 to 1"),
        ({3: torch.tensor([[-1]])}, r"order\[0\] is -1; wanted 0 to 1"),
        ({3: torch.tensor([0])}, r"order has shape \[1\]; wanted 2 dimension"),
        ({4: 0}, "batch is 0; wanted 1 to"),
        ({5: torch.ones(64, 2)}, r"weight has shape \[64, 2\]; wanted 1 in dimension 1"),
        ({5: torch.ones(16, 1)}, r"weight has shape \[16, 1\]; wanted a positive multiple of 32"),
        ({6: torch.ones(32)}, r"bias has shape \[32\]; wanted 64"),
        ({7: torch.ones(32)}, r"output has shape \[32\]; wanted 64"),
        ({8: 0.0}, "rate is 0; wanted a positive number"),
        ({9: -1.0}, "decay is -1; wanted at least 0"),
    ],
)
def test_bad_arguments_of_training(change, words):
    some = [*candidates(2, 3, 1), order(2, 1), 2, *layers(1), 0.01, 0.0]
    ops.fit_committee(*some)
    for place, value in change.items():
        some[place] = value
    with pytest.raises(RuntimeError, match=words):
        ops.fit_committee(*some)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.ones(3, 2, 1).transpose(0, 1)}, "values is not contiguous"),
        ({1: torch.zeros(1, 3, dtype=torch.bool)}, r"none has shape \[1, 3\]; wanted 2 in dimension 0"),
        ({2: torch.ones(2)}, r"mean has shape \[2\]; wanted 1"),
        ({3: torch.ones(2)}, r"deviation has shape \[2\]; wanted 1"),
        ({4: torch.ones(0, 1)}, r"weight has shape \[0, 1\]; wanted a positive multiple of 32"),
    ],
)
def test_bad_arguments_of_scores(change, words):
    values, none, _ = candidates(2, 3, 1)
    some = [values, none, torch.zeros(1), torch.ones(1), *layers(1)]
    ops.committee_scores(*some)
    for place, value in change.items():
        some[place] = value
    with pytest.raises(RuntimeError, match=words):
        ops.committee_scores(*some)
