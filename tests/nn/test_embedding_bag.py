from __future__ import annotations

import copy

import pytest
import torch
import twins
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import torch_lsh
from torch_lsh import ops
from torch_lsh.nn import EmbeddingBag

F_, D = 30, 7


def batch(samples=9, features=F_, dtype=torch.float32, most=6):
    """A sparse batch with empty samples and repeated features."""
    counts = torch.randint(0, most, (samples,))
    if samples > 2:
        counts[1] = counts[-1] = 0
    crow = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    col = torch.randint(0, features, (int(crow[-1]),))
    return crow, col, torch.randn(len(col)).to(dtype)


def csr(crow, col, values, features=F_):
    return torch.sparse_csr_tensor(crow, col, values, (len(crow) - 1, features), check_invariants=False)


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2**-6}


# --- operators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("samples", "width"), [(0, 3), (1, 1), (9, 33), (100, 128), (5, 1100), (4, 0)])
@pytest.mark.parametrize("weighted", [True, False])
def test_forward_and_backward_equal_reference(simd_level, dtype, samples, width, weighted):
    weight = torch.randn(F_, width).to(dtype)
    crow, col, values = batch(samples, dtype=dtype)
    values = values if weighted else None
    copies = [t.double().requires_grad_() if t is not None else None for t in (weight, values)]
    expected = twins.embedding_bag(copies[0], crow, col, copies[1])
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * 10}
    out = ops.embedding_bag(weight, crow, col, values)
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), expected.detach(), **close)

    grad = torch.randn(samples, width).to(dtype)
    expected.backward(grad.double())
    rows, sums = torch.ops.torch_lsh.embedding_bag_backward(grad, crow, col, values)
    assert torch.equal(rows, col.unique())
    torch.testing.assert_close(sums.double(), copies[0].grad[rows], **close)
    if weighted:
        grad_values = torch.ops.torch_lsh.embedding_bag_values_backward(grad, weight, crow, col)
        close["atol"] *= 10
        torch.testing.assert_close(grad_values.double(), copies[1].grad, **close)


def test_results_do_not_depend_on_threads():
    weight, (crow, col, values) = torch.randn(F_, 64), batch(300)
    grad = torch.randn(300, 64)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(
            (
                ops.embedding_bag(weight, crow, col, values),
                *torch.ops.torch_lsh.embedding_bag_backward(grad, crow, col, values),
                torch.ops.torch_lsh.embedding_bag_values_backward(grad, weight, crow, col),
            )
        )
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0]))


def runs_of(kind):
    """Batches in which threads share little or nothing evenly: numbers of features per sample, and the features."""
    counts = {
        "one huge bag": [0, 0, 5000, 0, 1],
        "one bag": [700],
        "fewer bags than threads": [300, 1, 299],
        "only empty bags": [0] * 600,
        "many short bags": [1, 0, 2, 0, 0] * 400,
        "the last is empty": [400] * 3 + [0] * 300,
    }[kind]
    crow = torch.nn.functional.pad(torch.tensor(counts).cumsum(0), (1, 0))
    return crow, torch.randint(0, F_, (int(crow[-1]),))


@pytest.mark.parametrize(
    "kind",
    [
        "one huge bag",
        "one bag",
        "fewer bags than threads",
        "only empty bags",
        "many short bags",
        "the last is empty",
    ],
)
def test_threads_share_uneven_bags(simd_level, kind):
    crow, col = runs_of(kind)
    weight, values = torch.randn(F_, 40), torch.rand(len(col))
    grad = torch.randn(len(crow) - 1, 40)
    twin = weight.double().requires_grad_()
    expected = twins.embedding_bag(twin, crow, col, values.double())
    expected.backward(grad.double())
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        out = ops.embedding_bag(weight, crow, col, values)
        results.append((out, *torch.ops.torch_lsh.embedding_bag_backward(grad, crow, col, values)))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0]))
    out, rows, sums = results[0]
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-4, atol=1e-3)
    assert torch.equal(rows, col.unique())
    torch.testing.assert_close(sums.double(), twin.grad[rows], rtol=1e-4, atol=1e-3)


LARGEST = 2**63 - 2


