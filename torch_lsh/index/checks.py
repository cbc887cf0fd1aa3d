"""Checks of single settings, shared by the indexes and their configurations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises a ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(repr, choices))}")


LARGEST_INT = 2**31 - 1  # of settings, so that products with the sizes of a layer fit into 64 bits


def check_int(name: str, value: Any, least: int = 1, most: int = LARGEST_INT) -> None:
    """Raises a ValueError unless ``value`` is an int from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        wanted = "a positive int" if least == 1 else f"an int, {least} or more"
        raise ValueError(f"{name} is {value!r}; wanted {wanted}")
    if value > most:
        raise ValueError(f"{name} is {value}; wanted at most {most}")


def check_optional_int(name: str, value: Any, most: int = LARGEST_INT) -> None:
    """Raises a ValueError unless ``value`` is an int from 1 to ``most``, or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; wanted a positive int or None")
    check_int(name, value, most=most)


def check_bool(name: str, value: Any) -> None:
    """Raises a TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; wanted True or False")
