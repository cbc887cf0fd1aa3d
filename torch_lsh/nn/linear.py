"""LSHLinear: an nn.Linear that computes and updates only the rows that matter for a batch."""

from __future__ import annotations

import copy
import functools
import logging
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import LSHConfig
from ..index.base import Index
from ..index.sign_codes import SignCodeIndex
from ..row_sparse.parameters import ChangedRows, note_forward, wants_row_sparse
from ..sampling.active_set import (
    ActiveSet,
    choose_active_rows,
    hardest_rows,
    labels_leave_room,
    needs_index,
)
from ..sampling.label_counts import LabelCounts
from ..sampling.schedule import rehash_if_due
from ..sampling.stats import LayerStats, measure_recall, measure_tables
from ..stopwatch import Stopwatch, timed
from .logits import losses
from .logits.tensor import SampledLogits

_QUERIES_KEPT = 512  # inputs of a step that a rebuild of the tables may look at
_CANDIDATES = 512  # rows that an approximate top k scores exactly

# Attributes that nn.Module need not compare with the names of parameters, buffers and modules.
_CHANGES_EVERY_STEP = frozenset({"_draws", "_since_rehash", "_carried", "_queries", "_trained"})

_log = logging.getLogger("torch_lsh")


def _is_judged(rehashes: int) -> bool:
    """Whether a re-hash is followed by a measurement of the recall of learned buckets: it is the 2nd, 4th, 8th, 16th
    and then every 16th. A measurement costs an exact product of some queries with all rows.
    """
    return rehashes % 16 == 0 or rehashes in (2, 4, 8)


