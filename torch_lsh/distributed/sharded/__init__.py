"""A wide layer whose rows are spread over processes: each owns some rows, with their tables and optimizer state."""

from .clip import clip_grad_norm_
from .layer import ShardedLSHLinear
from .logits import ShardedLogits
from .style import ShardedRows

__all__ = ["ShardedLSHLinear", "ShardedLogits", "ShardedRows", "clip_grad_norm_"]
