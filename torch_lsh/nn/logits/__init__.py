"""Lazy logits: the output of a wide layer, computed when its use is known.

Importing this package registers the handlers of all functions that lazy logits compute themselves.
"""

from . import (  # noqa: F401  # for their handlers
    arithmetic,
    binary_cross_entropy,
    cross_entropy,
    log_sum_exp,
    picking,
    ranking,
    smoothing,
    views,
    wrapped,
)
from .owner import LogitsOwner
from .recipe import Recipe
from .tensor import SampledLogits

__all__ = ["LogitsOwner", "Recipe", "SampledLogits"]
