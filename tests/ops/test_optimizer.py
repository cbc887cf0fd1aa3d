"""Row-sparse optimizer steps at every instruction-set level. (tests/optim has stochastic rounding.)"""

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


def adam_arguments(shape, dtype):
    """Those of a step without missed decay; the moments of a bfloat16 parameter are float32."""
    state_dtype = torch.float32 if dtype is torch.bfloat16 else dtype
    rows = torch.randperm(shape[0])[: shape[0] // 2 + 1].sort()[0]
    moments = [torch.randn(shape).to(state_dtype), torch.rand(shape).to(state_dtype)]
    return [torch.randn(shape).to(dtype), *moments, rows, torch.randn(len(rows), *shape[1:]).to(dtype), None, *ADAM]


def check_adam(shape, dtype):
    ours = adam_arguments(shape, dtype)
    wide = ours[1].dtype
    theirs = [a.to(wide, copy=True) if torch.is_tensor(a) and a.is_floating_point() else a for a in ours]
    ops.row_sparse_adam_(*ours, False, True)
    twins.row_sparse_adam_(*theirs, False, True)
    torch.testing.assert_close(ours[1:3], theirs[1:3])
    rounding = {"rtol": 2**-8, "atol": 1e-6} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(ours[0].to(wide), theirs[0], **rounding)


@pytest.mark.parametrize("shape", [(1, 1), (50,), (10, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_adam_takes_any_shape(dtype, shape):
    check_adam(shape, dtype)


def test_adam_rounds_bfloat16_to_nearest(simd_level):
    check_adam((300, 33), torch.bfloat16)


def test_same_bits_in_bfloat16_for_any_number_of_threads():
    arguments = adam_arguments((3000, 64), torch.bfloat16)
    results = []
    for threads in (1, 2, 5, 8, 8):
        torch.set_num_threads(threads)
        copies = [a.clone() if torch.is_tensor(a) else a for a in arguments]
        ops.row_sparse_adam_(*copies, False, False)
        results.append(copies[:3])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


def test_operators_raise_versions():
    for arguments, op in [
        ([*adam_arguments((9, 3), torch.float32), False, False], ops.row_sparse_adam_),
        ([torch.rand(9, 3), torch.rand(9, 3), torch.tensor([2]), torch.rand(1, 3), 0.1, 0.9, 0.0, 0.0, False, False],
         ops.row_sparse_sgd_),
        ([torch.rand(9, 3), torch.rand(9, 3), torch.tensor([2]), torch.rand(1, 3), 0.1, 1e-8, 0.0, False],
         ops.row_sparse_adagrad_),
        ([torch.rand(9, 3), torch.rand(9, 3), torch.tensor([2]), torch.rand(1, 3), 0.1, 0.9, 0.99, 0.0, False],
         ops.row_sparse_lion_),
    ]:  # fmt: skip
        before = arguments[0]._version, arguments[1]._version
        op(*arguments)
        assert arguments[0]._version > before[0]
        assert arguments[1]._version > before[1]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.randn(10, 6)[:, ::2], "parameter is not contiguous"),
        (0, torch.randn(2, 3, 4), "parameter has shape"),
        (0, torch.randn(10, 3).half(), "parameter has dtype Half"),
        (1, torch.zeros(9, 3), r"first has shape \[9, 3\]; wanted 10"),
        (2, torch.zeros(10, 3, dtype=torch.float64), "second has dtype Double; wanted Float"),
        (3, torch.tensor([1, 10]), r"rows\[1\] is 10; wanted 0 to 9"),
        (3, torch.tensor([-1, 1]), r"rows\[0\] is -1"),
        (3, torch.tensor([2, 2]), r"rows\[1\] is 2 after 2; wanted strictly increasing"),
        (3, torch.tensor([2, 1]), r"rows\[1\] is 1 after 2"),
        (3, torch.tensor([1, 2], dtype=torch.int32), "rows has dtype Int; wanted Long"),
        (4, torch.randn(3, 3), "gradient has shape"),
        (4, torch.randn(2, 4), "gradient has shape"),
        (4, torch.randn(2, 3).double(), "gradient has dtype Double"),
        (5, torch.ones(2, 2, dtype=torch.float64), "decays has shape"),
        (5, torch.ones(2, 3), "decays has dtype Float; wanted Double"),
    ],
)
def test_adam_names_the_bad_argument_and_changes_nothing(place, value, message):
    arguments = [torch.randn(10, 3), torch.zeros(10, 3), torch.zeros(10, 3), torch.tensor([1, 2]), torch.randn(2, 3)]
    arguments += [None, 0.1, 0.9, 0.999, 1e-8, 0.0, 0.1, 0.1, False, False]
    arguments[place] = value
    before = [a.clone() for a in arguments[:3]]
    with pytest.raises(RuntimeError, match=message):
        ops.row_sparse_adam_(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments[:3], before))
