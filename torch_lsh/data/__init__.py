"""Data sets with sparse features and many labels, and features of text."""

from __future__ import annotations

from typing import Any

from .filters import read_filter
from .stream import XMCStream
from .synthetic import synthetic_xmc
from .xmc import XMCDataset, XMCRows, collate_xmc, write_xmc

__all__ = [
    "HashedText",
    "XMCDataset",
    "XMCRows",
    "XMCStream",
    "collate_xmc",
    "read_filter",
    "synthetic_xmc",
    "write_xmc",
]


def __getattr__(name: str) -> Any:
    """Imports :mod:`torch_lsh.text` on the first access to one of its names."""
    if name == "HashedText":
        from ..text import HashedText

        return HashedText
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