def features_of(kind):
    """Features that threads share by ranges in different ways: far fewer than threads, or with ranges left empty."""
    return {
        "no entry": torch.empty(0, dtype=torch.int64),
        "one entry": torch.tensor([5]),
        "one feature": torch.full((9000,), 5),
        "the largest feature": torch.full((9000,), LARGEST),
        "two features": torch.randint(2, (9000,)) * LARGEST,
        "neighbours": 2**40 + torch.randint(3, (9000,)),
        "one feature in most entries": torch.where(torch.rand(9000) < 0.9, 400, torch.randint(1000, (9000,))),
        "increasing": torch.arange(9000) // 2,
        "decreasing": torch.arange(9000).flip(0) // 2,
        "a range of 32 bits beside one of 63": torch.cat([torch.arange(5000), torch.randint(LARGEST, (4000,))]),
        "few entries per thread": torch.randint(700, (2500,)),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "no entry",
        "one entry",
        "one feature",
        "the largest feature",
        "two features",
        "neighbours",
        "one feature in most entries",
        "increasing",
        "decreasing",
        "a range of 32 bits beside one of 63",
        "few entries per thread",
    ],
)
@pytest.mark.parametrize("weighted", [True, False])
def test_threads_share_features_by_ranges(kind, weighted):
    col = features_of(kind)
    values = torch.randn(len(col), dtype=torch.float64) if weighted else None
    crow = torch.cat([torch.zeros(1), torch.rand(99).sort().values * len(col), torch.tensor([len(col)])]).long()
    grad = torch.randn(100, D, dtype=torch.float64)
    terms = grad[torch.repeat_interleave(crow.diff())] * (1 if values is None else values[:, None])
    unique, group = col.unique(return_inverse=True)
    expected = torch.zeros(len(unique), D, dtype=torch.float64).index_add_(0, group, terms)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(
            (*torch.ops.torch_lsh.embedding_bag_backward(grad, crow, col, values), *ops.coalesce_rows(col, terms))
        )
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0]))
    for rows, sums in (results[0][:2], results[0][2:]):
        assert torch.equal(rows, unique)
        torch.testing.assert_close(sums, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_width_of_blocks_and_their_ends(simd_level, dtype):
    crow, col, values = batch(7, dtype=dtype)
    for width in [*range(1, 34), 63, 64, 65, 127, 129, 257, 300]:
        weight = torch.randn(F_, width).to(dtype)
        expected = twins.embedding_bag(weight.double(), crow, col, values.double())
        out = ops.embedding_bag(weight, crow, col, values)
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * 10}
        torch.testing.assert_close(out.double(), expected, **close)


@pytest.mark.parametrize("largest", [0, 1, 2**11 - 1, 2**11, 2**18 + 5, 2**22, 2**33 + 1, 2**62])
def test_features_of_any_number_of_digits(threads, largest):
    crow, _, values = batch(300)
    col = torch.randint(0, largest + 1, (int(crow[-1]),))
    col[:2] = torch.tensor([largest, 0])
    grad = torch.randn(300, D)
    rows, sums = torch.ops.torch_lsh.embedding_bag_backward(grad, crow, col, values)
    unique, position = col.unique(return_inverse=True)
    assert torch.equal(rows, unique)
    sample = torch.repeat_interleave(crow.diff())
    expected = torch.zeros(len(unique), D, dtype=torch.float64).index_add_(
        0, position, values.double().unsqueeze(1) * grad[sample].double()
    )
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-4)


def test_bags_of_many_more_features_than_are_asked_for_ahead():
    crow = torch.tensor([0, 100, 100, 115, 116, 133, 5000])
    col, values = torch.randint(0, F_, (5000,)), torch.rand(5000)
    for width in (3, 16, 128):
        weight = torch.randn(F_, width)
        expected = twins.embedding_bag(weight.double(), crow, col, values.double())
        torch.testing.assert_close(
            ops.embedding_bag(weight, crow, col, values).double(), expected, rtol=1e-4, atol=1e-3
        )


def test_gradcheck():
    crow, col, values = batch(5, dtype=torch.float64)
    weight = torch.randn(F_, 3, dtype=torch.float64, requires_grad=True)
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, v: ops.embedding_bag(w, crow, col, v), (weight, values))
    assert torch.autograd.gradcheck(lambda w: ops.embedding_bag(w, crow, col), (weight,))


