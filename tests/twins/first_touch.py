from __future__ import annotations

from torch import Tensor


def zero_rows_(table: Tensor) -> None:
    table.zero_()
