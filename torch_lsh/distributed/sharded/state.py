"""The state of a shard's sampler, in tensors that load into any number of processes.

``position`` and ``queries`` are the same in all processes. What belongs to rows, the places of those that were carried
over and the label counts, is spread over the processes as the rows are.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from ...sampling.sampler import Sampler

BY_ROWS = ("carried", "label_counts")  # the tensors with an element per row
_NUMBERS = 7  # in the position: draws, since_rehash, rehashes, queries, whether rows are carried, counts, samples


def empty_state(sampler: Sampler) -> dict[str, Tensor]:
    """Tensors with room for the state of ``sampler``, which follows from its shape and settings."""
    sizes = sampler.packed_sizes()
    state = {
        "position": torch.zeros(_NUMBERS, dtype=torch.int64, device="cpu"),
        "queries": torch.zeros(sizes["queries_room"], sampler.in_features, dtype=torch.float32, device="cpu"),
        "carried": torch.zeros(sampler.num_rows, dtype=torch.int32, device="cpu"),  # 0: not carried; 1: the hardest
    }
    if sizes["counts_room"] > 0:
        state["label_counts"] = torch.zeros(sampler.num_rows, dtype=torch.float64, device="cpu")
    return state


@torch.no_grad()
def write_state(sampler: Sampler, tensors: dict[str, Tensor]) -> None:
    """Writes the state into the tensors of :func:`empty_state`. As :meth:`Sampler.state_dict`, it drops the tables."""
    state = sampler.state_dict()
    queries, carried, counts = state["queries"], state["carried"], state["label_counts"]
    kept = 0 if queries is None else min(len(queries), len(tensors["queries"]))
    if queries is not None and kept > 0:
        tensors["queries"][:kept] = queries[-kept:]
    tensors["carried"].zero_()
    if carried is not None:
        tensors["carried"][carried] = torch.arange(1, len(carried) + 1, dtype=torch.int32, device="cpu")
    if counts is not None and "label_counts" in tensors:
        tensors["label_counts"].copy_(counts["counts"])
    numbers = [state["draws"], state["since_rehash"], state["rehashes"], kept, int(carried is not None)]
    numbers += [0, 0] if counts is None else [1 + counts["given"], _bits(counts["samples"])]
    tensors["position"].copy_(torch.tensor(numbers, device="cpu"))


def read_state(sampler: Sampler, tensors: dict[str, Tensor]) -> None:
    """Takes over the state in the tensors, which were written in this number of processes or another."""
    draws, since_rehash, rehashes, kept, is_carried, counted, samples = tensors["position"].tolist()
    places = tensors["carried"]
    order = torch.where(places > 0, places, math.inf).argsort(stable=True)[: int((places > 0).sum())]
    counts = None
    if counted and "label_counts" in tensors:
        counts = {"counts": tensors["label_counts"].clone(), "samples": _from_bits(samples), "given": counted == 2}
    sampler.load_state_dict(
        {
            "num_rows": sampler.num_rows,
            "in_features": sampler.in_features,
            "draws": draws,
            "since_rehash": since_rehash,
            "rehashes": rehashes,
            "carried": order[: sampler.packed_sizes()["carried_room"]] if is_carried else None,
            "queries": tensors["queries"][:kept].clone() if kept else None,
            "label_counts": counts,
        }
    )


def _bits(number: float) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits


def _from_bits(bits: int) -> float:
    number: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return number
