"""Lazy logits: the output of a wide layer, computed when its use is known.

Importing this package registers the handlers of all functions that lazy logits compute themselves.
"""

from . import binary_cross_entropy, cross_entropy, ranking, views, wrapped  # noqa: F401  # for their handlers
from .owner import LogitsOwner
from .recipe import Recipe
from .tensor import SampledLogits

__all__ = ["LogitsOwner", "Recipe", "SampledLogits"]