def _keeps_tensors(method: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a method that keeps tensors out of inference mode: nothing could change its tensors later."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return run


def _is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation sees what is computed now."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


# For what is being compiled; outside of that the decoration alone would take longer than the question.
_is_transformed_when_run = torch.compiler.disable(_is_transformed)


def _is_traced() -> bool:
    """Whether what is computed now becomes a graph (make_fx), or is computed without values (FakeTensorMode)."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return False
    keys = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FAKE))


def _callers_level() -> int:
    """The ``stacklevel`` at which a warning of our caller's points to a line that is neither torch's nor ours."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "torch_lsh"):
        level, frame = level + 1, frame.f_back
    return level


def warn_dense(what: str, out_features: int) -> None:
    """Says that ``what`` makes a layer compute all of its outputs."""
    warnings.warn(
        f"torch_lsh: {what} has no sampled path, so all {out_features} outputs of the layer are computed,"
        " exactly as nn.Linear does and as slowly; this is said once per layer",
        stacklevel=_callers_level(),
    )


class LSHLinear(nn.Linear):
    """A linear layer for very wide outputs, trained through a sampled set of its rows.

    It *is* an :class:`torch.nn.Linear`: same constructor, initialisation and ``state_dict`` keys. ``forward`` computes
    nothing yet but returns :class:`SampledLogits`, which behave as the ``[*, out_features]`` tensor: a loss on them
    knows the labels, chooses the active rows (labels, rows found by locality-sensitive hashing, random rows) and
    computes only those. In ``eval()`` mode every result is exact. Whatever has no sampled path gives exactly
    what ``nn.Linear`` would give.

    The hash tables are built at their first use and follow the weights: rows that a row-sparse optimizer touched are
    re-hashed as ``config.rehash`` says while training, and before any look-up in ``eval()`` mode; ``load_state_dict``
    and other in-place edits of the parameters lead to a full rebuild before the next look-up. (Edits through
    ``weight.data`` cannot be seen; call ``rehash(full=True)`` after them.) Tables are not part of the ``state_dict``;
    copies and unpickled layers build their own. (``topk(exact=False)`` has sign codes of its own, which follow the
    weights in the same way.)

    Args:
        in_features: size of an input sample.
        out_features: N, the number of classes.
        bias: whether to learn an additive bias.
        config: see :class:`torch_lsh.LSHConfig`.

    Shape:
        input ``[*, in_features]``, output ``[*, out_features]``; float32, float64 or bfloat16 on the CPU. For anything
        else that ``nn.Linear`` takes (float16, sparse input, other devices, weights that are not contiguous), and with
        full backward hooks, which see the gradient of the whole output, ``forward`` is that of ``nn.Linear``.

    References:
        Spring & Shrivastava, "Scalable and Sustainable Deep Learning via Randomized Hashing", KDD 2017;
        Chen et al., "SLIDE: In Defense of Smart Algorithms over Hardware Acceleration", MLSys 2020.

    >>> layer = LSHLinear(16, 5_000)
    >>> x, y = torch.randn(4, 16), torch.tensor([1, 2, 3, 4_999])
    >>> loss = torch.nn.functional.cross_entropy(layer(x), y)
    >>> loss.backward()
    >>> layer(x).topk(5).indices.shape
    torch.Size([4, 5])
    """

    stopwatch: Stopwatch | None = None  # where the layer is being watched
    _watched: Tensor | None = None  # inputs of the last step then

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        config: LSHConfig | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._set_up(config)

    def reset_parameters(self) -> None:
        ops.prefer_huge_pages(self.weight)
        super().reset_parameters()

    def _set_up(self, config: LSHConfig | None) -> None:
        if config is not None and not isinstance(config, LSHConfig):
            raise TypeError(f"config is a {type(config).__name__}; wanted LSHConfig or None")
        self.config = config if config is not None else LSHConfig()
        self.scheduled = False  # a RehashScheduler decides when to re-hash
        self._draws = 0  # active sets drawn so far: the position in the random stream
        self._since_rehash = 0  # training draws since the last re-hash
        self._rehashes = 0
        self._carried: Tensor | None = None  # the hardest rows of the last step
        self._label_counts: LabelCounts | None = None
        self._queries: Tensor | None = None  # some inputs of the latest steps
        self._warned = self._warned_stale = False
        self._forget_tables()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CHANGES_EVERY_STEP:
            self.__dict__[name] = value
            return
        super().__setattr__(name, value)
        if name == "out_features" and "config" in vars(self):  # the vocabulary was resized, say
            self._forget_tables()
            self._carried = self._label_counts = None

    def _forget_tables(self) -> None:
        self._index: Index | None = None
        self._changed: ChangedRows | None = None
        self._sketch: SignCodeIndex | None = None
        self._sketch_changed: ChangedRows | None = None
        self._trained = False  # drawn for training since the tables were last in step with the weights

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: LSHConfig | None = None) -> LSHLinear:
        """An LSH layer that shares the very same Parameters with ``linear``.

        >>> linear = nn.Linear(8, 1_000)
        >>> LSHLinear.from_linear(linear).weight is linear.weight
        True
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is a {type(linear).__name__}; wanted torch.nn.Linear")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight = linear.weight
        layer.register_parameter("bias", linear.bias)
        layer._set_up(config)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` that shares the very same Parameters."""
        linear = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(linear)
        linear.in_features, linear.out_features = self.in_features, self.out_features
        linear.weight = self.weight
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def __prepare_scriptable__(self) -> nn.Linear:
        return self.to_linear()  # for torch.jit.script

    def reconfigure(self, config: LSHConfig) -> None:
        """Takes other settings over; hash tables are made anew at their next use."""
        if not isinstance(config, LSHConfig):
            raise TypeError(f"config is a {type(config).__name__}; wanted LSHConfig")
        self.config = config
        self._forget_tables()

    def extra_repr(self) -> str:
        config = self.config
        active = config.active_rows(self.out_features)
        return f"{super().extra_repr()}, index={config.index}, active={active}, scope={config.scope}"

    # --- copies and checkpoints ---

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(dict.fromkeys(("_index", "_changed", "_sketch", "_sketch_changed")))
        state["scheduled"] = False  # a scheduler that is copied along says so again
        return state

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget_tables()

    def sampler_state(self) -> dict[str, Any]:
        """Position of the random stream and of the re-hash schedule and the rows to carry over, for checkpoints that
        resume exactly.

        With the tables rebuilt (``rehash(full=True)``) at the time of the checkpoint and after loading it, training
        goes on as if it had never stopped.
        """
        return {
            "draws": self._draws,
            "since_rehash": self._since_rehash,
            "rehashes": self._rehashes,
            "carried": self._carried,
            "queries": self._queries,
            "label_counts": None if self._label_counts is None else self._label_counts.state_dict(),
        }

    def load_sampler_state(self, state: dict[str, Any]) -> None:
        self._draws, self._since_rehash = int(state["draws"]), int(state["since_rehash"])
        self._rehashes, self._carried = int(state["rehashes"]), state["carried"]
        self._queries = state.get("queries")  # older checkpoints have neither this
        label_counts = state.get("label_counts")  # nor this
        self._label_counts = None if label_counts is None else LabelCounts(self.out_features)
        if self._label_counts is not None and label_counts is not None:
            self._label_counts.load_state_dict(label_counts)

    # --- forward ---

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_traced():
            return super().forward(input)
        if isinstance(input, torch.fx.Proxy):  # a leaf of the graph, as the layers of torch.nn are
            path = input.tracer.path_of_module(self)
            return input.tracer.create_proxy("call_module", path, (input,), {})
        for parameter in self._parameters.values():
            if parameter is not None:
                note_forward(parameter)
        obstacle = self._obstacle(input)
        if obstacle is None:
            return SampledLogits.of(input, self)
        self.warn_dense(obstacle)
        return super().forward(input)

    def _obstacle(self, input: Tensor) -> str | None:
        """What there is about input and layer that nn.Linear computes with and the sampled path cannot; None: nothing.

        Raises:
            TypeError, ValueError: nn.Linear cannot either.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"input is a {type(input).__name__}; wanted a tensor")
        weight, bias = self.weight, self.bias
        for tensor in (input, weight):
            if tensor.device.type != "cpu":
                return f"a tensor on {tensor.device}"
        if input.dim() < 1 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"input has shape {tuple(input.shape)}; wanted {self.in_features} features in the last dimension"
            )
        if _is_transformed_when_run() if torch.compiler.is_compiling() else _is_transformed():
            return "a function transform or forward-mode differentiation"
        dtypes = {input.dtype, weight.dtype}
        if torch.is_autocast_enabled("cpu"):
            dtypes.add(torch.get_autocast_dtype("cpu"))
            # Autocast converts every floating dtype but float64.
            same = input.dtype is weight.dtype or (input.is_floating_point() and torch.float64 not in dtypes)
        else:
            same = len(dtypes) == 1
        if not same:
            raise TypeError(f"input has dtype {input.dtype}; wanted {weight.dtype}, the dtype of the weights")
        for dtype in dtypes - {torch.float32, torch.float64, torch.bfloat16}:
            return str(dtype)
        if input.layout is not torch.strided:
            return f"input of layout {input.layout}"
        if weight.shape != (self.out_features, self.in_features):
            return f"a weight of shape {tuple(weight.shape)}, which out_features and in_features do not say,"
        if weight.numel() == 0:
            return "a layer without weights"
        if not weight.is_contiguous() or not (bias is None or bias.is_contiguous()):
            return "a weight or bias that is not contiguous"
        return "a full backward hook" if self._backward_hooks or self._backward_pre_hooks else None

    def warn_dense(self, what: str) -> None:
        """Says, once per layer, that ``what`` makes it compute all of its outputs."""
        if not self._warned:
            self._warned = True
            warn_dense(what, self.out_features)

    def warn_stale(self) -> None:
        """Says, once per layer, that logits were ranked after the parameters had changed."""
        if not self._warned_stale:
            self._warned_stale = True
            warnings.warn(
                "torch_lsh: the parameters of the layer were changed (by an optimizer's step?) before its logits were "
                "ranked, so that they are ranked by the new ones; rank before the change, or call logits.dense() there",
                stacklevel=_callers_level(),
            )

    def _check_can_sample(self, input: Tensor) -> None:
        obstacle = self._obstacle(input)
        if obstacle is not None:
            raise RuntimeError(
                f"{obstacle} has no sampled path; hash tables take contiguous float32, float64 or bfloat16 on the CPU"
            )

    # --- explicit forms ---

    @torch.compiler.disable
    def cross_entropy(
        self,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """``F.cross_entropy(self(x), target, ...)``, explicitly: sampled while training, exact in ``eval()`` mode.

        Args:
            x: ``[*, in_features]``.
            target: class indices ``[*]``; or ``[*, P]`` padded with ``ignore_index``, where a sample's labels share
                the target distribution equally; or a sparse CSR tensor ``[B, out_features]`` of probabilities.
            weight, ignore_index, reduction, label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
        """
        return F.cross_entropy(
            self(x),
            target,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    @torch.compiler.disable
    def topk(self, x: Tensor, k: int, exact: bool = True, candidates: int | None = None) -> torch.return_types.topk:
        """The ``k`` highest scoring classes of each sample; no ``[B, out_features]`` tensor is made.

        Args:
            x: ``[*, in_features]``.
            k: 1 to ``out_features``.
            exact: False: compare the input with the sign codes of all rows (:class:`SignCodeIndex`, made
                at the first use, and again for rows that changed) and score only the best ``candidates`` exactly. What
                it misses is seldom the best; scores are exact. The codes suit inputs such as those of the latest
                training steps, or, in a layer that was never trained, those of the first call.
            candidates: rows per sample that are scored with ``exact=False``, at least ``k``; None: 512 and at least
                ``16 * k``. More find more.

        Returns:
            ``(values, indices)`` of shape ``[*, k]``, values in descending order.
        """
        for name, number in (("k", k), ("candidates", candidates)):
            if not (hasattr(number, "__index__") or (number is None and name == "candidates")):
                raise TypeError(f"{name} is {number!r}; wanted an int")
        if not 1 <= k <= self.out_features:
            raise ValueError(f"k is {k}; wanted 1 to {self.out_features}")
        if exact:
            return torch.topk(self(x), k)
        self._check_can_sample(x)
        flat = x.reshape(-1, self.in_features)
        if candidates is None:
            candidates = max(_CANDIDATES, 16 * k)
        elif candidates < k:
            raise ValueError(f"candidates is {candidates}; wanted at least k, which is {k}")
        with torch.autocast("cpu", enabled=False):
            rows = self._synchronised_sketch(flat.detach()).query(flat.detach(), min(candidates, self.out_features))
        with torch.no_grad():
            values, classes = ops.rows_topk(self._as_weight(flat), self.weight, self.bias, rows, k)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *self.parameters())):
            values = self.active_logits(flat, classes)
        shape = (*x.shape[:-1], k)
        return torch.return_types.topk((values.to(x.dtype).reshape(shape), classes.reshape(shape)))

    @torch.compiler.disable
    def sample(self, x: Tensor, target: Tensor | None = None) -> ActiveSet:
        """The active rows that a training step on ``x`` would use; every call is a new draw.

        Args:
            x: ``[*, in_features]``.
            target: as in :meth:`cross_entropy`, or None: no labels.
        """
        self._check_can_sample(x)
        flat = x.detach().reshape(-1, self.in_features)
        labels = torch.empty(len(flat), 0, dtype=torch.int64)
        if target is not None:
            parsed = losses.as_target(target, x.shape[:-1], self.out_features, -100, torch.float32)
            if parsed is None:
                raise ValueError(
                    "target is a dense distribution over all classes; wanted indices or a sparse CSR tensor"
                )
            labels = parsed.labels
        return self.draw_active_rows(flat, labels)

    # --- instruments ---

    def watch(self, on: bool = True) -> None:
        """Starts (anew) or ends to keep the inputs of the last step and to time the parts of every step, for
        :meth:`stats`. Costs nothing where it is off.
        """
        self.stopwatch = Stopwatch() if on else None
        if self._index is not None:
            self._index.stopwatch = self.stopwatch
        self._watched = None

    @torch.no_grad()
    def stats(
        self, inputs: Tensor | None = None, *, k: int = 10, queries: int = 64, batch_size: int = 256, seed: int = 0
    ) -> LayerStats:
        """What the layer finds and costs now. Changes nothing: neither tables nor random stream.

        Recall@k is the share of the ``k`` rows with the largest logits, of all rows, that are in the active set of a
        training step (without labels). Their exact rank costs a pass over all rows, so it is measured on a random
        sample of inputs: an unbiased estimate of the mean over all inputs, with its standard error
        (:func:`measure_recall`). The tables are taken as they are, stale rows and all; where there are
        none yet, they are made for this call, and may know the inputs (``balance``, learned hashing).

        Args:
            inputs: ``[*, in_features]``: some hundreds that the layer meets in training, or such held out. None: those
                of the last step, where the layer is being watched (:meth:`watch`); else there is no recall. (Nor is
                there where rows are drawn from the labels: samplers "in_batch", and "frequency" without counts.)
            k: 1 to ``out_features``.
            queries: how many inputs the sample has.
            batch_size: inputs that share an active set, in the order given.
            seed: of the sample and of random rows.

        Raises:
            ValueError: an argument does not fit.
            RuntimeError: the layer is not one that can be sampled.

        >>> layer = LSHLinear(16, 5_000)
        >>> stats = layer.stats(torch.randn(100, 16), k=5)
        >>> 0 <= stats.recall.mean <= 1, stats.queries, stats.stale_rows
        (True, 64, None)
        """
        for name, number in (("k", k), ("queries", queries), ("batch_size", batch_size)):
            if number < 1:
                raise ValueError(f"{name} is {number}; wanted at least 1")
        if k > self.out_features:
            raise ValueError(f"k is {k}; wanted 1 to {self.out_features}")
        if inputs is None and self._watched is not None:
            inputs = self._watched.to(self.weight.dtype)
        config, measured = self.config, {}
        self._check_can_sample(self.weight if inputs is None else inputs)
        bias = self._bias_for_index()
        index: Index | None = None
        if needs_index(config, self.out_features):
            if self._index is not None:
                index = copy.copy(self._index)
                index.stopwatch = None  # these look-ups are no part of a step
            else:
                index = config.index.make(self.out_features, self.in_features, config.seed)
                flat = None if inputs is None else inputs.reshape(-1, self.in_features)[-_QUERIES_KEPT:]
                index.build(self.weight, bias, flat)
            measured.update(measure_tables(index))
        draws_from_labels = config.sampler == "in_batch" or (
            config.sampler == "frequency" and self._label_counts is None
        )
        if inputs is not None and inputs.numel() > 0 and not draws_from_labels:
            measured.update(
                measure_recall(
                    index,
                    inputs.detach().reshape(-1, self.in_features),
                    self.weight,
                    bias,
                    config,
                    k=k,
                    queries=queries,
                    batch_size=batch_size,
                    seed=seed,
                    carried=self._carried,
                    counts=self._label_counts,
                )
            )
        return LayerStats(
            out_features=self.out_features,
            active=config.active_rows(self.out_features),
            k=k,
            stale_rows=self._stale_rows(),
            rehashes=self._rehashes,
            since_rehash=self._since_rehash,
            milliseconds={} if self.stopwatch is None else self.stopwatch.milliseconds(),
            calls={} if self.stopwatch is None else self.stopwatch.calls(),
            **measured,
        )

    def _stale_rows(self) -> int | None:
        """How many rows changed since they were last hashed; None: there are no tables."""
        if self._index is None:
            return None
        touched = self._changed.touched() if self._is_watched(self._changed) else None
        return self.out_features if touched is None else int(touched.sum())

    # --- what SampledLogits asks for ---

    def largest_logits(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` largest logits of ``x`` ``[B, in]`` and their classes, ``[B, k]``; exact, not differentiable."""
        with torch.no_grad():
            return ops.linear_topk(self._as_weight(x), self.weight, self.bias, k)

    def _as_weight(self, x: Tensor) -> Tensor:
        return x.to(self.weight.dtype).contiguous()

    @timed("choosing")
    @_keeps_tensors
    def draw_active_rows(self, x: Tensor, labels: Tensor) -> ActiveSet:
        """Draws the active set of ``x`` ``[B, in]`` and ``labels`` ``[B, P]`` (negative: none)."""
        if self.stopwatch is not None:
            self._watched = x[-_QUERIES_KEPT:].detach().clone()
        self._keep_queries(x.detach())
        index = None
        if needs_index(self.config, self.out_features) and labels_leave_room(labels, self.out_features, self.config):
            index = self._index_for_training() if self.training else self._synchronised_index()
        seed = (self.config.seed * 1_000_003 + self._draws) % 2**63
        active = choose_active_rows(
            index,
            x,
            labels,
            self.out_features,
            self.config,
            seed,
            self._carried,
            self._counted(labels),
            insert_labels=self.config.index.insert_labels and self.training,
        )
        self._draws += 1
        return active

    @property
    def sampler(self) -> LSHLinear:  # until the sampler is an object of its own
        return self

    @property
    def tables(self) -> Index | None:
        return self._index

    @property
    def watched_inputs(self) -> Tensor | None:
        return self._watched

    def keep_queries(self, queries: Tensor) -> None:
        self._queries = queries

    def draw(self, x: Tensor, labels: Tensor) -> ActiveSet:
        return self.draw_active_rows(x, labels)

    def _keep_queries(self, x: Tensor) -> None:
        """Keeps inputs ``[B, in]`` for what is made to suit them: the mean query of the sketch; with ``balance``, where
        a rebuild wants those of the last step; learned buckets, which want the latest of many steps.
        """
        history = self.config.index.query_history
        if history.every == 1 or self._queries is None:
            self._queries = x[-_QUERIES_KEPT:].clone()
        elif self.training and self._draws % history.every == 0 and len(x) > 0:
            some = x[:: -(-len(x) // history.per_step)]
            if history.total > history.per_step:
                some = torch.cat([self._queries, some])[-history.total :]
            self._queries = some.clone()

    def set_label_counts(self, counts: Tensor, samples: int | None = None) -> None:
        """Gives the samplers "frequency" and "in_batch" the label counts of the training data, in place of counting.

        Args:
            counts: ``[out_features]``: how many samples have each class as a label.
            samples: how many samples there are; default: the sum of ``counts``, as with one label each.
        """
        self._label_counts = LabelCounts(self.out_features, counts, samples)

    def _counted(self, labels: Tensor) -> LabelCounts | None:
        """The label counts, with those of a training batch, where the sampler uses them."""
        if self.config.sampler not in ("frequency", "in_batch"):
            return None
        if self._label_counts is None:
            self._label_counts = LabelCounts(self.out_features)
        if self.training:
            self._label_counts.add(labels)
        return self._label_counts

    def keeper_of_hardest_rows(self, active: ActiveSet, corrected: bool) -> Callable[[Tensor], None] | None:
        """What is to be called with the sums of the positive gradients of an active set's logits ``[A]``, to keep the
        hardest rows for the next draw; None where none are kept.
        """
        if active.per_sample or not needs_index(self.config, self.out_features):
            return None
        count = math.ceil(self.config.carry * self.config.active_rows(self.out_features))
        if count == 0:
            return None

        def keep(pushed_down: Tensor) -> None:
            self._carried = hardest_rows(pushed_down, active, count, corrected)

        return keep

    @timed("logits")
    def active_logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """``[B, A]`` logits of the active rows ``[A]`` or ``[B, A]`` for ``x`` ``[B, in]``; differentiable."""
        if rows.dim() == 1:
            return ops.gather_matmul(x, self.weight, self.bias, rows)
        logits = ops.sampled_dot(x.contiguous(), self.weight, rows)
        if self.bias is not None:
            present = rows.clamp(min=0)
            bias = ops.gather_rows(self.bias, present.flatten()).view_as(rows).to(logits.dtype)
            logits = logits + bias * (rows >= 0)
        return logits

    # --- tables ---

    @_keeps_tensors
    def rehash(self, full: bool = False, touches: int = 1) -> int:
        """Brings the hash tables in step with the weights.

        Args:
            full: rebuild them from all rows; else re-hash the rows that changed since the last time. (Where it is not
                known which rows changed, that is all of them.)
            touches: leave rows that fewer updates touched for a later time.

        Returns:
            The number of rows that were re-hashed.
        """
        if not 1 <= touches <= 255:
            raise ValueError(f"touches is {touches}; wanted 1 to 255")
        if not needs_index(self.config, self.out_features):
            return 0
        if self.weight.device.type != "cpu":
            raise RuntimeError(f"the weight is on {self.weight.device}; hash tables are made on the CPU")
        rehashed = self._synchronise(full, touches)
        self._since_rehash = 0
        self._rehashes += 1
        if not full and self._index is not None and _is_judged(self._rehashes):
            reason = self._index.outdated(self.weight.detach(), self._bias_for_index(), self._queries)
            if reason is not None:
                rehashed = self._build()
                _log.info(
                    "step %d: the index of LSHLinear(%d, %d) was learned anew: %s",
                    self._draws,
                    self.in_features,
                    self.out_features,
                    reason,
                )
        return rehashed

    def drift(self, sample: int = 256, touches: int = 1, seed: int = 0) -> float:
        """The share of hash codes that changed since the last re-hash, estimated on a sample of the rows that did; 0.0
        where there are no tables yet.

        Args:
            sample: rows to hash. (The cost is that of these.)
            touches: of the rows that at least so many updates touched, which :meth:`rehash` with this argument would
                include. Where it is not known which rows changed: of all rows.
            seed: of the sample.
        """
        for name, number in (("sample", sample), ("touches", touches)):
            if number < 1:
                raise ValueError(f"{name} is {number}; wanted at least 1")
        index = self._index
        if index is None or not needs_index(self.config, self.out_features):
            return 0.0
        rows = self._changed.sample(sample, touches, seed) if self._is_watched(self._changed) else None
        if rows is None:
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randint(self.out_features, (sample,), generator=generator)
        return index.drift(self.weight.detach(), self._bias_for_index(), rows.unique())

    def _bias_for_index(self) -> Tensor | None:
        return None if self.bias is None else self.bias.detach()

    def _parameters_of_rows(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def _is_watched(self, changed: ChangedRows | None) -> TypeGuard[ChangedRows]:
        """Whether the changes that are being collected are those of the present parameters."""
        return changed is not None and changed.are_of(self.weight, self.bias)

    @timed("re-hash")
    @_keeps_tensors
    def _synchronise(self, full: bool = False, touches: int = 1) -> int:
        index, changed = self._index, self._changed
        if index is None or full or not self._is_watched(changed):
            return self._build()
        rows = changed.take(touches)
        self._trained = False
        if rows is None:
            return self._build(learn=False)
        if len(rows) > 0:
            index.update(self.weight.detach(), self._bias_for_index(), rows)
        return len(rows)

    def _build(self, learn: bool = True) -> int:
        if self._index is None:
            self._index = self.config.index.make(self.out_features, self.in_features, self.config.seed)
        self._index.stopwatch = self.stopwatch
        take_in = self._index.build if learn else self._index.rehash
        take_in(self.weight.detach(), self._bias_for_index(), self._queries)
        self._changed = ChangedRows(*self._parameters_of_rows())
        self._trained = False
        return self.out_features

    def _synchronised_index(self) -> Index:
        """The tables, exactly in step with the weights."""
        changed = self._changed
        if self._index is None or not self._is_watched(changed) or changed.any():
            self._synchronise()
        assert self._index is not None
        return self._index

    @_keeps_tensors
    def _synchronised_sketch(self, x: Tensor) -> SignCodeIndex:
        """The sketch, exactly in step with the weights; for queries such as ``x`` where nothing is known of others."""
        changed = self._sketch_changed
        rows: Tensor | None = None
        if self._sketch is None:
            self._sketch = SignCodeIndex(self.out_features, self.in_features, seed=self.config.seed)
        elif self._is_watched(changed):
            if not changed.any():
                return self._sketch
            rows = changed.take()
        # Where most rows changed, inputs did too: it is made anew, around those of the latest steps.
        if rows is not None and len(rows) <= self.out_features // 2:
            self._sketch.update(self.weight.detach(), self._bias_for_index(), rows)
        else:
            queries = x if self._queries is None else self._queries
            self._sketch.build(self.weight.detach(), self._bias_for_index(), queries)
            self._sketch_changed = ChangedRows(*self._parameters_of_rows())
        return self._sketch

    def _index_for_training(self) -> Index:
        """The tables, as fresh as the re-hash policy wants them."""
        changed = self._changed
        if self._index is None or not self._is_watched(changed) or self._was_edited(changed):
            self._synchronise()
        elif not self.scheduled:
            name = f"{type(self).__name__}({self.in_features}, {self.out_features})"
            rehash_if_due(self, self.config.rehash, self._since_rehash, self._rehashes, name=name)
        self._since_rehash += 1
        self._trained = True
        assert self._index is not None
        return self._index

    def _was_edited(self, changed: ChangedRows) -> bool:
        """Whether somebody other than an optimizer changed the parameters.

        A row-sparse optimizer records its updates, so anything unrecorded is an edit. Dense optimizers record nothing;
        their step follows a draw for training.
        """
        return changed.unrecorded() and (wants_row_sparse(self.weight) or not self._trained)
