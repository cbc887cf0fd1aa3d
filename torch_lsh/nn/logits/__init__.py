"""Lazy logits: the output of a wide layer, computed only once its use is known."""

from .tensor import SampledLogits

__all__ = ["SampledLogits"]
