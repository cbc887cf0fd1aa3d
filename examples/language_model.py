"""A word-level language model whose output layer is trained through few of its words.

    python examples/language_model.py --data wikitext-2                    folder with train|valid|test.txt.xz
    python examples/language_model.py --data wikitext-2 --body transformer
    python examples/language_model.py --data wikitext-2 --dense            the full softmax, for comparison

The only lines that are not plain PyTorch are those that swap the head and choose the optimizers: Adagrad for the head,
because a rare word has a gradient in few steps, after which a lazy Adam takes too long ones. Perplexity is that of the
exact softmax over all words. At the end the model goes on with a text, by exact top-k over the vocabulary.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_lsh
from torch_lsh.benchmarking.language import Corpus, LanguageModel, sequences


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
    """Goes on with ``start`` ``[words]``, drawing each word from the 20 most probable ones."""
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
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--body", default="lstm", choices=["lstm", "transformer"])
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--active", type=int, default=4096, help="active words per step")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--tokens", type=int, help="train and evaluate on the first so many only")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--length", type=int, default=35)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--head-lr", type=float, default=0.05)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    corpus = Corpus(arguments.data)
    model = LanguageModel(len(corpus.words), arguments.width, arguments.body, arguments.length)
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
