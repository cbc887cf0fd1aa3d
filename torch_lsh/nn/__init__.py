"""Layers that replace those of torch.nn."""

from .embedding_bag import EmbeddingBag
from .feedforward import LSHFeedForward
from .linear import LSHLinear
from .logits.tensor import SampledLogits
from .quantized import QuantizedLinear

__all__ = ["EmbeddingBag", "LSHFeedForward", "LSHLinear", "QuantizedLinear", "SampledLogits"]
