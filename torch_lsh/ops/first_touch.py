"""Where the memory of a large table lies."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator
from .huge_pages import prefer_huge_pages

_SMALLEST = 8 << 20  # bytes, as for huge pages


@operator
def zero_rows_(table: Tensor) -> None:
    """Sets a table to zero, each part of its rows by the thread that works on them later.

    On a machine with several memory nodes a page lies on the node of the thread that writes to it first, and every core
    reads the memory of its own node faster.

    Args:
        table: ``[N, ...]``, contiguous.

    >>> import torch
    >>> table = torch.ones(2, 3)
    >>> zero_rows_(table)
    >>> table.count_nonzero().item()
    0
    """


def prepare_memory(table: Tensor) -> None:
    """Asks for huge pages for memory that is about to be written, and has all threads write to it first.

    What a large table holds is lost.

    Args:
        table: ``[N, ...]``. Smaller than 8 MiB, not contiguous or not on the CPU: nothing happens.
    """
    prefer_huge_pages(table)
    memory = table.detach()
    if type(memory) is Tensor and memory.is_cpu and memory.is_contiguous() and memory.nbytes >= _SMALLEST:
        zero_rows_(memory)
