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
    "adapter": (
        "{what} with a tensor of a number per sample and class (of an adapter on the layer, such as LoRA?) has no "
        "sampled path, so all {out_features} outputs of the layer are computed, as by nn.Linear; train the layer "
        "itself, with PEFT by modules_to_save in place of target_modules, or add a number per sample or per class"
    ),
    "hooks": (
        "a hook on a part of the feed-forward block sees all {out_features} hidden neurons, so they are computed, as "
        "by nn.Linear; hook the block itself"
    ),
    "traced": (
        "{what} records the computation of nn.Linear, so its graph computes all {out_features} outputs of the layer in "
        "every step; train with torch.compile or without a graph, and call model.eval() to record a model for serving"
    ),
    "parameters": (
        "{what} is computed from all {out_features} rows, as the weight with which the layer was called is no longer "
        "its own (torch.func.functional_call?), so no tables follow it; wanted a Parameter of the layer"
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
        "{what} updates all {out_features} rows of the layer in every step, as those of nn.Linear; take {ours}"
    ),
    "options": (
        "{what} has no row-sparse update, so all {out_features} rows of the layer are updated in every step, as those "
        "of nn.Linear; leave the option off"
    ),
    "data_parallel": (
        "DistributedDataParallel exchanges all {out_features} rows of the layer in every step, and its gradient is "
        "dense; call torch_lsh.distributed.exchange_rows_(model) before the model is wrapped"
    ),
    "gathered": (
        "FSDP gathers all {out_features} rows of the layer in every step, and its gradient is dense; leave the layer "
        "out, fully_shard(model, ignored_params=torch_lsh.distributed.row_parameters(model)), and call "
        "torch_lsh.distributed.exchange_rows_(model)"
    ),
    "tied": (
        "another use of the weight (or a backward pass before the optimizer was made) gives all {out_features} rows a "
        "gradient; call torch_lsh.sparsify_(model), which "
        "makes tied embeddings row-sparse, or set sparse=True on the nn.Embedding; graphs of torch.compile "
        "have no sparse gradients, so compile what lies between embedding and layer instead of the whole model"
    ),
    "weight": (
        "the weight of the layer trains, but not through the layer, so all {out_features} rows have gradients: call "
        "the layer, layer(h), in place of h @ layer.weight.T or F.linear(h, layer.weight)"
    ),
}


def warn(text: str) -> None:
    """Warns at the line of the caller; the text of a reason appears once per layer."""
    warnings.warn(f"torch_lsh: {text}; this warning appears once per layer", stacklevel=_callers_level())


def warn_nothing_swapped(left: list[tuple[str, str]]) -> None:
    """Warns that ``sparsify_`` left all layers dense, given as names and reasons."""
    reasons = "; ".join(f"{name or 'the model'} {why}" for name, why in left[-3:]) or (
        "it has no nn.Linear; for a weight that is used as h @ weight.T, call torch_lsh.linear_cross_entropy"
    )
    warnings.warn(
        f"torch_lsh: sparsify_ swapped no layer of the model: {reasons}; pass filter_fn to choose yourself",
        stacklevel=_callers_level(),
    )


def warn_replaced(name: str, out_features: int, new: str) -> None:
    """Warns that a layer trained by samples was replaced by a dense one."""
    warnings.warn(
        f"torch_lsh: {name}, an LSHLinear with {out_features} outputs, was replaced by {new}, which is dense; call "
        "torch_lsh.sparsify_(model) again, and make the optimizer anew",
        stacklevel=_callers_level(),
    )


def _callers_level() -> int:
    """Returns the ``stacklevel`` of the innermost frame outside of torch and torch_lsh."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "torch_lsh"):
        level, frame = level + 1, frame.f_back
    return level
