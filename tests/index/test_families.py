"""Hash families and their operators: equal to their twins, and colliding as often as theory says."""

from __future__ import annotations

import math

import pytest
import torch
import twins

from torch_lsh import ops
from torch_lsh.index.families import DWTA, FAMILIES, CrossPolytope, HadamardSimHash, SimHash, make_family
from torch_lsh.index.families.projections import StructuredProjections

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = [(0, 5), (1, 1), (3, 7), (37, 130), (70, 16)]  # rows, features
TABLES = [(1, 1), (5, 3), (5, 11), (10, 7)]  # hashes per table, tables


def small_integers(*shape):
    """Products of these are exact in float32, so every instruction set and order gives the same sign."""
    return torch.randint(-3, 4, shape).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hashes", "tables"), TABLES)
def test_simhash_codes_equal_reference(simd_level, dtype, hashes, tables):
    for rows, features in SHAPES:
        x, projections = small_integers(rows, features).to(dtype), small_integers(features, hashes * tables)
        expected = twins.simhash_codes(x, projections, hashes)
        assert expected.shape == (rows, tables)
        assert torch.equal(ops.simhash_codes(x, projections, hashes), expected)


@pytest.mark.parametrize(
    ("dtype", "hashes", "tables"), [*((dtype, 5, 3) for dtype in DTYPES), (torch.float32, 1, 1), (torch.float32, 10, 7)]
)
def test_dwta_codes_equal_reference(dtype, hashes, tables):
    for rows, features in SHAPES:
        for density in (0.02, 1.0):
            x = (small_integers(rows, features) * (torch.rand(rows, features) < density)).to(dtype)
            bins = DWTA(features, hashes, tables, seed=3).bins
            expected = twins.dwta_codes(x, bins, hashes, 5)
            assert expected.shape == (rows, tables)
            assert torch.equal(ops.dwta_codes(x, bins, hashes, 5), expected)


@pytest.mark.parametrize(("hashes", "tables"), [(1, 1), (3, 5), (5, 7)])
def test_structured_projections_equal_reference(simd_level, hashes, tables):
    for rows, features in ((0, 5), (1, 1), (3, 8), (16, 17), (37, 20), (70, 33)):
        x = small_integers(rows, features)
        signs, rest = StructuredProjections.draw(features, hashes * tables * 4, torch.Generator().manual_seed(2))
        rest = rest.round()
        expected = twins.hadamard_products(x, signs, rest)
        assert expected.shape == (rows, hashes * tables * 4)
        assert torch.equal(ops.hadamard_products(x, signs, rest), expected)
        assert torch.equal(ops.hadamard_codes(x, signs, rest, hashes), twins.hadamard_codes(x, signs, rest, hashes))
        expected = twins.cross_polytope_codes(x, signs, rest, 4, hashes)
        assert expected.shape == (rows, tables)
        assert torch.equal(ops.cross_polytope_codes(x, signs, rest, 4, hashes), expected)
        dense = small_integers(features, hashes * tables)
        assert torch.equal(ops.simhash_products(x, dense), twins.simhash_products(x, dense))


def test_structured_projections_keep_lengths_and_angles():
    """A block of them is an orthogonal matrix times the square root of its size."""
    signs, rest = StructuredProjections.draw(64, 64, torch.Generator().manual_seed(0))
    matrix = ops.hadamard_products(torch.eye(64), signs, rest)
    assert torch.allclose(matrix @ matrix.T, 64 * torch.eye(64), atol=1e-3)


