"""Figures, drawn with matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .io import FilePath, check_can_write, replacing

_BEGINNINGS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def check_can_draw(path: FilePath) -> None:
    """Raises the error that :func:`draw` would end in, as far as can be told before.

    Raises:
        OSError: The file cannot be written, or exists and is no drawing.
        ValueError: The suffix is not that of a drawing.
        ImportError: matplotlib is not installed.
    """
    path = Path(path)
    check_can_write(path)
    beginning = _BEGINNINGS.get(path.suffix.lower())
    if beginning is None:
        raise ValueError(f"{path} is no name of a drawing; wanted one that ends in {', '.join(_BEGINNINGS)}")
    if path.exists():
        with open(path, "rb") as file:
            if not beginning.startswith(file.read(len(beginning))):  # an empty file has nothing to lose
                raise FileExistsError(f"{path} exists and is no drawing, so it is not overwritten; wanted a new name")
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("drawing needs matplotlib: pip install matplotlib")


def draw(path: FilePath, *panels: Callable[[Any], None], columns: int | None = None) -> None:
    """Writes a figure.

    Args:
        path: The file; its suffix decides the format.
        panels: Functions that draw on one matplotlib axis each.
        columns: Panels side by side; None: all of them.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = columns or len(panels)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(7 * columns, 4.5 * lines), squeeze=False)
    for axis, panel in zip(axes.flat, panels):
        panel(axis)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
