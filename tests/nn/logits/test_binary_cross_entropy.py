"""Binary cross entropy: what is not sampled equals the loss of the dense multi-hot target."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

N, D = 97, 6  # of the fixture "layer"
LABELS = torch.tensor([[3, 40], [40, -100], [-100, -100], [7, 7]])


def multi_hot():
    target = torch.zeros(4, N, dtype=torch.float64)
    for row, labels in zip(target, LABELS):
        row[labels[labels >= 0]] = 1
    return target


@pytest.mark.parametrize(
    ("training", "options"),
    [
        (True, {"reduction": "none"}),
        (True, {"weight": torch.rand(4, 1, dtype=torch.float64)}),
        (False, {"pos_weight": torch.rand(N, dtype=torch.float64)}),
    ],
)
@pytest.mark.parametrize("form", ["indices", "csr"])
def test_dense_loss_where_it_is_wanted(layer, training, options, form):
    layer.train(training)
    x = torch.randn(4, D, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(F.linear(x, layer.weight, layer.bias), multi_hot(), **options)
    target = LABELS if form == "indices" else multi_hot().to_sparse_csr()
    with pytest.warns(UserWarning, match="binary_cross_entropy_with_logits has no sampled path"):
        got = F.binary_cross_entropy_with_logits(layer(x), target, **options)
    torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore")
def test_other_forms_of_logits_take_the_dense_path(layer):
    x = torch.randn(4, D, dtype=torch.float64)
    z, target = F.linear(x, layer.weight, layer.bias), multi_hot()
    for of, want in (
        (lambda z: F.binary_cross_entropy_with_logits(z.T, target.T), None),
        (lambda z: F.binary_cross_entropy_with_logits(z.log_softmax(-1), target), None),
        (lambda z: F.binary_cross_entropy_with_logits(z, target, size_average=False), None),
    ):
        torch.testing.assert_close(of(layer(x)), of(z) if want is None else want)


def test_arguments_are_checked(layer):
    x = torch.randn(4, D, dtype=torch.float64)
    with pytest.raises(ValueError, match="'most' is not a valid value for reduction"):
        F.binary_cross_entropy_with_logits(layer(x), LABELS, reduction="most")
    with pytest.raises(ValueError, match=r"pos_weight has shape \(3,\); wanted \(97,\)"):
        F.binary_cross_entropy_with_logits(layer(x), LABELS, pos_weight=torch.ones(3))
