"""The warnings of layers, which point to the line of the caller."""

from __future__ import annotations

import sys
import warnings

# Why a result or an update takes all rows, and what to do about it. docs/never_dense.md lists them.
REASONS = {
    "function": (
        "{what} has no sampled path, so all {out_features} outputs of the layer are computed, as by nn.Linear; take "
        "F.cross_entropy or another sampled loss, topk, argmax or gather"
    ),
    "operands": (
        "{what} has no sampled path, so all {out_features} outputs of the layer are computed, as by nn.Linear; wanted "
        "contiguous float32, float64 or bfloat16 tensors on the CPU"
    ),
    "stale": (
        "the parameters of the layer were changed (by optimizer.step()?) before its logits were ranked, so they are "
        "ranked by the new ones; rank before the change, or call logits.dense() before it to keep the values"
    ),
    "ranking": (
        "{what} ranks all {out_features} rows exactly in every training step, which takes longer than the sampled step "
        "itself; rank in eval() mode or not at every step, or set LSHConfig(ranking='active')"
    ),
    "evaluation": (
        "the loss is estimated from sampled rows although gradients are disabled; call model.eval() to evaluate exactly"
    ),
    "optimizer": (
        "{what} updates all {out_features} rows of the layer in every step, as those of nn.Linear; take "
        "torch_lsh.optim.{ours}"
    ),
    "data_parallel": (
        "DistributedDataParallel exchanges all {out_features} rows of the gradient, as those of nn.Linear; wrap the "
        "model without it and call torch_lsh.distributed.average_gradients"
    ),
    "tied": (
        "another use of the weight gives all {out_features} rows a gradient; call torch_lsh.sparsify_(model), which "
        "makes tied embeddings row-sparse, or set sparse=True on the nn.Embedding"
    ),
    "weight": (
        "the weight of the layer trains, but not through the layer, so all {out_features} rows have gradients: call "
        "the layer, layer(h), in place of h @ layer.weight.T or F.linear(h, layer.weight)"
    ),
}


def warn(text: str) -> None:
    """Warns at the line of the caller; the text of a reason appears once per layer."""
    warnings.warn(f"torch_lsh: {text}; this warning appears once per layer", stacklevel=_callers_level())


def _callers_level() -> int:
    """Returns the ``stacklevel`` of the innermost frame outside of torch and torch_lsh."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "torch_lsh"):
        level, frame = level + 1, frame.f_back
    return level
