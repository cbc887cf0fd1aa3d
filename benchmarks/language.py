"""A word-level language model: embedding, body (LSTM or transformer) and a wide output layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def sequences(tokens: Tensor, batch: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts a text into ``batch`` streams and reads them side by side.

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
    """Embedding, body and output layer ``head``. Embedding and head are untied: they need different learning rates.

    Args:
        num_words: size of the vocabulary.
        width: width of embedding and hidden state.
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
