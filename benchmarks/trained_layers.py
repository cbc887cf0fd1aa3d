"""Output layers of trained models, and queries, for benchmarks of retrieval.

A layer is trained once with torch_lsh and kept in a folder outside the repository. Queries are hidden activations of
test rows.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from corpora import DATA, read_words, read_xmc
from torch import Tensor, nn

from torch_lsh import LSHLinear, optim
from torch_lsh.data import collate_xmc, synthetic_xmc
from torch_lsh.models import XMCClassifier

QUERIES = 2_000


class TrainedLayer(NamedTuple):
    weight: Tensor  # [N, d]
    bias: Tensor  # [N]
    queries: Tensor  # [Q, d]


def trained_layer(name: str, folder: Path) -> TrainedLayer:
    """Reads a layer from the folder; the first time, trains it.

    Args:
        name: ``"yso-en"``, ``"citeulike-t"``, ``"wikitext-2"`` or ``"synthetic"`` (670,091 labels).
        folder: where trained layers are kept.
    """
    path = folder / f"{name}.pt"
    if not path.exists():
        print(f"training {name} ...", flush=True)
        torch.manual_seed(0)
        layer = _language_model() if name == "wikitext-2" else _classifier(name)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(tuple(tensor.clone() for tensor in layer), path)
    return TrainedLayer(*torch.load(path))


def _classifier(name: str) -> TrainedLayer:
    if name == "synthetic":
        train, test = synthetic_xmc(50_000, QUERIES)
        epochs = 6
    else:
        train, test = read_xmc(name)
        epochs = 10 if name == "citeulike-t" else 2
    model = XMCClassifier(train.num_features, train.num_labels)
    model.fit(train, epochs=epochs, progress=False)
    model.eval()
    some = torch.randperm(len(test))[:QUERIES].tolist()
    features, _ = collate_xmc([test[i] for i in some])
    print({name: model.evaluate(test)})
    with torch.no_grad():
        return TrainedLayer(model.output.weight.data, model.output.bias.data, model.hidden(features))


def _language_model(width: int = 256, length: int = 35, batch: int = 20, epochs: int = 2) -> TrainedLayer:
    """An LSTM on wikitext-2."""
    words = {split: read_words(DATA / "wikitext-2", split) for split in ("train", "test")}
    number = {word: i for i, (word, _) in enumerate(Counter(words["train"]).most_common())}
    train, test = (torch.tensor([number[word] for word in words[split]]) for split in ("train", "test"))
    embedding, lstm = nn.Embedding(len(number), width), nn.LSTM(width, width)
    head = LSHLinear(width, len(number))
    optimizer = optim.Adam([*embedding.parameters(), *lstm.parameters(), *head.parameters()], lr=2e-3)
    columns = train[: len(train) // batch * batch].view(batch, -1).T.contiguous()
    for _ in range(epochs):
        state = None
        for begin in range(0, len(columns) - length, length):
            x, y = columns[begin : begin + length], columns[begin + 1 : begin + length + 1]
            hidden, state = lstm(F.dropout(embedding(x), 0.2), state)
            state = tuple(part.detach() for part in state)
            loss = F.cross_entropy(head(F.dropout(hidden, 0.2)).view(-1, len(number)), y.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(lstm.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    columns = test[: QUERIES // batch * batch].view(batch, -1).T
    with torch.no_grad():
        hidden = lstm(embedding(columns[:-1]))[0].reshape(-1, width)
        logits = F.linear(hidden, head.weight, head.bias)
        print({"wikitext-2": {"perplexity": F.cross_entropy(logits, columns[1:].flatten()).exp().item()}})
    return TrainedLayer(head.weight.data, head.bias.data, hidden)
