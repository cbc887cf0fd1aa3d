"""Sampler: what a wide set of rows needs to be trained by samples."""

from __future__ import annotations

import copy
import functools
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import LSHConfig
from ..index.base import Index
from ..index.config import SignCodeConfig
from ..stopwatch import Stopwatch, timed
from .active_set import ActiveSet, choose_active_rows, hardest_rows, labels_leave_room, needs_index
from .label_counts import LabelCounts
from .schedule import rehash_if_due
from .stats import LayerStats, measure_recall, measure_tables
from .synchronised_index import SynchronisedIndex

_WATCHED = 512  # inputs of the last step that are kept while the sampler is being watched
_OFTEN, _OFTEN_STEPS = 4, 32  # taking the state so many times in so many steps earns a warning

_log = logging.getLogger("torch_lsh")


def _outside_inference_mode(method: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a method that keeps tensors outside of inference mode, whose tensors nothing could change later."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return run


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
        self._queries: Tensor | None = None
        self._draws = 0
        self._since_rehash = 0  # training draws since the last re-hash
        self._rehashes = 0
        self._carried: Tensor | None = None
        self._label_counts: LabelCounts | None = None
        self._states_taken: list[int] = []  # at which draws, lately
        self._warned = False
        self.reconfigure(config)

    def reconfigure(self, config: LSHConfig) -> None:
        """Takes over other settings. Tables are built anew at their next use; the random stream goes on."""
        self.config = config
        if self._carried is not None:
            self._carried = self._carried[: self._carried_count()]
        if self._queries is not None:
            self._queries = self._queries[-config.index.query_history.total :]
        shape = (self.num_rows, self.in_features, config.seed)
        self._tables = SynchronisedIndex(functools.partial(config.index.make, *shape))
        # Sign codes are made around the mean of recent inputs, which moves as much as the rows do: once most rows
        # changed, the codes are made anew.
        self._sign_codes = SynchronisedIndex(functools.partial(SignCodeConfig().make, *shape), rebuild_share=0.5)
        self._tables.watch(self.stopwatch)

    def forget(self) -> None:
        """Drops tables and sign codes; the next use builds them from the weights.

        For edits that PyTorch does not record (through ``weight.data``).
        """
        self._tables.forget()
        self._sign_codes.forget()

    def fit(self, weight: Tensor) -> None:
        """Follows a weight that was resized, a vocabulary for example."""
        if weight.shape != (self.num_rows, self.in_features):
            self.num_rows, self.in_features = weight.shape
            self._queries = self._watched = self._carried = self._label_counts = None
            self.reconfigure(self.config)

    @property
    def needs_index(self) -> bool:
        """Whether a training step looks rows up."""
        return needs_index(self.config, self.num_rows)

    @property
    def tables(self) -> Index | None:
        """The index of training, which may be stale; None: not made yet."""
        return self._tables.index

    @property
    def draws(self) -> int:
        """Active sets drawn so far: the position in the random stream."""
        return self._draws

    @property
    def rehashes(self) -> int:
        """Re-hashes so far."""
        return self._rehashes

    @property
    def carried(self) -> Tensor | None:
        """The hardest rows of the last step ``[n]`` int64, which are candidates for the next; None: none yet."""
        return self._carried

    @property
    def watched_inputs(self) -> Tensor | None:
        """Inputs ``[n, in]`` of the last step, while the sampler is being watched."""
        return self._watched

    # --- draws ---

    @timed("choosing")
    @_outside_inference_mode
    def draw(self, weight: Tensor, bias: Tensor | None, x: Tensor, labels: Tensor, training: bool = True) -> ActiveSet:
        """Draws the active set of a batch; every call moves the random stream on.

        Args:
            weight: ``[N, in]``.
            bias: ``[N]`` or None.
            x: ``[B, in]``, the inputs.
            labels: ``[B, P]`` int64, negative where a sample has fewer labels. They are always active.
            training: use tables as fresh as ``config.rehash`` wants them, count labels, and insert labels where the
                index does so. Otherwise the tables are brought in step with the weights first.
        """
        self.fit(weight)
        config = self.config
        if self.stopwatch is not None:
            self._watched = x[-_WATCHED:].detach().clone()
        self._keep_queries(x.detach(), training)
        index = None
        if self.needs_index and labels_leave_room(labels, self.num_rows, config):
            index = self._index_for_training(weight, bias) if training else self._exact_tables(weight, bias)
        active = choose_active_rows(
            index,
            x,
            labels,
            self.num_rows,
            config,
            (config.seed * 1_000_003 + self._draws) % 2**63,
            self._carried,
            self._counted(labels, training),
            insert_labels=config.index.insert_labels and training,
        )
        self._draws += 1
        return active

    @_outside_inference_mode
    def look_up(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> ActiveSet:
        """The active set of inputs ``[B, in]`` without labels and without chance; the random stream stays."""
        self.fit(weight)
        config = replace(self.config, random_fraction=0.0)
        index = self._exact_tables(weight, bias) if needs_index(config, self.num_rows) else None
        no_labels = torch.empty(len(x), 0, dtype=torch.int64)
        return choose_active_rows(index, x.detach(), no_labels, self.num_rows, config, seed=0)

    @_outside_inference_mode
    def candidates(self, weight: Tensor, bias: Tensor | None, x: Tensor, count: int) -> Tensor:
        """Rows ``[B, count]`` int64 that probably score highest for inputs ``[B, in]``, found by their sign codes.

        The codes suit inputs such as those of the latest training steps; before the first one, those of the first call.
        """
        self.fit(weight)
        if not self._sign_codes.is_exact(weight, bias):
            self._sign_codes.synchronise(weight, bias, x if self._queries is None else self._queries)
        assert self._sign_codes.index is not None
        return self._sign_codes.index.query(x, min(count, self.num_rows))

    def keeper_of_hardest_rows(self, active: ActiveSet, corrected: bool) -> Callable[[Tensor], None] | None:
        """Returns a function that keeps the hardest rows of this step for the next draw; None: none are kept.

        The function takes the sum of the positive gradients of each active row's logits, ``[A]``.

        Args:
            active: the active set of the step.
            corrected: the gradients of random rows carry their importance weights.
        """
        count = self._carried_count()
        if active.per_sample or count == 0 or not self.needs_index:
            return None

        def keep(pushed_down: Tensor) -> None:
            self._carried = hardest_rows(pushed_down, active, count, corrected)

        return keep

    def _carried_count(self) -> int:
        return math.ceil(self.config.carry * self.config.active_rows(self.num_rows))

    def _keep_queries(self, x: Tensor, training: bool) -> None:
        """Keeps inputs ``[B, in]`` that a build of an index may look at, as its kind wants them."""
        history = self.config.index.query_history
        if self._queries is None:
            self._queries = x[-history.total :].clone()
        elif history.every == 1:
            self._queries = x[-history.per_step :].clone()
        elif training and self._draws % history.every == 0 and len(x) > 0:
            some = x[:: -(-len(x) // history.per_step)]
            if history.total > history.per_step:
                some = torch.cat([self._queries, some])[-history.total :]
            self._queries = some.clone()

    def keep_queries(self, queries: Tensor) -> None:
        """Takes inputs ``[Q, in]`` as those of recent steps, for the next build of an index."""
        self._queries = queries

    # --- label counts ---

    def set_label_counts(self, counts: Tensor, samples: int | None = None) -> None:
        """Gives the samplers "frequency" and "in_batch" the label counts of the training data.

        Args:
            counts: ``[N]``, the number of samples that have each class as a label.
            samples: the number of samples; default: the sum of ``counts``, as with one label each.
        """
        self._label_counts = LabelCounts(self.num_rows, counts, samples)

    def _counted(self, labels: Tensor, training: bool) -> LabelCounts | None:
        """The label counts, those of this batch included, where the configuration's sampler uses them."""
        if not self._counts_labels():
            return None
        if self._label_counts is None:
            self._label_counts = LabelCounts(self.num_rows)
        if training:
            self._label_counts.add(labels)
        return self._label_counts

    def _counts_labels(self) -> bool:
        return self.config.sampler in ("frequency", "in_batch")

    # --- tables ---

    @timed("re-hash")
    @_outside_inference_mode
    def rehash(self, weight: Tensor, bias: Tensor | None, full: bool = False, touches: int = 1) -> int:
        """Brings the hash tables in step with the weights.

        Args:
            weight: ``[N, in]``.
            bias: ``[N]`` or None.
            full: build them anew from all rows. Otherwise only rows that changed are hashed; all of them, where it is
                not known which ones changed.
            touches: leave rows that fewer updates touched for a later time, 1 to 255.

        Returns:
            The number of rows that were hashed.
        """
        if not 1 <= touches <= 255:
            raise ValueError(f"touches is {touches}; wanted 1 to 255")
        self.fit(weight)
        if not self.needs_index:
            return 0
        if weight.device.type != "cpu":
            raise RuntimeError(f"weight is on {weight.device}; wanted cpu, where hash tables are made")
        hashed = self._tables.synchronise(weight, bias, self._queries, full=full, touches=touches)
        self._since_rehash = 0
        self._rehashes += 1
        if not full and _is_judged(self._rehashes):
            hashed = self._rebuild_if_outdated(weight, bias) or hashed
        return hashed

    def _rebuild_if_outdated(self, weight: Tensor, bias: Tensor | None) -> int:
        """Builds the index anew where it says that this would find more; returns the number of rows, else 0."""
        index = self._tables.index
        assert index is not None
        detached = None if bias is None else bias.detach()
        reason = index.outdated(weight.detach(), detached, self._queries)
        if reason is None:
            return 0
        hashed = self._tables.build(weight, bias, self._queries)
        _log.info("step %d: learned the buckets of %s anew: %s", self._draws, self.name, reason)
        return hashed

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

    @property
    def name(self) -> str:
        """Names the rows in log lines."""
        return f"{self.num_rows} rows of {self.in_features} numbers"

    def _exact_tables(self, weight: Tensor, bias: Tensor | None) -> Index:
        if not self._tables.is_exact(weight, bias):
            self._synchronise(weight, bias)
        assert self._tables.index is not None
        return self._tables.index

    def _index_for_training(self, weight: Tensor, bias: Tensor | None) -> Index:
        """The tables, as fresh as the re-hash policy wants them."""
        if not self._tables.is_usable_for_training(weight, bias):
            self._synchronise(weight, bias)
        elif not self.scheduled:
            rehash_if_due(
                functools.partial(self.rehash, weight, bias),
                functools.partial(self.drift, weight, bias),
                self.config.rehash,
                self._since_rehash,
                self._rehashes,
                name=self.name,
            )
        self._since_rehash += 1
        self._tables.note_training()
        assert self._tables.index is not None
        return self._tables.index

    @timed("re-hash")
    def _synchronise(self, weight: Tensor, bias: Tensor | None) -> None:
        self._tables.synchronise(weight, bias, self._queries)

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
        for name, number in (("k", k), ("queries", queries), ("batch_size", batch_size)):
            if number < 1:
                raise ValueError(f"{name} is {number}; wanted at least 1")
        self.fit(weight)
        if k > self.num_rows:
            raise ValueError(f"k is {k}; wanted 1 to {self.num_rows}")
        if inputs is None and self._watched is not None:
            inputs = self._watched.to(weight.dtype)
        flat = None if inputs is None else inputs.detach().reshape(-1, self.in_features)
        stale_rows = self._tables.stale_rows(weight, bias)
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        index = self._index_of_stats(weight, bias, flat) if self.needs_index else None
        measured = {} if index is None else measure_tables(index)
        if flat is not None and flat.numel() > 0 and not self._draws_from_labels():
            measured.update(
                measure_recall(
                    index,
                    flat,
                    weight,
                    bias,
                    self.config,
                    k=k,
                    queries=queries,
                    batch_size=batch_size,
                    seed=seed,
                    carried=self._carried,
                    counts=self._label_counts,
                )
            )
        return LayerStats(
            out_features=self.num_rows,
            active=self.config.active_rows(self.num_rows),
            k=k,
            stale_rows=stale_rows,
            rehashes=self._rehashes,
            since_rehash=self._since_rehash,
            milliseconds={} if self.stopwatch is None else self.stopwatch.milliseconds(),
            calls={} if self.stopwatch is None else self.stopwatch.calls(),
            **measured,
        )

    def _index_of_stats(self, weight: Tensor, bias: Tensor | None, inputs: Tensor | None) -> Index:
        """The tables as they are, or tables of this call's own where there are none yet."""
        if self._tables.index is not None:
            index = copy.copy(self._tables.index)
            index.stopwatch = None  # these look-ups are no part of a step
            return index
        index = self.config.index.make(self.num_rows, self.in_features, self.config.seed)
        index.build(weight, bias, None if inputs is None else inputs[-_WATCHED:])
        return index

    def _draws_from_labels(self) -> bool:
        """Whether rows are drawn from labels, so that there is no recall without them."""
        sampler = self.config.sampler
        return sampler == "in_batch" or (sampler == "frequency" and self._label_counts is None)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beside the weights. Drops the tables; see the text of the class.

        Holds the position of random stream and schedule (``draws``, ``since_rehash``, ``rehashes``), the rows
        ``carried`` over, the ``queries`` that a build learns from, and ``label_counts``.
        """
        self._note_state_taken()
        self.forget()
        counts = self._label_counts
        return {
            "num_rows": self.num_rows,
            "in_features": self.in_features,
            "draws": self._draws,
            "since_rehash": self._since_rehash,
            "rehashes": self._rehashes,
            "carried": self._carried,
            "queries": self._queries,
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
        self._draws, self._since_rehash = int(state["draws"]), int(state["since_rehash"])
        self._rehashes = int(state["rehashes"])
        self._carried, self._queries, self._label_counts = state["carried"], state["queries"], counts
        self.forget()

    def packed_sizes(self) -> dict[str, int]:
        """The sizes that :func:`torch_lsh.sampling.state.pack` takes: they follow from shape and settings alone."""
        return {
            "num_rows": self.num_rows,
            "in_features": self.in_features,
            "carried_room": self._carried_count() if self.needs_index else 0,
            "queries_room": self.config.index.query_history.total,
            "counts_room": self.num_rows if self._counts_labels() else 0,
        }

    def _note_state_taken(self) -> None:
        """Warns once where the state is taken so often that building the tables costs more than training."""
        if self.tables is None:
            return
        recent = [draws for draws in self._states_taken if self._draws - draws <= _OFTEN_STEPS]
        self._states_taken = [*recent, self._draws]
        if len(self._states_taken) >= _OFTEN and not self._warned:
            self._warned = True
            warnings.warn(
                f"torch_lsh: state_dict() was called {_OFTEN} times within {_OFTEN_STEPS} training steps. Each call "
                "leads to a rebuild of the hash tables, so that a resumed run equals this one. To read weights "
                "often, call model.parameters()",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        self.forget()  # a copy builds its own tables, and so does this sampler: both go on alike
        state = self.__dict__.copy()
        for name in ("_tables", "_sign_codes"):
            del state[name]
        state["scheduled"] = False  # a scheduler that is copied along says so again
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reconfigure(self.config)


def _is_judged(rehashes: int) -> bool:
    """Whether a re-hash is followed by the question whether the index is outdated: the 2nd, 4th, 8th and every 16th.

    For learned buckets the answer costs an exact product of some queries with all rows.
    """
    return rehashes % 16 == 0 or rehashes in (2, 4, 8)
