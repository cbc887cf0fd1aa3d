"""Layers that replace those of torch.nn."""

from .linear import LSHLinear
from .logits import SampledLogits

__all__ = ["LSHLinear", "SampledLogits"]
