"""The warnings of layers, which point to the line of the caller."""

from __future__ import annotations

import sys
import warnings


def warn_dense(what: str, out_features: int) -> None:
    """Warns that ``what`` makes a layer compute all of its outputs."""
    warnings.warn(
        f"torch_lsh: {what} has no sampled path, so all {out_features} outputs of the layer are computed, as by "
        "nn.Linear; this warning appears once per layer",
        stacklevel=_callers_level(),
    )


def warn_stale() -> None:
    """Warns that logits are ranked by parameters that changed after the layer was called."""
    warnings.warn(
        "torch_lsh: the parameters of the layer were changed (by optimizer.step()?) before its logits were ranked, so "
        "they are ranked by the new ones; rank before the change, or call logits.dense() before it to keep the values; "
        "this warning appears once per layer",
        stacklevel=_callers_level(),
    )


def warn_gathered(out_features: int) -> None:
    """Warns that FSDP gathers a layer's weights in every step."""
    warnings.warn(
        f"torch_lsh: FSDP gathers all {out_features} rows of the layer in every step, and its gradient is dense; leave "
        "the layer out, fully_shard(model, ignored_params=torch_lsh.distributed.row_parameters(model)), and call "
        "torch_lsh.distributed.exchange_rows_(model); this warning appears once per layer",
        stacklevel=_callers_level(),
    )


def _callers_level() -> int:
    """Returns the ``stacklevel`` of the innermost frame outside of torch and torch_lsh."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "torch_lsh"):
        level, frame = level + 1, frame.f_back
    return level
