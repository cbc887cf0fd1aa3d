"""A word-level LSTM language model whose output layer trains a few active words per step.

    python examples/language_model.py --data wikitext-2                    folder with train|valid|test.txt.xz
    python examples/language_model.py --data wikitext-2 --dense            the full softmax, for comparison

Two things differ from plain PyTorch: the head, and the optimizers, which are torch_lsh's. Adagrad trains the head: rare
words get few gradients, and the steps of a lazy Adam would then be too long. Perplexity is exact, over all words. At
the end the model continues a text with the exact top-k of the vocabulary.
"""

from __future__ import annotations

import argparse
import lzma
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_lsh


class Corpus:
    """Word numbers of the splits, and the vocabulary; every line of the text ends with ``<eos>``."""

    def __init__(self, folder: Path) -> None:
        texts = {}
        for split in ("train", "valid", "test"):
            with lzma.open(folder / f"{split}.txt.xz", "rt", encoding="utf-8") as lines:
                texts[split] = [word for line in lines for word in (*line.split(), "<eos>")]
        self.words = [word for word, _ in Counter(word for text in texts.values() for word in text).most_common()]
        number = {word: i for i, word in enumerate(self.words)}
        self.train, self.test = (torch.tensor([number[word] for word in texts[split]]) for split in ("train", "test"))


def sequences(tokens: Tensor, batch: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts a text into ``batch`` streams; yields words and next words, both ``[batch, length]``."""
    steps = (len(tokens) - 1) // batch
    words = tokens[: steps * batch].view(batch, steps)
    following = tokens[1 : steps * batch + 1].view(batch, steps)
    for begin in range(0, steps, length):
        yield words[:, begin : begin + length], following[:, begin : begin + length]


class LanguageModel(nn.Module):
    """Embedding, two LSTM layers, output layer ``head``."""

    def __init__(self, num_words: int, width: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, width, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.body = nn.LSTM(width, width, num_layers=2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(width, num_words)

    def forward(self, words: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
        """Computes the logits ``[batch, length, words]`` of the next words, and the state after ``words``."""
        x, state = self.body(self.dropout(self.embedding(words)), state)
        return self.head(self.dropout(x)), tuple(part.detach() for part in state)


@torch.no_grad()
def perplexity(model: LanguageModel, tokens: Tensor, batch: int, length: int) -> float:
    model.eval()
    total, count, state = 0.0, 0, None
    for words, following in sequences(tokens, batch, length):
        logits, state = model(words, state)
        total += F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum").item()
        count += following.numel()
    return math.exp(total / count)


@torch.no_grad()
def write(model: LanguageModel, start: Tensor, count: int, length: int) -> Tensor:
    """Continues ``start`` ``[words]``; draws each word from the 20 most probable ones."""
    model.eval()
    text = start
    for _ in range(count):
        logits, _ = model(text[-length:].unsqueeze(0))
        best = logits[:, -1].topk(20)
        drawn = torch.multinomial(best.values.softmax(-1), 1)
        text = torch.cat([text, best.indices.gather(-1, drawn)[0]])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--dense", action="store_true", help="full softmax, for comparison")
    parser.add_argument("--active", type=int, default=4096, help="active words per step")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training data")
    parser.add_argument("--tokens", type=int, help="train and evaluate on the first tokens only")
    parser.add_argument("--width", type=int, default=128, help="of the embedding and the hidden state")
    parser.add_argument("--batch", type=int, default=20, help="sequences per step")
    parser.add_argument("--length", type=int, default=35, help="words per sequence")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--head-lr", type=float, default=0.05, help="learning rate of the output layer")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    corpus = Corpus(arguments.data)
    model = LanguageModel(len(corpus.words), arguments.width)
    if not arguments.dense:
        config = torch_lsh.LSHConfig(active=arguments.active, correction="stratified")
        torch_lsh.sparsify_(model, config, lambda module, name: name == "head")
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("head.")]
    optimizers = [
        torch_lsh.optim.Adam(body, lr=arguments.lr),
        torch_lsh.optim.Adagrad(model.head.parameters(), lr=arguments.head_lr),
    ]
    print(model)

    for epoch in range(1, arguments.epochs + 1):
        model.train()
        state, start = None, time.perf_counter()
        for words, following in sequences(corpus.train[: arguments.tokens], arguments.batch, arguments.length):
            logits, state = model(words, state)
            F.cross_entropy(logits.flatten(0, 1), following.flatten()).backward()
            torch_lsh.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        seconds = time.perf_counter() - start
        test = perplexity(model, corpus.test[: arguments.tokens], arguments.batch, arguments.length)
        print(f"epoch {epoch}: {seconds:.1f} s, test perplexity {test:.1f}", flush=True)

    text = write(model, corpus.test[:8], 30, arguments.length)
    print(" ".join(corpus.words[word] for word in text.tolist()))


if __name__ == "__main__":
    main()
