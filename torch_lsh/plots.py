"""Figures, drawn with matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from .io import FilePath, check_can_write, replacing


def check_can_draw(path: FilePath) -> None:
    """Raises the error that :func:`draw` would end in, as far as can be told before.

    Raises:
        OSError: The file cannot be written.
        ImportError: matplotlib is not installed.
    """
    check_can_write(path)
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
