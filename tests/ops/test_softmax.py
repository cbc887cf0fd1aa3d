"""The sampled softmax, apart from the layer and fused with it, against its twins."""

from __future__ import annotations

import pytest
import torch
import twins

from torch_lsh import ops


def arguments(dtype, batch, count, width, weights):
    logits = torch.randn(batch, count, dtype=dtype) * 5
    by_columns = weights is not None and "by columns" in weights
    weights = None if weights == "by columns" else weights
    logits = (logits.T.contiguous().T if by_columns else logits).requires_grad_()
    log_weights = None
    if weights is not None:
        log_weights = torch.rand((batch, count) if weights == "per sample" else count, dtype=dtype).log()
        log_weights[..., -1:] = 0 if count == 1 else -torch.inf
    positions = torch.randint(-1, max(1, count - 1), (batch, width))
    shares = torch.rand(batch, width, dtype=dtype)
    return logits, log_weights, positions, shares


WEIGHTS = [None, "shared", "per sample", "shared by columns", "by columns"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_sampled_softmax_loss(simd_level, dtype, weights):
    for shape in [(1, 1, 1), (3, 17, 2), (0, 9, 1), (2, 8, 0), (3, 0, 0)]:
        assert_softmax_equals_twin(arguments(dtype, *shape, weights))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sampled_softmax_loss_of_many_rows(simd_level, threads, weights):
    for dtype in (torch.float32, torch.float64):
        assert_softmax_equals_twin(arguments(dtype, 5, 1000, 4, weights))


def assert_softmax_equals_twin(inputs):
    loss, log_z = ops.sampled_softmax_loss(*inputs)
    expected, expected_log_z = twins.sampled_softmax_loss(*inputs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(log_z, expected_log_z)
    assert not log_z.requires_grad
    upstream = torch.randn_like(loss)
    (grad,) = torch.autograd.grad(loss, inputs[0], upstream)
    (expected_grad,) = torch.autograd.grad(expected, inputs[0], upstream)
    torch.testing.assert_close(grad, expected_grad)
    assert grad.stride() == inputs[0].stride()


def test_exponential_is_accurate_over_its_whole_range(simd_level):
    # log_z is 0 up to rounding, so the gradient of a share at position 0 is exp(z) elsewhere
    z = torch.cat([torch.zeros(1), -torch.logspace(-6, 1.9, 20_000)]).requires_grad_()
    weights = torch.full((len(z),), -torch.inf)
    weights[0] = 0
    one = torch.ones(1, 1)
    log_z = torch.zeros(1)
    grad = torch.ops.torch_lsh.sampled_softmax_loss_backward(
        torch.ones(1), log_z, z.detach()[None], None, torch.tensor([[0]]), one
    )[0, 1:]
    torch.testing.assert_close(grad, z.detach()[1:].double().exp().float(), rtol=3e-7, atol=2e-38)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
def test_non_finite_logits_are_as_in_pytorch(value, by_columns, everywhere):
    logits = torch.full((2, 700), value) if everywhere else torch.randn(2, 700)
    logits[0, 300] = value
    if by_columns:
        logits = logits.T.contiguous().T
    log_z = ops.sampled_softmax_loss(logits, None, torch.tensor([[0], [0]]), torch.ones(2, 1))[1]
    torch.testing.assert_close(log_z, logits.logsumexp(1), equal_nan=True)


@pytest.mark.parametrize("weights", [None, "shared", "per sample", "shared by columns"])
def test_sampled_softmax_loss_passes_gradcheck(weights):
    inputs = arguments(torch.float64, 3, 7, 2, weights)
    finite = inputs if inputs[1] is None else (inputs[0], inputs[1].clamp(min=-3), *inputs[2:])
    torch.autograd.gradcheck(lambda z: ops.sampled_softmax_loss(z, *finite[1:])[0], finite[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positive_sums(simd_level, threads, dtype):
    for shape in [(5, 2500), (1, 1), (0, 7), (3, 0), (64, 1025)]:
        for gradient in (torch.randn(shape, dtype=dtype), torch.randn(shape[::-1], dtype=dtype).T):
            torch.testing.assert_close(ops.positive_sums(gradient), twins.positive_sums(gradient))
    with pytest.raises(RuntimeError, match="gradient has dtype"):
        ops.positive_sums(gradient.bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(3, 7).bfloat16()}, "logits has dtype BFloat16"),
        ({0: torch.randn(7)}, "logits has shape"),
        ({0: torch.randn(3, 14)[:, ::2]}, "logits is not contiguous, nor is its transpose"),
        ({0: torch.randn(7, 3).T, 1: torch.zeros(3, 7)}, "log_weights has shape"),
        ({1: torch.zeros(6)}, "log_weights has shape"),
        ({1: torch.zeros(7).double()}, "log_weights has dtype Double"),
        ({2: torch.full((3, 2), 7)}, "positions holds 7; wanted at most 6"),
        ({3: torch.ones(3, 1)}, "shares has shape"),
    ],
)
def test_bad_arguments_are_named(change, message):
    inputs = list(arguments(torch.float32, 3, 7, 2, None))
    for i, value in change.items():
        inputs[i] = value
    with pytest.raises(RuntimeError, match=message):
        ops.sampled_softmax_loss(*inputs)


# --- fused with the layer ---------------------------------------------------------------------------------------------


def layer_arguments(dtypes, batch, count, width, labels, bias=True, weights=True):
    dtype, stored = dtypes
    of_logits = torch.promote_types(dtype, torch.float32)
    weight = (torch.randn(count + 5, width) / max(1, width) ** 0.5).to(stored).requires_grad_()
    offset = torch.randn(count + 5).to(stored).requires_grad_() if bias else None
    rows = torch.randperm(count + 5)[:count].sort().values
    log_weights = torch.rand(count, dtype=of_logits).log() if weights else None
    positions = torch.randint(-1, max(count, 0), (batch, labels))
    x = torch.randn(batch, width).to(dtype).requires_grad_()
    return x, weight, offset, rows, log_weights, positions, torch.rand(batch, labels, dtype=of_logits)


SHAPES = [(1, 1, 1, 1), (3, 17, 2, 2), (16, 1100, 33, 4), (0, 9, 3, 1), (4, 60, 0, 1)]
FLOAT32, FLOAT64, BFLOAT16 = (torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16,) * 2
DTYPES = [FLOAT32, FLOAT64, BFLOAT16, (torch.bfloat16, torch.float32)]  # of x and of the weight; autocast's comes last


def assert_all_close(results, expected, rtol, atol):
    # Twins round where the operators do, and products of bfloat16 numbers are exact in float32: no other tolerance.
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("bias", "divisor"), [(True, None), (False, 3.0)])
def test_linear_softmax_loss_and_its_backward(product_level, dtypes, bias, divisor):
    for shape in SHAPES:
        assert_layer_equals_twin(dtypes, shape, bias, divisor)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_linear_softmax_loss_of_several_tasks_and_blocks(product_level, dtypes):
    torch.set_num_threads(2)
    assert_layer_equals_twin(dtypes, (301, 701, 260, 1), bias=False, divisor=3.0)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("batch", "width"), [(40, 72), (300, 224)])