@pytest.mark.parametrize("alternatives", [1, 3])
@pytest.mark.parametrize("probes", [1, 2, 9, 300])
def test_probe_codes_equal_reference(alternatives, probes):
    hashes, bits = 4, 2
    codes = torch.randint(0, 1 << hashes * bits, (9, 5), dtype=torch.int32)
    flips = torch.arange(1, alternatives + 1) << bits * torch.arange(hashes).unsqueeze(1)
    flips = flips.int().expand(9, 5, hashes, alternatives).contiguous()
    costs = torch.rand(9, 5, hashes, alternatives)
    costs[torch.rand(costs.shape) < 0.1] = float("inf")
    found = ops.probe_codes(codes, flips, costs, probes)
    assert torch.equal(found, twins.probe_codes(codes, flips, costs, probes))
    assert torch.equal(found[:, :, 0], codes)
    for of_table in found.view(-1, probes):
        there = of_table[of_table >= 0]
        assert there.unique().numel() == len(there)


@pytest.mark.parametrize("name", FAMILIES)
def test_probes_are_the_codes_that_a_small_move_leads_to(name, threads):
    family = make_family(name, 40, 3, 60)
    x = torch.randn(50, 40)
    probes = family.probes(x, 8)
    assert probes.shape == (50, 60, 8)
    assert torch.equal(probes[:, :, 0], family.codes(x))
    assert torch.equal(probes[:, :, :3], family.probes(x, 3))
    assert torch.equal(torch.cat([family.probes(row, 8) for row in x.split(1)]), probes)
    there = probes.masked_fill(probes < 0, 0)
    assert there.max() < 1 << family.code_bits
    moved = family.codes(x + 0.2 * torch.randn(50, 40))
    changed = moved != probes[:, :, 0]
    hits = (moved.unsqueeze(2) == probes[:, :, 1:])[changed].float().mean(0)
    assert hits[0] == hits.max() > 0.2  # the first guess is the best one, and far above chance
    assert hits.sum() > 0.6


@pytest.mark.parametrize("name", FAMILIES)
def test_families_take_empty_batches(name):
    family = make_family(name, 10, 2, 3)
    assert family.codes(torch.empty(0, 10)).shape == (0, 3)
    assert family.nbytes >= 0


@pytest.mark.parametrize("name", FAMILIES)
def test_code_of_a_row_depends_neither_on_the_batch_nor_on_its_strides(simd_level, threads, name):
    family = make_family(name, 67, min(9, FAMILIES[name].max_hashes_per_table()), 5)
    x = torch.randn(45, 67).relu()
    codes = family.codes(x)
    assert codes.shape == (45, 5)
    assert codes.min() >= 0
    assert codes.max() < 2**family.code_bits
    assert torch.equal(torch.cat([family.codes(row.unsqueeze(0)) for row in x]), codes)
    assert torch.equal(family.codes(x.T.contiguous().T), codes)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_a_function_of_the_seed(name):
    x = torch.randn(50, 20).relu()
    assert torch.equal(make_family(name, 20, 4, 6, seed=1).codes(x), make_family(name, 20, 4, 6, seed=1).codes(x))
    assert not torch.equal(make_family(name, 20, 4, 6, seed=1).codes(x), make_family(name, 20, 4, 6, seed=2).codes(x))


def measured_collisions(family, cosine, pairs=300):
    """Share of equal codes over `pairs` Gaussian pairs of exactly this cosine, and all tables."""
    a = torch.nn.functional.normalize(torch.randn(pairs, family.in_features))
    b = torch.randn_like(a)
    b = torch.nn.functional.normalize(b - (a * b).sum(1, keepdim=True) * a)
    b = cosine * a + (1 - cosine**2) ** 0.5 * b
    return (family.codes(a) == family.codes(b)).float().mean().item()


def of_angle(cosine):
    """Goemans & Williamson 1995: how often two vectors agree in the sign of a Gaussian projection."""
    return 1 - math.acos(cosine) / math.pi


def of_gaussian_pairs(value, width):
    """How often `value` agrees for pairs of Gaussian vectors of this correlation: 65,536 draws, error below 0.002."""
    a, independent = torch.randn(2, 65536, width, generator=torch.Generator().manual_seed(0))

    def probability(cosine):
        b = cosine * a + math.sqrt(1 - cosine * cosine) * independent
        return (value(a) == value(b)).float().mean().item()

    return probability


