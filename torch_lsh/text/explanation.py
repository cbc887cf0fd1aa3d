"""What a text would be without each of its words."""

from __future__ import annotations

from .. import ops
from .hashed_text import pack_texts


def without_each_word(text: str, max_words: int, split_characters: bool = True) -> tuple[list[str], list[bytes]]:
    """Removes the words of a text, one at a time, wherever they stand.

    Args:
        text: A text; only its first words are looked at.
        max_words: How many.
        split_characters: Whether each letter of a script without blanks is a word.

    Returns:
        The distinct words in lower case, and the variants in UTF-8: the text itself, then the text without each word.

    >>> without_each_word("so it is so", 10)
    (['so', 'it', 'is'], [b'so it is so', b' it is ', b'so  is so', b'so it  so'])
    """
    packed, _ = pack_texts([text])
    spans = ops.word_spans(packed, split_characters)[:max_words].tolist()
    raw = bytes(packed.numpy())[: spans[-1][1] if spans else 0]
    places: dict[str, list[tuple[int, int]]] = {}
    for begin, end in spans:
        places.setdefault(raw[begin:end].decode("utf-8", "replace").lower(), []).append((begin, end))
    variants = [raw]
    for spots in places.values():
        kept, at = [], 0
        for begin, end in spots:
            kept.append(raw[at:begin])
            at = end
        variants.append(b"".join([*kept, raw[at:]]))
    return list(places), variants
