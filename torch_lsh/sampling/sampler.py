"""Sampler: what a wide set of rows needs to be trained by samples."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..config import LSHConfig
from ..index.base import Index
from ..index.config import IndexConfig
from ..index.lookup import LookupIndex
from ..row_sparse.changed_rows import version_of
from ..stopwatch import Stopwatch, timed
from .active_set import ActiveSet, Budget, choose_active_rows, labels_leave_room
from .inference_mode import outside_inference_mode
from .label_counts import LabelCounts
from .look_ups import LookUps
from .one_at_a_time import OneAtATime
from .recent_inputs import RecentInputs
from .recomputation import RecomputedDraws
from .scheduled_index import ScheduledIndex
from .state import TakenStates
from .stats import WATCHED, LayerStats, TopkStats, measure


class Sampler:
    """Chooses the active rows of a weight ``[N, in]``, step by step, and keeps what the choice depends on.

    That is the index and the rows that changed since it was made, the rows carried over from the last step, some recent
    inputs, label counts, the position in the random stream, the re-hash schedule, and instruments. The weight and bias
    stay with their owner (a layer, a shard of one, a tied embedding, a plain tensor), who passes them to every call.

    Hash tables are built at their first use and then follow the weight: rows that a row-sparse optimizer touched are
    hashed again when ``config.rehash`` says so, and before every look-up outside of training. A change of unknown
    extent leads to a full pass before the next look-up.

    *State.* Tables follow from the weights and are not saved. Taking :meth:`state_dict`, pickling and copying therefore
    drop them: the run that goes on and the run that resumes both build them from the saved weights, and draw the same
    rows from then on, bit for bit.

    Args:
        num_rows: N.
        in_features: width of an input.
        config: see :class:`torch_lsh.LSHConfig`.

    >>> weight = torch.randn(5_000, 16)
    >>> sampler = Sampler(5_000, 16, LSHConfig(active=100))
    >>> active = sampler.draw(weight, None, torch.randn(4, 16), labels=torch.tensor([[1], [2], [3], [4_999]]))
    >>> active.rows.shape
    torch.Size([100])
    """

    def __init__(self, num_rows: int, in_features: int, config: LSHConfig) -> None:
        self.num_rows, self.in_features = num_rows, in_features
        self.scheduled = False  # a RehashScheduler decides when to re-hash
        self.stopwatch: Stopwatch | None = None  # not None while the sampler is being watched
        self._watched: Tensor | None = None
        self._inputs = RecentInputs()
        self._draws = 0
        self._recomputed = RecomputedDraws()
        self._carried: Tensor | None = None
        self._label_counts: LabelCounts | None = None
        self._states_taken = TakenStates()
        self._training = OneAtATime("these rows are trained")
        self._settle(config)
        self._tables = ScheduledIndex(self._maker(config.index))
        self._look_ups = LookUps(self._look_up_maker())

    def _settle(self, config: LSHConfig) -> None:
        """Computes once what every step asks of the settings."""
        self.config = config
        self._budget = Budget.of(config, self.num_rows)
        self._shape = torch.Size((self.num_rows, self.in_features))
        self._history, self._inserts_labels = config.index.query_history, config.index.insert_labels
        self._counts_labels = config.sampler in ("frequency", "in_batch")

    def _look_up_maker(self) -> Callable[[], LookupIndex]:
        return functools.partial(LookupIndex, self.num_rows, self.in_features, seed=self.config.seed)

    def _maker(self, config: IndexConfig) -> Callable[[], Index]:
        return functools.partial(config.make, self.num_rows, self.in_features, self.config.seed)

    def reconfigure(self, config: LSHConfig) -> None:
        """Takes over other settings. Tables are built anew at their next use; the random stream goes on."""
        self._settle(config)
        if self._carried is not None:
            self._carried = self._carried[: self._budget.num_carried]
        self._inputs.trim(config.index.query_history)
        self._tables.remake(self._maker(config.index))
        self._look_ups.remake(self._look_up_maker())

    def forget(self) -> None:
        """Drops tables and the index of look-ups; the next use builds them from the weights.

        For edits that PyTorch does not record (in place, through ``weight.data`` or NumPy).
        """
        self._tables.forget()
        self._look_ups.forget()

    def forget_weights(self) -> None:
        """:meth:`forget`, for weights that other inputs go with: look-ups learn from those of the next calls."""
        self._tables.forget()
        self._look_ups.forget_inputs()

    def fit(self, weight: Tensor) -> None:
        """Follows a weight that was resized, a vocabulary for example."""
        if weight.shape != self._shape:
            self.num_rows, self.in_features = weight.shape
            self._inputs.tensor = self._watched = self._carried = self._label_counts = None
            self._look_ups.forget_inputs()
            self.reconfigure(self.config)

    @property
    def needs_index(self) -> bool:
        """Whether a training step looks rows up."""
        return self._budget.needs_index

    @property
    def tables(self) -> Index | None:
        """The index of training, which may be stale; None: not made yet."""
        return self._tables.index

    @property
    def look_up_index(self) -> LookupIndex | None:
        """The index of :meth:`candidates`, which may be stale; None: not made yet."""
        return self._look_ups.index

    @property
    def draws(self) -> int:
        """Active sets drawn so far: the position in the random stream."""
        return self._draws

    @property
    def rehashes(self) -> int:
        """Re-hashes so far."""
        return self._tables.rehashes

    @property
    def carried(self) -> Tensor | None:
        """The hardest rows of the last step ``[n]`` int64, which are candidates for the next; None: none yet."""
        return self._carried

    def carry(self, rows: Tensor) -> None:
        """Takes ``rows`` ``[n]`` int64, hardest first, for the hardest of the last step."""
        self._carried = rows[: self._budget.num_carried]

    @property
    def watched_inputs(self) -> Tensor | None:
        """Inputs ``[n, in]`` of the last step, while the sampler is being watched."""
        return self._watched

    # --- draws ---

    def draw(self, weight: Tensor, bias: Tensor | None, x: Tensor, labels: Tensor, training: bool = True) -> ActiveSet:
        """Draws the active set of a batch; every call moves the random stream on.

        In a forward pass that ``torch.utils.checkpoint`` computes again, the first draw is repeated instead.

        Args:
            weight: ``[N, in]``.
            bias: ``[N]`` or None.
            x: ``[B, in]``, the inputs.
            labels: ``[B, P]`` int64, negative where a sample has fewer labels. They are always active.
            training: use tables as fresh as ``config.rehash`` wants them, count labels, and insert labels where the
                index does so. Otherwise the tables are brought in step with the weights first.

        Raises:
            RuntimeError: another thread draws for training now.
        """
        draw = self._draw
        if self.stopwatch is not None or torch.is_inference_mode_enabled():
            draw = self._draw_in_contexts
        if not training:
            return draw(weight, bias, x, labels, training)
        with self._training.turn:
            return draw(weight, bias, x, labels, training)

    def _draw(self, weight: Tensor, bias: Tensor | None, x: Tensor, labels: Tensor, training: bool) -> ActiveSet:
        if weight.shape != self._shape:
            self.fit(weight)
        repeated = self._recomputed.find(x, labels) if self._recomputed.kept else None
        if repeated is not None:
            return repeated
        config, x = self.config, x.detach()
        if self.stopwatch is not None:
            self._watched = x[-WATCHED:].clone()
        self._inputs.keep(x, self._history, self._draws, training)
        if training:
            self._look_ups.keep(x, self._draws)
        index = None
        if self._budget.needs_index and labels_leave_room(labels, self._budget):
            if training:
                policy = None if self.scheduled else config.rehash
                index = self._tables.for_training(weight, bias, self._inputs.tensor, policy)
            else:
                index = self._tables.exact(weight, bias, self._inputs.tensor)
        active = choose_active_rows(
            index,
            x,
            labels,
            self._budget,
            (config.seed * 1_000_003 + self._draws) % 2**63,
            self._carried,
            self._counted(labels, training) if self._counts_labels else None,
            insert_labels=self._inserts_labels and training,
        )
        self._draws += 1
        self._recomputed.keep(x, labels, active, version_of(weight))
        return active

    _draw_in_contexts = timed("choosing")(outside_inference_mode(_draw))

    @outside_inference_mode
    def look_up(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> ActiveSet:
        """The active set of inputs ``[B, in]`` without labels and without chance; the random stream stays."""
        self.fit(weight)
        budget = Budget.of(replace(self.config, random_fraction=0.0), self.num_rows)
        index = self._tables.exact(weight, bias, self._inputs.tensor) if budget.needs_index else None
        no_labels = torch.empty(len(x), 0, dtype=torch.int64, device="cpu")
        return choose_active_rows(index, x.detach(), no_labels, budget, seed=0)

    def candidates(self, weight: Tensor, bias: Tensor | None, x: Tensor, count: int) -> Tensor:
        """Rows ``[B, count]`` int64 that probably score highest for inputs ``[B, in]``, padded with -1.

        Found in the index of :class:`LookUps`, which is made at its first use. Safe to call from several threads.
        """
        self.fit(weight)
        return self._look_ups.find(weight, bias, x, self._inputs.tensor, count)

    def candidates_of_recall(
        self, weight: Tensor, bias: Tensor | None, x: Tensor, k: int, recall: float
    ) -> Tensor | None:
        """As few rows ``[B, M]`` as hold a share ``recall`` of the ``k`` best of each input; None: all N.

        Else like :meth:`candidates`.

        Args:
            weight: ``[N, in]``.
            bias: ``[N]`` or None.
            x: ``[B, in]``.
            k: 1 to N.
            recall: over 0, at most 1.
        """
        self.fit(weight)
        return self._look_ups.find_for_recall(weight, bias, x, self._inputs.tensor, k, recall)

    def hardest_rows(self, active: ActiveSet, corrected: bool) -> ops.HardestRows | None:
        """Asks a backward pass for the hardest rows of this step, which the next draw takes; None: it takes none.

        For a softmax these are the rows with much probability where they are not the label. They change little from one
        batch to the next, and include the highest-scoring rows of single samples. They belong to the H of the next step
        whatever that step draws, so its estimates stay unbiased.

        Args:
            active: the active set of the step.
            corrected: the gradients of random rows carry their importance weights.
        """
        count = self._budget.num_carried
        if count == 0 or not self._budget.needs_index or active.per_sample:
            return None
        return ops.HardestRows(active.rows, count, active.log_weights() if corrected else None, self._keep_hardest)

    def _keep_hardest(self, rows: Tensor) -> None:
        self._carried = rows

    def keep_queries(self, queries: Tensor) -> None:
        """Takes inputs ``[Q, in]`` as those of recent steps, for the next build of an index."""
        self._inputs.tensor = queries

    # --- label counts ---

    def set_label_counts(self, counts: Tensor, samples: int | None = None) -> None:
        """Gives the samplers "frequency" and "in_batch" the label counts of the training data.

        Args:
            counts: ``[N]``, the number of samples that have each class as a label.
            samples: the number of samples; default: the sum of ``counts``, as with one label each.
        """
        self._label_counts = LabelCounts(self.num_rows, counts, samples)

    def _counted(self, labels: Tensor, training: bool) -> LabelCounts:
        """The label counts, those of this batch included."""
        if self._label_counts is None:
            self._label_counts = LabelCounts(self.num_rows)
        if training:
            self._label_counts.add(labels)
        return self._label_counts

    # --- tables ---

    @outside_inference_mode
    def rehash(self, weight: Tensor, bias: Tensor | None, full: bool = False, touches: int = 1) -> int:
        """Brings the hash tables in step with the weights.

        Args:
            weight: ``[N, in]``.
            bias: ``[N]`` or None.
            full: build them anew from all rows, and drop the index of look-ups (the next one builds it). Otherwise
                only rows that changed are hashed; all of them, where it is not known which ones changed.
            touches: leave rows that fewer updates touched for a later time, 1 to 255.

        Returns:
            The number of rows that were hashed.
        """
        self.fit(weight)
        if full:
            self._look_ups.forget()
        if not self.needs_index:
            return 0
        if weight.device.type != "cpu":
            raise RuntimeError(f"weight is on {weight.device}; wanted cpu, where hash tables are made")
        return self._tables.rehash(weight, bias, self._inputs.tensor, full, touches)

    def drift(self, weight: Tensor, bias: Tensor | None, sample: int = 256, touches: int = 1, seed: int = 0) -> float:
        """The share of hash codes that changed since the last re-hash; 0.0 without tables.

        Args:
            weight: ``[N, in]``.
            bias: ``[N]`` or None.
            sample: the number of changed rows to hash, which is what a call costs.
            touches: look at rows that at least so many updates touched, as a re-hash with this argument would.
            seed: of the sample.
        """
        for name, number in (("sample", sample), ("touches", touches)):
            if number < 1:
                raise ValueError(f"{name} is {number}; wanted at least 1")
        return self._tables.drift(weight, bias, sample, touches, seed) if self.needs_index else 0.0

    # --- instruments ---

    def watch(self, on: bool = True) -> None:
        """Starts anew, or ends, to keep the inputs of the last step and to time the parts of every step.

        Costs nothing while it is off.
        """
        self.stopwatch = Stopwatch() if on else None
        self._tables.watch(self.stopwatch)
        self._watched = None

    @torch.no_grad()
    def stats(
        self,
        weight: Tensor,
        bias: Tensor | None,
        inputs: Tensor | None = None,
        *,
        k: int = 10,
        queries: int = 64,
        batch_size: int = 256,
        seed: int = 0,
    ) -> LayerStats:
        """What the sampler finds and costs now; changes neither tables nor random stream.

        Recall@k is the share of the ``k`` rows with the largest logits that are in the active set of a training step
        (without labels). The exact rank of an input costs a pass over all rows, so recall is measured on a random
        sample of the inputs: an unbiased estimate with a standard error. The tables are taken as they are, stale rows
        included; where there are none yet, they are built for this call.

        Args:
            weight: ``[N, in]``.
            bias: ``[N]`` or None.
            inputs: ``[*, in]``, some hundreds like those of training, or held out. None: those of the last
                step while the sampler is being watched (:meth:`watch`); otherwise recall is not measured. (Nor is it
                where rows are drawn from the labels: samplers "in_batch", and "frequency" without counts.)
            k: 1 to N.
            queries: size of the sample.
            batch_size: inputs that share an active set, in the order given.
            seed: of the sample and of random rows.

        Raises:
            ValueError: an argument does not fit.
        """
        self.fit(weight)
        if inputs is None and self._watched is not None:
            inputs = self._watched.to(weight.dtype)
        flat = None if inputs is None else inputs.detach().reshape(-1, self.in_features)
        stale_rows = self._tables.stale_rows(weight, bias)
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        measured = measure(
            self.tables,
            flat,
            weight,
            bias,
            self.config,
            carried=self._carried,
            counts=self._label_counts,
            k=k,
            queries=queries,
            batch_size=batch_size,
            seed=seed,
        )
        return LayerStats(
            out_features=self.num_rows,
            active=self.config.active_rows(self.num_rows),
            k=k,
            stale_rows=stale_rows,
            rehashes=self._tables.rehashes,
            since_rehash=self._tables.since_rehash,
            topk=TopkStats.of(self.look_up_index),
            milliseconds={} if self.stopwatch is None else self.stopwatch.milliseconds(),
            calls={} if self.stopwatch is None else self.stopwatch.calls(),
            **measured,
        )

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beside the weights. Drops the tables; see the text of the class.

        Holds the position of random stream and schedule (``draws``, ``since_rehash``, ``rehashes``), the rows
        ``carried`` over, the ``queries`` that a build learns from, and ``label_counts``.
        """
        if self.tables is not None:
            self._states_taken.note(self._draws)
        self._tables.forget()
        counts = self._label_counts
        return {
            "num_rows": self.num_rows,
            "in_features": self.in_features,
            "draws": self._draws,
            "since_rehash": self._tables.since_rehash,
            "rehashes": self._tables.rehashes,
            "carried": self._carried,
            "queries": self._inputs.tensor,
            "label_counts": None if counts is None else counts.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned.

        Raises:
            ValueError: the state is that of other rows; nothing changes then.
        """
        shape, wanted = (state["num_rows"], state["in_features"]), (self.num_rows, self.in_features)
        if shape != wanted:
            raise ValueError(f"the sampler's state is that of {shape} rows and features; wanted {wanted}")
        counts = None
        if state["label_counts"] is not None:
            counts = LabelCounts(self.num_rows)
            counts.load_state_dict(state["label_counts"])
        self._draws = int(state["draws"])
        self._tables.since_rehash, self._tables.rehashes = int(state["since_rehash"]), int(state["rehashes"])
        self._carried, self._inputs.tensor, self._label_counts = state["carried"], state["queries"], counts
        self.forget_weights()

    def packed_sizes(self) -> dict[str, int]:
        """The sizes that :func:`torch_lsh.sampling.state.pack` takes: they follow from shape and settings alone."""
        return {
            "num_rows": self.num_rows,
            "in_features": self.in_features,
            "carried_room": self._budget.num_carried if self.needs_index else 0,
            "queries_room": self.config.index.query_history.total,
            "counts_room": self.num_rows if self._counts_labels else 0,
        }

    def __getstate__(self) -> dict[str, Any]:
        self._tables.forget()  # a copy builds its own tables, and so does this sampler: both go on alike
        return {
            **self.__dict__,
            "_tables": copy.copy(self._tables),
            "_look_ups": copy.copy(self._look_ups),
            "_inputs": copy.copy(self._inputs),
            "_states_taken": copy.copy(self._states_taken),
            "scheduled": False,  # a scheduler that is copied along says so again
        }
