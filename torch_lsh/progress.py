"""Progress bars, drawn with tqdm where it is installed."""

from __future__ import annotations

import sys
from typing import Any


class _NoBar:
    """Takes the calls that a bar takes and shows nothing."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        pass

    def set_postfix_str(self, text: str) -> None:
        pass


def note(wanted: bool, text: str) -> None:
    """Writes a line where progress bars are drawn.

    Args:
        wanted: False writes nothing.
        text: The line.
    """
    if wanted:
        print(text, file=sys.stderr, flush=True)


def progress_bar(wanted: bool, **options: Any) -> Any:
    """Makes a progress bar, a context manager with ``update(count)`` and ``set_postfix_str(text)``.

    Args:
        wanted: False makes a bar that shows nothing.
        **options: Arguments of ``tqdm.tqdm``.

    Raises:
        ImportError: tqdm is not installed.
    """
    if not wanted:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass progress=False") from error
    return tqdm(mininterval=0.5, **options)
