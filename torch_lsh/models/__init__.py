"""Whole models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .xmc import XMCClassifier

if TYPE_CHECKING:
    from ..text import TextClassifier as TextClassifier

__all__ = ["TextClassifier", "XMCClassifier"]


def __getattr__(name: str) -> Any:
    """Imports :mod:`torch_lsh.text` on the first access to one of its names."""
    if name == "TextClassifier":
        from ..text import TextClassifier

        return TextClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
