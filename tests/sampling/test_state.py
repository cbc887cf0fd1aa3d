"""The sampler's state as one tensor of bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_lsh.sampling.state import pack, unpack

ROOMS = {"num_rows": 50, "in_features": 3, "carried_room": 4, "queries_room": 5, "counts_room": 50}


def state_of(carried, queries, counts, samples=12.5, given_counts=False):
    return {
        "num_rows": 50,
        "in_features": 3,
        "draws": 7,
        "since_rehash": 2**40,
        "rehashes": 3,
        "carried": None if carried is None else torch.tensor(carried, dtype=torch.int64),
        "queries": None if queries is None else torch.tensor(queries, dtype=torch.float32).view(-1, 3),
        "label_counts": {"counts": torch.arange(50.0).double(), "samples": samples, "given": given_counts}
        if counts
        else None,
    }


@given(
    carried=st.none() | st.lists(st.integers(0, 49), max_size=4),
    queries=st.none()
    | st.integers(0, 5).flatmap(lambda n: st.lists(st.floats(width=32), min_size=3 * n, max_size=3 * n)),
    counts=st.booleans(),
    samples=st.floats(1, 1e300),
    given_counts=st.booleans(),
)
def test_unpack_returns_what_was_packed(carried, queries, counts, samples, given_counts):
    state = state_of(carried, queries, counts, samples, given_counts)
    packed = pack(state, **ROOMS)
    assert len(packed) == len(pack(state_of(None, None, False), **ROOMS))  # whatever is in it
    unpacked = unpack(packed)
    assert {name: unpacked[name] for name in ("num_rows", "in_features", "draws", "since_rehash", "rehashes")} == {
        name: state[name] for name in ("num_rows", "in_features", "draws", "since_rehash", "rehashes")
    }
    for name in ("carried", "queries"):
        if state[name] is None:
            assert unpacked[name] is None
        else:
            torch.testing.assert_close(unpacked[name], state[name], rtol=0, atol=0, equal_nan=True)
    if counts:
        assert torch.equal(unpacked["label_counts"]["counts"], state["label_counts"]["counts"])
        assert (unpacked["label_counts"]["samples"], unpacked["label_counts"]["given"]) == (samples, given_counts)
    else:
        assert unpacked["label_counts"] is None


def test_what_is_no_state_is_refused():
    packed = pack(state_of([1], None, False), **ROOMS)
    for broken, message in (
        (packed + 0.5, r"dtype torch\.float32 .*; leave it out of averages, for samplers that start anew"),
        (packed[:10], r"shape \[10\]"),
        (packed[:-1], "wanted version 1 and"),
        (torch.cat([packed[:3] + 1, packed[3:]]), "is of version"),
    ):
        with pytest.raises(ValueError, match=message):
            unpack(broken)