def test_autocast_does_not_convert_the_table():
    weight, (crow, col, values) = torch.randn(F_, D, requires_grad=True), batch()
    expected = ops.embedding_bag(weight, crow, col, values)
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        out = ops.embedding_bag(weight, crow, col, values.bfloat16())
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=5e-2)
    assert all(t.dtype is torch.float32 for t in kept if t.shape == weight.shape)
    out.float().sum().backward()
    assert weight.grad.dtype is torch.float32


GOOD = (torch.randn(F_, D), torch.tensor([0, 2, 3]), torch.tensor([1, 2, 29]), torch.randn(3))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.randn(F_, 2 * D)[:, ::2], "weight is not contiguous"),
        (0, torch.randn(F_, D).half(), "weight has dtype Half"),
        (0, torch.randn(F_), "weight has shape"),
        (1, torch.tensor([0, 2, 3], dtype=torch.int32), "crow has dtype Int; wanted Long"),
        (1, torch.tensor([0, 4, 3]), "crow decreases at 2"),
        (1, torch.tensor([0, 2, 2]), "crow runs from 0 to 2; wanted 0 to 3"),
        (1, torch.tensor([1, 2, 3]), "crow runs from 1"),
        (1, torch.tensor([], dtype=torch.int64), "crow is empty"),
        (2, torch.tensor([1, 30, 2]), r"col\[1\] is 30; wanted 0 to 29"),
        (2, torch.tensor([-1, 3, 2]), r"col\[0\] is -1"),
        (3, torch.randn(2), r"values has shape \[2\]"),
        (3, torch.randn(3).double(), "values has dtype Double"),
    ],
)
def test_names_the_bad_argument(place, value, message):
    arguments = list(GOOD)
    arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        ops.embedding_bag(*arguments)


# --- the module -----------------------------------------------------------------------------------------------------


def pair(**options):
    ours = EmbeddingBag(F_, D, **options)
    theirs = nn.EmbeddingBag(F_, D, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3, -1])
@pytest.mark.parametrize("include_last_offset", [False, True])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
@pytest.mark.parametrize("form", ["offsets", "two-dimensional"])
def test_equals_pytorch(mode, padding_idx, include_last_offset, integer, form):
    ours, theirs = pair(mode=mode, padding_idx=padding_idx, include_last_offset=include_last_offset)
    if form == "offsets":
        crow, col, _ = batch(40, most=4)
        col[::5] = 3 if padding_idx == 3 else F_ - 1
        arguments = col.to(integer), (crow if include_last_offset else crow[:-1]).to(integer)
    else:
        arguments = (torch.randint(0, F_, (8, 5)).to(integer),)
    out, expected = ours(*arguments), theirs(*arguments)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_per_sample_weights_equal_pytorch(padding_idx):
    ours, theirs = pair(mode="sum", padding_idx=padding_idx)
    crow, col, values = batch(20)
    a, b = values.clone().requires_grad_(), values.clone().requires_grad_()
    out, expected = ours(col, crow[:-1], a), theirs(col, crow[:-1], b)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    if padding_idx is None:
        torch.testing.assert_close(a.grad, b.grad)
    else:
        torch.testing.assert_close(a.grad, b.grad * (col != padding_idx))


@pytest.mark.parametrize("options", [{"max_norm": 0.5}, {"scale_grad_by_freq": True}, {"dtype": torch.float16}])
def test_what_only_pytorch_has(options):
    ours, theirs = pair(mode="mean", **options)
    crow, col, _ = batch(20)
    out, expected = ours(col, crow[:-1]), theirs(col, crow[:-1])
    assert torch.equal(out, expected)
    out.sum().backward()
    expected.sum().backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_csr_is_a_matrix_product(index_dtype, dtype, mode):
    bag = EmbeddingBag(F_, D, mode=mode, dtype=dtype)
    dense = torch.randn(9, F_) * (torch.rand(9, F_) < 0.2)
    dense[2] = 0
    x = dense.to_sparse_csr()
    x = torch.sparse_csr_tensor(x.crow_indices().to(index_dtype), x.col_indices().to(index_dtype), x.values(), x.shape)
    expected = dense.to(dtype).double() @ bag.weight.detach().double()
    if mode == "mean":
        expected /= (dense != 0).sum(1, keepdim=True).clamp(min=1)
    out = bag(x)
    assert out.dtype is dtype
    assert (out[2] == 0).all()
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_csr_gradients_of_values():
    bag = EmbeddingBag(F_, D, mode="sum", dtype=torch.float64)
    x = csr(*batch(6, dtype=torch.float64)).requires_grad_()
    bag(x).square().sum().backward()
    dense = x.detach().to_dense().requires_grad_()
    (dense @ bag.weight.detach()).square().sum().backward()
    sample = torch.repeat_interleave(x.crow_indices().diff())
    torch.testing.assert_close(x.grad.values(), dense.grad[sample, x.col_indices()])


