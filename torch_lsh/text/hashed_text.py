"""HashedText: text -> sparse features, without a vocabulary."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops


class HashedText:
    """Words, word n-grams and character n-grams of texts, hashed into ``2**bits`` features (feature hashing).

    A word is a maximal run of Unicode letters, marks and numbers, lower-cased code point by code point. Anything else
    separates words, including bytes that are not UTF-8 and lone surrogates. In scripts without blanks between words
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each letter with its marks is a word. Character n-grams are taken
    from a run with a mark at its beginning and its end, as in fastText. Unicode is not normalised: "é" as one code
    point and as two are different words.

    The object holds settings only and learns nothing. Equal settings give a text the same row on every platform, with
    any number of threads.

    Args:
        bits: the number of features is ``2**bits``; 1 to 31.
        word_ngrams: runs of up to so many words are features; 0: no words.
        char_ngrams: least and largest length of character n-grams, marks included; None: none.
        signed: let a bit of the hash give each occurrence its sign, so that features which share a column cancel out
            on average (Weinberger et al. 2009). Opposite occurrences that cancel exactly leave no entry.
        tf: value of a column in which ``n`` occurrences stand: ``"log"``: 1 + ln n, ``"count"``: n, ``"binary"``: 1.
        norm: ``"l2"``: divide rows by their Euclidean norm; None: leave them.
        seed: of the hash, 64 bits.
        split_characters: makes words of the letters of scripts without blanks, and features of pairs of them even if
            ``word_ngrams`` is 1; False: a run of them is one word.
        symbols: makes words of punctuation marks and symbols, one of each.

    As a ``collate_fn`` it takes texts, or pairs of text and target. It is also a scikit-learn transformer
    (:meth:`transform` returns a scipy CSR matrix) and can be pickled.

    Weinberger et al., *Feature Hashing for Large Scale Multitask Learning*, ICML 2009.

    >>> hashed = HashedText(bits=16)
    >>> features = hashed(["A fine film", "fine", ""])
    >>> features.shape, features.layout, features.crow_indices().diff()
    (torch.Size([3, 65536]), torch.sparse_csr, tensor([5, 1, 0]))
    >>> loader = torch.utils.data.DataLoader([("a fine film", 1), ("dull", 0)], batch_size=2, collate_fn=hashed)
    >>> features, targets = next(iter(loader))
    >>> targets
    tensor([1, 0])
    """

    def __init__(
        self,
        bits: int = 20,
        word_ngrams: int = 2,
        char_ngrams: tuple[int, int] | None = None,
        signed: bool = False,
        tf: str = "log",
        norm: str | None = "l2",
        seed: int = 0,
        split_characters: bool = True,
        symbols: bool = False,
    ) -> None:
        self.bits = bits
        self.word_ngrams = word_ngrams
        self.char_ngrams = char_ngrams
        self.signed = signed
        self.tf = tf
        self.norm = norm
        self.seed = seed
        self.split_characters = split_characters
        self.symbols = symbols
        self._check()

    def _check(self) -> None:
        def whole(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        if not whole(self.bits) or not 1 <= self.bits <= 31:
            raise ValueError(f"bits is {self.bits!r}; wanted 1 to 31")
        if not whole(self.word_ngrams) or not 0 <= self.word_ngrams <= 16:
            raise ValueError(f"word_ngrams is {self.word_ngrams!r}; wanted 0 to 16")
        if self.char_ngrams is not None:
            lengths = self.char_ngrams if isinstance(self.char_ngrams, (tuple, list)) else ()
            if len(lengths) != 2 or not all(map(whole, lengths)) or not 1 <= lengths[0] <= lengths[1] <= 16:
                raise ValueError(
                    f"char_ngrams is {self.char_ngrams!r}; wanted (least, largest) within 1 to 16, or None"
                )
        if self.word_ngrams == 0 and self.char_ngrams is None:
            raise ValueError("word_ngrams is 0 and char_ngrams is None; wanted some features")
        for name in ("signed", "split_characters", "symbols"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted True or False")
        if self.tf not in ("log", "count", "binary"):
            raise ValueError(f"tf is {self.tf!r}; wanted 'log', 'count' or 'binary'")
        if self.norm not in ("l2", None):
            raise ValueError(f"norm is {self.norm!r}; wanted 'l2' or None")
        if not whole(self.seed) or not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed!r}; wanted a 64-bit integer")

    @property
    def num_features(self) -> int:
        return 1 << self.bits

    def csr(self, texts: Sequence[str | bytes]) -> tuple[Tensor, Tensor, Tensor]:
        """``crow``, ``col`` (both int64) and ``values`` (float32) of the texts' rows.

        Raises:
            TypeError: a text is neither str nor bytes; the message gives its row.
        """
        text, offsets = pack_texts(texts)
        least, largest = self.char_ngrams or (0, 0)
        return ops.hash_text(
            text,
            offsets,
            self.bits,
            self.word_ngrams,
            least,
            largest,
            self.signed,
            self.tf,
            self.norm is not None,
            self.seed,
            self.split_characters,
            self.symbols,
        )

    def __call__(self, batch: Sequence[Any]) -> Any:
        """The features ``[B, 2**bits]`` of texts as a sparse CSR tensor; for ``(text, target)`` pairs also the targets.

        Targets become a tensor where they are numbers or tensors of one shape, else they stay a list.
        """
        pairs = len(batch) > 0 and isinstance(batch[0], (tuple, list))
        texts = [item[0] for item in batch] if pairs else batch
        crow, col, values = self.csr(texts)
        shape = (len(crow) - 1, self.num_features)
        features = torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)
        return (features, _targets([item[1] for item in batch])) if pairs else features

    # --- scikit-learn's conventions ---

    def fit(self, X: Iterable[str | bytes] | None = None, y: Any = None) -> HashedText:
        """Checks the settings; there is nothing to learn."""
        self._check()
        return self

    def transform(self, X: Iterable[str | bytes]) -> Any:
        """The features of texts as a ``scipy.sparse.csr_matrix`` ``[B, 2**bits]`` float32."""
        try:
            import scipy.sparse
        except ImportError as error:
            raise ImportError("HashedText.transform needs scipy: pip install scipy") from error
        self._check()
        if isinstance(X, (str, bytes)):
            raise ValueError("X is one text; wanted several, such as a list of texts")
        texts = list(X)
        crow, col, values = self.csr(texts)
        arrays = (values.numpy(), col.numpy(), crow.numpy())
        return scipy.sparse.csr_matrix(arrays, shape=(len(texts), self.num_features))

    def fit_transform(self, X: Iterable[str | bytes], y: Any = None) -> Any:
        return self.fit(X, y).transform(X)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return dict(vars(self))

    def set_params(self, **params: Any) -> HashedText:
        unknown = params.keys() - vars(self).keys()
        if unknown:
            raise ValueError(f"HashedText has no {', '.join(sorted(unknown))}; it has {', '.join(vars(self))}")
        changed = HashedText(**{**vars(self), **params})  # checks before anything changes
        vars(self).update(vars(changed))
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(),
            input_tags=InputTags(string=True, two_d_array=False),
            requires_fit=False,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashedText) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # settings may change

    def __repr__(self) -> str:
        return f"HashedText({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def pack_texts(texts: Sequence[str | bytes]) -> tuple[Tensor, Tensor]:
    """Concatenates texts in UTF-8: ``[bytes]`` uint8, and their offsets ``[B + 1]`` int64.

    Lone surrogates, which UTF-8 cannot write, become bytes that are not UTF-8.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError("texts is one text; wanted a list of texts")
    try:
        encoded = [text if type(text) is bytes else text.encode("utf-8", "surrogatepass") for text in texts]  # type: ignore[union-attr]
    except AttributeError:
        row = next(i for i, text in enumerate(texts) if not isinstance(text, (str, bytes)))
        raise TypeError(f"text {row} is {texts[row]!r} of type {type(texts[row]).__name__}; wanted str") from None
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    joined = bytearray().join(encoded)
    text = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0, dtype=torch.uint8)
    return text, torch.from_numpy(offsets)


def share_of_letters(rows: Iterable[Any], most: int = 1000) -> float:
    """The share of words that are single letters of scripts without blanks.

    Args:
        rows: Rows with a ``text``.
        most: How many of them are looked at.
    """
    text, _ = pack_texts([row.text for row in itertools.islice(rows, most)])
    runs, words = (len(ops.word_spans(text, split)) for split in (False, True))
    return (words - runs) / max(1, words)


def _targets(targets: list[Any]) -> Any:
    if isinstance(targets[0], Tensor):
        return torch.stack(targets)
    return torch.tensor(targets) if isinstance(targets[0], (int, float)) else targets
