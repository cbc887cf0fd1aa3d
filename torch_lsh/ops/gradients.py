"""Row-sparse gradients: the way from a backward pass to a parameter or its optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..row_sparse.parameters import Updater, wants_row_sparse_and_updater


class RowGradient:
    """Delivers the gradient of some rows of one parameter.

    Made in the forward pass, it settles where the gradient goes: to an optimizer that updates the parameter during the
    backward pass, into a row-sparse tensor where :func:`~torch_lsh.row_sparse.parameters.wants_row_sparse` says so, or
    into a dense one. A backward pass then says whether it asks for the gradient.

    >>> RowGradient(torch.zeros(3, 2)).deliver(None, torch.tensor([2]), torch.ones(1, 2))
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

    def asked(self, ctx: Any) -> tuple[bool, Updater | None]:
        """Whether the backward pass of ``ctx`` asks for the gradient, and the optimizer that takes it then.

        ``torch.autograd.grad`` and ``backward(inputs=...)`` ask for some tensors only; the former returns gradients.
        """
        if self.updater is not None:
            for node, _ in ctx.next_functions:
                if getattr(node, "variable", None) is self.parameter:
                    accumulates = accumulates_gradient(node)
                    return accumulates is not False, self.updater if accumulates else None
        return True, self.updater

    def deliver(self, ctx: Any, rows: Tensor, values: Tensor, unique: bool = False) -> Tensor | None:
        """Delivers the gradient ``values`` of ``rows``.

        Args:
            ctx: of the backward pass.
            rows: ``[A]`` int64.
            values: ``[A, width]`` or ``[A]``; converted to the dtype of the parameter.
            unique: states that ``rows`` are strictly increasing. Otherwise they may repeat.

        Returns:
            The gradient of the parameter, or None where an optimizer took it or the backward pass does not ask for it.
        """
        asked, updater = self.asked(ctx)
        if not asked:
            return None
        if values.dtype is not self.dtype:
            values = values.to(self.dtype)
        if updater is not None and self.parameter is not None:
            updater.update_in_backward(self.parameter, rows, values, unique=unique)
            return None
        if self.row_sparse:
            return torch.sparse_coo_tensor(
                rows.unsqueeze(0), values, self.shape, is_coalesced=unique, check_invariants=False, device=values.device
            )
        return values.new_zeros(self.shape).index_add_(0, rows, values)


def accumulates_gradient(node: Any) -> bool | None:
    """Whether the running backward pass adds to the gradient of a leaf; None: it returns that gradient instead.

    Args:
        node: ``AccumulateGrad`` of the leaf.
    """
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # raised for what torch.autograd.grad returns
        return None


def apply_function(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)`` without what it does for function transforms, unless one is active."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]  # of its base in C++


def check_first_order() -> None:
    """Raises in a backward pass that is itself recorded, where the recorded graph would be incomplete."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True, but gradients that are computed from some rows alone cannot be differentiated again; "
            "take the loss of logits.dense(), which can"
        )
