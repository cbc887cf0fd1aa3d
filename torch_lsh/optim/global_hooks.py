"""Everything that importing the package changes in PyTorch itself. :mod:`torch_lsh` lists it for users.

* A hook before every step of every optimizer brings state of transposed parameters into shape.
* A hook after every step of every optimizer raises the versions of parameters that a fused step changed.
* Sparse CPU tensors get the kernels that gradient clipping needs, where PyTorch has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..row_sparse.transposed import transpose_state
from .base import RowSparseOptimizer
from .clip import clamp_, clamp_max_, vector_norm


def raise_versions(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Raises the versions of parameters after PyTorch's fused steps, which change them on CPUs and leave the versions.

    Optimizers of this library raise them themselves, and only those of parameters with dense gradients.
    """
    if isinstance(optimizer, RowSparseOptimizer):
        return
    for group in optimizer.param_groups:
        if group.get("fused"):
            changed = [parameter for parameter in group["params"] if parameter.grad is not None]
            torch.autograd.graph.increment_version(changed)


register_optimizer_step_pre_hook(transpose_state)
register_optimizer_step_post_hook(raise_versions)

_sparse_kernels = torch.library.Library("aten", "IMPL", "SparseCPU")  # kernels go when this object does
for _name, _kernel in {
    "linalg_vector_norm": vector_norm,
    "clamp_": clamp_,
    "clamp_min_": clamp_,
    "clamp_max_": clamp_max_,
}.items():
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{_name}", "SparseCPU"):
        _sparse_kernels.impl(_name, _kernel)
