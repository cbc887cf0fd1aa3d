"""The sampler's state as one tensor of bytes, whose size depends on nothing but the shape and the settings.

Checkpoints of all kinds hold tensors: ``torch.save``, safetensors, ``torch.distributed.checkpoint``. The last of these
loads into a tensor of the size that was saved, so the size must not depend on how far training has come.
"""

from __future__ import annotations

import struct
import warnings
from typing import Any

import torch
from torch import Tensor

_VERSION = 1
# The header, int64: what is in the state, and how much room there is for it.
_FIELDS = (
    "version",
    "num_rows",
    "in_features",
    "draws",
    "since_rehash",
    "rehashes",
    "carried",  # rows; -1: none were carried over yet
    "carried_room",
    "queries",  # -1: none were kept yet
    "queries_room",
    "counts",  # 0: no label counts, 1: counted, 2: given
    "counts_room",
    "samples",  # the bits of a float64
)

_OFTEN, _OFTEN_STEPS = 4, 32  # taking the state so many times in so many steps earns a warning


class TakenStates:
    """Warns once where the state is taken so often that building the tables costs more than training."""

    def __init__(self) -> None:
        self._at: list[int] = []  # the draws at which it was taken, lately
        self._warned = False

    def note(self, draws: int) -> None:
        """Says that the state is taken after so many ``draws``, and drops tables."""
        self._at = [*(earlier for earlier in self._at if draws - earlier <= _OFTEN_STEPS), draws]
        if len(self._at) >= _OFTEN and not self._warned:
            self._warned = True
            warnings.warn(
                f"torch_lsh: state_dict() was called {_OFTEN} times within {_OFTEN_STEPS} training steps. Each call "
                "leads to a rebuild of the hash tables, so that a resumed run equals this one. To read weights "
                "often, call model.parameters()",
                stacklevel=3,
            )


def pack(
    state: dict[str, Any], num_rows: int, in_features: int, carried_room: int, queries_room: int, counts_room: int
) -> Tensor:
    """The state of a sampler as ``[n]`` uint8, where ``n`` is a function of the sizes given alone.

    What there is no room for is left out: the least hard of the carried rows, the oldest queries, and label counts that
    the settings have no use for.
    """
    carried, queries, counts = state["carried"], state["queries"], state["label_counts"]
    carried = None if carried is None else carried[:carried_room]
    queries = None if queries is None else queries[max(0, len(queries) - queries_room) :]
    counts = counts if counts_room > 0 else None
    header = {
        "version": _VERSION,
        "num_rows": num_rows,
        "in_features": in_features,
        "draws": state["draws"],
        "since_rehash": state["since_rehash"],
        "rehashes": state["rehashes"],
        "carried": -1 if carried is None else len(carried),
        "carried_room": carried_room,
        "queries": -1 if queries is None else len(queries),
        "queries_room": queries_room,
        "counts": 0 if counts is None else 1 + counts["given"],
        "counts_room": counts_room,
        "samples": 0 if counts is None else struct.unpack("<q", struct.pack("<d", counts["samples"]))[0],
    }
    numbers = torch.tensor([header[name] for name in _FIELDS], dtype=torch.int64, device="cpu")
    return torch.cat(
        [
            _bytes(numbers, numbers.nbytes),
            _bytes(carried, 8 * carried_room),
            _bytes(None if queries is None else queries.float(), 4 * in_features * queries_room),
            _bytes(None if counts is None else counts["counts"], 8 * counts_room),
        ]
    )


def unpack(packed: Tensor) -> dict[str, Any]:
    """What :func:`pack` was given.

    Raises:
        ValueError: ``packed`` is not a sampler's state.
    """
    size = 8 * len(_FIELDS)
    if not isinstance(packed, Tensor):
        raise ValueError(f"the sampler's state is a {type(packed).__name__}; wanted a uint8 tensor")
    if packed.is_floating_point():  # all tensors of a state_dict were cast, which such dtypes hold exactly
        cast_back = packed.to(torch.uint8)
        packed = cast_back if torch.equal(cast_back.to(packed.dtype), packed) else packed
    if packed.dtype is not torch.uint8 or packed.dim() != 1 or len(packed) < size:
        raise ValueError(
            f"the sampler's state has dtype {packed.dtype} and shape {list(packed.shape)}; "
            f"wanted uint8 and at least [{size}]; leave it out of averages, for samplers that start anew"
        )
    packed = packed.cpu()
    header = dict(zip(_FIELDS, packed[:size].clone().view(torch.int64).tolist()))
    rooms = (8 * header["carried_room"], 4 * header["in_features"] * header["queries_room"], 8 * header["counts_room"])
    if header["version"] != _VERSION or min(rooms) < 0 or len(packed) != size + sum(rooms):
        raise ValueError(
            f"the sampler's state is of version {header['version']} and has {len(packed)} bytes; "
            f"wanted version {_VERSION} and {size + sum(rooms)} bytes"
        )
    carried, queries, counts = packed[size:].split(rooms)
    shape = (header["queries"], header["in_features"])
    return {
        **{name: header[name] for name in ("num_rows", "in_features", "draws", "since_rehash", "rehashes")},
        "carried": _tensor(carried, torch.int64, (header["carried"],)),
        "queries": _tensor(queries, torch.float32, shape),
        "label_counts": None
        if header["counts"] == 0
        else {
            "counts": _tensor(counts, torch.float64, (header["counts_room"],)),
            "samples": struct.unpack("<d", struct.pack("<q", header["samples"]))[0],
            "given": header["counts"] == 2,
        },
    }


def without_foreign(state_dict: dict[str, Any], key: str, weight: Tensor, unexpected_keys: list[str]) -> dict[str, Any]:
    """A ``state_dict`` without what :func:`pack` returned under ``key``, if that is of a weight of another shape.

    That is an unexpected key, so that PyTorch refuses it with ``strict=True``, and with ``strict=False`` takes all else
    from a model of other classes.
    """
    if key not in state_dict:
        return state_dict
    state = unpack(state_dict[key])
    if (state["num_rows"], state["in_features"]) == weight.shape:
        return state_dict
    unexpected_keys.append(key)
    return {name: value for name, value in state_dict.items() if name != key}


def _bytes(tensor: Tensor | None, room: int) -> Tensor:
    """The tensor's memory, padded with zeros to ``room`` bytes."""
    padded = torch.zeros(room, dtype=torch.uint8, device="cpu")
    if tensor is not None and tensor.numel() > 0:
        padded[: tensor.nbytes] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return padded


def _tensor(memory: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor | None:
    if shape[0] < 0:
        return None
    size = dtype.itemsize
    for length in shape:
        size *= length
    return memory[:size].clone().view(dtype).view(shape)
