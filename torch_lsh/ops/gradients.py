"""Row-sparse gradients: the way from a backward pass to a parameter or its optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..row_sparse.parameters import wants_row_sparse_and_updater


class RowGradient:
    """Delivers the gradient of some rows of one parameter.

    Made in the forward pass, it settles where the gradient goes: to an optimizer that updates the parameter during the
    backward pass, into a row-sparse tensor where :func:`~torch_lsh.row_sparse.parameters.wants_row_sparse` says so, or
    into a dense one.

    >>> RowGradient(torch.zeros(3, 2)).deliver(torch.tensor([2]), torch.ones(1, 2))
    tensor([[0., 0.],
            [0., 0.],
            [1., 1.]])
    """

    __slots__ = ("dtype", "parameter", "row_sparse", "shape", "updater")

    def __init__(self, parameter: Tensor) -> None:
        self.shape, self.dtype = parameter.shape, parameter.dtype
        self.row_sparse, updater = wants_row_sparse_and_updater(parameter)
        self.updater = updater if parameter.requires_grad else None
        self.parameter = parameter if self.updater is not None else None

    @property
    def goes_to_updater(self) -> bool:
        """Whether an optimizer takes the gradient during the backward pass."""
        return self.updater is not None

    def deliver(self, rows: Tensor, values: Tensor, unique: bool = False) -> Tensor | None:
        """Delivers the gradient ``values`` of ``rows``.

        Args:
            rows: ``[A]`` int64.
            values: ``[A, width]`` or ``[A]``; converted to the dtype of the parameter.
            unique: states that ``rows`` are strictly increasing. Otherwise they may repeat.

        Returns:
            The gradient of the parameter, or None where an optimizer took it.
        """
        if values.dtype is not self.dtype:
            values = values.to(self.dtype)
        if self.updater is not None and self.parameter is not None:
            self.updater.update_in_backward(self.parameter, rows, values, unique=unique)
            return None
        if self.row_sparse:
            return torch.sparse_coo_tensor(
                rows.unsqueeze(0), values, self.shape, is_coalesced=unique, check_invariants=False, device=values.device
            )
        return values.new_zeros(self.shape).index_add_(0, rows, values)

    def deliver_product(self, rows: Tensor, values: Tensor, factor: Tensor) -> None:
        """Hands the gradient ``values @ factor`` of ``rows`` to the optimizer as its two factors: it is never stored.

        Args:
            rows: ``[A]`` int64, strictly increasing.
            values: ``[A, K]`` of the dtype of the parameter.
            factor: ``[K, width]`` of the dtype of the parameter.

        Raises:
            RuntimeError: no optimizer takes the gradient.
        """
        if self.updater is None or self.parameter is None:
            raise RuntimeError("no optimizer updates the parameter in the backward pass; wanted one")
        self.updater.update_in_backward(self.parameter, rows, values, factor)


def apply_function(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)`` without what it does for function transforms, unless one is active."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]  # of its base in C++


def check_first_order() -> None:
    """Raises in a backward pass that is itself recorded, where the recorded graph would be incomplete."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True, but gradients that are computed from a sample of rows cannot be differentiated again; "
            "take the loss of logits.dense(), which can"
        )
