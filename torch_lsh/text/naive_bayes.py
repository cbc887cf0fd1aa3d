"""Weights of features that follow from how differently the classes use them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..data import XMCRows
from .columns import Columns


def log_count_ratios(blocks: Iterable[XMCRows], columns: Columns, num_classes: int) -> Tensor:
    r"""Computes how far each feature tells the classes apart, as naive Bayes sees it.

    A class c has :math:`r_{fc} = \log (p_{fc} / \sum_g p_{gc}) - \log (q_{fc} / \sum_g q_{gc})`, where p is one more
    than the rows of c that have feature f, and q one more than the other rows that have it. The weight of a feature is
    the root mean square of its ratios over the classes; with two classes, it is the magnitude of the one ratio there
    is.

    Args:
        blocks: Hashed text with one label a row.
        columns: Which hashed columns are features; their weights do not matter.
        num_classes: C.

    Returns:
        ``[F]`` float32.

    References:
        Wang and Manning, "Baselines and bigrams: simple, good sentiment and topic classification", ACL 2012.

    >>> from torch_lsh.data import XMCDataset
    >>> import scipy.sparse
    >>> hashed = scipy.sparse.csr_matrix([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 1]])
    >>> rows = XMCDataset.from_scipy(hashed, scipy.sparse.csr_matrix([[1, 0], [1, 0], [0, 1], [0, 1]])).rows
    >>> columns = Columns(torch.tensor([0, 1, 3], dtype=torch.int32), torch.ones(3), 4)
    >>> log_count_ratios([rows], columns, 2)
    tensor([0.0000, 1.0986, 1.0986])
    """
    one_more = torch.ones(num_classes, len(columns), dtype=torch.int32)
    for rows in blocks:
        columns.count_(one_more, rows)
    counts = one_more.float()
    others = counts.sum(0) - counts - (num_classes - 2)  # one more than the other rows that have it
    squares = torch.zeros(counts.shape[1])
    for of_class, of_others in zip(counts, others):
        squares += (of_class.log() - of_class.sum().log() - of_others.log() + of_others.sum().log()).square_()
    return (squares / num_classes).sqrt_()