def vertex(x):
    """The vertex of the cross-polytope that is nearest."""
    best = x.abs().argmax(1, keepdim=True)
    return 2 * best + (x.gather(1, best) < 0)


# In the limit of wide vectors, the coordinates that a hash looks at are Gaussian.
OF_CROSS_POLYTOPE = of_gaussian_pairs(vertex, CrossPolytope.dimension)
OF_DWTA = of_gaussian_pairs(lambda x: x.argmax(1), DWTA.bin_width)


# 300 pairs x 200 tables: the standard error is below 0.003 even if the pairs alone counted for a tenth of the draws.
@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.9])
@pytest.mark.parametrize(
    ("family", "agreement"),
    [
        (SimHash(100, 5, 200), of_angle),
        (HadamardSimHash(128, 1, 200), of_angle),
        (HadamardSimHash(130, 2, 200), of_angle),
        (CrossPolytope(200, 2, 200), OF_CROSS_POLYTOPE),
        (DWTA(256, 2, 200), OF_DWTA),
    ],
)
def test_codes_agree_as_often_as_theory_says(family, agreement, cosine):
    expected = agreement(cosine) ** family.hashes_per_table
    assert abs(measured_collisions(family, cosine) - expected) < 0.02


def test_cross_polytope_separates_better_than_signs_of_as_many_bits():
    exponents = [math.log(agreement(0.9)) / math.log(agreement(0.2)) for agreement in (OF_CROSS_POLYTOPE, of_angle)]
    assert exponents[0] < 0.85 * exponents[1]


def test_empty_bins_agree_as_often_as_their_donors():
    """A sparse pair with the same nonzeros always agrees; with disjoint ones, no more often than chance."""
    family = DWTA(4000, 1, 500)
    x, y = torch.zeros(1, 4000), torch.zeros(1, 4000)
    x[0, :200:2], y[0, 1:200:2] = torch.rand(100), torch.rand(100)
    assert torch.equal(family.codes(x), family.codes(3 * x))
    assert (family.codes(x) == family.codes(y)).float().mean() < 0.25
    assert (family.codes(x).unique()).numel() == 8


def test_values_that_are_not_numbers():
    nan, inf = float("nan"), float("inf")
    projections = torch.randn(4, 12)
    codes = ops.simhash_codes(torch.tensor([[nan, 1, 2, 3], [inf, -inf, 1, 0], [0, 0, 0, 0]]), projections, 6)
    assert codes[0].eq(0).all()
    assert codes[2].eq(0).all()
    bins = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    x = torch.tensor([[nan, 1, 2, 0], [-inf, nan, 0, 0], [1, inf, 2, 3], [nan, nan, nan, nan]])
    assert ops.dwta_codes(x, bins, 1, 0).flatten().tolist() == [2, 0, 1, 0]
    assert torch.equal(twins.dwta_codes(x, bins, 1, 0), ops.dwta_codes(x, bins, 1, 0))


