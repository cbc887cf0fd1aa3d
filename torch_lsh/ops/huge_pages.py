"""Huge pages for tensors whose rows are read at random."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator


@operator(name="prefer_huge_pages")
def prefer_huge_pages_of_contiguous(tensor: Tensor, move: bool = False) -> bool:
    """:func:`prefer_huge_pages` of a contiguous tensor."""
    return False


def prefer_huge_pages(tensor: Tensor, move: bool = False) -> bool:
    """Asks the system to keep a tensor in huge pages.

    With pages of 4 KiB nearly every visit of a random row misses the TLB, which makes the steps of a layer of some
    hundred MB a fifth slower. The request is a hint and changes no value. It has no effect on tensors that are smaller
    than 8 MiB, not contiguous or not on the CPU, on systems other than Linux, and where
    ``/sys/kernel/mm/transparent_hugepage/enabled`` says ``never``.

    Args:
        tensor: any tensor.
        move: moves memory that was written before, which takes some 2 seconds per GB and needs Linux 6.1. Without it
            only memory that is written later is in huge pages.

    Returns:
        Whether the system took the hint.
    """
    return tensor.is_contiguous() and prefer_huge_pages_of_contiguous(tensor.detach(), move)
