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
from .row_sparse.parameters import note_forward, placement_of
from .sampling.active_set import ActiveSet

_BLOCK_ROWS = 512  # of which the slopes stay in cache

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
        if placement_of(weight) is not None:
            raise RuntimeError("weight holds the rows that one process has of a sharded layer; wanted the whole layer")
        reference = _heads.get(weight)
        head = None if reference is None else reference()
        if head is None or not head.training or not torch.is_grad_enabled():
            arguments = (hidden, weight, bias, targets, temperature, chunk_size, softcap, logit_scale, outputs)
            return tuple(self.function.apply(*arguments))

        note_forward(*head.parameters())
        active = head.sampler.draw(head.weight, head.bias, hidden.detach(), targets.reshape(-1, 1))
        head.paths.sampled(hidden, active)
        order = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
        wanted = [name for name in order if name in outputs]
        multiplier = logit_scale / temperature
        if softcap is None and (multiplier == 1 or head.bias is None) and _is_fusible(active, wanted):
            found = _fused(head, hidden if multiplier == 1 else hidden * multiplier, active, wanted)
        else:

            def transform(logits: Tensor) -> Tensor:
                logits = logits if logit_scale == 1 else logits * logit_scale
                logits = logits if softcap is None else softcap * (logits / softcap).tanh()
                return logits if temperature == 1 else logits / temperature

            softmax = _SampledSoftmax(active, transform(_active_logits(head, hidden, active)))
            with torch.no_grad():
                found = {"log_probs": softmax.log_probs, **{name: getattr(softmax, name)() for name in wanted}}
        return found["log_probs"], *(found.get(name) for name in order)


def _is_fusible(active: ActiveSet, wanted: list[str]) -> bool:
    """Whether :func:`_fused` computes what is wanted."""
    shared = not active.per_sample and (active.inclusion is None or active.inclusion.dim() == 1)
    return shared and {*wanted} <= {"entropy", "is_top1"}


def _fused(head: LSHLinear, hidden: Tensor, active: ActiveSet, wanted: list[str]) -> dict[str, Tensor]:
    """Log-probabilities and what else is wanted, ``[B]`` each, by the operator that computes layer and loss at once.

    The slopes that it computes are probabilities but for a factor per sample, and not over 0 at the label.
    """
    weight, bias, rows = head.weight, head.bias, active.rows
    x = hidden.to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype)
    dtype = torch.promote_types(x.dtype, torch.float32)
    log_weights = active.log_weights().to(dtype)
    shares = torch.ones(len(x), 1, dtype=dtype, device="cpu")
    hardest = head.sampler.hardest_rows(active, corrected=True)
    kept: list[Tensor] = []
    losses = ops.active_rows_loss(
        x,
        weight,
        bias,
        rows,
        log_weights,
        active.positions,
        shares,
        None,
        hardest,
        lambda *tensors: kept.extend(tensors),
    )
    found = {"log_probs": -losses}
    if wanted:
        slopes, scale = kept
        found["entropy"], found["is_top1"] = _entropy_and_is_top1(slopes, scale, log_weights, losses.detach())
    return found


def _entropy_and_is_top1(slopes: Tensor, scale: Tensor, log_weights: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Both ``[B]``, from slopes ``[A, B]`` in one pass over them."""
    total, best = torch.zeros_like(scale), torch.zeros_like(scale)
    weights = log_weights.neg().exp().unsqueeze(1)
    for start in range(0, len(slopes), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        powers = slopes[block].to(scale.dtype).clamp(min=torch.finfo(scale.dtype).tiny)  # of all rows but the label
        best = torch.maximum(best, (powers * weights[block]).amax(0))
        total += log_weights[block] @ powers
        total -= powers.log().mul_(powers).sum(0)
    at_label = losses.neg().exp()
    # The mean of log_z - logit: of the other rows, then of the label.
    entropy = scale * total + losses.neg().expm1() * scale.log() + at_label * losses
    return entropy, at_label >= best * scale


def _active_logits(head: LSHLinear, hidden: Tensor, active: ActiveSet) -> Tensor:
    logits = head.active_logits(hidden, active.rows).float()
    hardest = head.sampler.hardest_rows(active, corrected=True)
    if hardest is not None and logits.requires_grad:
        logits.register_hook(hardest.find)
    return logits


class _SampledSoftmax:
    """What trl asks of a softmax over all classes, estimated from the active rows; ``[B]`` each.

    Few passes over the ``[B, A]`` logits, which take longer than the rest of the loss.
    """

    def __init__(self, active: ActiveSet, logits: Tensor) -> None:
        self.active, self.logits = active, logits.detach()
        log_weights = log_weights_of_logits(active, "stratified", logits.dtype)
        self.log_shares = (logits if log_weights is None else logits + log_weights).log_softmax(1)
        # Labels have weight 1, so that their shares are their probabilities.
        self.log_probs = self.log_shares.gather(1, active.positions).squeeze(1)
        self.log_shares = self.log_shares.detach()
        self.at_target = self.logits.gather(1, active.positions).squeeze(1)
        self.log_z = self.at_target - self.log_probs.detach()

    def entropy(self) -> Tensor:
        return self.log_z - torch.linalg.vecdot(self.log_shares.exp(), self.logits)

    def log_sum_sq_probs(self) -> Tensor:
        return torch.linalg.vecdot(self.log_shares.exp(), (self.logits - self.log_z.unsqueeze(1)).exp()).log()

    def mean_logits(self) -> Tensor:
        return (self.logits * self.active.weights()).sum(1) / self.active.num_rows

    def is_top1(self) -> Tensor:
        present = self.active.present
        logits = self.logits if present.all() else self.logits.masked_fill(~present, -torch.inf)
        return self.at_target >= logits.amax(1)
