"""Train and serve PyTorch layers with millions of outputs on CPUs, by locality-sensitive hashing."""

from . import data, distributed, metrics, models, nn, ops, optim, reference, rehash
from .autotune import AutoTuner, autotune
from .callbacks import StatsWriter
from .clip import clip_grad_norm_, clip_grad_value_
from .config import LSHConfig
from .convert import densify_, quantize_, sparsify_
from .nn import EmbeddingBag, LSHFeedForward, LSHLinear, QuantizedLinear, SampledLogits
from .rehash import Drift, ExponentialBackoff, FixedInterval, RehashScheduler
from .sampling import ActiveSet
from .stats import LayerStats

__version__ = "0.1.0"

__all__ = [
    "ActiveSet",
    "AutoTuner",
    "Drift",
    "EmbeddingBag",
    "ExponentialBackoff",
    "FixedInterval",
    "LSHConfig",
    "LSHFeedForward",
    "LSHLinear",
    "LayerStats",
    "QuantizedLinear",
    "RehashScheduler",
    "SampledLogits",
    "StatsWriter",
    "autotune",
    "clip_grad_norm_",
    "clip_grad_value_",
    "data",
    "densify_",
    "distributed",
    "metrics",
    "models",
    "nn",
    "ops",
    "optim",
    "quantize_",
    "reference",
    "rehash",
    "sparsify_",
]
