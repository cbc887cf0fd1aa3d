"""Reader of the text format of the Extreme Classification Repository."""

from __future__ import annotations

from torch import Tensor

from .declaration import NeedsData, operator


@operator
def parse_xmc(text: Tensor, num_features: int, num_labels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
    r"""Parses lines of the form ``label,label feature:value feature:value ...``.

    Args:
        text: ``[bytes]`` uint8: whole lines, without the header line.
        num_features, num_labels: all ids must be smaller.

    Returns:
        Features per row (int64), features (int32), values (float32), labels per row (int64), labels (int32), and an
        error message. Unless the message is empty, it is about the line after the returned rows.

    >>> import torch
    >>> text = torch.frombuffer(bytearray(b"1,2 0:1.5 3:2\n\n"), dtype=torch.uint8)
    >>> parse_xmc(text, 4, 3)[:3]
    (tensor([2, 0]), tensor([0, 3], dtype=torch.int32), tensor([1.5000, 2.0000]))
    """
    raise NeedsData