def test_the_number_of_threads_changes_no_bit(product_level, dtypes, batch, width):
    """With more threads than partial gradients of x, several share one; with a large batch there are none."""
    x, weight, bias, rows, log_weights, positions, shares = layer_arguments(dtypes, batch, 420, width, 2)
    results = []
    for threads in (1, 3, 40):
        torch.set_num_threads(threads)
        loss, slopes, scale = ops.linear_softmax_loss(x, weight, bias, rows, log_weights, positions, shares)
        results.append([loss, slopes, scale, *ops.linear_softmax_loss_backward(slopes, scale, x, weight, rows)])
    for other in results[1:]:
        assert all(torch.equal(result, first) for result, first in zip(other, results[0], strict=True))


@pytest.mark.parametrize("dtypes", DTYPES)
def test_linear_softmax_loss_of_several_blocks_in_one_thread(dtypes):
    assert_layer_equals_twin(dtypes, (301, 701, 260, 1), bias=True, divisor=None)


def assert_losses_close(results, expected):
    """The slopes and their scale have a common factor that is nobody's business but when slopes are rounded."""
    (*others, slopes, scale), (*wanted, wanted_slopes, wanted_scale) = results, expected
    assert slopes.dtype == wanted_slopes.dtype
    assert_all_close(others, wanted, rtol=1e-5, atol=1e-5)
    rounding = 2.0**-7 if slopes.dtype is torch.bfloat16 else 1e-5  # 2**-8 each
    torch.testing.assert_close(slopes * scale, wanted_slopes * wanted_scale, rtol=rounding, atol=1e-5)


