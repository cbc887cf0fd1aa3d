from __future__ import annotations

import itertools
import math
import unicodedata

import numpy as np
import torch
from torch import Tensor

from .random_numbers import MASK, mix, random_bits

WITHOUT_BLANKS = (
    *("CJK UNIFIED", "CJK COMPATIBILITY", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO"),
    *("THAI", "LAO", "KHMER", "MYANMAR"),
)


def stands_alone(character: str) -> bool:
    """Whether a character is a letter of a script without blanks between words."""
    is_letter = unicodedata.category(character) in ("Lo", "Lm", "Nl")
    return is_letter and unicodedata.name(character, "").startswith(WITHOUT_BLANKS)


def is_symbol(character: str) -> bool:
    """Whether a character is punctuation or a symbol."""
    return unicodedata.category(character)[0] in "PS"


def words_of(text: bytes, split_characters: bool, symbols: bool = False) -> list[tuple[str, int, int]]:
    """Lower-case words with their bounds in bytes. Needs a Python with the Unicode version of the C++ tables."""
    words: list[tuple[str, int, int]] = []
    inside = alone = False
    position = 0
    # An invalid byte becomes a lone surrogate, which is no word character and of which one stands for one byte.
    for character in text.decode("utf-8", "surrogateescape"):
        size = len(character.encode("utf-8", "surrogateescape"))
        is_word = unicodedata.category(character)[0] in "LMN"
        if is_word:
            now_alone = stands_alone(character)
            cut = split_characters and (now_alone or (alone and unicodedata.category(character)[0] != "M"))
            if not inside or cut:
                alone = now_alone
            word, begin = words.pop()[:2] if inside and not cut else ("", position)
            words.append((word + character.lower()[0], begin, position + size))
        elif symbols and is_symbol(character):
            words.append((character, position, position + size))
        inside = is_word
        position += size
    return words


def word_spans(text: Tensor, split_characters: bool) -> Tensor:
    spans = [[begin, end] for _, begin, end in words_of(bytes(text.tolist()), split_characters)]
    return torch.tensor(spans, dtype=torch.int64).view(-1, 2)


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
    def chain(kind: int, items: list[int]) -> int:
        state = random_bits(seed, kind)
        for item in items:
            state = ((state ^ item) * 0x9E3779B97F4A7C15) & MASK
        return state

    weigh = {"count": float, "log": lambda count: 1 + math.log(count), "binary": lambda _: 1.0}[tf]
    crow, col, values = [0], [], []
    for begin, end in itertools.pairwise(offsets.tolist()):
        raw = bytes(text[begin:end].tolist())
        runs, words = (
            [word for word, _, _ in words_of(raw, *how)] for how in ((False, False), (split_characters, symbols))
        )
        hashes = [chain(1, list(map(ord, word))) for word in words]
        features = list(hashes) if word_ngrams > 0 else []
        for n in range(2, word_ngrams + 1):
            features += [chain(n, hashes[i : i + n]) for i in range(len(hashes) - n + 1)]
        if word_ngrams == 1:
            alone = [(split_characters and stands_alone(word[0])) or is_symbol(word[0]) for word in words]
            features += [chain(2, hashes[i : i + 2]) for i in range(len(words) - 1) if alone[i] and alone[i + 1]]
        for run in runs:
            marked = [0x110000, *map(ord, run), 0x110001]
            for n in range(char_min, char_max + 1) if char_max > 0 else ():
                features += [chain(0, marked[i : i + n]) for i in range(len(marked) - n + 1)]
        counts: dict[int, int] = {}
        for feature in map(mix, features):
            column = feature >> (64 - bits)
            counts[column] = counts.get(column, 0) + (-1 if is_signed and feature & 1 else 1)
        row = [(column, count) for column, count in sorted(counts.items()) if count != 0]
        weights = np.array([math.copysign(weigh(abs(count)), count) for _, count in row], np.float32)
        if normalized and row:
            squares = 0.0
            for weight in weights.astype(float).tolist():
                squares += weight * weight
            weights = (weights.astype(float) / math.sqrt(squares)).astype(np.float32)
        col += [column for column, _ in row]
        values += weights.tolist()
        crow.append(len(col))
    return torch.tensor(crow), torch.tensor(col, dtype=torch.int64), torch.tensor(values, dtype=torch.float32)
