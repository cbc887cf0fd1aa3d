"""LookupIndex: the kind it takes, and the effort that a recall takes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from torch_lsh.index import lookup
from torch_lsh.index.lookup import Effort, LookupIndex
from torch_lsh.index.partition import PartitionIndex, Route
from torch_lsh.index.sign_codes import SignCodeIndex

N, D = 6_000, 24


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(lookup, "_LEAST_PARTITIONED", 5_000)


def clustered(rows=N, queries=1600):
    centers = torch.randn(300, D)
    weight = 2 * centers[torch.randint(300, (rows,))] + 0.5 * torch.randn(rows, D)
    x = F.relu(centers[(300 * torch.rand(queries) ** 2).long()] + 0.5 * torch.randn(queries, D) + 0.5)
    return weight, 0.3 * torch.randn(rows), x


def built(rows=N, taught=1000):
    weight, bias, x = clustered(rows)
    index = LookupIndex(rows, D)
    index.build(weight, bias, x[:taught])
    return index, weight, bias, x[1000:]


def recall(found, weight, bias, x, k):
    best = F.linear(x, weight, bias).topk(k).indices
    return (best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean().item()


@pytest.mark.parametrize("rows", [4_000, N])
def test_the_effort_reaches_its_recall_on_other_queries(rows):
    index, weight, bias, x = built(rows)
    assert isinstance(index.kind, PartitionIndex if rows == N else SignCodeIndex)
    spent = []
    for k, target in ((10, 0.7), (10, 0.9), (10, 0.98), (1, 0.9), (40, 0.9)):
        effort = index.effort(weight, bias, k, target)
        assert effort.recall >= target
        found = index.search(x, effort)
        assert found.shape == (len(x), effort.candidates)
        assert recall(found, weight, bias, x, k) > target - 0.02
        spent.append(effort.examined + 10 * effort.candidates)
        assert index.known_effort(k, target) is effort is index.effort(weight, bias, k, target)
    assert spent[0] < spent[1] < spent[2]
    assert len(index.efforts) == 5


def test_examined_rows_cost_more_where_no_cache_holds_the_codes(monkeypatch):
    index, *_ = built()
    effort = Effort(10, 0.9, 3_000, 20, 0.9, 0.01, Route(True, 2))
    near = lookup._cost(index.kind, effort)
    monkeypatch.setattr(lookup, "_NEAR_BYTES", N * (D // 4 + 4) - 1)
    factor = lookup._EXAMINED_FAR_COST - lookup._EXAMINED_COST
    assert lookup._cost(index.kind, effort) - near == 3_000 * (D // 4 + 4) * factor > 0


def test_rows_without_structure_get_sign_codes():
    weight, x = F.normalize(torch.randn(N, 64)), torch.randn(1000, 64)
    index = LookupIndex(N, 64)
    index.build(weight, None, x)
    assert isinstance(index.kind, SignCodeIndex)
    assert index.effort(weight, None, 10, 0.9).recall >= 0.9


def test_few_queries_measure_nothing():
    index, weight, bias, x = built(taught=100)
    assert isinstance(index.kind, SignCodeIndex)
    effort = index.effort(weight, bias, 40, 0.9)
    assert effort[:4] == (40, 0.9, N, 640)
    assert math.isnan(effort.recall)
    assert index.search(x, effort).shape == (len(x), 640)


def test_efforts_are_measured_again_once_half_of_the_rows_changed():
    index, weight, bias, x = built()
    before = index.effort(weight, bias, 10, 0.9)
    rows = torch.arange(0, N, 3)
    weight[rows] = weight[rows].neg()
    index.update(weight, bias, rows)
    assert index.known_effort(10, 0.9) is before
    rows = torch.arange(1, N, 3)
    weight[rows] = weight[rows].neg()
    index.update(weight, bias, rows)
    assert index.known_effort(10, 0.9) is None
    assert recall(index.search(x, index.effort(weight, bias, 10, 0.9)), weight, bias, x, 10) > 0.85


@pytest.mark.parametrize(("other", "wanted"), [(Route(True, 2), Route(False, 1)), (Route(False, 1), Route(True, 2))])
def test_the_route_that_costs_least_is_taken(monkeypatch, other, wanted):
    monkeypatch.setattr(PartitionIndex, "routes", lambda self: [Route(True, 2), Route(False, 1)])
    cost = lookup._cost
    monkeypatch.setattr(lookup, "_cost", lambda *spent: cost(*spent) * (0.01 if spent[-1].route == wanted else 1))
    index, weight, bias, x = built()
    effort = index.effort(weight, bias, 10, 0.9)
    assert effort.route == wanted
    assert recall(index.search(x, effort), weight, bias, x, 10) > 0.88
    monkeypatch.setattr(lookup, "_cost", lambda *spent: cost(*spent) * (0.01 if spent[-1].route == other else 1))
    effort = index.effort(weight, bias, 10, 0.8)  # each recall has its own
    assert effort.route == other
    assert recall(index.search(x, effort), weight, bias, x, 10) > 0.78


@pytest.mark.parametrize(("clearly", "compared"), [(1e-3, 1), (1e3, lookup._COMPARED)])
def test_the_quick_way_is_tried_on_a_sample_of_very_many_rows(monkeypatch, clearly, compared):
    tried, build = [], PartitionIndex.build

    def watched(self, *tensors):
        tried.append((self.num_rows, self.family.compared))
        build(self, *tensors)

    monkeypatch.setattr(PartitionIndex, "build", watched)
    monkeypatch.setattr(lookup, "_CLEARLY", clearly)
    built()
    assert len({rows for rows, _ in tried}) == 1  # not so many
    tried.clear()
    monkeypatch.setattr(lookup, "_SAMPLED_ROWS", N // 8)
    built()
    assert tried == [(N // 8, 1), (N, compared)]


@pytest.mark.parametrize("rows", [4_000, N])
def test_state_goes_over_to_another_index(rows, monkeypatch):
    monkeypatch.setattr(PartitionIndex, "routes", lambda self: [Route(False, 1)])
    index, weight, bias, x = built(rows)
    other = LookupIndex(rows, D)
    other.load_state_dict(index.state_dict())
    for same in (other, copy.deepcopy(index)):
        assert torch.equal(same.query(x, 30), index.query(x, 30))
        assert same.effort(weight, bias, 10, 0.9) == index.effort(weight, bias, 10, 0.9)
        assert same.nbytes == index.nbytes > 0


def test_a_recall_that_codes_do_not_reach_scores_all_rows():
    index, weight, bias, x = built(4_000)
    assert index.effort(weight, bias, 5, 1.0).candidates == 4_000
    assert index.effort(weight, bias, 5, 0.99).candidates < 1_000
    effort = index.effort(weight, bias, 5, 0.9999)  # cannot be shown by 256 queries
    assert effort == (5, 0.9999, 4_000, 4_000, 1.0, 0.0, None)
    assert recall(index.search(x[:20], effort), weight, bias, x[:20], 5) == 1


def test_few_queries_show_a_high_recall_of_the_best_row_by_more_rows():
    weight, bias, x = clustered(queries=3200)
    index = LookupIndex(N, D)
    index.build(weight, bias, x[:256])
    assert isinstance(index.kind, PartitionIndex)  # 64 queries judge
    for target in (0.95, 0.99):
        effort = index.effort(weight, bias, 1, target)
        assert recall(index.search(x[256:], effort), weight, bias, x[256:], 1) >= target


def test_recall_is_measured_on_the_queries_that_are_given():
    index, weight, bias, x = built()
    before = index.effort(weight, bias, 10, 0.95)
    index.judge(x[:100])  # too few
    assert index.known_effort(10, 0.95) is before
    far = 3 * torch.randn(600, D)
    index.judge(far[:300])
    assert index.known_effort(10, 0.95) is None
    effort = index.effort(weight, bias, 10, 0.95)
    assert recall(index.search(far[300:], effort), weight, bias, far[300:], 10) > 0.93
    assert recall(index.search(far[300:], before), weight, bias, far[300:], 10) < 0.9
    index.judge(far[:300])  # the same
    assert index.known_effort(10, 0.95) is effort
