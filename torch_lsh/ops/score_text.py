"""Logits of linear models of hashed texts."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator


@operator
def score_text(
    text: Tensor,
    offsets: Tensor,
    bits: int,
    word_ngrams: int,
    char_min: int,
    char_max: int,
    is_signed: bool,
    tf: str,
    seed: int,
    split_characters: bool,
    symbols: bool,
    table: Tensor,
    bias: Tensor,
) -> Tensor:
    """Computes the logits of a linear model of hashed texts whose rows of features have unit length.

    With the values v of a text's columns (:func:`hash_text`), the logit of class c is
    ``bias[c] + sum(v * table[columns, c]) / sqrt(sum(v**2 * table[columns, C]))``.

    Args:
        text, offsets, bits, word_ngrams, char_min, char_max, is_signed, tf, seed, split_characters, symbols: as in
            :func:`hash_text`.
        table: ``[2**bits, C + 1]`` float32: for each column what it counts for each class, then its squared weight.
        bias: ``[C]`` float32.

    Returns:
        ``[B, C]`` float32.

    >>> import torch
    >>> text = torch.frombuffer(bytearray(b"to be or not to be"), dtype=torch.uint8)
    >>> table = torch.ones(2**20, 3)
    >>> logits = score_text(
    ...     text, torch.tensor([0, 18]), 20, 1, 0, 0, False, "binary", 0, True, False, table, torch.tensor([0.0, 1.0])
    ... )
    >>> logits
    tensor([[2., 3.]])
    """
    return table.new_empty(offsets.shape[0] - 1, bias.shape[0])
