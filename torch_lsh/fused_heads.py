"""Fused heads of other libraries: losses that read the weight of a model's output layer and never call the layer."""

from __future__ import annotations

import importlib
import importlib.util
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from . import ops
from .config import LSHConfig
from .nn.linear import LSHLinear
from .nn.logits.losses import log_weights_of_logits
from .nn.tied import follow_tied_embeddings
from .row_sparse.parameters import note_forward

_heads: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> weak reference to its LSHLinear


def patch(model: Any, config: LSHConfig | None = None) -> Any:
    """Has every way in which a causal language model computes its loss use the sampled path.

    The model's output layer becomes an :class:`torch_lsh.LSHLinear` with the very same Parameters, tied or not, which
    serves ``model(input_ids, labels=labels).loss``. Fused heads read ``lm_head.weight`` instead of calling the layer;
    that of trl (``SFTTrainer``) takes the layer's active rows from then on, for patched models alone. Token accuracy
    and entropy, which it reports beside the loss, are then those among the active rows.

    Not for trainers that compare log-probabilities of two passes (GRPO, DPO): each pass draws rows of its own.

    Args:
        model: a model with ``get_output_embeddings`` and ``set_output_embeddings``, as those of transformers.
        config: see :class:`torch_lsh.LSHConfig`.

    Returns:
        The model.

    Raises:
        TypeError: the model has no linear output layer.
        RuntimeError: this release of trl has another fused head.

    References:
        Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024, patches models for GPUs this way.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear):
        raise TypeError(f"the output layer of {type(model).__name__} is a {type(head).__name__}; wanted an nn.Linear")
    if not isinstance(head, LSHLinear):
        head = LSHLinear.from_linear(head, config)
        model.set_output_embeddings(head)
    elif config is not None:
        head.reconfigure(config)
    follow_tied_embeddings(model)
    _heads[head.weight] = weakref.ref(head)
    _patch_trl()
    return model


def _patch_trl() -> None:
    if importlib.util.find_spec("trl") is None:
        return
    utilities = importlib.import_module("trl.trainer.utils")
    function = getattr(utilities, "_ChunkedLogProbFunction", None)
    if function is None:
        raise RuntimeError(
            f"trl {importlib.import_module('trl').__version__} has no fused head that patch() knows; wanted trl 1.16"
        )
    if not isinstance(function, _ActiveRowsOfPatchedHeads):
        utilities._ChunkedLogProbFunction = _ActiveRowsOfPatchedHeads(function)  # type: ignore[attr-defined]


class _ActiveRowsOfPatchedHeads:
    """Stands in the place of trl's autograd function; computes patched heads in training, and leaves the rest to it."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> tuple[Tensor | None, ...]:
        """Log-probabilities of the targets and the statistics that ``outputs`` names, ``[B]`` each."""
        reference = _heads.get(weight)
        head = None if reference is None else reference()
        if head is None or not head.training or not torch.is_grad_enabled():
            arguments = (hidden, weight, bias, targets, temperature, chunk_size, softcap, logit_scale, outputs)
            return tuple(self.function.apply(*arguments))

        def transform(logits: Tensor) -> Tensor:
            logits = logits * logit_scale
            return (logits if softcap is None else softcap * (logits / softcap).tanh()) / temperature

        computed = _statistics(head, hidden, targets, transform)
        order = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
        return (computed["log_probs"], *(computed[name] if name in outputs else None for name in order))


def _statistics(head: LSHLinear, hidden: Tensor, targets: Tensor, transform: Any) -> dict[str, Tensor]:
    """What trl asks of a softmax over all classes, estimated from the active rows."""
    for parameter in head.parameters():
        note_forward(parameter)
    sampler = head.sampler
    active = sampler.draw(head.weight, head.bias, hidden.detach(), targets.reshape(-1, 1))
    head.paths.sampled(hidden, active)
    logits = head.active_logits(hidden, active.rows).float()
    keep = sampler.keeper_of_hardest_rows(active, corrected=True)
    if keep is not None and logits.requires_grad:
        logits.register_hook(lambda gradient: keep(ops.positive_sums(gradient)))
    logits = transform(logits)
    log_weights = log_weights_of_logits(active, "stratified", logits.dtype)
    weighted = logits if log_weights is None else logits + log_weights
    log_z = weighted.logsumexp(1)
    at_target = logits.gather(1, active.positions).squeeze(1)
    log_probs = at_target - log_z
    with torch.no_grad():
        share = (weighted - log_z.unsqueeze(1)).exp()
        squares = (share * (logits - log_z.unsqueeze(1)).exp()).sum(1)
        return {
            "log_probs": log_probs,
            "entropy": log_z - (share * logits).sum(1),
            "log_sum_sq_probs": squares.log(),
            "mean_logits": (logits * active.weights()).sum(1) / active.num_rows,
            "is_top1": at_target >= logits.masked_fill(~active.present, -torch.inf).amax(1),
        }