def test_drop_in():
    ours, theirs = pair(mode="mean", padding_idx=2)
    assert isinstance(ours, nn.EmbeddingBag)
    assert EmbeddingBag(F_, D).mode == nn.EmbeddingBag(F_, D).mode
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    copied = copy.deepcopy(ours)
    pretrained = EmbeddingBag.from_pretrained(ours.weight.detach(), mode="mean", padding_idx=2)
    x = torch.randint(0, F_, (4, 3))
    assert torch.equal(copied(x), ours(x))
    assert torch.equal(pretrained(x), ours(x))
    assert not pretrained.weight.requires_grad


def test_gradient_follows_the_optimizer():
    bag = EmbeddingBag(F_, D, mode="sum")
    crow, col, values = batch()
    x = csr(crow, col, values)
    bag(x).sum().backward()
    assert bag.weight.grad.layout is torch.strided
    dense = bag.weight.grad
    bag.weight.grad = None
    optimizer = torch_lsh.optim.Adam(bag.parameters())
    bag(x).sum().backward()
    gradient = bag.weight.grad
    assert gradient.is_sparse
    assert torch.equal(gradient._indices()[0], col.unique())
    torch.testing.assert_close(gradient.to_dense(), dense)
    optimizer.step()


@pytest.mark.parametrize("form", ["csr", "offsets"])
def test_sparse_option_works_with_sparse_adam(form):
    ours, theirs = pair(mode="sum", sparse=True)
    crow, col, values = batch()
    for bag in (ours, theirs):
        optimizer = torch.optim.SparseAdam(bag.parameters(), lr=0.1)
        out = bag(csr(crow, col, values)) if bag is ours and form == "csr" else bag(col, crow[:-1], values)
        out.square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_trains_as_pytorch_does():
    ours, theirs = pair(mode="sum")
    a, b = torch_lsh.optim.Adagrad(ours.parameters(), lr=0.1), torch.optim.Adagrad(theirs.parameters(), lr=0.1)
    for _ in range(5):
        crow, col, values = batch()
        ours(csr(crow, col, values)).square().sum().backward()
        theirs(col, crow[:-1], values).square().sum().backward()
        for optimizer in (a, b):
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_empty_batches():
    bag = EmbeddingBag(F_, D, mode="sum")
    empty = torch.empty(0, dtype=torch.int64)
    assert bag(csr(torch.zeros(1, dtype=torch.int64), empty, torch.empty(0))).shape == (0, D)
    out = bag(csr(torch.zeros(4, dtype=torch.int64), empty, torch.empty(0)))
    assert torch.equal(out, torch.zeros(3, D))
    out.sum().backward()
    assert (bag.weight.grad == 0).all()
    assert bag(torch.empty(0, 3, dtype=torch.int64)).shape == (0, D)
    assert torch.equal(bag(torch.empty(2, 0, dtype=torch.int64)), torch.zeros(2, D))
    assert bag(empty, empty).shape == (0, D)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((csr(*batch(3, F_ + 5), features=F_ + 5),), ValueError, r"input has shape \(3, 35\); wanted \[B, 30\]"),
        ((csr(*batch(3)), torch.tensor([0])), ValueError, "input is a sparse CSR tensor, which holds offsets"),
        ((torch.tensor([[1, F_]]),), IndexError, "input has features 1 to 30; wanted 0 to 29"),
        ((torch.tensor([[-1, 2]]),), IndexError, "input has features -1 to 2"),
        ((torch.tensor([1, 2]), torch.tensor([1])), ValueError, r"begin and end at \[1, 2\]; wanted \[0, 2\]"),
        ((torch.tensor([1, 2]), torch.tensor([0, 2, 1])), ValueError, "offsets decrease"),
        ((torch.tensor([1, 2]),), ValueError, "offsets"),
        ((torch.tensor([[1, 2]]), torch.tensor([0])), ValueError, "offsets"),
        ((torch.tensor([1, 2]), torch.tensor([0]), torch.ones(3)), ValueError, "per_sample_weights"),
    ],
)
def test_module_names_the_bad_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        EmbeddingBag(F_, D, mode="sum")(*arguments)


