"""Hashed n-grams of texts."""

from __future__ import annotations

import torch
from torch import Tensor

from .declaration import operator


@operator
def hash_text(
    text: Tensor,
    offsets: Tensor,
    bits: int,
    word_ngrams: int,
    char_min: int,
    char_max: int,
    is_signed: bool,
    tf: str,
    normalized: bool,
    seed: int,
    split_characters: bool,
    symbols: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hashes the n-grams of words and of characters of texts into the ``2**bits`` columns of a CSR matrix.

    A word is a maximal run of letters, marks and numbers, in lower case. Bytes that are not UTF-8 separate words.

    Args:
        text: ``[bytes]`` uint8, the texts in UTF-8, one after the other.
        offsets: ``[B + 1]`` int64: where each text begins, and where the last one ends.
        bits: 1 to 31.
        word_ngrams: the largest number of words in an n-gram; 0: no n-grams of words.
        char_min, char_max: the smallest and largest length of n-grams of characters; 0 and 0: none.
        is_signed: gives each n-gram a sign by one bit of its hash.
        tf: ``"count"``, ``"log"`` (1 + ln count) or ``"binary"``.
        normalized: divides each row by its Euclidean norm.
        seed: of the hash.
        split_characters: makes a word of each letter of a script without blanks (Chinese, Japanese, Thai, Lao, Khmer,
            Burmese), with its marks. Two of them in a row are a feature even if ``word_ngrams`` is 1. N-grams of
            characters do not change.
        symbols: makes a word of each punctuation mark and symbol.

    Returns:
        ``crow`` ``[B + 1]`` int64, ``col`` ``[nnz]`` int64, increasing within a row, and ``values`` ``[nnz]`` float32.

    >>> text = torch.frombuffer(bytearray(b"to be or not to be"), dtype=torch.uint8)
    >>> hash_text(text, torch.tensor([0, 18]), 20, 1, 0, 0, False, "count", False, 0, True, False)[2]
    tensor([1., 1., 2., 2.])

    Weinberger et al., *Feature Hashing for Large Scale Multitask Learning*, ICML 2009.
    """
    count = torch.library.get_ctx().new_dynamic_size()
    return offsets.new_empty(offsets.shape), offsets.new_empty(count), offsets.new_empty(count, dtype=torch.float32)


@operator
def word_spans(text: Tensor, split_characters: bool) -> Tensor:
    """Finds the words of :func:`hash_text`.

    Args:
        text: ``[bytes]`` uint8.
        split_characters: whether each letter of a script without blanks is a word.

    Returns:
        ``[words, 2]`` int64: the first byte of each word, and the byte after its last one.

    >>> word_spans(torch.frombuffer(bytearray(b"to be!"), dtype=torch.uint8), True)
    tensor([[0, 2],
            [3, 5]])
    """
    return text.new_empty((torch.library.get_ctx().new_dynamic_size(), 2), dtype=torch.int64)
