"""Settings of a fit, and what follows for them from the numbers of rows and labels."""

from __future__ import annotations

import math
from typing import NamedTuple

from .held_out import TO_RANK, TO_RANK_ALONE, TO_RANK_DENSE, TO_STOP, Purpose
from .neighbours import MOST_NEIGHBOURS
from .schedule import DECAY, Schedule

WIDE = 4096  # with more labels, the output layer is sampled
_MANY = 65  # with as many labels, a ranker is used unless settings say otherwise
_MANY_ALONE = 512  # with as many labels, neighbours vote where there is no ranker
_NEIGHBOURS = 64  # that vote
_RANKED_ROWS = 75_000  # that a network beside a ranker is trained on, in one pass at least
_SAMPLED_ROWS = 20_000  # where its output is sampled, which takes longer for each row
_LEAST_DENSE_EPOCHS = 3  # of a network of dense rows, of which other sources of a ranker know less


class Settings(NamedTuple):
    """Settings of a fit; those that are None follow from the data.

    Attributes:
        epochs: Most passes over the data.
        batch_size: Rows per step.
        lr: Learning rate of Adam at the beginning.
        patience: Epochs without improvement on held-out rows before training stops.
        budget: Seconds of the fit.
        neighbours: How many of the nearest training rows vote.
        seed: Seed of the order of the rows.
        crossed: Whether rows are so few that all of them tune the ranker, each part by one of the others.
        decay: Last part of the run, in which the learning rate falls, as a share.
        ranked_from: With as many labels, held-out rows train a ranker.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    patience: int = 2
    budget: float | None = None
    neighbours: int | None = None
    seed: int = 0
    crossed: bool = False
    decay: float = DECAY
    ranked_from: int = _MANY

    def check(self, validation_fraction: float) -> None:
        """Raises a ValueError that names the setting that does not fit."""
        for name, least in (("epochs", 0), ("batch_size", 1), ("patience", 1), ("neighbours", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} is {value!r}; wanted at least {least}")
        if self.neighbours is not None and self.neighbours > MOST_NEIGHBOURS:
            raise ValueError(f"neighbours is {self.neighbours}; wanted at most {MOST_NEIGHBOURS}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr!r}; wanted a positive number")
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction is {validation_fraction!r}; wanted a number from 0 to below 1")

    def for_data(
        self, rows: int, labels: int, held_out_decides: bool, ranked: bool = False, dense: bool = False
    ) -> Settings:
        """The settings with nothing left to follow from the data, but for the epochs that held-out rows decide."""
        epochs = self.epochs
        if epochs is None and ranked and dense:
            epochs = min(40, max(_LEAST_DENSE_EPOCHS, _RANKED_ROWS // rows))
        elif epochs is None and ranked:
            # The network is one source of several, and adds little after the first passes.
            epochs = min(40, max(1, (_SAMPLED_ROWS if labels > WIDE else _RANKED_ROWS) // rows))
        elif epochs is None and not held_out_decides:
            # Small sets get small batches and many passes, so that there are some hundred steps in all.
            epochs = min(40, max(3 if labels > WIDE else 4, 20_000 // rows))
        return self._replace(
            epochs=epochs,
            batch_size=self.batch_size or (256 if ranked or rows >= 200_000 else min(64, max(8, rows // 32))),
            lr=self.lr or (0.01 if epochs == 1 else 0.004),
            neighbours=self.neighbours_for(labels, ranked),
        )

    def neighbours_for(self, labels: int, ranked: bool) -> int:
        """How many neighbours vote, given so many labels, with a ranker or without."""
        if self.neighbours is not None:
            return self.neighbours
        return _NEIGHBOURS if labels >= (self.ranked_from if ranked else _MANY_ALONE) else 0

    def purpose(self, labels: int, weighted: bool, dense: bool = False) -> Purpose:
        """What rows are held out for, given so many labels; weights of rows or labels are for the network alone."""
        if self.neighbours_for(labels, ranked=True) == 0 or labels < self.ranked_from:
            return TO_STOP
        if self.epochs is None and dense and not weighted:
            return TO_RANK_DENSE
        trains = weighted if self.epochs is None else self.epochs > 0
        return TO_RANK if trains else TO_RANK_ALONE

    def schedule(self, spent: float = 0.0) -> Schedule:
        """The schedule of settings that :meth:`for_data` completed, after so many seconds of the budget."""
        assert self.lr is not None
        left = None if self.budget is None else max(self.budget - spent, 1e-3)
        return Schedule(self.lr, self.epochs, self.patience, left, self.decay)
