"""The state of a shard's sampler, in tensors that load into any number of processes.

``position`` and ``queries`` are the same in all processes. What belongs to rows, the places of those that were carried
over and the label counts, is spread over the processes as the rows are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...sampling.sampler import Sampler
from .shards import Shards


class ShardState:
    """Saves and loads the sampler of a shard.

    Args:
        sampler: of this process's rows.
        shards: which rows these are.
    """

    def __init__(self, sampler: Sampler, shards: Shards) -> None:
        self._sampler, self._shards = sampler, shards

    def tensors(self) -> dict[str, Tensor]:
        """The state. As :meth:`Sampler.state_dict` does, taking it drops the tables."""
        sizes, state = self._sampler.packed_sizes(), self._sampler.state_dict()
        counts, queries, carried = state["label_counts"], state["queries"], state["carried"]
        room = sizes["queries_room"]
        queries = torch.empty(0, self._sampler.in_features) if queries is None else queries.float()[-room:]
        kept = torch.zeros(room, self._sampler.in_features)
        kept[: len(queries)] = queries
        places = torch.zeros(self._sampler.num_rows, dtype=torch.int32)  # 0: not carried; 1: the hardest
        if carried is not None:
            carried = carried[: sizes["carried_room"]]
            places[carried] = torch.arange(1, len(carried) + 1, dtype=torch.int32)
        numbers = [state["draws"], state["since_rehash"], state["rehashes"], len(queries)]
        numbers += [carried is not None, counts is not None, counts is not None and counts["given"]]
        position = torch.tensor([*map(int, numbers), counts["samples"] if counts else 0], dtype=torch.float64)
        tensors = {"position": position, "queries": kept, "carried": self._shards.place(places)}
        if sizes["counts_room"] > 0:
            held = counts["counts"] if counts else torch.zeros(self._sampler.num_rows, dtype=torch.float64)
            tensors["label_counts"] = self._shards.place(held)
        return tensors

    def load(self, tensors: dict[str, Any]) -> None:
        """Takes over what :meth:`tensors` returned in this number of processes or another."""
        draws, since_rehash, rehashes, queries, carried, counted, given, samples = tensors["position"].tolist()
        places = self._shards.local(tensors["carried"])
        order = torch.where(places > 0, places, math.inf).argsort(stable=True)[: int((places > 0).sum())]
        counts = None
        if counted and "label_counts" in tensors:
            held = self._shards.local(tensors["label_counts"]).clone()
            counts = {"counts": held, "samples": samples, "given": bool(given)}
        self._sampler.load_state_dict(
            {
                "num_rows": self._sampler.num_rows,
                "in_features": self._sampler.in_features,
                "draws": int(draws),
                "since_rehash": int(since_rehash),
                "rehashes": int(rehashes),
                "carried": order if carried else None,
                "queries": tensors["queries"][: int(queries)].clone() if queries else None,
                "label_counts": counts,
            }
        )
