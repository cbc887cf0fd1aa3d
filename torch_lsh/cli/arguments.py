"""Types of command-line arguments."""

from __future__ import annotations

import argparse

from ..models.schedule import seconds_of


def positive(text: str) -> int:
    """Reads a positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def seconds(text: str) -> float:
    """Reads a positive time."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def budget(text: str) -> float | None:
    """Reads a time such as 90, 90s, 5m or 1h, in seconds."""
    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def active_rows(text: str) -> int | float:
    """Reads a number of rows or a fraction of the layer."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of rows nor a fraction such as 0.01") from None
