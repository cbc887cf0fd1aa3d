"""Everything that importing the package changes in PyTorch itself. :mod:`torch_lsh` lists it for users.

* A hook before every step of every optimizer brings state of transposed parameters into shape.
* Hooks before and after every step of every optimizer raise the versions of parameters that a fused step changed.
* A hook before every step of every optimizer that is not of this library gives it dense gradients of parameters that
  one of this library updates row by row, and tells the user that it updates all rows of a wide layer.
* Sparse CPU tensors get the kernels that gradient clipping needs, where PyTorch has none. The norm of PyTorch 2.14
  is replaced: it leaves out the zeros that are not stored.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..row_sparse.parameters import marked_optimizers, reporters, take_back, yield_to
from ..row_sparse.transposed import transpose_state
from .base import RowSparseOptimizer
from .clip import clamp, clamp_, clamp_max, clamp_max_, vector_norm
from .sparse_kernels import KERNELS, Kernel, with_dense


def raise_versions(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Raises the versions of parameters that PyTorch's fused steps change, which leave the versions on CPUs.

    Before the step, as Ctrl-C may end it early; and after it, as a closure may have looked up rows. Optimizers
    of this library raise them themselves, and only those of parameters with dense gradients.
    """
    if isinstance(optimizer, RowSparseOptimizer):
        return
    for group in optimizer.param_groups:
        if group.get("fused"):
            changed = [parameter for parameter in group["params"] if parameter.grad is not None]
            torch.autograd.graph.increment_version(changed)


def give_dense_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Turns row-sparse gradients dense before the step of an optimizer that does not take them.

    Such gradients are there where an optimizer of this library on the same parameters is still referenced. The
    optimizer that stepped last decides which gradients come next.
    """
    if isinstance(optimizer, RowSparseOptimizer):
        for group in optimizer.param_groups:
            take_back(group["params"])
        return
    if isinstance(optimizer, torch.optim.SparseAdam) or _wraps_ours(optimizer):
        return
    # A closure has yet to compute the gradients of the step.
    closure = any(argument is not None for argument in (*args[1:], *kwargs.values()))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            told = reporters(parameter)
            comes = closure and parameter.requires_grad
            if not (comes or parameter.grad is not None) or not (told or marked_optimizers(parameter)):
                continue
            yield_to(parameter, optimizer)
            if parameter.grad is not None and parameter.grad.layout is torch.sparse_coo:
                parameter.grad = parameter.grad.to_dense()
            name = type(optimizer).__name__
            ours = f"torch_lsh.optim.{name}" if name in _OURS else "an optimizer of torch_lsh.optim"
            for reporter in told:
                reporter.updated_densely(
                    "optimizer", what=f"{type(optimizer).__module__.split('.')[0]}'s {name}", ours=ours
                )


def _wraps_ours(optimizer: torch.optim.Optimizer) -> bool:
    return any(isinstance(value, RowSparseOptimizer) for value in vars(optimizer).values())


_OURS = ("SGD", "Adagrad", "Adam", "AdamW", "Lion")

register_optimizer_step_pre_hook(transpose_state)
register_optimizer_step_pre_hook(give_dense_gradients)
register_optimizer_step_pre_hook(raise_versions)
register_optimizer_step_post_hook(raise_versions)

_sparse_kernels = torch.library.Library("aten", "IMPL", "SparseCPU")  # kernels go when this object does
_present = set(torch._C._dispatch_get_registrations_for_dispatch_key("SparseCPU"))
for _name, _kernel in {
    "clamp": clamp,
    "clamp_min": clamp,
    "clamp_max": clamp_max,
    "clamp_": clamp_,
    "clamp_min_": clamp_,
    "clamp_max_": clamp_max_,
    **KERNELS,
}.items():
    if f"aten::{_name}" not in _present:
        _sparse_kernels.impl(_name, _kernel)
_replacing: dict[str, tuple[Kernel, bool]] = {"linalg_vector_norm": (vector_norm, False)}
if hasattr(torch.library, "get_kernel"):  # in older PyTorch, sparse + dense stays an error
    for _name, _sign in (("add.Tensor", 1), ("sub.Tensor", -1)):
        _theirs = torch.library.get_kernel(f"aten::{_name}", "SparseCPU")
        _replacing[_name] = with_dense(_theirs, _sign), True
with warnings.catch_warnings():  # of the override
    warnings.simplefilter("ignore")
    for _name, (_kernel, _with_keyset) in _replacing.items():
        _sparse_kernels.impl(_name, _kernel, with_keyset=_with_keyset, allow_override=True)
