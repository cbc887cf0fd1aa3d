"""Lazy logits behave as the dense tensor, whatever happens between their making and their use."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
import torch.fx.experimental.proxy_tensor
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torch_lsh import LSHConfig, LSHLinear, SampledLogits

N, D = 97, 6  # of the fixture "layer"


def dense(layer, x):
    return F.linear(x, layer.weight, layer.bias)


EXACT = {
    "softmax over samples": lambda z: z.softmax(0),
    "softmax of log_softmax": lambda z: z.log_softmax(-1).softmax(-1),
    "softmax cut": lambda z: z.softmax(-1).clamp(min=0.01),
    "sum": lambda z: z.sum(),
    "reshape that does not fit": lambda z: z.reshape(N, -1).sum(),
    "reshape before transposed classes": lambda z: z.transpose(1, 2).reshape(2, -1).sum(),
    "squeeze of all": lambda z: z.squeeze().sum(),
    "movedim of several": lambda z: z.movedim((0, 1), (1, 0)).sum(),
    "list as index": lambda z: z[[0, 1]].sum(),
    "several ellipses": lambda z: z[0, ..., 0].sum(),
    "to another kind": lambda z: z.to(torch.complex128).real.sum(),
    "times tensor": lambda z: (z * torch.ones(N, dtype=torch.float64)).sum(),
    "over tensor": lambda z: (z / torch.ones(N, dtype=torch.float64)).sum(),
    "log_softmax without dim": lambda z: z.log_softmax(0).sum(),
    "scaled log_softmax": lambda z: (z.log_softmax(-1) * 2 / 3).float().sum(),
    "max with another": lambda z: torch.max(z, torch.zeros_like(z)).sum(),
    "max over samples": lambda z: z.max(0).values.sum(),
    "amax over several": lambda z: z.amax((0, 1)).sum(),
    "argmax of all": lambda z: z.argmax() * z.sum(),
    "argmax of negative": lambda z: (-1.0 * z).argmax(-1).sum() * z.sum(),
    "max of negative": lambda z: (-1.0 * z).max(-1).values.sum(),
    "nll of logits": lambda z: F.nll_loss(z.flatten(0, 1), torch.arange(6)),
    "cross entropy of log_softmax": lambda z: F.cross_entropy(z[0].log_softmax(-1), torch.arange(3)),
    "class": lambda z: z[..., 3],
    "add": lambda z: z + torch.ones(2, 1, N, dtype=torch.float64),
    "sigmoid": torch.sigmoid,
    "view that splits classes": lambda z: z.reshape(-1),
    "max of all": lambda z: z.max(),
    "smallest": lambda z: z.topk(2, largest=False).values,
    "cat of classes": lambda z: torch.cat([z, z], -1),
    "cat with another": lambda z: torch.cat([z, torch.zeros(2, 3, N, dtype=torch.float64)]),
    "split of classes": lambda z: z.split(50, -1)[1],
    "iteration over classes": lambda z: next(iter(z[0, 0])),
    "mask of elements": lambda z: z.masked_fill(torch.eye(3, N, dtype=torch.bool), 0.5),
    "wider": lambda z: z + torch.ones(4, 1, 1, 1, dtype=torch.float64),
    "complex": lambda z: (z * 1j).imag,
    "another dtype": lambda z: z.float() * torch.ones(N, dtype=torch.float64),
    "einsum": lambda z: torch.einsum("btn,btn->b", z, z),
    "multi margin": lambda z: F.multi_margin_loss(z.flatten(0, 1), torch.arange(6)),
    "dense probabilities": lambda z: F.cross_entropy(z.flatten(0, 1), torch.full((6, N), 1 / N, dtype=torch.float64)),
    "dense bce": lambda z: F.binary_cross_entropy_with_logits(z, torch.ones(2, 3, N, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", EXACT)
def test_anything_else_is_exact_with_gradients_and_one_warning(layer, name):
    x = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    expected = EXACT[name](dense(layer, x))
    expected_grads = torch.autograd.grad(expected.sum(), [x, layer.weight, layer.bias])
    with pytest.warns(UserWarning, match="all 97 outputs of the layer are computed") as warned:
        got = EXACT[name](layer(x))
    assert warned[0].filename == __file__  # the caller's line, not one of torch's or ours
    assert not isinstance(got, SampledLogits)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got.sum(), [x, layer.weight, layer.bias]), expected_grads):
        torch.testing.assert_close(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EXACT[name](layer(x))


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return 2 * z * grad


def test_inside_of_an_autograd_function_gradients_reach_the_layer(layer):
    x = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad((dense(layer, x) ** 2).sum(), [x, layer.weight, layer.bias])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.autograd.grad(_Square.apply(layer(x)).sum(), [x, layer.weight, layer.bias])
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b)


def test_detached_logits_train_nothing(layer):
    x = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(layer(x).detach(), torch.arange(4))
    assert not loss.requires_grad
    assert not layer(x).data.requires_grad
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_hooks_are_refused_with_advice(layer):
    with pytest.raises(RuntimeError, match=r"logits.dense\(\)"):
        layer(torch.randn(2, D, dtype=torch.float64)).register_hook(print)
    with FlopCounterMode(display=False) as counter:
        with pytest.raises(RuntimeError, match=r"FlopCounterMode, work in torch.no_grad\(\)"):
            layer(torch.randn(2, D, dtype=torch.float64))
        with torch.no_grad():
            layer(torch.randn(2, D, dtype=torch.float64)).dense()
    assert counter.get_total_flops() == 4 * D * layer.out_features


def test_repr_and_saving(layer):
    logits = layer(torch.randn(2, D, dtype=torch.float64)).detach()
    assert "SampledLogits(shape=(2, 97)" in repr(logits)
    buffer = io.BytesIO()
    torch.save(logits, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.load(buffer), logits.dense())


def test_compiled_model_is_right():
    layer = LSHLinear(D, N)
    compiled = torch.compile(layer, backend="eager")
    x = torch.randn(3, D)
    torch.testing.assert_close(compiled(x), dense(layer, x))


# --- what happens between the call of the layer and the use of its logits ---


def test_in_place_changes_count(layer):
    x, y = torch.randn(4, D, dtype=torch.float64), torch.tensor([90, 91, 92, 93])
    hide = torch.zeros(4, N, dtype=torch.bool)
    hide[:, :80] = True

    def masked(logits):
        logits[:, 80:85] = -1e9
        with torch.no_grad():
            logits.masked_fill_(hide, -1e9)
        return logits

    got, want = masked(layer(x)), masked(dense(layer, x).clone())
    torch.testing.assert_close(got.topk(3).values, want.topk(3).values)
    assert torch.equal(got.argmax(-1), want.argmax(-1))
    torch.testing.assert_close(got[1:].sum(), want[1:].sum())
    losses = [F.cross_entropy(logits, y) for logits in (got, want)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, layer.weight)[0] for loss in losses))
    with torch.inference_mode():
        got = layer(x)
        got[:, 80:] = -1e9
        assert got.argmax(-1).max() < 80


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_logits_made_without_gradients_have_none_later(layer, context):
    x = torch.randn(2, D, dtype=torch.float64)
    with context():
        logits = layer(x)
    y = torch.tensor([1, 2])
    for result in (F.cross_entropy(logits, y), logits.dense(), logits.softmax(-1), logits[:1].topk(2).values):
        assert not result.requires_grad
    torch.testing.assert_close(logits.softmax(-1), dense(layer, x).softmax(-1))


def test_values_from_before_an_update(layer):
    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)

    def update():
        with torch.no_grad():
            layer.weight.mul_(-1)

    known, unknown, ranked = layer(x), layer(x).detach(), layer(x)
    values = known.dense().clone()
    update()
    torch.testing.assert_close(known.softmax(-1), values.softmax(-1))
    assert torch.equal(known.argmax(-1), values.argmax(-1))
    for use in (
        lambda z: z.softmax(-1).sum(),
        lambda z: F.cross_entropy(z, y),
        lambda z: z[1:].dense(),
        torch.special.expit,
    ):
        with pytest.raises(RuntimeError, match=r"parameters of the layer were changed.*logits.dense\(\)"):
            use(unknown)
    # a usual loop counts what is right after the step
    with pytest.warns(UserWarning, match="ranked by the new ones"):
        assert torch.equal(ranked.max(1).indices, layer(x).argmax(-1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranked.detach().topk(2)
    logits = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="input of the layer was changed in place"):
        logits.argmax(-1)


def test_functional_call_uses_the_parameters_given(layer):
    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    others = {name: torch.randn_like(parameter) for name, parameter in layer.named_parameters()}
    logits = torch.func.functional_call(layer, others, x)
    expected = F.linear(x, others["weight"], others["bias"])
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    torch.testing.assert_close(F.cross_entropy(logits, y), F.cross_entropy(expected, y))


def test_function_transforms(layer):
    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    linear = layer.to_linear()
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(module, parameters, x, y):
        return F.cross_entropy(torch.func.functional_call(module, parameters, (x[None],)), y[None])

    def per_sample(module):
        gradient = torch.func.grad(lambda parameters, x, y: loss(module, parameters, x, y))
        return torch.vmap(gradient, in_dims=(None, 0, 0))(parameters, x, y)

    torch.testing.assert_close(per_sample(layer), per_sample(linear))
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,)), torch.func.jvp(linear, (x,), (x,)))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_model(use_reentrant):
    model = nn.Sequential(nn.Linear(D, D), LSHLinear(D, N, config=LSHConfig(active=1.0)))
    x, y = torch.randn(4, D, requires_grad=True), torch.arange(4)
    wanted = torch.autograd.grad(F.cross_entropy(dense(model[1], model[0](x)), y), [x, *model.parameters()])
    logits = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=use_reentrant)
    F.cross_entropy(logits, y).backward()
    for got, want in zip([x, *model.parameters()], wanted):
        torch.testing.assert_close(got.grad, want)


def test_functions_with_a_backward_of_their_own_are_passed_through(layer):
    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return logits.view_as(logits)

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    expected = torch.autograd.grad(F.cross_entropy(dense(layer, x), y), layer.weight)[0]
    got = torch.autograd.grad(F.cross_entropy(Reverse.apply(layer(x)), y), layer.weight)[0]
    torch.testing.assert_close(got, -expected)


def test_traced_and_scripted(layer):
    x = torch.randn(3, D, dtype=torch.float64)
    for compiled in (torch.jit.trace(layer, x), torch.jit.script(nn.Sequential(layer))):
        torch.testing.assert_close(compiled(x), dense(layer, x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["exact loss", "smoothed loss", "softmax", "max", "topk", "inside of a function"])
def test_used_outside_of_the_autocast_they_were_made_in(name, training):
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return logits.view_as(logits)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    y = torch.arange(4)
    use = {
        "exact loss": lambda z: F.cross_entropy(z, y),
        "smoothed loss": lambda z: F.cross_entropy(z.float(), y, label_smoothing=0.1),
        "softmax": lambda z: z.softmax(-1)[y, y].sum(),
        "max": lambda z: z.max(-1).values.sum(),
        "topk": lambda z: z.topk(N).values.square().sum(),
        "inside of a function": lambda z: Same.apply(z).square().sum(),
    }[name]
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(D, D), nn.Linear(D, N))
    layer = nn.Sequential(linear[0], LSHLinear.from_linear(linear[1], LSHConfig(active=1.0))).train(training)
    x = torch.randn(4, D)
    results = []
    for model in (linear, layer):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        with torch.no_grad():
            value = use(logits.detach())
        results.append([value, *torch.autograd.grad(use(logits), list(model.parameters()))])
    for expected, got in zip(*results):
        assert got.dtype is expected.dtype
        assert (got - expected).norm() < 0.03 * expected.norm()


def test_gradients_of_logits_that_were_made_leaves(layer):
    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    expected = F.linear(x, layer.weight, layer.bias).detach().requires_grad_()
    F.cross_entropy(expected, y).backward()
    layer.requires_grad_(False)
    attribute = layer(x)
    attribute.requires_grad = True
    for logits in (layer(x).detach().requires_grad_(), layer(x).requires_grad_(), attribute):
        F.cross_entropy(logits, y).backward()
        torch.testing.assert_close(logits.grad, expected.grad)
        logits.grad = None
        F.cross_entropy(logits, y).backward()
        torch.testing.assert_close(logits.grad, expected.grad)


def test_symbolic_trace_has_the_layer_as_a_leaf(layer):
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), layer))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert isinstance(traced(torch.randn(4, D, dtype=torch.float64)), SampledLogits)


def test_symbolic_trace_of_the_layer_itself_is_that_of_a_linear_layer(layer):
    x = torch.randn(4, D, dtype=torch.float64)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), dense(layer, x))


@pytest.mark.parametrize("training", [True, False])
def test_traced_by_make_fx_and_without_values(layer, training):
    layer.train(training)
    x, y = torch.randn(4, D, dtype=torch.float64), torch.arange(4)
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: F.cross_entropy(layer(x), y))(x)
    torch.testing.assert_close(traced(2 * x), F.cross_entropy(dense(layer, 2 * x), y))
    with torch._subclasses.fake_tensor.FakeTensorMode():
        logits = LSHLinear(D, 5_000).train(training)(torch.randn(4, D))
        F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)).backward()
        assert logits.topk(5).indices.shape == (4, 5)