@pytest.mark.parametrize("options", [{"mode": "max"}, {"mode": "sum", "scale_grad_by_freq": True}])
def test_csr_with_options_that_have_no_meaning_there(options):
    with pytest.raises(ValueError, match="wanted mode 'sum', or 'mean' without the others"):
        EmbeddingBag(F_, D, **options)(csr(*batch()))


def test_weights_with_mean_are_refused_as_by_pytorch():
    ours, theirs = pair(mode="mean")
    for bag in (ours, theirs):
        with pytest.raises(NotImplementedError, match="mode='sum'"):
            bag(torch.tensor([1, 2]), torch.tensor([0]), torch.ones(2))


def test_features_without_bags_do_not_crash_pytorch():
    with pytest.raises(ValueError, match=r"offsets of shape \(0,\) with input of 1 features"):
        EmbeddingBag(F_, D, mode="max")(torch.tensor([1]), torch.tensor([], dtype=torch.int64))


# --- graphs and function transforms -----------------------------------------------------------------------------------

FEATURES = torch.tensor([[1, 2, 2], [3, 29, 0]])


def twins_of(**options):
    torch.manual_seed(0)
    bag, twin = EmbeddingBag(F_, D, **options), nn.EmbeddingBag(F_, D, **options)
    twin.load_state_dict(bag.state_dict())
    return bag, twin


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "trace",
    [
        torch.fx.symbolic_trace,
        lambda bag: torch.fx.symbolic_trace(nn.Sequential(bag)),
        lambda bag: torch.export.export(bag, (FEATURES,)).module(),
        lambda bag: make_fx(bag)(FEATURES),
    ],
    ids=["fx", "fx leaf", "export", "make_fx"],
)
def test_graphs_are_those_of_pytorch(trace, training):
    bag, twin = twins_of(mode="sum")
    graph = trace(bag.train(training))
    torch.testing.assert_close(graph(FEATURES.flip(0)), twin(FEATURES.flip(0)))


@pytest.mark.parametrize("is_sparse", [False, True])
def test_compiled_training_is_row_sparse(is_sparse):
    bag, _ = twins_of(mode="mean")
    x = csr(torch.tensor([0, 2, 3]), torch.tensor([1, 2, 29]), torch.ones(3)) if is_sparse else FEATURES
    optimizer = torch_lsh.optim.Adam(bag.parameters())
    torch.compile(bag, backend="aot_eager")(x).square().sum().backward()
    compiled, bag.weight.grad = bag.weight.grad, None
    bag(x).square().sum().backward()
    assert compiled.is_sparse
    assert torch.equal(compiled.to_dense(), bag.weight.grad.to_dense())
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"without fullgraph=True|fullgraph=False"):
        torch.compile(bag, backend="aot_eager", fullgraph=True)(x)
    del optimizer


def test_compiled_without_gradients_is_one_graph():
    bag, twin = twins_of()
    bag.requires_grad_(False)
    assert torch.equal(torch.compile(bag, backend="aot_eager", fullgraph=True)(FEATURES), twin(FEATURES))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_sample():
    gradients = []
    for bag in twins_of(mode="sum"):

        def loss(parameters, x, bag=bag):
            return torch.func.functional_call(bag, parameters, (x[None],)).square().sum()

        of_samples = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))
        gradients.append(of_samples(dict(bag.named_parameters()), FEATURES)["weight"])
    torch.testing.assert_close(*gradients)