def assert_layer_equals_twin(dtypes, shape, bias, divisor):
    """Without bias, rows have no importance weights either."""
    batch, count, _, _ = shape
    inputs = [
        argument.detach() if torch.is_tensor(argument) else argument
        for argument in layer_arguments(dtypes, *shape, bias, weights=bias)
    ]
    results, expected = (op.linear_softmax_loss(*inputs, divisor) for op in (ops, twins))
    assert_losses_close(results, expected)
    sums, expected_sums = (op.linear_softmax_sums(*inputs[:6]) for op in (ops, twins))
    assert_losses_close(sums, expected_sums)
    factors = torch.randn(batch, dtype=expected[2].dtype)
    for needs_weight in (True, False):
        arguments = (expected[1], factors, inputs[0], inputs[1], inputs[3], needs_weight)
        assert_all_close(
            ops.linear_softmax_loss_backward(*arguments),
            twins.linear_softmax_loss_backward(*arguments),
            rtol=1e-4,
            atol=1e-4 * max(1, count) ** 0.5,
        )


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("distance", [-800.0, 50.0, 80.0, 150.0, 800.0])
def test_the_fused_loss_of_logits_far_above_or_below_the_others(product_level, dtypes, distance):
    """One row in a hundred is not like the others, nor likely to be seen before them."""
    inputs = [argument.detach() for argument in layer_arguments(dtypes, 7, 100, 16, 2)]
    inputs[2][inputs[3][61]] = distance
    for op in ("linear_softmax_loss", "linear_softmax_sums"):
        arguments = inputs if op == "linear_softmax_loss" else inputs[:6]
        result, expected = (getattr(module, op)(*arguments) for module in (ops, twins))
        assert_losses_close(result, expected)


