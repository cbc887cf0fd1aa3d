"""Train and serve PyTorch layers with millions of outputs on CPUs, by locality-sensitive hashing."""

from . import data, distributed, metrics, models, nn, ops, optim, rehash
from .callbacks import StatsWriter
from .config import LSHConfig
from .index.config import HashTableConfig, IndexConfig, PartitionConfig, SignCodeConfig
from .nn import EmbeddingBag, LSHFeedForward, LSHLinear, QuantizedLinear, SampledLogits
from .nn.convert import densify_, quantize_, sparsify_
from .optim.clip import clip_grad_norm_, clip_grad_value_
from .rehash import Drift, ExponentialBackoff, FixedInterval
from .sampling.active_set import ActiveSet
from .sampling.schedule import RehashScheduler
from .sampling.stats import LayerStats
from .tuning import AutoTuner, autotune

__version__ = "0.1.0"

__all__ = [
    "ActiveSet",
    "AutoTuner",
    "Drift",
    "EmbeddingBag",
    "ExponentialBackoff",
    "FixedInterval",
    "HashTableConfig",
    "IndexConfig",
    "LSHConfig",
    "LSHFeedForward",
    "LSHLinear",
    "LayerStats",
    "PartitionConfig",
    "QuantizedLinear",
    "RehashScheduler",
    "SampledLogits",
    "SignCodeConfig",
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
    "rehash",
    "sparsify_",
]
