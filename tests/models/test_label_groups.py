"""Groups of labels, and their classifiers."""

from __future__ import annotations

import pytest
import torch

from torch_lsh.data import XMCRows, collate_xmc
from torch_lsh.models import label_groups
from torch_lsh.models.label_groups import LabelGroups
from torch_lsh.models.label_rows import Centroids

KINDS, OF_A_KIND = 4, 10  # labels of a kind share features; labels of one kind come one after the other
SIZES = KINDS, 2


def rows_of_kinds(count, num_labels=KINDS * OF_A_KIND, seed=0):
    """Rows of two of the 50 features of the kind of their label, which say nothing of which label of the kind it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_labels, (count,), generator=generator)
    features = torch.rand(count, 50, generator=generator).topk(2).indices.sort(1).values
    features += 50 * (labels // OF_A_KIND).unsqueeze(1)
    values = torch.full((2 * count,), 0.5**0.5)
    start = torch.arange(count + 1)
    return XMCRows(2 * start, features.flatten().int(), values, start, labels.int(), 50 * KINDS, num_labels)


@pytest.fixture(scope="module")
def rows():
    return rows_of_kinds(2000)


@pytest.fixture(scope="module")
def groups(rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_groups, "SIZES", SIZES)
        return LabelGroups.of(rows, Centroids.of(rows), seed=0)


def kinds(labels):
    return torch.div(labels, OF_A_KIND, rounding_mode="floor")


def test_labels_of_a_kind_are_a_group(groups):
    first, second = groups.groups
    by_kind = first.view(KINDS, OF_A_KIND)
    assert (by_kind == by_kind[:, :1]).all()
    assert sorted(by_kind[:, 0].tolist()) == list(range(KINDS))
    assert set(second.tolist()) <= {KINDS, KINDS + 1}


def test_scores_are_means_of_those_of_the_groups(rows, groups):
    features, _ = collate_xmc(rows.take(torch.arange(5)))
    by_column = groups.column_start, groups.column_groups.long(), groups.column_values
    matrix = torch.sparse_csr_tensor(*by_column, (rows.num_features, sum(SIZES))).to_dense()
    wanted = (features.to_dense() @ matrix + groups.bias)[:, groups.groups.long()].mean(1)
    labels = torch.tensor([[3, 0, 39, -1]] * 5)
    torch.testing.assert_close(groups(features, labels)[:, :3], wanted[:, [3, 0, 39]])


def test_features_count_that_no_row_of_the_label_has(rows, groups):
    """A row of two features that never came with some label of their kind, which still has a higher score."""
    features, labels = collate_xmc(rows)
    seen = torch.zeros(rows.num_labels, rows.num_features)
    seen.index_add_(0, labels[:, 0], features.to_dense())
    missing = (seen == 0).nonzero()
    label, feature = missing[(kinds(missing[:, 0]) == missing[:, 1] // 50)].T
    assert len(label) > 5
    query = torch.nn.functional.one_hot(feature, rows.num_features).float().to_sparse_csr()
    every_kind = (OF_A_KIND * torch.arange(KINDS)).repeat(len(label), 1)
    assert torch.equal(groups(query, every_kind).argmax(1), kinds(label))


def test_new_labels_join_the_groups_of_similar_ones(groups):
    more = rows_of_kinds(500, seed=1)
    others = torch.tensor([39, 0, 15])
    chosen = torch.tensor([int((more.labels == label).nonzero()[0, 0]) for label in others])
    new = torch.tensor([40, 41, 42])
    rows = more.take(chosen)._replace(labels=new.int(), num_labels=50, num_features=210)
    grown = groups.grown(Centroids.of(rows), torch.isin(torch.arange(50), new))
    assert torch.equal(grown.groups[:, new], groups.groups[:, others])
    assert torch.equal(grown.groups[:, :40], groups.groups)
    grown.check(210)
    features, _ = collate_xmc(rows)
    torch.testing.assert_close(grown(features, new.repeat(3, 1)), groups(features, others.repeat(3, 1)))


def test_training_again_keeps_the_groups(rows, groups):
    again = groups.trained(rows.take(torch.arange(1000)), seed=0)
    assert torch.equal(again.groups, groups.groups)
    assert not torch.equal(again.bias, groups.bias)


def test_a_label_of_few_others_and_labels_without_rows():
    rows = rows_of_kinds(20, num_labels=3)._replace(num_labels=7)  # fewer labels than groups
    made = LabelGroups.of(rows, Centroids.of(rows))
    made.check(rows.num_features)
    assert torch.isfinite(made(collate_xmc(rows)[0], torch.arange(7).repeat(20, 1))).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda groups: groups.groups.fill_(sum(SIZES)), "wanted 0 to 5"),
        (lambda groups: groups.groups.fill_(-1), "wanted 0 to 5"),
        (lambda groups: setattr(groups, "sizes", (7, -1)), "sizes .7, -1."),
        (lambda groups: groups.column_start.fill_(1), "must rise from 0"),
        (lambda groups: setattr(groups, "column_start", groups.column_start[1:]), "2 features; wanted 3"),
    ],
)
def test_damage_is_found(damage, message):
    made = LabelGroups(4, 3, 0, SIZES)
    made.check(3)
    damage(made)
    with pytest.raises(ValueError, match=message):
        made.check(3)
