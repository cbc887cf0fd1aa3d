"""Which rows of a parameter changed.

Optimizers report the rows they update (:func:`~torch_lsh.row_sparse.parameters.record_update`). PyTorch raises
``tensor._version`` at every in-place change, so a change that nobody reported shows as a gap between versions;
``parameter.data = tensor`` leaves the version and shows as another address.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from .. import _library  # noqa: F401  (registers torch.ops.torch_lsh)
from .parameters import listen

_count_touches = torch.ops.torch_lsh.count_touches_.default


def version_of(tensor: Tensor) -> int:
    """``tensor._version``; -1 for an inference tensor, which has none."""
    try:
        return tensor._version
    except RuntimeError:
        return -1


class ChangedRows:
    """Collects which rows of some parameters change from now on.

    Args:
        parameters: of equally many rows, such as weight and bias of a layer.

    Attributes:
        touches: ``[rows]`` uint8, how often each row changed, up to 255.

    >>> from torch_lsh.row_sparse.parameters import record_update
    >>> weight = torch.zeros(10, 2)
    >>> changed = ChangedRows(weight)
    >>> before = weight._version
    >>> rows = torch.tensor([3, 7])
    >>> _ = weight.index_fill_(0, rows, 1.0)
    >>> record_update(rows, (weight, before))
    >>> changed.take()
    tensor([3, 7])
    >>> _ = weight.zero_()  # nobody recorded which rows
    >>> changed.take() is None
    True
    """

    def __init__(self, *parameters: Tensor) -> None:
        self._parameters = [weakref.ref(parameter) for parameter in parameters]
        # One byte per row costs less than a list of the touched rows.
        self.touches = torch.zeros(parameters[0].shape[0], dtype=torch.uint8, device="cpu")
        self._reset()
        for parameter in parameters:
            listen(parameter, self)

    def _reset(self) -> None:
        self._versions = [version_of(parameter) for parameter in self._living()]
        self._addresses = [parameter.data_ptr() for parameter in self._living()]
        self.touches.zero_()
        self._some = self._everything = False
        self._last: tuple[Tensor, int] | None = None  # the rows that were counted last, and their version
        self._updated: set[int] = set()  # numbers of the parameters that changed in these rows

    def _living(self) -> list[Tensor]:
        parameters = [parameter for watched in self._parameters if (parameter := watched()) is not None]
        if len(parameters) < len(self._parameters):
            raise RuntimeError("a parameter whose changed rows are collected does not exist any more")
        return parameters

    def record(
        self, parameter: Tensor, rows: Tensor, version_before: int, version_after: int, counted: Tensor | None = None
    ) -> None:
        """Counts one update of ``rows``; called by :func:`~torch_lsh.row_sparse.parameters.record_update`."""
        number = 0
        while self._parameters[number]() is not parameter:
            number += 1
        self._everything |= version_before != self._versions[number]
        # Weight and bias change in the same rows, one after the other. That is one touch.
        if not self._everything and (number in self._updated or not self._counted_last(rows)):
            if counted is not self.touches:
                _count_touches(self.touches, rows)
            self._some = True
            self._last, self._updated = (rows, rows._version), set()
        self._updated.add(number)
        self._versions[number] = version_after  # last, so that a record that Ctrl-C ends early is none

    def _counted_last(self, rows: Tensor) -> bool:
        if self._last is None:
            return False
        last, version = self._last
        same = rows is last or (rows.data_ptr() == last.data_ptr() and rows.shape == last.shape)
        return same and rows._version == version

    def are_of(self, *parameters: Tensor | None) -> bool:
        """Whether exactly these parameters are watched; None stands for a parameter that a layer does not have."""
        count = 0
        for parameter in parameters:
            if parameter is not None:
                if count == len(self._parameters) or self._parameters[count]() is not parameter:
                    return False
                count += 1
        return count == len(self._parameters)

    def holds_all_of(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether exactly these parameters are watched, and every change of them was recorded."""
        parameters = self._parameters
        if self._everything or parameters[0]() is not weight or self._differs(0, weight):
            return False
        if bias is None:
            return len(parameters) == 1
        return len(parameters) == 2 and parameters[1]() is bias and not self._differs(1, bias)

    def _differs(self, number: int, parameter: Tensor) -> bool:
        """Whether a parameter changed without a record of the rows."""
        return version_of(parameter) != self._versions[number] or parameter.data_ptr() != self._addresses[number]

    def with_unrecorded_changes(self) -> list[Tensor]:
        """The parameters that changed, or may have, without a record of the rows."""
        living = self._living()
        return living if self._everything else [one for i, one in enumerate(living) if self._differs(i, one)]

    def unrecorded(self) -> bool:
        """Whether a parameter changed and nobody recorded the rows."""
        return self._everything or any(self._differs(i, one) for i, one in enumerate(self._living()))

    def any(self) -> bool:
        """Whether anything changed since the rows were last taken."""
        return self.unrecorded() or self._some

    def take(self, touches: int = 1) -> Tensor | None:
        """Returns the changed rows and forgets them.

        Args:
            touches: leave rows that changed less often for a later call.

        Returns:
            ``[A]`` int64, increasing; or None if any row may have changed.
        """
        if self.unrecorded():
            self._reset()
            return None
        rows = (self.touches >= touches).nonzero()[:, 0]
        self.touches[rows] = 0
        self._last = None
        self._some = touches > 1 and bool(self.touches.any())
        return rows

    def touched(self) -> Tensor | None:
        """A mask ``[rows]`` of the rows that :meth:`take` would return, or None if any row may have changed."""
        return None if self.unrecorded() else self.touches > 0

    def sample(self, count: int, touches: int = 1, seed: int = 0) -> Tensor | None:
        """Draws random rows of those that :meth:`take` would return, and forgets none.

        Rejection costs ``count`` divided by the share of changed rows. Where that is more than one pass over all rows,
        the pass is made.

        Args:
            count: number of rows; fewer come back if fewer changed.
            touches: as in :meth:`take`.
            seed: of the random numbers.

        Returns:
            ``[count]`` int64, where rows may repeat; or None if any row may have changed.
        """
        if self.unrecorded():
            return None
        generator = torch.Generator().manual_seed(seed)
        draws = 4 * count
        while draws < len(self.touches) // 8:
            rows = torch.randint(len(self.touches), (draws,), generator=generator, device="cpu")
            rows = rows[self.touches[rows] >= touches]
            if len(rows) >= count:
                return rows[:count]
            draws *= 4
        rows = (self.touches >= touches).nonzero()[:, 0]
        return rows[torch.randperm(len(rows), generator=generator, device="cpu")[:count]]
