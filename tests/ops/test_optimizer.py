"""Row-sparse optimizer steps on float32 and float64 at every instruction-set level. (tests/optim has bfloat16.)"""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops

ROWS, WIDTH, FACTORS = 300, 19, 5
STATES = {"adam": 2, "sgd": 0, "momentum": 1, "adagrad": 1, "lion": 1}
ADAM = (0.1, 0.9, 0.999, 1e-8, 0.2, 0.5, 0.25)


def step(module, rule, dtype, with_factor):
    """The parameter and its states after one step; as in the reverse direction and with missed decay where it can."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(shape, generator=generator, dtype=dtype)

    parameter = random(ROWS, WIDTH)
    states = [random(ROWS, WIDTH) for _ in range(STATES[rule])]
    rows = torch.arange(1, ROWS, 2)
    factor = random(FACTORS, WIDTH) if with_factor else None
    gradient = random(len(rows), FACTORS if with_factor else WIDTH) - 0.5
    decays = torch.rand(len(rows), 3, generator=generator, dtype=torch.float64) if with_factor else None
    if rule == "adam":
        module.row_sparse_adam_(parameter, *states, rows, gradient, decays, *ADAM, with_factor, with_factor, factor)
    elif rule == "adagrad":
        module.row_sparse_adagrad_(parameter, *states, rows, gradient, 0.1, 1e-8, 0.3, with_factor, factor)
    elif rule == "lion":
        module.row_sparse_lion_(parameter, *states, rows, gradient, 0.1, 0.9, 0.99, 0.3, with_factor, factor)
    else:
        buffer = states[0] if states else None
        nesterov = with_factor and rule == "momentum"
        module.row_sparse_sgd_(parameter, buffer, rows, gradient, 0.1, 0.9, 0.2, 0.3, nesterov, with_factor, factor)
    return [parameter, *states]


@pytest.mark.parametrize("with_factor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", STATES)
def test_equals_the_twin(simd_level, rule, dtype, with_factor):
    for ours, theirs in zip(step(ops, rule, dtype, with_factor), step(twins, rule, dtype, with_factor)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rule", STATES)
def test_same_bits_for_any_number_of_threads(rule):
    results = []
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        results.append(step(ops, rule, torch.float32, True))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
