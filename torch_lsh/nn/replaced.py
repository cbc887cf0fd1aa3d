"""Tells when somebody replaces a layer that is trained by samples with a dense one of another size.

``resize_token_embeddings`` of transformers does so. Importing this module registers a hook of
:mod:`torch.nn.modules.module` that sees every assignment of a module to a module.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .linear import LSHLinear
from .speedup import NARROW
from .warnings import warn_replaced


def tell_replaced(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    """Warns where a wide :class:`LSHLinear` of ``parent`` becomes a wide ``nn.Linear`` of other parameters."""
    if type(new) is not nn.Linear or new.out_features < NARROW:
        return
    old = parent._modules.get(name)
    if isinstance(old, LSHLinear) and old.weight is not new.weight and old.in_features == new.in_features:
        warn_replaced(f"{type(parent).__name__}.{name}", old.out_features, str(new))


register_module_module_registration_hook(tell_replaced)
