"""HashTableIndex: what it finds, and how it follows the rows."""

from __future__ import annotations

import pytest
import torch

from torch_lsh.index.families import FAMILIES
from torch_lsh.index.hash_tables import HashTableIndex

HASHES = tuple(FAMILIES)


def built(num_rows=2000, in_features=24, scale=1.0, **arguments):
    weight = torch.randn(num_rows, in_features) * scale
    bias = torch.randn(num_rows)
    index = HashTableIndex(num_rows, in_features, **arguments)
    index.build(weight, bias)
    return index, weight, bias


def recall(found, scores, k):
    best = scores.topk(k).indices
    return (best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean().item()


@pytest.mark.parametrize("hash", HASHES)
@pytest.mark.parametrize("mips", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_finds_rows_with_large_inner_products(hash, mips, bias):
    index, weight, shift = built(hash=hash, mips=mips)
    if not bias:
        shift = None
        index.build(weight)
    x = weight[:200] + 0.3 * torch.randn(200, 24)
    scores = torch.nn.functional.linear(x, weight, shift)
    found = index.query(x, 100)
    assert found.shape == (200, 100)
    assert recall(found, scores, 1) > 4 * 100 / 2000  # four times as many as a random 100 would hold


@pytest.mark.parametrize("mips", [True, False])
def test_mips_puts_back_short_rows(mips):
    """Rows in the same direction differ in inner product but not in angle."""
    direction = torch.nn.functional.normalize(torch.randn(16), dim=0)
    lengths = torch.linspace(0.1, 1, 300)
    weight = lengths.unsqueeze(1) * direction + 1e-5 * torch.randn(300, 16)
    index = HashTableIndex(300, 16, hashes_per_table=6, num_tables=60, bucket_size=300, mips=mips)
    index.build(weight)
    shortest = lengths[index.query(100 * direction.unsqueeze(0), 150)].min()
    assert shortest > 0.2 if mips else shortest < 0.2


@pytest.mark.parametrize("hash", HASHES)
def test_probes_find_more_than_the_same_tables_without(hash):
    torch.manual_seed(3)
    recalls = []
    for probes in (1, 8):
        torch.manual_seed(3)
        index, weight, bias = built(num_rows=4000, hash=hash, num_tables=4, probes=probes)
        x = weight[:300] + 0.5 * torch.randn(300, 24)
        recalls.append(recall(index.query(x, 200), torch.nn.functional.linear(x, weight, bias), 10))
    assert recalls[1] > 1.1 * recalls[0]


def test_more_probes_than_a_table_has_buckets_look_everything_up():
    index, weight, _ = built(num_rows=300, hashes_per_table=3, num_tables=2, bucket_size=300, probes=20)
    assert torch.equal(index.query(weight[:5], 300).sort(1).values, torch.arange(300).expand(5, 300))


@pytest.mark.parametrize("selection", ["ranked", "frequency", "vanilla"])
@pytest.mark.parametrize("bucket_policy", ["reservoir", "fifo"])
def test_every_selection_and_policy_finds_and_follows(selection, bucket_policy):
    index, weight, bias = built(selection=selection, bucket_policy=bucket_policy, mips=False)
    x = weight[:200] + 0.3 * torch.randn(200, 24)
    scores = torch.nn.functional.linear(x, weight, bias)
    assert recall(index.query(x, 100), scores, 1) > 4 * 100 / 2000
    assert index.update(weight + 0.5, bias, torch.arange(2000)) > 0
    assert index.update(weight, bias, torch.arange(2000)) > 0
    assert recall(index.query(x, 100), scores, 1) > 4 * 100 / 2000


def test_selections_order_what_they_find():
    """Ranked by all bits of the codes is better than by shared buckets, and that than what comes first."""
    found = []
    for selection in ("ranked", "frequency", "vanilla"):
        torch.manual_seed(1)
        index, weight, bias = built(selection=selection)
        x = weight[:300] + 0.5 * torch.randn(300, 24)
        found.append(recall(index.query(x, 40), torch.nn.functional.linear(x, weight, bias), 10))
    assert found[0] > 1.1 * found[1] > 1.2 * found[2]


@pytest.mark.parametrize("hash", ["simhash", "dwta"])
def test_sketches_rank_better_than_codes(hash):
    found = []
    for sketch_bits in (0, 480):
        torch.manual_seed(1)
        index, weight, bias = built(hash=hash, sketch_bits=sketch_bits)
        x = weight[:300] + 0.5 * torch.randn(300, 24)
        found.append(recall(index.query(x, 40), torch.nn.functional.linear(x, weight, bias), 10))
    assert found[1] > 1.05 * found[0]


def test_sketches_follow_the_rows_and_go_over_with_the_state(threads):
    index, weight, bias = built(bucket_size=2000, hashes_per_table=5, mips=False, sketch_bits=100)
    assert index.state_dict()["sketches"].shape == (2000, 4)
    rows = torch.randperm(2000)[:700]
    weight[rows] += 0.1 * torch.randn(700, 24)
    index.update(weight, bias, rows)
    fresh = HashTableIndex(2000, 24, bucket_size=2000, hashes_per_table=5, mips=False, sketch_bits=100)
    fresh.build(weight, bias)
    assert torch.equal(index.state_dict()["sketches"], fresh.state_dict()["sketches"])
    other = HashTableIndex(2000, 24, bucket_size=2000, hashes_per_table=5, mips=False, sketch_bits=100)
    other.load_state_dict(index.state_dict())
    x = torch.randn(20, 24)
    assert torch.equal(other.query(x, 50), index.query(x, 50))
    sketches = index.state_dict()["sketches"]
    with pytest.raises(ValueError, match="sketches runs from"):
        other.load_state_dict({**index.state_dict(), "sketches": sketches - 2**29})


def one_sided(num_rows=3000, width=24):
    """Queries have most of their length in directions in which the rows differ little."""
    scale = torch.linspace(0.1, 3, width)
    return torch.randn(num_rows, width) * scale, torch.randn(num_rows), (2 + torch.randn(400, width)) / scale


def test_balance_finds_more_for_queries_with_much_in_common():
    weight, bias, x = one_sided()
    scores = torch.nn.functional.linear(x[200:], weight, bias)
    found = []
    for balance in (False, True):
        index = HashTableIndex(3000, 24, hash="simhash_hadamard", mips=True, balance=balance)
        index.build(weight, bias, x[:200])
        found.append(recall(index.query(x[200:], 30), scores, 10))
    assert found[1] > 1.2 * found[0]


def test_balance_is_kept_by_updates_states_and_threads(threads):
    weight, bias, x = one_sided(1000)
    index = HashTableIndex(1000, 24, mips=True, balance=True)
    index.build(weight, bias, x)
    assert index.update(weight, bias, torch.arange(1000)) == 0
    assert index.update(weight, bias, torch.tensor([7])) == 0
    other = HashTableIndex(1000, 24, mips=True, balance=True)
    other.load_state_dict(index.state_dict())
    assert torch.equal(other.query(x, 20), index.query(x, 20))
    assert torch.equal(torch.cat([index.query(row, 20) for row in x[:9].split(1)]), index.query(x[:9], 20))
    # without queries, or with ones that say nothing, it is as if it was off
    plain = HashTableIndex(1000, 24, mips=True)
    plain.build(weight, bias)
    for queries in (None, x[:0]):
        index.build(weight, bias, queries)
        assert torch.equal(index.query(x, 20), plain.query(x, 20))
    for value in (0.0, float("nan")):
        index.build(weight, bias, torch.full((3, 24), value))
        assert recall(index.query(x, 60), torch.nn.functional.linear(x, weight, bias), 10) > 0.05


def test_min_matches_returns_fewer_and_better_rows():
    index, weight, _ = built(selection="frequency", min_matches=4)
    everything, _, _ = built(selection="frequency")
    x = weight[:50]
    few = index.query(x, 500)
    assert 50 < (few >= 0).sum() < 0.5 * (everything.query(x, 500) >= 0).sum()
    hits = [(found == torch.arange(50).unsqueeze(1)).any(1).sum() for found in (few, everything.query(x, 500))]
    assert hits[0] > 0.8 * hits[1] > 0


def test_labels_are_found_by_their_queries_until_the_next_build():
    index, weight, bias = built(num_rows=20_000, selection="frequency")
    x, labels = torch.randn(40, 24), torch.randint(20_000, (40, 1))
    before = index.query(x, 20, labels=labels)
    assert (before == labels).any(1).float().mean() < 0.1
    assert (index.query(x, 20) == labels).any(1).float().mean() > 0.8
    index.build(weight, bias)
    assert torch.equal(index.query(x, 20), before)


def test_a_new_build_and_an_update_agree(threads):
    index, weight, bias = built(bucket_size=2000, hashes_per_table=5, mips=False)
    rows = torch.randperm(2000)[:700]
    before = index.state_dict()["row_buckets"].clone()
    weight[rows] += 0.1 * torch.randn(700, 24)
    bias[rows] -= 0.1
    moved = index.update(weight, bias, rows)
    after = index.state_dict()["row_buckets"]
    assert moved == int((before != after).sum()) > 0
    assert index.update(weight, bias, rows) == 0
    fresh = HashTableIndex(2000, 24, bucket_size=2000, hashes_per_table=5, mips=False)
    fresh.build(weight, bias)
    assert torch.equal(fresh.state_dict()["row_buckets"], after)
    x = torch.randn(10, 24)
    everything = index.query(x, 2000).sort(1).values
    assert torch.equal(everything, fresh.query(x, 2000).sort(1).values)


def test_update_of_unchanged_rows_moves_nothing(threads, simd_level):
    index, weight, bias = built(num_rows=100)
    assert index.update(weight, bias, torch.arange(100)) == 0
    assert index.update(weight, bias, torch.tensor([3])) == 0
    assert index.update(weight, bias, torch.empty(0, dtype=torch.int64)) == 0


def test_rows_that_outgrow_the_norm_of_the_build():
    index, weight, bias = built(num_rows=100, in_features=8)
    weight[5] *= 100
    index.update(weight, bias, torch.tensor([5]))
    assert 5 in index.query(weight[[5]], 20)
    index.build(weight, bias)
    assert 5 in index.query(weight[[5]], 20)


@pytest.mark.parametrize("hash", HASHES)
def test_same_result_for_any_number_of_threads(hash):
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        index, weight, bias = built(hash=hash)
        weight[::3] += 0.1
        index.update(weight, bias, torch.arange(0, 2000, 3))
        state = index.state_dict()
        results.append((state["row_buckets"], state["counts"], state["ids"], index.query(weight[:50], 30)))
        torch.set_num_threads(before)
    for one, two in zip(*results):
        assert torch.equal(one, two)


@pytest.mark.parametrize("hash", HASHES)
@pytest.mark.parametrize("mips", [True, False])
def test_tiny_layers_and_empty_batches(hash, mips):
    index = HashTableIndex(1, 1, hash=hash, mips=mips)
    index.build(torch.ones(1, 1))
    assert index.query(torch.ones(2, 1), 3).shape == (2, 3)
    assert index.query(torch.ones(0, 1), 3).shape == (0, 3)
    assert 0 in index.query(torch.tensor([[5.0]]), 1)


@pytest.mark.parametrize("hash", HASHES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_numbers_spoil_nothing_else(hash, value):
    index, weight, bias = built(num_rows=300, hash=hash)
    spoiled, rows = weight.clone(), torch.tensor([4, 9])
    spoiled[rows, 2] = value
    index.update(spoiled, bias, rows)
    assert index.update(weight, bias, rows) > 0
    index.build(spoiled, bias)
    x = 3 * weight[20:40]
    assert recall(index.query(x, 60), x @ weight.T + bias, 1) > 0.5
    x[0, 0] = value
    assert torch.equal(index.query(x, 60)[1:], index.query(x[1:], 60))


def test_memory_of_the_default_is_bounded():
    """At most 8 bytes per row and table beside the hash functions: 4 of buckets, 4 of ids; counts are small."""
    for num_rows in (1000, 5000, 70000):
        index = HashTableIndex(num_rows, 4)
        index.build(torch.randn(num_rows, 4))
        assert index.nbytes - index.family.nbytes < 8.5 * num_rows * index.num_tables


def test_repr_and_properties():
    index = HashTableIndex(1000, 8, num_tables=5)
    assert (index.num_rows, index.num_tables) == (1000, 5)
    assert repr(index).startswith("HashTableIndex(num_rows=1000, in_features=8, hash='simhash', ")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HashTableIndex(5, 4, hash="md5"), "hash is 'md5'"),
        (lambda: HashTableIndex(5, 4, hashes_per_table=0), "hashes_per_table is 0"),
        (lambda: HashTableIndex(5, 4, hashes_per_table=31), "hashes_per_table is 31"),
        (lambda: HashTableIndex(5, 4, num_tables=0), "num_tables is 0"),
        (lambda: HashTableIndex(5, 4, bucket_size=0), "bucket_size is 0"),
        (lambda: HashTableIndex(5, 4, probes=0), "probes is 0; wanted a positive int"),
        (lambda: HashTableIndex(5, 4, min_matches=0), "min_matches is 0; wanted a positive int"),
        (lambda: HashTableIndex(5, 4, mips=False, balance=True), "balance is True and mips is False"),
        (lambda: HashTableIndex(5, 4, sketch_bits=-1), "sketch_bits is -1; wanted an int, 0 or more"),
        (lambda: HashTableIndex(5, 4, selection="best"), "selection is 'best'; wanted one of 'ranked', "),
        (
            lambda: HashTableIndex(5, 4, bucket_policy="lifo"),
            "bucket_policy is 'lifo'; wanted one of 'reservoir', 'fifo'",
        ),
        (
            lambda: HashTableIndex(50, 4).load_state_dict(HashTableIndex(51, 4).state_dict()),
            "the state is of an index with",
        ),
    ],
)
def test_names_the_bad_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rows_with_much_in_common_spread_over_the_buckets():
    """Rows in a narrow cone: hashed as they are, most would share a bucket and find no room in it."""
    common = torch.randn(16)
    weight = 3 * common + torch.randn(4000, 16) * 0.5

    def held(mips):
        index = HashTableIndex(4000, 16, mips=mips)
        index.build(weight)
        return index.state_dict()["counts"].sum() / (4000 * index.num_tables)

    assert held(mips=True) > 1.2 * held(mips=False)
