"""A word-level language model and its data: a text, a body (LSTM or transformer) and a wide output layer."""

from __future__ import annotations

import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

SPLITS = ("train", "valid", "test")


class Corpus:
    """A text in three files ``train|valid|test.txt.xz``; every line ends with ``<eos>``.

    Attributes:
        words: the vocabulary of all splits, the most frequent word (of the training split) first.
        train, valid, test: ``[tokens]`` int64 word numbers.
    """

    train: Tensor
    valid: Tensor
    test: Tensor

    def __init__(self, folder: str | Path) -> None:
        texts: dict[str, list[str]] = {}
        for split in SPLITS:
            with lzma.open(Path(folder) / f"{split}.txt.xz", "rt", encoding="utf-8") as lines:
                texts[split] = [word for line in lines for word in (*line.split(), "<eos>")]
        counts = Counter(texts["train"])
        self.words = [word for word, _ in counts.most_common()]
        self.words += sorted(set(texts["valid"]).union(texts["test"]).difference(counts))
        number = {word: i for i, word in enumerate(self.words)}
        for split in SPLITS:
            setattr(self, split, torch.tensor([number[word] for word in texts[split]]))


def sequences(tokens: Tensor, batch: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts a text into ``batch`` streams that are read side by side.

    Yields:
        ``(words, next words)``, each ``[batch, length]`` int64; the last ones may be shorter.

    >>> [x.tolist() for x, y in sequences(torch.arange(9), batch=2, length=3)]
    [[[0, 1, 2], [4, 5, 6]], [[3], [7]]]
    """
    steps = (len(tokens) - 1) // batch
    words = tokens[: steps * batch].view(batch, steps)
    following = tokens[1 : steps * batch + 1].view(batch, steps)
    for begin in range(0, steps, length):
        yield words[:, begin : begin + length], following[:, begin : begin + length]


class LanguageModel(nn.Module):
    """Embedding, body and output layer ``head``; untied, because a head and an embedding want other learning rates.

    Args:
        num_words: N.
        width: of embedding and hidden state.
        body: ``"lstm"``: two layers; ``"transformer"``: two blocks with 4 heads, causal.
        length: longest sequence.
        dropout: after the embedding, in the body and before the head.
    """

    def __init__(self, num_words: int, width: int, body: str, length: int, dropout: float = 0.2) -> None:
        super().__init__()
        if body not in ("lstm", "transformer"):
            raise ValueError(f"body is {body!r}; wanted 'lstm' or 'transformer'")
        self.embedding = nn.Embedding(num_words, width, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.body: nn.LSTM | nn.TransformerEncoder
        if body == "lstm":
            self.body = nn.LSTM(width, width, num_layers=2, dropout=dropout, batch_first=True)
        else:
            self.position = nn.Parameter(torch.randn(length, width) * 0.1)
            block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout, batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(block, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_words)

    def hidden(self, words: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, object]:
        """The head's input ``[batch, length, width]`` for ``words`` ``[batch, length]``, and the state after it."""
        x = self.embedding(words)
        if isinstance(self.body, nn.LSTM):
            x, state = self.body(self.dropout(x), state)
            return self.dropout(x), tuple(part.detach() for part in state)
        length = words.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.body(self.dropout(x + self.position[:length]), mask=mask, is_causal=True)
        return self.dropout(x), None

    def forward(self, words: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, object]:
        """The logits ``[batch, length, num_words]`` of the next words, and the state after ``words``."""
        x, state_after = self.hidden(words, state)
        return self.head(x), state_after
