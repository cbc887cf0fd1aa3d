"""How often each row is a label: the weights of samplers that draw frequent rows more often."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_GROWTH = 1.1  # counts are sorted again when the samples are this many times as many


@lru_cache(maxsize=4)
def log_uniform(num_rows: int) -> Tensor:
    """``[num_rows + 1]`` float64: sums of the weights ``log((r + 2) / (r + 1))`` of Zipf's law for rows r.

    Rows are numbered by decreasing frequency, as in TensorFlow's ``log_uniform_candidate_sampler``.

    >>> log_uniform(2)
    tensor([0.0000, 0.6931, 1.0986], dtype=torch.float64)
    """
    return torch.arange(1, num_rows + 2, dtype=torch.float64, device="cpu").log_()


class LabelCounts:
    """The number of samples that have each row as a label, given or counted while training.

    Args:
        num_rows: N.
        counts: ``[N]``, the number of samples with each label; nothing further is counted then. None: count.
        samples: the number of samples; default: the sum of ``counts``, as with one label each.

    Raises:
        ValueError: an argument does not fit.

    >>> counts = LabelCounts(4)
    >>> counts.add(torch.tensor([[1, 3], [1, -1]]))
    >>> counts.share(torch.tensor([0, 1, 3]))
    tensor([0.5000, 1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, num_rows: int, counts: Tensor | None = None, samples: int | None = None) -> None:
        self.given = counts is not None
        if counts is None:
            counts = torch.zeros(num_rows, dtype=torch.int64, device="cpu")
        if counts.shape != (num_rows,) or counts.is_complex():
            raise ValueError(f"counts has shape {list(counts.shape)} and dtype {counts.dtype}; wanted [{num_rows}]")
        self.counts = counts.detach().to("cpu", torch.float64)
        if not bool((self.counts >= 0).all()) or bool(self.counts.isinf().any()):
            raise ValueError("counts holds negative or infinite numbers or NaN")
        if samples is not None and samples < 1:
            raise ValueError(f"samples is {samples}; wanted at least 1")
        self.samples = max(1.0, float(self.counts.sum())) if samples is None else samples
        if not self.given:
            self.samples = 0
        self._tables: tuple[Tensor, Tensor] | None = None

    def add(self, labels: Tensor) -> None:
        """Counts the labels ``[B, P]`` of a batch (negative: none), unless the counts were given."""
        if self.given:
            return
        present = labels[labels >= 0]
        self.counts.index_add_(0, present, torch.ones(len(present), dtype=torch.float64, device="cpu"))
        self.samples += len(labels)

    def share(self, rows: Tensor) -> Tensor:
        """The share of samples with each row as a label, float64; a row that never was one counts as once."""
        return (self.counts[rows].clamp(min=1) / max(1, self.samples)).clamp(max=1)

    def tables(self) -> tuple[Tensor, Tensor]:
        """``order`` and ``cumulative`` of :func:`torch_lsh.ops.draw_rows` for the weights ``counts + 1``.

        The 1 lets rows that never were labels be drawn. Sorted again when the number of samples has grown by a tenth.
        """
        if self._tables is None or (not self.given and self.samples > _GROWTH * self._sorted_at):
            weights, order = (self.counts + 1).sort(descending=True, stable=True)
            cumulative = torch.zeros(len(weights) + 1, dtype=torch.float64, device="cpu")
            torch.cumsum(weights, 0, out=cumulative[1:])
            self._tables, self._sorted_at = (order, cumulative), self.samples
        return self._tables

    _sorted_at: float = 0

    def state_dict(self) -> dict[str, Any]:
        """The counts, a copy."""
        return {"counts": self.counts.clone(), "samples": self.samples, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned.

        Raises:
            ValueError: the counts are those of other rows; nothing changes then.
        """
        if state["counts"].shape != self.counts.shape:
            raise ValueError(f"counts has shape {list(state['counts'].shape)}; wanted {list(self.counts.shape)}")
        self.counts, self.samples, self.given = state["counts"].clone(), state["samples"], state["given"]
        self._tables = None
