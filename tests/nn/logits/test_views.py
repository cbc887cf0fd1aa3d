"""Views, casts and scaling stay lazy and equal the dense ones."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from torch_lsh import SampledLogits

N, D = 97, 6  # of the fixture "layer"


def dense(layer, x):
    return F.linear(x, layer.weight, layer.bias)


PRIOR = torch.linspace(-1, 1, N, dtype=torch.float64)

LAZY = {
    "view": lambda z: z.view(-1, N),
    "view, class size inferred": lambda z: z.view(6, -1),
    "reshape": lambda z: z.reshape(3, 2, N),
    "flatten": lambda z: z.flatten(0, 1),
    "slice": lambda z: z[..., :-1, :],
    "slices": lambda z: z[:, 1:],
    "first": lambda z: z[0],
    "None": lambda z: z[None],
    "mask of samples as index": lambda z: z[torch.tensor([[True, False, True], [False, True, True]])],
    "index": lambda z: z[torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1])],
    "contiguous": lambda z: z.contiguous(),
    "reshape_as": lambda z: z.reshape_as(torch.empty(6, N)),
    "squeeze of a wider dimension": lambda z: z.squeeze(0),
    "squeeze of classes": lambda z: z.squeeze(-1),
    "flatten nothing": lambda z: z.flatten(1, 1),
    "float": lambda z: z.float(),
    "double": lambda z: z.double(),
    "bfloat16": lambda z: z.bfloat16(),
    "half": lambda z: z.half(),
    "to like": lambda z: z.to(torch.empty(0, dtype=torch.float32)),
    "to dtype": lambda z: z.to(torch.float32),
    "to dtype, copied": lambda z: z.to(torch.float32, copy=True),
    "copied": lambda z: z.to(z.dtype, False, True),
    "to device": lambda z: z.to("cpu"),
    "temperature": lambda z: z / 0.5,
    "times": lambda z: 2 * z * 3.0,
    "transpose": lambda z: z.transpose(1, 2),
    "mT": lambda z: z.mT,
    "permute": lambda z: z.permute(2, 0, 1),
    "movedim": lambda z: z.movedim(-1, 1),
    "transpose twice": lambda z: z.transpose(1, 2).transpose(0, 2).permute(1, 2, 0),
    "unsqueeze": lambda z: z.unsqueeze(0),
    "unsqueeze and squeeze": lambda z: z.unsqueeze(1).squeeze(1),
    "unsqueeze behind classes": lambda z: z.unsqueeze(-1),
    "reshape, 1 behind classes": lambda z: z.reshape(6, N, -1),
    "unsqueeze after classes": lambda z: z.transpose(1, 2).unsqueeze(2),
    "clone": lambda z: z.clone(),
    "detach": lambda z: z.detach(),
    "chunk": lambda z: z.chunk(2, 1)[1],
    "split": lambda z: z.split(2, 1)[1],
    "split by sizes": lambda z: torch.split(z, [1, 2], dim=1)[0],
    "tensor_split": lambda z: z.tensor_split(2, dim=1)[0],
    "split of transposed": lambda z: z.transpose(1, 2).split(2, 2)[1],
    "unbind": lambda z: z.unbind(1)[2],
    "iteration": lambda z: list(z)[1],
    "select": lambda z: z.select(1, -1),
    "select of transposed": lambda z: z.transpose(1, 2).select(0, 1),
    "index_select": lambda z: z.index_select(1, torch.tensor([2, 0, 2])),
    "narrow": lambda z: z.narrow(1, 1, 2),
    "list as index": lambda z: z[[0, 1]],
    "lists as index": lambda z: z[[0, 1], [2, 0]],
    "list of bools": lambda z: z[:, [True, False, True]],
    "cat": lambda z: torch.cat([z, z[:1]]),
    "cat along the second": lambda z: torch.cat((z / 2, z / 2), dim=1),
    "stack": lambda z: torch.stack([z, z], 1),
    "stack behind classes": lambda z: torch.stack([z, z], -1),
    "softmax": lambda z: z.softmax(-1),
    "softmax of transposed": lambda z: F.softmax(z.transpose(1, 2), dim=1),
    "log of softmax": lambda z: z.softmax(-1).log(),
    "negative": lambda z: -z,
    "negative log_softmax": lambda z: -z.log_softmax(-1) * 2,
    "plus": lambda z: 1 + z + 0.5 - 2,
    "prior": lambda z: z + PRIOR,
    "prior, transposed": lambda z: z.transpose(1, 2) - PRIOR[:, None],
    "prior first": lambda z: PRIOR + z,
    "prior with alpha": lambda z: z.add(PRIOR, alpha=0.5),
    "factors of classes": lambda z: z * PRIOR.abs(),
    "mask": lambda z: z.masked_fill(PRIOR > 0, -100.0),
    "where": lambda z: torch.where(PRIOR > 0, z, -1e9),
    "where, mask first": lambda z: torch.where(PRIOR > 0, -1e9, z),
    "mask of samples": lambda z: z.masked_fill(torch.tensor([[True], [False], [True]]), 0.0),
    "soft-cap": lambda z: torch.tanh(z / 30.0) * 30.0,
    "temperature of samples": lambda z: z / (1 + torch.arange(6, dtype=torch.float64).view(2, 3, 1)),
    "temperature of samples, first": lambda z: torch.ones(2, 1, 1, dtype=torch.float64) * 2 * z,
    "temperature of samples, cut": lambda z: (z / (1 + torch.arange(3)).view(3, 1))[:, 1:].reshape(-1, N)[1],
    "temperature of samples, transposed": lambda z: (z.mT / (1 + torch.arange(3))).select(0, 1).mT,
    "many": lambda z: ((z * 2 + PRIOR) / torch.tensor([[2.0], [3.0], [4.0]]).double()).tanh().log_softmax(-1)[1],
    "log_softmax": lambda z: z.log_softmax(-1),
    "log_softmax of transposed": lambda z: F.log_softmax(z.transpose(1, 2), dim=1),
}


@pytest.mark.parametrize("name", LAZY)
def test_stays_lazy_and_equals_dense(layer, name):
    x = torch.randn(2, 3, D, dtype=torch.float64)
    expected = LAZY[name](dense(layer, x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = LAZY[name](layer(x))
        assert isinstance(logits, SampledLogits)
        assert logits.shape == expected.shape
        assert logits.dtype == expected.dtype
        assert logits.requires_grad == expected.requires_grad
    torch.testing.assert_close(logits.dense(), expected)


def test_clones_are_changed_alone(layer):
    logits = layer(torch.randn(2, D, dtype=torch.float64))
    for copied in (logits.clone(), logits.to(torch.float64, copy=True)):
        with torch.no_grad():
            copied.zero_()
        assert bool((logits.dense() != 0).all())
        assert bool((copied.topk(1).values == 0).all())


def test_a_copy_by_to_is_changed_alone(layer):
    logits = layer(torch.randn(4, D, dtype=torch.float64))
    for copied in (logits.to("cpu", copy=True), logits.to(logits.dtype, False, True)):
        copied.zero_()
        assert copied.abs().max() == 0
    assert logits.abs().max() > 0


def test_masks_of_bytes_and_names_of_types(layer):
    x = torch.randn(2, 3, D, dtype=torch.float64)
    assert layer(x).type() == "torch.DoubleTensor"
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(layer(x)[mask].dense(), dense(layer, x)[mask])


def test_dimensions_out_of_range_are_refused(layer):
    logits = layer(torch.randn(4, D, dtype=torch.float64))
    for use in (
        lambda dim: logits.argmax(dim),
        lambda dim: logits.max(dim),
        lambda dim: logits.topk(1, dim),
        lambda dim: logits.log_softmax(dim),
        lambda dim: logits.squeeze(dim),
        lambda dim: logits.unsqueeze(dim + 1 if dim > 0 else dim - 1),
        lambda dim: logits.transpose(0, dim),
        lambda dim: logits.movedim(0, dim),
        lambda dim: logits.flatten(0, dim),
    ):
        for dim in (2, 5, -3):
            with pytest.raises(IndexError, match=r"dim is|out of range"):
                use(dim)


def test_tensors_like_logits_need_no_values(layer):
    logits = layer(torch.randn(2, 3, D, dtype=torch.float64)).transpose(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made in (torch.zeros_like(logits), torch.full_like(logits, 0.0), logits.new_zeros(logits.shape)):
            assert type(made) is torch.Tensor
            assert made.is_contiguous()
            assert torch.equal(made, torch.zeros(2, N, 3, dtype=torch.float64))
        assert logits.new_tensor([1, 2]).dtype is torch.float64
        assert torch.ones_like(logits, dtype=torch.bool).all()


@pytest.mark.filterwarnings("ignore")
def test_other_devices_and_bytes_take_the_dense_path(layer):
    x = torch.randn(4, D, dtype=torch.float64)
    for moved in (layer(x).to("meta"), layer(x).to(torch.empty(0, device="meta"))):
        assert moved.device.type == "meta"
    assert torch.equal(layer(x).view(torch.int64), dense(layer, x).view(torch.int64))
    assert torch.equal(layer(x).view(torch.Size([2, 2, N])).dense(), dense(layer, x).view(2, 2, N))
    assert torch.equal(layer(x).to(), dense(layer, x))
    with pytest.raises(IndexError, match="too many indices"):
        layer(x)[0, 0, 0]
    with pytest.raises(RuntimeError):
        layer(x).permute(0, 0)
    with pytest.raises(RuntimeError):
        layer(x).flatten(1, 0)


VIEWS = {
    "slice": lambda z: z[:2],
    "view": lambda z: z.view(-1, N),
    "detach": lambda z: z.detach(),
    "view of a view": lambda z: z.view(-1, N)[1:],
}
IN_PLACE = {
    "mul_": lambda z: z.mul_(2),
    "*=": lambda z: z.__imul__(2),
    "exp_": lambda z: z.exp_(),
    "set": lambda z: z.__setitem__((..., 3), 0.0),
}


@pytest.mark.filterwarnings("ignore:torch_lsh")
@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_never_misses_a_change_in_place(layer, view, change):
    x = torch.randn(4, 3, D, dtype=torch.float64)
    with torch.no_grad():
        base = layer(x)
        part, copy = VIEWS[view](base), VIEWS[view](base.clone())
        wanted = VIEWS[view](dense(layer, x))
        IN_PLACE[change](base)
        for use in (lambda: part.dense(), lambda: part.argmax(-1), lambda: part[:1], lambda: part.sum()):
            with pytest.raises(RuntimeError, match="share memory with these"):
                use()
        torch.testing.assert_close(copy.dense(), wanted)
        base = layer(x)
        part = VIEWS[view](base)
        IN_PLACE[change](part)
        with pytest.raises(RuntimeError, match="share memory with these"):
            base.sum()
        IN_PLACE[change](wanted)
        torch.testing.assert_close(part.dense(), wanted)


def test_parts_that_share_nothing_change_alone(layer):
    x = torch.randn(6, D, dtype=torch.float64)
    parts = layer(x).chunk(3)
    for factor, part in enumerate(parts):
        part.mul_(factor + 1)
    wanted = [one * (factor + 1) for factor, one in enumerate(dense(layer, x).chunk(3))]
    torch.testing.assert_close([part.dense() for part in parts], wanted)
