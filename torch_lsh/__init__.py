"""Train and serve PyTorch layers with millions of outputs on CPUs, by locality-sensitive hashing.

Importing this package changes the following for the whole process, and nothing else (the registrations are in
``optim/global_hooks.py``):

* It loads the operators ``torch.ops.torch_lsh``.
* In the process of the command line alone, SIGINT ends the process without a traceback (``interrupts.py``).
* Before every ``step()`` of every PyTorch optimizer a hook brings state of parameters that
  :class:`LSHFeedForward` transposed into their new shape. It does nothing while no parameter was transposed.
* Around every ``step()`` of every PyTorch optimizer with ``fused=True`` hooks raise the versions of the parameters
  (``tensor._version``), which PyTorch's fused steps on CPUs leave as they were. Hash tables rely on versions.
* Before every ``step()`` of every other optimizer a hook looks for parameters of the layers here. It turns row-sparse
  gradients dense, and tells once per layer that the optimizer updates all of its rows.
* Whenever a module becomes part of a module a hook looks whether an ``nn.Linear`` replaces an :class:`LSHLinear`.
* Sparse CPU tensors get ``aten::linalg_vector_norm``, ``aten::clamp``, ``aten::clamp_min``, ``aten::clamp_max``,
  ``aten::clamp_``, ``aten::clamp_min_`` and ``aten::clamp_max_``, where PyTorch has none, so that
  :mod:`torch.nn.utils` and hooks can clip row-sparse gradients.
* Sparse CPU tensors get what loggers of gradients ask for, where PyTorch has none: ``aten::max``, ``aten::min``,
  ``aten::amax``, ``aten::amin``, ``aten::aminmax``, ``aten::mean.dim``, ``aten::var.correction``,
  ``aten::std.correction``, ``aten::var_mean.correction``, ``aten::std_mean.correction``, ``aten::histc``,
  ``aten::histogram.bin_ct``, ``aten::view``, and the comparisons ``aten::eq.Scalar``, ``aten::ne.Scalar``,
  ``aten::lt.Scalar``, ``aten::le.Scalar``, ``aten::gt.Scalar``, ``aten::ge.Scalar``, ``aten::eq.Tensor``,
  ``aten::ne.Tensor``, ``aten::lt.Tensor``, ``aten::le.Tensor``, ``aten::gt.Tensor``, ``aten::ge.Tensor``.
* ``aten::add.Tensor`` and ``aten::sub.Tensor`` of a sparse and a dense CPU tensor, in this order, give a dense tensor
  instead of an error. All else goes to PyTorch's kernels.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import interrupts as _interrupts  # noqa: F401  # first, because the other imports can be interrupted

# isort: split
from . import _private_names  # noqa: F401  # before all that uses them

# isort: split
from . import data, metrics, models, nn, ops, optim, rehash
from .callbacks import StatsWriter
from .config import LSHConfig
from .explain import explain
from .fused_heads import patch
from .index.config import HashTableConfig, IndexConfig, PartitionConfig, SignCodeConfig
from .nn import EmbeddingBag, LSHFeedForward, LSHLinear, QuantizedLinear, SampledLogits
from .nn import replaced as _replaced  # noqa: F401
from .nn.convert import densify_, quantize_, sparsify_
from .nn.functional import SamplerState, linear_cross_entropy, linear_topk, sampler_of
from .optim import global_hooks as _global_hooks  # noqa: F401
from .optim.clip import clip_grad_norm_, clip_grad_value_
from .rehash import Drift, ExponentialBackoff, FixedInterval
from .sampling.active_set import ActiveSet
from .sampling.schedule import RehashScheduler
from .sampling.stats import LayerStats
from .tuning import AutoTuner, autotune

if TYPE_CHECKING:
    from . import distributed

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
    "SamplerState",
    "SignCodeConfig",
    "StatsWriter",
    "autotune",
    "clip_grad_norm_",
    "clip_grad_value_",
    "data",
    "densify_",
    "distributed",
    "explain",
    "linear_cross_entropy",
    "linear_topk",
    "metrics",
    "models",
    "nn",
    "ops",
    "optim",
    "patch",
    "quantize_",
    "rehash",
    "sampler_of",
    "sparsify_",
]


def __getattr__(name: str) -> Any:
    """Imports :mod:`torch_lsh.distributed` when it is first needed: PyTorch's part of it takes half a second."""
    if name == "distributed":
        return importlib.import_module(".distributed", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
