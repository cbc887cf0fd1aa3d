"""sketch_candidates against its twin."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops


@pytest.mark.parametrize("width", [8, 32, 128])
def test_sketch_candidates_equal_their_twin(simd_level, width):
    """The operator rounds the products of queries, so rows at the edge of the shortlist may differ."""
    for rows, batch in ((1, 1), (64, 3), (700, 5)):
        blocks = -(-rows // 64)
        codes = torch.randint(256, (blocks, width // 8, 64), dtype=torch.uint8)
        factors = torch.stack([torch.rand(blocks, 64) / width**0.5, torch.randn(blocks, 64)], 1).bfloat16()
        for count in {1, min(40, rows), rows}:
            arguments = (torch.randn(batch, width), codes, factors, rows, count)
            found, expected = ops.sketch_candidates(*arguments), twins.sketch_candidates(*arguments)
            assert found.shape == (batch, count)
            assert found.dtype is torch.int64
            assert (found.diff(dim=1) > 0).all()
            same = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist()))
            assert same >= 0.9 * batch * count - 1


def test_sketch_candidates_do_not_depend_on_the_number_of_threads(simd_level):
    codes = torch.randint(256, (80, 5, 64), dtype=torch.uint8)
    factors, x = torch.rand(80, 2, 64).bfloat16(), torch.randn(3, 40)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.sketch_candidates(x, codes, factors, 5100, 100))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


SKETCH = (torch.zeros(2, 8), torch.zeros(2, 1, 64, dtype=torch.uint8), torch.zeros(2, 2, 64).bfloat16())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.sketch_candidates(*SKETCH, 64, 1), "num_rows is 64; wanted 65 to 128"),
        (lambda: ops.sketch_candidates(*SKETCH, 129, 1), "num_rows is 129; wanted 65 to 128"),
        (lambda: ops.sketch_candidates(*SKETCH, 100, 101), "count is 101; wanted 1 to 100"),
        (lambda: ops.sketch_candidates(torch.zeros(2, 16), *SKETCH[1:], 100, 1), r"x has shape \[2, 16\]; wanted 8"),
        (lambda: ops.sketch_candidates(SKETCH[0], SKETCH[1].int(), SKETCH[2], 100, 1), "codes has dtype Int"),
    ],
)
def test_the_bad_argument_is_named(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