SIGNS, REST = StructuredProjections.draw(6, 8, torch.Generator())
FLIPS = torch.ones(4, 2, 3, 1, dtype=torch.int32)
X, P, BINS = torch.randn(4, 6), torch.randn(6, 8), torch.zeros(8, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.simhash_codes(X.int(), P, 4), "x has dtype Int"),
        (lambda: ops.simhash_codes(X.T, P, 4), "x is not contiguous"),
        (lambda: ops.simhash_codes(X[:, :5].contiguous(), P, 4), r"x has shape \[4, 5\]; wanted 6 in dimension 1"),
        (lambda: ops.simhash_codes(X, P.double(), 4), "projections has dtype Double"),
        (lambda: ops.simhash_codes(X, P, 3), "wanted a multiple of hashes_per_table = 3"),
        (lambda: ops.simhash_codes(X, P, 0), "hashes_per_table is 0; wanted 1 to 30"),
        (lambda: ops.simhash_codes(X, P, 31), "hashes_per_table is 31; wanted 1 to 30"),
        (lambda: ops.dwta_codes(X, BINS, 11, 0), "hashes_per_table is 11; wanted 1 to 10"),
        (lambda: ops.dwta_codes(X, BINS + 6, 4, 0), r"bins\[0\] is 6; wanted 0 to 5"),
        (lambda: ops.dwta_codes(X, BINS[:, :4].contiguous(), 4, 0), "bins has shape"),
        (lambda: ops.simhash_products(X.double(), P), "x has dtype Double"),
        (lambda: ops.hadamard_products(X.double(), SIGNS, REST), "x has dtype Double"),
        (lambda: ops.hadamard_products(X, SIGNS[:, :, :6].contiguous(), REST), "wanted a power of two in dimension 2"),
        (lambda: ops.hadamard_products(X, SIGNS[:, :2].contiguous(), REST), "signs has shape"),
        (lambda: ops.hadamard_products(X, SIGNS[:0], REST), "wanted at least 1 blocks for 8 products"),
        (lambda: ops.hadamard_products(X, SIGNS, torch.ones(1, 8)), "rest has shape"),
        (lambda: ops.hadamard_codes(X, SIGNS, REST, 3), "wanted a multiple of hashes_per_table = 3"),
        (lambda: ops.cross_polytope_codes(X, SIGNS, REST, 3, 1), "dimension is 3; wanted a power of two"),
        (lambda: ops.cross_polytope_codes(X, SIGNS, REST, 4, 4), r"hashes_per_table \* dimension = 16"),
        (lambda: ops.cross_polytope_codes(X, SIGNS, REST, 4, 11), "hashes_per_table is 11; wanted 1 to 10"),
        (lambda: ops.probe_codes(torch.zeros(4, 2).int(), FLIPS, torch.ones(4, 2, 3, 1), 0), "probes is 0"),
        (lambda: ops.probe_codes(torch.zeros(4, 3).int(), FLIPS, torch.ones(4, 2, 3, 1), 1), "flips has shape"),
        (lambda: ops.probe_codes(torch.zeros(4, 2).int(), FLIPS, torch.ones(4, 2, 2, 1), 1), "costs has shape"),
    ],
)
def test_operators_name_the_bad_argument(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_family("md5", 4, 2, 2), "hash is 'md5'; wanted one of 'simhash', 'simhash_hadamard', "),
        (lambda: SimHash(0, 2, 2), "in_features is 0; wanted at least 1"),
        (lambda: SimHash(4, 0, 2), "hashes_per_table is 0; wanted at least 1"),
        (lambda: SimHash(4, 2, -1), "num_tables is -1; wanted at least 1"),
        (lambda: SimHash(4, 31, 1), "hashes_per_table is 31; wanted at most 30"),
        (lambda: DWTA(4, 11, 1), "hashes_per_table is 11; wanted at most 10"),
        (lambda: SimHash(4, 2, 2).codes(torch.randn(3, 5)), r"x has shape \[3, 5\]; wanted \[n, 4\]"),
        (lambda: SimHash(4, 2, 2).codes(torch.ones(3, 4).int()), "x has dtype torch.int32"),
        (lambda: SimHash(4, 2, 2).codes(torch.ones(3, 4).to_sparse()), "x has layout torch.sparse_coo"),
        (lambda: CrossPolytope(4, 7, 2), "hashes_per_table is 7; wanted at most 6"),
        (lambda: SimHash(4, 2, 2).probes(torch.ones(3, 4), 0), "count is 0; wanted at least 1"),
        (lambda: SimHash(4, 2, 2).probes(torch.ones(3, 5), 2), r"x has shape \[3, 5\]; wanted \[n, 4\]"),
        (lambda: SimHash(4, 2, 2).probes(torch.ones(3, 4).to_sparse_csr(), 2), "x has layout torch.sparse_csr"),
    ],
)
def test_families_name_the_bad_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
