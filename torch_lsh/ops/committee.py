"""Committees of small networks that score the candidates of rows."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator


@operator
def fit_committee(
    values: Tensor,
    none: Tensor,
    right: Tensor,
    order: Tensor,
    batch: int,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    rate: float,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Trains a committee, networks of 16 units side by side, to score the right candidates of a row above wrong ones.

    Values are normalised by their mean and standard deviation over all candidates, to at most 10 deviations. The score
    of a member is that of its units alone, ``output · relu(weight @ value + bias)``, and its loss the mean cross
    entropy of a row's right candidates, each beside the wrong ones alone. A row counts by the number of its right
    candidates up to five, as for precision@5; rows without right or without wrong ones do not count. AdamW takes one
    step a batch, at a rate that falls linearly to 0. The result does not depend on the number of threads; two take part
    for 64 units.

    Args:
        values: what is known of the candidates of each row, ``[R, K, E]`` float32.
        none: where there is no candidate, ``[R, K]`` bool; ``values`` do not matter there.
        right: which candidates are right, ``[R, K]`` bool.
        order: rows of each epoch, ``[epochs, n]`` int64.
        batch: rows of a step.
        weight: of the hidden units at the beginning, ``[units, E]`` float32; units are a multiple of 32.
        bias, output: the same of their bias and of the outputs, ``[units]``.
        rate: of the first step.
        decay: of the weights, as of :class:`torch.optim.AdamW`.

    Returns:
        ``weight``, ``bias`` and ``output`` after training, and mean and deviation of the values, ``[E]``: 1 where that
        is at most 1e-5.

    >>> import torch
    >>> values = torch.tensor([[[0.0], [1.0], [2.0]]])
    >>> none, right = torch.zeros(1, 3, dtype=torch.bool), torch.tensor([[False, False, True]])
    >>> layers = torch.ones(32, 1), torch.zeros(32), torch.zeros(32)
    >>> *layers, mean, deviation = fit_committee(
    ...     values, none, right, torch.zeros(50, 1, dtype=torch.int64), 1, *layers, 0.1, 0.0
    ... )
    >>> committee_scores(values, none, mean, deviation, *layers).argmax()
    tensor(2)
    """
    sizes = values.new_empty(values.shape[2]), values.new_empty(values.shape[2])
    return weight.new_empty(weight.shape), bias.new_empty(bias.shape), output.new_empty(output.shape), *sizes


@operator
def committee_scores(
    values: Tensor, none: Tensor, mean: Tensor, deviation: Tensor, weight: Tensor, bias: Tensor, output: Tensor
) -> Tensor:
    """Scores of candidates: the sums of those of the members of a committee.

    Args:
        values, none: as of :func:`fit_committee`.
        mean, deviation, weight, bias, output: what it returned; the scores are those of the mean of the members for
            their share of ``output``.

    Returns:
        ``[R, K]`` float32, -inf where there is no candidate.
    """
    return values.new_empty(values.shape[:2])
