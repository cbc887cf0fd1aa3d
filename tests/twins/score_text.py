from __future__ import annotations

from typing import Any

from torch import Tensor

from .embedding_bag import embedding_bag
from .hash_text import hash_text


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
    settings: Any = (bits, word_ngrams, char_min, char_max, is_signed, tf, False, seed, split_characters, symbols)
    crow, col, values = hash_text(text, offsets, *settings)
    sums = embedding_bag(table[:, :-1].contiguous(), crow, col, values)
    squares = embedding_bag(table[:, -1:].contiguous(), crow, col, values.square())
    return sums / squares.sqrt().clamp(min=1e-12) + bias
