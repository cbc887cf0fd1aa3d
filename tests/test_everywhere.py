"""Ways of training that stay sampled, or say why not: one test per way, against nn.Linear."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.nn.utils import parametrizations

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.nn.warnings import REASONS

N, D = 500, 8


def layer_of(active: float = 1.0, **options) -> LSHLinear:
    torch.manual_seed(0)
    return LSHLinear(D, N, config=LSHConfig(active=active, **options))


def train(model, optimizer, x, y, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(16, D), torch.randint(N, (16,))


# --- why a step is dense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_an_optimizer_of_torch_says_that_it_updates_all_rows(batch, name):
    layer = layer_of(0.1)
    optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=rf"{name} updates all 500 rows.*take torch_lsh.optim.{name}") as warned:
        train(layer, optimizer, *batch)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert layer.stats().paths["why: optimizer"] == 2


def test_an_optimizer_of_ours_says_nothing(batch):
    layer = layer_of(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(layer, torch_lsh.optim.Adam(layer.parameters()), *batch)
    assert layer.stats().paths == {"sampled": 2}
    assert "paths       sampled 2" in str(layer.stats())


def test_an_option_without_row_sparse_update_is_named(batch):
    layer = layer_of(0.1)
    with pytest.warns(UserWarning, match=r"Adam\(amsgrad=True\) has no row-sparse update"):
        train(layer, torch_lsh.optim.Adam(layer.parameters(), amsgrad=True), *batch)


@pytest.mark.parametrize("use", [lambda h, weight: h @ weight.T, lambda h, weight: F.linear(h, weight)], ids=["@", "F"])
def test_a_weight_read_outside_of_the_layer_is_told(batch, use):
    (x, y), layer = batch, layer_of(0.1)
    optimizer = torch_lsh.optim.Adam([layer.weight])
    F.cross_entropy(use(x, layer.weight), y).backward()
    with pytest.warns(UserWarning, match=r"not through the layer.*call the layer, layer\(h\)"):
        optimizer.step()


def test_a_dense_step_that_moves_nothing_is_not_told():
    """torch.distributed.checkpoint makes the state of optimizers by one."""
    model = nn.Sequential(layer_of(0.1))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch_lsh")
        get_state_dict(model, torch_lsh.optim.Adam(model.parameters()))


def test_accuracy_in_the_loop_is_told(batch):
    (x, y), layer = batch, layer_of(0.1)
    optimizer = torch_lsh.optim.Adam(layer.parameters())

    def step():
        logits = layer(x)
        F.cross_entropy(logits, y).backward()
        right = logits.argmax(-1) == y
        optimizer.step()
        return right

    with pytest.warns(UserWarning, match="argmax ranks all 500 rows exactly in every training step"):
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()
        step()
    assert layer.stats().paths["ranked"] == 3


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_accuracy_among_the_active_rows(batch, scope):
    (x, y), layer = batch, layer_of(0.2, ranking="active", scope=scope)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = layer(x)
        F.cross_entropy(logits, y)
        active = layer.paths.active_rows_of(x)
        best = logits.topk(3)
        classes = (logits + torch.where(torch.arange(N) == 7, 100.0, 0.0)).softmax(-1).argmax(-1)
    rows = active.rows.expand(len(x), -1)
    z = F.linear(x, layer.weight, layer.bias)
    for sample in range(len(x)):
        own = rows[sample][rows[sample] >= 0]
        wanted = own[z[sample, own].topk(3).indices]
        assert torch.equal(best.indices[sample], wanted)
        torch.testing.assert_close(best.values[sample], z[sample, wanted])
        assert classes[sample] == (7 if 7 in own else wanted[0])
    assert layer.paths.last == "ranked active rows"
    found = layer(torch.randn(4, D)).argmax(-1)  # of other inputs: the rows that a look-up finds
    assert found.shape == (4,)
    assert torch.equal(layer.eval()(x).argmax(-1), z.argmax(-1))
    with pytest.raises(ValueError, match="ranking is 'all'"):
        LSHConfig(ranking="all")


def test_a_forgotten_eval_is_told_once(batch):
    layer = layer_of(0.1)
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match=r"although gradients are disabled; call model.eval\(\)") as told,
    ):
        losses = [F.cross_entropy(layer(batch[0]), batch[1]) for _ in range(2)]
    assert len(told) == 1
    assert not losses[0].requires_grad


def test_every_reason_is_told_once_per_layer_and_counted(batch):
    layer, other = layer_of(0.1), layer_of(0.1)
    with pytest.warns(UserWarning, match="cumsum has no sampled path") as warned:
        sums = [one(batch[0]).cumsum(-1) for one in (layer, layer, other)]
    assert len(warned) == 2
    assert torch.equal(sums[0], sums[1])
    assert layer.stats().paths == {"dense": 2, "why: function": 2}
    assert layer.stats().as_dict()["paths/dense"] == 2
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.paths.counts == layer.paths.counts


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(D, 100)), "0 has 100 outputs; wanted at least 4,096"),
        (nn.Embedding(N, D), r"no nn.Linear; for a weight that is used as h @ weight.T, call torch_lsh.linear_cross"),
        (nn.Linear(D, 5_000, device="meta"), "the model is on meta"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(D, 5_000)), "a subclass of nn.Linear"),
    ],
)
def test_sparsify_that_swaps_nothing_says_why(model, why):
    with pytest.warns(UserWarning, match=f"sparsify_ swapped no layer of the model.*{why}"):
        torch_lsh.sparsify_(model)


def test_a_head_that_is_replaced_is_told():
    model = nn.ModuleDict({"head": LSHLinear(D, 5_000)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model["head"] = model["head"].to_linear()  # the same weight
        model["head"] = LSHLinear(D, 5_000)
        model["head"] = nn.Linear(D, 10)
        model["head"] = LSHLinear(D, 5_000)
    with pytest.warns(UserWarning, match=r"head, an LSHLinear with 5000 outputs, was replaced by Linear.*sparsify_"):
        model["head"] = nn.Linear(D, 5_001)


def test_resized_token_embeddings_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=5_000, n_positions=8, n_embd=D, n_layer=1, n_head=1, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = torch_lsh.sparsify_(transformers.GPT2LMHeadModel(config), filter_fn=lambda _, name: name == "lm_head")
    with pytest.warns(UserWarning, match=r"lm_head, an LSHLinear with 5000 outputs, was replaced"):
        model.resize_token_embeddings(5_008)


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_says_what_was_swapped_and_what_the_last_step_did(batch, capsys):
    model = nn.Sequential(nn.Linear(D, D), nn.Linear(D, 5_000), nn.Linear(5_000, D), nn.Linear(D, 6_000))
    model = torch_lsh.sparsify_(model, LSHConfig(active=100), filter_fn=lambda module, name: name == "3")
    optimizer = torch_lsh.optim.Adam(model.parameters())
    train(model, optimizer, *batch)
    explanation = torch_lsh.explain(model)
    assert capsys.readouterr().out == f"{explanation}\n"
    dense, head = explanation.layers
    assert (dense.name, dense.swapped, dense.notes) == ("1", False, ("it was not chosen by filter_fn",))
    assert (head.name, head.swapped, head.last, head.paths) == ("3", True, "sampled", {"sampled": 2})
    assert head.notes == ("row-sparse gradients, for torch_lsh.optim.Adam",)
    assert explanation.narrow == 2
    with pytest.warns(UserWarning, match="sum has no sampled path"):
        model(batch[0]).sum()
    assert "sum has no sampled path" in str(torch_lsh.explain(model).layers[1])
    assert "dense gradients: no optimizer" in str(torch_lsh.explain(LSHLinear(4, 9)))
    with pytest.raises(TypeError, match="model is a str"):
        torch_lsh.explain("model")


# --- tied weights -----------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N, D)
        self.head = head
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embedding(x)))


def tied_models(active: float = 1.0) -> list[Tied]:
    torch.manual_seed(0)
    model = Tied(nn.Linear(D, N))
    swapped = torch_lsh.sparsify_(copy.deepcopy(model), LSHConfig(active=active), filter_fn=lambda *_: True)
    return [model, swapped]


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad"])
def test_tied_weights_have_one_row_sparse_gradient(name):
    x, y = torch.randint(N, (20,)), torch.randint(N, (20,))
    linear, model = tied_models()
    assert model.head.weight is model.embedding.weight
    optimizers = [
        getattr(lib, name)(one.parameters(), lr=0.01) for lib, one in ((torch.optim, linear), (torch_lsh.optim, model))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            losses = [train(one, optimizer, x, y, 1) for one, optimizer in zip((linear, model), optimizers)]
            assert model.head.weight.grad.layout is torch.sparse_coo
            torch.testing.assert_close(*losses)
        torch.testing.assert_close(model.head.weight, linear.head.weight)
    assert "tied with embedding" in torch_lsh.explain(model).layers[0].notes


def test_tables_follow_the_rows_of_the_embedding():
    x, y = torch.randint(N, (20,)), torch.randint(N, (20,))
    model = tied_models(0.1)[1]
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.5)
    train(model, optimizer, x, y, 3)
    assert 0 < model.head.stats().stale_rows < N  # known rows, so no full pass
    model.eval()
    tables = copy.deepcopy(model.head)
    looked_up, fresh = (
        head.sample(torch.randn(4, D, generator=torch.Generator().manual_seed(3))) for head in (model.head, tables)
    )
    assert torch.equal(looked_up.rows, fresh.rows)


def test_a_tied_embedding_follows_the_optimizer_and_densify_ends_it():
    x, y = torch.randint(N, (20,)), torch.randint(N, (20,))
    model = tied_models(0.1)[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="SGD updates all"):
        train(model, optimizer, x, y, 1)
    assert model.head.weight.grad.layout is torch.strided
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        optimizer = torch_lsh.optim.SGD(copied.parameters(), lr=0.1)
        train(copied, optimizer, x, y, 1)
        assert copied.head.weight.grad.layout is torch.sparse_coo
    torch_lsh.densify_(copied)
    train(copied, torch_lsh.optim.SGD(copied.parameters(), lr=0.1), x, y, 1)
    assert copied.head.weight.grad.layout is torch.strided
    assert not copied.embedding._forward_pre_hooks


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_a_compiled_tied_embedding_is_row_sparse(padding_idx):
    x, y = torch.randint(N, (20,)), torch.randint(N, (20,))
    x[:5] = 3
    models = [tied_models(0.1)[1] for _ in range(2)]
    models[1] = copy.deepcopy(models[1])
    calls = models[0], torch.compile(models[1], backend="aot_eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch_lsh")
        for model, call in zip(models, calls):
            model.embedding.padding_idx = padding_idx
            optimizer = torch_lsh.optim.Adam(model.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                F.cross_entropy(call(x), y).backward()
                assert model.head.weight.grad.layout is torch.sparse_coo
                optimizer.step()
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(calls[1].eval()(x), models[0].eval()(x))


class Scaled(nn.Embedding):
    def forward(self, input):
        return super().forward(input) * 2


def test_a_compiled_tied_embedding_of_another_kind_is_told_and_the_remedy_works():
    x, y = torch.randint(N, (20,)), torch.randint(N, (20,))
    model = Tied(nn.Linear(D, N))
    model.embedding = Scaled(N, D)
    model.head.weight = model.embedding.weight
    torch_lsh.sparsify_(model, LSHConfig(active=0.1), filter_fn=lambda *_: True)
    optimizer = torch_lsh.optim.Adam(model.parameters())
    with pytest.warns(UserWarning, match=r"another use of the weight.*compile what lies between") as warned:
        train(torch.compile(model, backend="aot_eager"), optimizer, x, y, 2)
    assert len(warned) == 1
    assert model.head.weight.grad.layout is torch.strided
    body = torch.compile(torch.tanh, backend="aot_eager")
    F.cross_entropy(model.head(body(model.embedding(x))), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    F.cross_entropy(model.head(body(model.embedding(x))), y).backward()
    assert model.head.weight.grad.layout is torch.sparse_coo


def test_an_embedding_tied_by_hand_is_told():
    x, y = torch.randint(N, (20,)), torch.randint(N, (20,))
    model = Tied(layer_of(0.1))
    with pytest.warns(UserWarning, match=r"another use of the weight.*sparsify_\(model\)") as warned:
        train(model, torch_lsh.optim.Adam(model.parameters()), x, y, 2)
    assert len(warned) == 1
    assert "whose gradients are dense" in str(torch_lsh.explain(model))
    torch_lsh.sparsify_(model)
    train(model, torch_lsh.optim.Adam(model.parameters()), x, y, 1)
    assert model.head.weight.grad.layout is torch.sparse_coo


# --- optimizers -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch_lsh")
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad", "RMSprop"])
def test_an_optimizer_of_torch_after_one_of_ours(batch, name):
    layer, (x, y) = layer_of(), batch
    linear = copy.deepcopy(layer.to_linear())
    first = torch_lsh.optim.SGD(layer.parameters(), lr=0.1)
    train(layer, first, x, y, 2)
    train(linear, torch.optim.SGD(linear.parameters(), lr=0.1), x, y, 2)
    second, wanted = (getattr(torch.optim, name)(one.parameters(), lr=0.01) for one in (layer, linear))
    train(layer, second, x, y, 3)
    assert layer.weight.grad.layout is torch.strided
    train(linear, wanted, x, y, 3)
    torch.testing.assert_close(layer.weight, linear.weight, rtol=1e-4, atol=5e-5)  # roots of tiny gradients
    train(layer, first, x, y, 2)  # the one that steps decides
    assert layer.weight.grad.layout is torch.sparse_coo
    train(layer, second, x, y, 1)
    del second
    train(layer, first, x, y, 2)
    assert layer.weight.grad.layout is torch.sparse_coo


@pytest.mark.parametrize("name", ["Adam", "LBFGS"])
def test_an_optimizer_of_torch_with_a_closure(batch, name):
    layer, (x, y) = layer_of(), batch
    ours = torch_lsh.optim.SGD(layer.parameters(), lr=0.1)
    train(layer, ours, x, y, 1)
    ours.zero_grad()
    optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y)
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match=f"torch's {name} updates all 500 rows"):
        optimizer.step(closure)
    assert layer.weight.grad.layout is torch.strided


def test_an_optimizer_around_one_of_ours_is_ours(batch):
    class Around(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner
            super().__init__(inner.param_groups, {})

        def step(self, closure=None):
            return self.inner.step()

    layer = layer_of(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(layer, Around(torch_lsh.optim.Adam(layer.parameters())), *batch)
    assert layer.weight.grad.layout is torch.sparse_coo


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_signatures_show_the_options_of_torch(name):
    ours, theirs = (inspect.signature(getattr(lib, name)).parameters for lib in (torch_lsh.optim, torch.optim))
    assert set(theirs) < set(ours)
    assert all(ours[key].default == theirs[key].default for key in theirs)
    assert {"stochastic_rounding", "moment_dtype", "in_backward"} == set(ours) - set(theirs) - {"catch_up"}


# --- more ways of being dense -----------------------------------------------------------------------------------------


def record_by_jit(layer, x):
    return torch.jit.trace(layer, (x,), check_trace=False)


def record_by_make_fx(layer, x):
    return torch.fx.experimental.proxy_tensor.make_fx(lambda x: layer(x))(x)


@pytest.mark.parametrize("record", [record_by_jit, record_by_make_fx])
def test_a_recorded_training_step_is_told(batch, record):
    layer = layer_of(0.1)
    with pytest.warns(UserWarning, match=r"records the computation of nn.Linear.*train with torch.compile") as warned:
        graph = record(layer, batch[0])
    assert sum("records the computation" in str(one.message) for one in warned) == 1
    torch.testing.assert_close(graph(batch[0]), F.linear(batch[0], layer.weight, layer.bias))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch_lsh")
        record(layer_of(0.1).eval(), batch[0])


def test_a_hook_on_a_part_of_a_block_is_told(batch):
    block, seen = torch_lsh.LSHFeedForward(D, N, config=LSHConfig(active=50)), []
    block.activation.register_forward_hook(lambda *args: seen.append(args[2].shape[-1]))
    with pytest.warns(UserWarning, match="a hook on a part of the feed-forward block sees all 500 hidden neurons"):
        out = block(batch[0])
    torch.testing.assert_close(out, block.exact(batch[0]))
    assert seen[0] == N
    assert block.up.paths.counts["why: hooks"] == 1


def test_numbers_per_sample_and_class_are_told(batch):
    layer, others = layer_of(0.1), torch.randn(16, N)
    with pytest.warns(UserWarning, match="modules_to_save"):
        total = layer(batch[0]) + others
    torch.testing.assert_close(total, F.linear(batch[0], layer.weight, layer.bias) + others)
    for use in (lambda z: z * others, lambda z: z.masked_fill(others > 0, 0.0), lambda z: z - others):
        with pytest.warns(UserWarning, match="has no sampled path"):
            use(layer_of(0.1)(batch[0]))


@pytest.mark.parametrize("training", [True, False])
def test_classes_that_all_weigh_nothing(batch, training):
    (x, y), layer = batch, layer_of(1.0).train(training)
    y[:3] = -100
    results = []
    for logits_of in (layer, lambda h: F.linear(h, layer.weight, layer.bias)):
        leaf = x.clone().requires_grad_()
        loss = F.cross_entropy(logits_of(leaf), y, weight=torch.zeros(N))
        results.append([loss, *torch.autograd.grad(loss, [leaf, layer.weight])])
    torch.testing.assert_close(*results, equal_nan=True)
    assert results[0][0].isnan()


# --- label smoothing by hand ------------------------------------------------------------------------------------------


def smoothed_by_trainer(logits, labels, epsilon=0.1):
    """As LabelSmoother of transformers."""
    log_probs = -F.log_softmax(logits, dim=-1)
    labels = labels.unsqueeze(-1)
    padding_mask = labels.eq(-100)
    labels = torch.clamp(labels, min=0)
    nll_loss = log_probs.gather(dim=-1, index=labels)
    smoothed_loss = log_probs.sum(dim=-1, keepdim=True, dtype=torch.float32)
    nll_loss.masked_fill_(padding_mask, 0.0)
    smoothed_loss.masked_fill_(padding_mask, 0.0)
    count = padding_mask.numel() - padding_mask.long().sum()
    return (1 - epsilon) * nll_loss.sum() / count + epsilon * smoothed_loss.sum() / (count * log_probs.shape[-1])


def smoothed_by_timm(logits, labels, epsilon=0.1):
    log_probs = F.log_softmax(logits, dim=-1)
    nll_loss = -log_probs.gather(dim=-1, index=labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return ((1 - epsilon) * nll_loss - epsilon * log_probs.mean(dim=-1)).mean()


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("loss", [smoothed_by_trainer, smoothed_by_timm])
def test_label_smoothing_by_hand_is_sampled(loss, scope):
    x, y = torch.randn(4, 5, D, requires_grad=True), torch.randint(N, (4, 5))
    if loss is smoothed_by_trainer:
        y[0, :2] = -100
    layer = layer_of(1.0, scope=scope)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = loss(layer(x), y)
    want = loss(F.linear(x, layer.weight, layer.bias), y)
    torch.testing.assert_close(got, want)
    for one, other in zip(*(torch.autograd.grad(value, [x, layer.weight]) for value in (got, want))):
        torch.testing.assert_close(one, other)
    layer.reconfigure(LSHConfig(active=100, scope=scope))
    layer.paths.counts.clear()
    loss(layer(x), y).backward()
    assert layer.paths.counts["dense"] == 0
    assert layer.paths.counts["sampled"] == 1  # gather and sum share the active rows


def test_sampled_label_smoothing_is_an_estimate_of_the_loss():
    torch.manual_seed(0)
    x, y = torch.randn(8, D), torch.randint(N, (8,))
    layer = layer_of(100, sampler="uniform")
    want = smoothed_by_timm(F.linear(x, layer.weight, layer.bias), y)
    got = torch.stack([smoothed_by_timm(layer(x), y) for _ in range(300)])
    assert abs(got.mean() - want) < 5 * got.std() / 300**0.5 + 0.002  # log of an estimate: biased by its variance


# --- targets ----------------------------------------------------------------------------------------------------------

WRONG = {
    "one-hot int64": (lambda x: torch.eye(N, dtype=torch.int64)[:16], {}),
    "one-hot uint8": (lambda x: torch.eye(N, dtype=torch.uint8)[:16], {}),
    "one-hot bool": (lambda x: torch.eye(N, dtype=torch.bool)[:16], {}),
    "one-hot int32": (lambda x: torch.eye(N, dtype=torch.int32)[:16], {}),
    "int32 indices": (lambda x: torch.zeros(16, dtype=torch.int32), {}),
    "floating indices": (lambda x: torch.zeros(16), {}),
    "class out of range": (lambda x: torch.full((16,), N), {}),
    "negative class": (lambda x: torch.full((16,), -1), {}),
    "too few": (lambda x: torch.zeros(15, dtype=torch.int64), {}),
    "transposed probabilities": (lambda x: torch.zeros(N, 16), {}),
    "weight per sample": (lambda x: torch.zeros(16, dtype=torch.int64), {"weight": torch.ones(16)}),
    "weight of another dtype": (lambda x: torch.zeros(16, dtype=torch.int64), {"weight": torch.ones(N).double()}),
    "smoothing": (lambda x: torch.zeros(16, dtype=torch.int64), {"label_smoothing": 2.0}),
    "reduction": (lambda x: torch.zeros(16, dtype=torch.int64), {"reduction": "average"}),
}


@pytest.mark.parametrize(("name", "value"), [("weight", [1.0] * N), ("ignore_index", None)])
def test_options_of_another_type_are_named(batch, name, value):
    with pytest.raises(TypeError, match=f"{name} is "):
        F.cross_entropy(layer_of(0.1)(batch[0]), batch[1], **{name: value})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", WRONG)
def test_what_a_dense_layer_refuses_is_refused(batch, name, training):
    make, options = WRONG[name]
    target, layer = make(batch[0]), layer_of(0.1).train(training)
    for module in (layer.to_linear(), layer):
        with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)):
            F.cross_entropy(module(batch[0]), target, **options)


@pytest.mark.filterwarnings("ignore:torch_lsh")
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int32])
def test_binary_targets_that_a_dense_layer_refuses_are_refused(batch, dtype):
    for module in (layer_of(0.1).to_linear(), layer_of(0.1)):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            F.binary_cross_entropy_with_logits(module(batch[0]), torch.eye(N, dtype=dtype)[:16])


def test_one_hot_of_sequences_is_refused():
    layer, x = layer_of(0.1), torch.randn(2, 3, D)
    one_hot = torch.zeros(2, 3, N, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shape \(6, 500\), that of the logits"):
        F.cross_entropy(layer(x).view(-1, N), one_hot.view(-1, N))
    with pytest.raises(ValueError, match="target has shape"):
        F.cross_entropy(layer(x).transpose(1, 2), one_hot.transpose(1, 2))
    with pytest.raises(ValueError, match="that of the logits"):
        layer.cross_entropy(x, one_hot)


# --- gradients in loggers ---------------------------------------------------------------------------------------------

LOGGED = {
    "isfinite": lambda g: torch.isfinite(g).all(),
    "isfinite of each": lambda g: g.isfinite(),
    "isnan": lambda g: torch.isnan(g).any(),
    "largest magnitude": lambda g: g.abs().max(),
    "max": lambda g: g.max(),
    "min": lambda g: g.min(),
    "amax": lambda g: g.abs().amax(),
    "amax of rows": lambda g: g.amax(1),
    "aminmax": lambda g: torch.stack(torch.aminmax(g)),
    "mean": lambda g: g.mean(),
    "mean of rows": lambda g: g.mean(1),
    "std": lambda g: g.std(),
    "var": lambda g: g.var(correction=0),
    "std of columns": lambda g: g.std(0),
    "std_mean": lambda g: torch.stack(torch.std_mean(g)),
    "var_mean": lambda g: torch.stack(torch.var_mean(g)),
    "norm": lambda g: g.norm(),
    "zeros": lambda g: (g == 0).float().mean(),
    "small ones": lambda g: (g.abs() < 0.1).sum(),
    "histc": lambda g: torch.histc(g, 5),
    "histogram": lambda g: torch.histogram(g, 5)[0],
    "plus dense": lambda g: g + torch.ones(6, 4),
    "weight decay": lambda g: g.add(torch.arange(24.0).view(6, 4), alpha=0.1),
    "minus dense": lambda g: g - torch.ones(6, 4),
    "plus sparse": lambda g: g + g,
    "vector": lambda g: torch.nn.utils.parameters_to_vector([g, torch.ones(3)]),
}


@pytest.mark.parametrize("kind", ["some rows", "all rows", "no rows", "not finite"])
@pytest.mark.parametrize("name", LOGGED)
def test_loggers_take_row_sparse_gradients(name, kind):
    rows = {"all rows": list(range(6)), "no rows": []}.get(kind, [3, 1, 3])
    gradient = torch.sparse_coo_tensor([rows], torch.randn(len(rows), 4), (6, 4), check_invariants=True)
    if kind == "not finite":
        if "histo" in name or "histc" in name:
            pytest.skip("an error in PyTorch")
        gradient._values()[0, 0] = torch.nan
    got = LOGGED[name](gradient)
    torch.testing.assert_close(
        got.to_dense() if got.layout is torch.sparse_coo else got, LOGGED[name](gradient.to_dense()), equal_nan=True
    )


def test_finite_gradients_cost_no_dense_mask():
    gradient = torch.sparse_coo_tensor([[3]], torch.ones(1, 4), (6, 4), check_invariants=True)
    assert gradient.isfinite().shape == (6, 4)
    assert (gradient == gradient).stride() == (0, 0)


# --- a default device that is not the CPU -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch_lsh")
@pytest.mark.parametrize("index", ["hash", "partition", "codes"])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad", "Lion"])
def test_training_and_look_ups_under_another_default_device(batch, name, index):
    kinds = {
        "hash": torch_lsh.HashTableConfig,
        "partition": torch_lsh.PartitionConfig,
        "codes": torch_lsh.SignCodeConfig,
    }
    if index != "hash" and name != "Adam":
        pytest.skip("one optimizer is enough")
    results = []
    for device in ("cpu", "meta"):
        layer, (x, y) = layer_of(50, index=kinds[index]()), batch
        with torch.device(device):
            optimizer = getattr(torch_lsh.optim, name)(layer.parameters(), lr=0.01)
            for _ in range(3):
                logits = layer(x)
                F.cross_entropy(logits, y, label_smoothing=0.1).backward()
                optimizer.step()
                optimizer.zero_grad()
            layer.stats(x)
            layer.eval()
            best = [layer.topk(x, 3, exact=exact).indices for exact in (True, False)]
        results.append([layer.weight, *best])
    for one, other in zip(*results):
        assert torch.equal(one, other)


def clustered_buckets():
    rows = torch.randn(500, D).repeat(140, 1) + 0.01 * torch.randn(70_000, D)
    with torch.device("meta"):
        index = torch_lsh.index.partition.PartitionIndex(len(rows), D, hashes_per_table=6, compared=16)
        index.build(rows, None, rows[:300])
        return index.recall(rows, None, rows[300:400]) > 0.9


def tuned_look_ups():
    layer, x = LSHLinear(D, 5_000), torch.randn(64, D)
    with torch.device("meta"):
        return len(torch_lsh.autotune(layer, x, seconds=0.2, hashes=["simhash"]).table) > 1


def rows_and_metrics():
    with torch.device("meta"):
        train, _ = torch_lsh.data.synthetic_xmc(100, 0, 1_000, 500)
        metric = torch_lsh.metrics.RankingMetrics(("precision", "ndcg", "coverage"), (1, 3))
        x, y = torch_lsh.data.collate_xmc([train[0], train[1]])
        multi_hot = torch_lsh.data.collate_xmc(train.rows, labels="csr")[1]
        metric.update(y.repeat(1, 3), y, torch.empty(0, 2, dtype=torch.int64, device="cpu"))
        return x.is_cpu and multi_hot.is_cpu and metric.compute()["precision@1"] == 1


@pytest.mark.parametrize("works", [clustered_buckets, tuned_look_ups, rows_and_metrics])
def test_the_rest_under_another_default_device(works):
    torch.manual_seed(0)
    assert works()


def test_the_loss_of_the_layer_takes_sequences():
    layer, x, y = layer_of(), torch.randn(2, 3, D), torch.randint(N, (2, 3))
    wanted = F.cross_entropy(F.linear(x, layer.weight, layer.bias).movedim(-1, 1), y, reduction="none")
    torch.testing.assert_close(layer.cross_entropy(x, y, reduction="none"), wanted)


def test_the_page_lists_every_reason():
    page = Path(__file__).resolve().parents[1] / "docs" / "never_dense.md"
    if not page.is_file():
        pytest.skip("the sources are not here")
    assert set(re.findall(r"^\| `(\w+)` \|", page.read_text(), re.MULTILINE)) >= set(REASONS)


def test_explain_knows_hidden_layers(batch):
    block = torch_lsh.LSHFeedForward(D, N, config=LSHConfig(active=50))
    optimizer = torch_lsh.optim.Adam(block.parameters())
    block(batch[0]).sum().backward()
    optimizer.step()
    assert torch_lsh.explain(block).layers[0].last == "sampled"


def test_a_weight_that_is_not_a_parameter_is_named(batch):
    x, y = batch
    layer = layer_of(0.1)
    with pytest.warns(UserWarning, match=r"is computed from all 500 rows, .*functional_call"):
        F.cross_entropy(torch.func.functional_call(layer, {"weight": torch.randn(N, D)}, (x,)), y)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("change", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_no_tables_are_built_for_a_weight_that_is_made_anew_in_every_step(batch, change):
    x, y = batch
    layer = change(layer_of(0.1))
    with pytest.warns(UserWarning, match="a weight that is the result of an operation .* has no sampled path"):
        F.cross_entropy(layer(x), y).backward()
    assert layer.paths.last == "dense"