@pytest.mark.parametrize(("count", "batch"), [(0, 3), (5, 0), (0, 0)])
def test_gradients_of_nothing(count, batch):
    weight, rows = torch.rand(7, 4), torch.arange(count)
    arguments = (torch.rand(count, batch), torch.rand(batch), torch.rand(batch, 4), weight, rows, True)
    for result, wanted in zip(
        ops.linear_softmax_loss_backward(*arguments), twins.linear_softmax_loss_backward(*arguments)
    ):
        torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("dtypes", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("count", [700, 3000])
def test_the_fused_loss_is_the_same_for_any_number_of_threads(dtypes, count):
    inputs = [argument.detach() for argument in layer_arguments(dtypes, 64, count, 48, 2)]
    results = []
    for threads in (1, 2, 3, 8, 8, 8):  # more than cores: which of them runs a task is left to chance
        torch.set_num_threads(threads)
        loss, slopes, scale = ops.linear_softmax_loss(*inputs)
        x, weight, _, rows, *_ = inputs
        results.append((loss, slopes, *ops.linear_softmax_loss_backward(slopes, scale, x, weight, rows)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize(("bias", "weights"), [(True, True), (True, False), (False, True)])
def test_active_rows_loss_is_the_loss_of_the_gathered_logits(bias, weights):
    x, weight, offset, rows, *rest = layer_arguments(FLOAT64, 6, 40, 5, 3, bias, weights)
    hardest, in_turn = [], []
    fused = ops.active_rows_loss(x, weight, offset, rows, *rest, None, ops.HardestRows(rows, 7, None, hardest.append))
    logits = ops.gather_matmul(x, weight, offset, rows)
    log_weights, positions, shares = rest
    if weights:
        log_weights = twins.labels_weigh_one(log_weights, positions)
    apart, _ = ops.sampled_softmax_loss(logits.contiguous(), log_weights, positions, shares)
    torch.testing.assert_close(fused, apart)
    parameters = [tensor for tensor in (x, weight, offset) if tensor is not None]
    upstream = torch.rand(6, dtype=torch.float64)
    of_logits, *expected = torch.autograd.grad(apart, [logits, *parameters], upstream, retain_graph=True)
    for gradient, wanted in zip(torch.autograd.grad(fused, parameters, upstream), expected):
        torch.testing.assert_close(gradient, wanted)
    sums = twins.positive_sums(of_logits)
    assert torch.equal(hardest[0], rows[sums.argsort(descending=True)[:7]])
    ops.HardestRows(rows, 7, torch.arange(40.0), in_turn.append).find(of_logits)
    assert torch.equal(in_turn[0], rows[(sums / torch.arange(40.0).exp()).argsort(descending=True)[:7]])


@pytest.mark.parametrize("dtypes", DTYPES[2:])
def test_active_rows_loss_in_bfloat16_is_that_of_float64_up_to_rounding(product_level, dtypes):
    x, weight, offset, rows, *rest = layer_arguments(dtypes, 40, 300, 24, 3)
    loss = ops.active_rows_loss(x, weight, offset, rows, *rest)
    gradients = torch.autograd.grad(loss.sum(), [x, weight, offset])
    assert loss.dtype is torch.float32
    assert [gradient.dtype for gradient in gradients] == [x.dtype, weight.dtype, weight.dtype]
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, offset)]
    log_weights, positions, shares = rest
    expected = ops.active_rows_loss(*exact, rows, log_weights.double(), positions, shares.double())
    for result, wanted in zip((loss, *gradients), (expected, *torch.autograd.grad(expected.sum(), exact))):
        assert (result - wanted).norm() < 2**-8 * wanted.norm()


@pytest.mark.parametrize("divisor", [None, 2.0])
def test_active_rows_loss_passes_gradcheck(divisor):
    x, weight, offset, rows, *rest = layer_arguments(FLOAT64, 3, 8, 4, 2)
    torch.autograd.gradcheck(lambda x, w, b: ops.active_rows_loss(x, w, b, rows, *rest, divisor), (x, weight, offset))


def test_active_rows_sums_pass_gradcheck():
    x, weight, offset, rows, log_weights, positions, _ = layer_arguments(FLOAT64, 3, 8, 4, 2)
    positions[2] = positions[2, 0]  # a label twice
    arguments = (rows, log_weights, positions)
    torch.autograd.gradcheck(lambda x, w, b: ops.active_rows_sums(x, w, b, *arguments), (x, weight, offset))


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("outweighed", [False, True])
def test_joined_sums_of_parts_are_the_loss(parts, outweighed):
    """Rows in several parts, as processes have them; outweighed ones have a share of exp(-300) of the partition sum."""
    x, weight, offset, rows, log_weights, positions, shares = layer_arguments(FLOAT32, 6, 40, 5, 3)
    shares = shares.masked_fill(positions < 0, 0)
    with torch.no_grad():
        offset[rows[: 40 // parts]] -= 300.0 * outweighed
    loss = ops.active_rows_loss(x, weight, offset, rows, log_weights, positions, shares)
    sums, begin = [], 0
    for part in rows.chunk(parts):
        here = (positions >= begin) & (positions < begin + len(part))
        own = (log_weights[begin : begin + len(part)], (positions - begin).masked_fill(~here, -1))
        sums.append(ops.active_rows_sums(x, weight, offset, part, *own))
        begin += len(part)
    log_z, at_labels = torch.stack([part[0] for part in sums]).logsumexp(0), sum(part[1] for part in sums)
    joined = shares.sum(1) * log_z - (shares * at_labels).sum(1)
    torch.testing.assert_close(joined, loss)
    for _ in range(2):  # a second backward pass finds what the first one did
        wanted = torch.autograd.grad(loss.sum(), [x, weight, offset], retain_graph=True)
        for gradient, other in zip(torch.autograd.grad(joined.sum(), [x, weight, offset], retain_graph=True), wanted):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def test_a_weight_that_changed_before_the_backward_pass_is_an_error():
    x, weight, offset, rows, *rest = layer_arguments(FLOAT32, 3, 8, 4, 2)
    loss = ops.active_rows_loss(x, weight, offset, rows, *rest).sum()
    with torch.no_grad():
        weight[rows[0]] = 0.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # as with nn.Linear
        loss.backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_loss_of_non_finite_logits_is_as_in_pytorch(product_level, value, everywhere, dtype):
    weight = torch.full((60, 1), value) if everywhere else torch.randn(60, 1)
    weight[7] = value
    weight = weight.to(dtype)
    x, labels = torch.ones(2, 1, dtype=dtype), torch.tensor([3, 9])
    loss = ops.linear_softmax_loss(x, weight, None, torch.arange(60), None, labels[:, None], torch.ones(2, 1))[0]
    expected = torch.nn.functional.cross_entropy((x @ weight.T).float(), labels, reduction="none")
    torch.testing.assert_close(loss, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(3, 4).half()}, "x has dtype Half; wanted Float, Double or BFloat16"),
        ({1: torch.randn(12, 4).bfloat16()}, "weight has dtype BFloat16; wanted Float"),
        ({0: torch.randn(3, 4).bfloat16(), 1: torch.randn(12, 4).double()}, "weight has dtype Double; wanted BFloat16"),
        ({0: torch.randn(3, 4).bfloat16(), 6: torch.ones(3, 2).bfloat16()}, "shares has dtype BFloat16; wanted Float"),
        ({1: torch.randn(12, 5)}, "weight has shape"),
        ({2: torch.zeros(11)}, "bias has shape"),
        ({3: torch.tensor([12])}, r"rows\[0\] is 12; wanted 0 to 11"),
        ({4: torch.zeros(6)}, "log_weights has shape"),
        ({5: torch.full((3, 2), 7)}, "positions holds 7; wanted at most 6"),
        ({6: torch.ones(3, 1)}, "shares has shape"),
    ],
)
def test_bad_arguments_of_the_fused_loss_are_named(change, message):
    inputs = [argument.detach() for argument in layer_arguments(FLOAT32, 3, 7, 4, 2)]
    for i, value in change.items():
        inputs[i] = value
    with pytest.raises(RuntimeError, match=message):
        ops.linear_softmax_loss(*inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(8, 3).double()}, "slopes has dtype Double; wanted Float"),
        ({1: torch.ones(2)}, "factors has shape"),
        ({2: torch.randn(2, 4)}, "x has shape"),
        ({3: torch.randn(12, 4).bfloat16()}, "weight has dtype BFloat16; wanted Float"),
        ({3: torch.randn(12, 5)}, "weight has shape"),
        ({4: torch.arange(7)}, "rows has shape"),
        ({4: torch.arange(5, 13)}, r"rows\[7\] is 12; wanted 0 to 11"),
    ],
)
def test_bad_arguments_of_the_fused_backward_are_named(change, message):
    inputs = [torch.randn(8, 3), torch.ones(3), torch.randn(3, 4), torch.randn(12, 4), torch.arange(8)]
    for i, value in change.items():
        inputs[i] = value
    with pytest.raises(RuntimeError, match=message):
        ops.linear_softmax_loss_backward(*inputs)
