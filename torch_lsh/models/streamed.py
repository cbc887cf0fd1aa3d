"""Streamed: rows to train on that are read in blocks at every pass, some of them held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..data import XMCRows, XMCStream
from ..data.xmc import join_rows
from .held_out import MOST_HELD_OUT, Purpose, check_some_left, share_to_hold_out
from .rows import Rows, check_values, checksum, label_counts, num_rows


class Streamed:
    """A :class:`torch_lsh.models.rows.Source` of a stream.

    One pass counts rows and labels, and one gathers the rows that are held out; then there is one for each epoch.
    Rows are shuffled within a block.

    Args:
        stream: The rows.
        num_labels: Number of labels of the model.
        weights: Weight of each row of the stream ``[rows]``; None means 1.
        fraction: Share of the rows to hold out, see :func:`torch_lsh.models.held_out.split`.
        purpose: What they are held out for.
        memory: Bytes of rows that :meth:`sample` keeps.
        seed: Seed of the choice of rows.

    Attributes:
        held_out: The rows held out; None means none.
        all_label_counts: How many rows have each label, held-out ones included.
        all_rows: Number of rows, held-out ones included.

    Raises:
        ValueError: There are not as many weights as rows; or, in a pass, not as many rows as in the first one.
    """

    def __init__(
        self,
        stream: XMCStream,
        num_labels: int,
        weights: Tensor | None,
        fraction: float,
        purpose: Purpose,
        memory: int,
        seed: int,
    ) -> None:
        self._stream, self._weights, self._memory, self._seed = stream, weights, memory, seed
        self.is_weighted = weights is not None
        self.all_label_counts = torch.zeros(num_labels, dtype=torch.int64)
        self.all_rows = labelled = self._entries = self._checksum = 0
        for rows in stream:
            check_values(rows.values)
            self.all_label_counts += label_counts(rows, num_labels)
            self.all_rows += num_rows(rows)
            labelled += int((rows.label_start.diff() > 0).sum())
            self._entries += len(rows.features) + len(rows.labels)
            self._checksum = checksum(*rows, before=self._checksum)
        if weights is not None and len(weights) != self.all_rows:
            raise ValueError(f"sample_weight has shape {tuple(weights.shape)}; wanted {self.all_rows} numbers")
        self._share = share_to_hold_out(labelled, fraction, purpose)
        kept_out = [rows.take(out) for rows, _, out, _ in self._split() if len(out) > 0] if self._share > 0 else []
        self.held_out: Rows | None = join_rows(kept_out) if kept_out else None
        self.size, self.label_counts = self.all_rows, self.all_label_counts
        if self.held_out is not None:
            self.size = self.all_rows - num_rows(self.held_out)
            self.label_counts = self.all_label_counts - label_counts(self.held_out, num_labels)
            check_some_left(int(self.label_counts.sum()), fraction)

    def _split(self) -> Iterator[tuple[XMCRows, Tensor, Tensor, Tensor | None]]:
        """Yields blocks, the numbers of their rows to train on and of those held out, and weights of the former."""
        generator = torch.Generator().manual_seed(self._seed)
        left, begin = MOST_HELD_OUT, 0
        for rows in self._stream:
            count = num_rows(rows)
            out = (rows.label_start.diff() > 0) & (
                torch.rand(count, generator=generator, dtype=torch.float64) < self._share
            )
            out &= out.cumsum(0) <= left
            left -= int(out.sum())
            kept = (~out).nonzero()[:, 0]
            yield rows, kept, out.nonzero()[:, 0], None if self._weights is None else self._weights[begin + kept]
            begin += count
        if begin != self.all_rows:
            raise ValueError(
                f"a pass over train_dataset gave {begin} rows; wanted {self.all_rows}, as the first one gave"
            )

    def blocks(self) -> Iterator[tuple[Rows, Tensor | None]]:
        for rows, kept, _, weights in self._split():
            yield rows.take(kept), weights

    def sample(self) -> Rows | None:
        """The rows to train on, or a random choice of them that takes about ``memory`` bytes."""
        share = min(1.0, self._memory / max(1, 8 * self._entries))
        generator = torch.Generator().manual_seed(self._seed + 1)
        chosen = []
        for rows, _ in self.blocks():
            some = torch.rand(num_rows(rows), generator=generator, dtype=torch.float64) < share
            chosen.append(rows.take(some.nonzero()[:, 0]))
        parts = [rows for rows in chosen if isinstance(rows, XMCRows) and num_rows(rows) > 0]
        return join_rows(parts) if parts else None

    def identity(self) -> dict[str, Any]:
        sizes = {"rows": self.size, "features": self._entries, "labels": int(self.label_counts.sum())}
        return {**sizes, "checksum of rows": checksum(self._weights, before=self._checksum)}
