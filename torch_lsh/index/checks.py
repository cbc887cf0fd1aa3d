"""Checks of single settings, shared by the indexes and their configurations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises a ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(repr, choices))}")


def check_int(name: str, value: Any, least: int = 1) -> None:
    """Raises a ValueError unless ``value`` is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        wanted = "a positive int" if least == 1 else f"an int, {least} or more"
        raise ValueError(f"{name} is {value!r}; wanted {wanted}")


def check_optional_int(name: str, value: Any) -> None:
    """Raises a ValueError unless ``value`` is a positive int or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} is {value!r}; wanted a positive int or None")


def check_bool(name: str, value: Any) -> None:
    """Raises a TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; wanted True or False")
