"""Support vector machines of text, which share the work of few classes with a network where that pays."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..data import XMCRows
from ..models.rows import num_rows
from .calibration import temperature_of
from .linear import LinearNetwork

_COST = 1.0
_PASSES = 5
_SHARES = (0.25, 0.5, 0.75, 1.0)
_SURE = 2.0  # standard errors
_WORTH = 0.05  # of the cross entropy, for another model


def margin_network(rows: XMCRows, seed: int) -> LinearNetwork:
    """Trains a linear support vector machine for each class against the others; of two classes, for the last one.

    Args:
        rows: Rows of unit length with one label each.
        seed: Seed of the order of the rows.

    References:
        Hsieh et al., "A Dual Coordinate Descent Method for Large-scale Linear SVM", ICML 2008.

    >>> from torch_lsh.data import XMCDataset
    >>> import scipy.sparse
    >>> features, labels = scipy.sparse.csr_matrix([[1.0, 0], [0, 1]]), scipy.sparse.csr_matrix([[1, 0], [0, 1]])
    >>> network = margin_network(XMCDataset.from_scipy(features, labels).rows, seed=0)
    >>> network.input.weight.sign().tolist()
    [[0.0, -1.0], [0.0, 1.0]]
    """
    count, classes = num_rows(rows), rows.num_labels
    first = 1 if classes == 2 else 0
    apart = torch.arange(first, classes)
    start, columns, values, bias = ops.fit_linear_rows(
        rows.feature_start,
        rows.features,
        rows.values,
        rows.num_features,
        count * torch.arange(len(apart) + 1),
        torch.arange(count, dtype=torch.int32).repeat(len(apart)),
        (rows.labels == apart[:, None]).flatten(),
        torch.tensor([_COST]),
        _PASSES,
        0.0,
        seed,
    )
    network = LinearNetwork(rows.num_features, classes)
    with torch.no_grad():
        network.input.weight[columns.long(), torch.repeat_interleave(start.diff()) + first] = values[0]
        network.bias[first:] = bias[0]
    return network


def share_of(margins: Tensor, logits: Tensor, labels: Tensor) -> float:
    """Chooses the share of margins in a mixture with logits, by the cross entropy of held-out rows.

    Args:
        margins: ``[rows, C]``, of support vector machines.
        logits: ``[rows, C]``, of a network.
        labels: ``[rows]`` int64.

    Returns:
        0, 1/4, 1/2, 3/4 or 1. 0 unless the mixture takes a twentieth off the cross entropy, and two standard errors.

    >>> labels = torch.arange(40) % 2
    >>> noise = torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(0))
    >>> right = 4.0 * torch.nn.functional.one_hot(labels, 2) + noise[0]
    >>> share_of(right, noise[1], labels) > 0, share_of(noise[1], right, labels)
    (True, 0.0)
    """
    losses = _losses(logits, labels)
    chosen, most = 0.0, _WORTH * float(losses.mean())
    for share in _SHARES:
        gains = losses - _losses(logits.lerp(margins, share), labels)
        gain, error = float(gains.mean()), float(gains.std()) / math.sqrt(len(gains))
        if gain > max(most, _SURE * error):
            chosen, most = share, gain
    return chosen


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits / temperature_of(logits, labels), labels, reduction="none")
