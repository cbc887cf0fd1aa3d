"""Data sets with sparse features and many labels, and features of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .synthetic import synthetic_xmc
from .xmc import XMCDataset, XMCRows, collate_xmc, write_xmc

if TYPE_CHECKING:
    from ..text import HashedText as HashedText

__all__ = ["HashedText", "XMCDataset", "XMCRows", "collate_xmc", "synthetic_xmc", "write_xmc"]


def __getattr__(name: str) -> Any:
    """What is about text is in :mod:`torch_lsh.text`, which nothing imports before somebody asks for it."""
    if name == "HashedText":
        from ..text import HashedText

        return HashedText
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
