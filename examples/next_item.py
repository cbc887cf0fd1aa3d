"""Predicts the next item of a session: GRU4Rec and SASRec with a tied head over all items.

    python examples/next_item.py --train train_sessions.txt --test test.txt
    python examples/next_item.py                                  # sessions made here
    python examples/next_item.py ... --body sasrec --dense        # another body; nn.Linear, for comparison

A line of the training file is a session: items in the order of the clicks, separated by blanks. A line of the test file
is a session, a tab and the next item. Both may be compressed (.gz, .xz). Items are any words.

The head is the item embedding itself. Four places differ from the dense model: the embedding is ``sparse``,
``torch_lsh.linear_cross_entropy`` and ``torch_lsh.linear_topk`` stand for products with ``items.weight.T``, and the
optimizer is of ``torch_lsh.optim``.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016 (GRU4Rec); Kang and McAuley,
"Self-Attentive Sequential Recommendation", ICDM 2018 (SASRec); Hou et al., "CORE: Simple and Effective Session-based
Recommendation within Consistent Representation Space", SIGIR 2022 (sessions as means of items, cosines as scores).
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import lzma
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_lsh

PADDING = 0  # the number of no item
SCALE = 16.0  # of cosines, as logits


class SessionModel(nn.Module):
    """Session vectors from a GRU or from causal self-attention, scored against the embedding of every item."""

    def __init__(self, num_items: int, width: int, body: str, dropout: float, longest: int, sparse: bool) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, width, sparse=sparse)
        nn.init.normal_(self.items.weight)
        self.scale_items(torch.arange(num_items + 1))
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(width, width, batch_first=True) if body == "gru" else None
        if body == "sasrec":
            self.position = nn.Embedding(longest, width)
            nn.init.normal_(self.position.weight, std=width**-0.5)
            layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True, norm_first=True)
            self.attention = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, sessions: Tensor) -> Tensor:
        """Session vectors ``[B, T, width]`` after every item of sessions ``[B, T]`` padded at their end."""
        items = self.dropout(self.items(sessions))
        if self.gru is not None:
            states = self.gru(items)[0]
        else:
            length = sessions.shape[1]
            mask = nn.Transformer.generate_square_subsequent_mask(length)
            states = self.attention(items + self.position.weight[:length], mask, is_causal=True)
        # A session is a mean of its items up to now, so that it lies where items lie.
        scores = self.query(states) @ self.key(states).transpose(1, 2) / items.shape[-1] ** 0.5
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        mean = scores.masked_fill(later, -torch.inf).softmax(-1) @ items
        return SCALE * F.normalize(mean, dim=-1)

    @torch.no_grad()
    def scale_items(self, rows: Tensor) -> None:
        """Scales items to unit length, so that scores are cosines and popular items do not win by their norm."""
        self.items.weight.data[rows] = F.normalize(self.items.weight.data[rows], dim=-1)


# --- sessions ---------------------------------------------------------------------------------------------------------


def opened(path: Path) -> IO[str]:
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8")


def read_sessions(path: Path, numbers: dict[str, int]) -> list[Tensor]:
    """Sessions of at least two items as item numbers; ``numbers`` gets the items that it lacks."""
    with opened(path) as file:
        sessions = [[numbers.setdefault(item, len(numbers) + 1) for item in line.split()] for line in file]
    return [torch.tensor(session) for session in sessions if len(session) > 1]


def read_test(path: Path, numbers: dict[str, int]) -> list[Tensor]:
    """Sessions with their next item at the end; items that training did not know are left out, targets are -1."""
    rows = []
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            session, tab, target = line.rstrip("\n").partition("\t")
            if not tab:
                raise ValueError(f"{path}, line {number}: there is no tab; wanted 'items TAB next item'")
            known = [numbers[item] for item in session.split() if item in numbers]
            if known:
                rows.append(torch.tensor([*known, numbers.get(target.strip(), -1)]))
    return rows


def made_sessions(num_items: int, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Walks on a ring of items: a step goes a few items on, or now and then anywhere."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(1, 4, (count, 8), generator=generator)
    jumps = torch.rand(steps.shape, generator=generator) < 0.1
    steps[jumps] = torch.randint(num_items, (int(jumps.sum()),), generator=generator)
    walks = list(steps.cumsum(1) % num_items + 1)
    return walks[count // 10 :], walks[: count // 10]


def batches(sessions: list[Tensor], size: int, shuffle: bool) -> Iterator[Tensor]:
    """Padded sessions ``[B, T]`` of about equal length, in random order."""
    order = torch.randperm(len(sessions)).tolist() if shuffle else list(range(len(sessions)))
    order.sort(key=lambda i: len(sessions[i]))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    for group in torch.randperm(len(groups)).tolist():
        yield nn.utils.rnn.pad_sequence([sessions[i] for i in groups[group]], batch_first=True, padding_value=PADDING)


# --- training and evaluation ------------------------------------------------------------------------------------------


def loss_of(model: SessionModel, sessions: Tensor, dense: bool) -> Tensor:
    """Cross entropy of every next item."""
    target = sessions[:, 1:]
    given = target != PADDING
    vectors = model(sessions[:, :-1])[given]
    if dense:
        return F.cross_entropy(vectors @ model.items.weight.T, target[given])
    return torch_lsh.linear_cross_entropy(vectors, model.items.weight, target[given])


def train_step(model: SessionModel, sessions: Tensor, optimizer: torch.optim.Optimizer, dense: bool) -> Tensor:
    loss = loss_of(model, sessions, dense)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    gradient = model.items.weight.grad
    assert gradient is not None
    model.scale_items(gradient._indices()[0] if gradient.is_sparse else torch.arange(len(gradient)))
    return loss.detach()


@torch.no_grad()
def evaluate(model: SessionModel, test: list[Tensor], k: int = 20) -> dict[str, float]:
    """Recall and MRR at k of the last items, exactly, over all items."""
    model.eval()
    metric = torch_lsh.metrics.RankingMetrics(("recall", "mrr"), (k,))
    unknown = 0
    for sessions in batches(test, 512, shuffle=False):
        last = (sessions != PADDING).sum(1, keepdim=True) - 1
        target = sessions.gather(1, last)
        unknown += int((target < 0).sum())
        sessions = sessions.scatter(1, last, PADDING)[:, :-1]
        vectors = model(sessions).gather(1, (last - 1).unsqueeze(2).expand(-1, -1, model.items.embedding_dim))[:, 0]
        best = torch_lsh.linear_topk(vectors, model.items.weight, k + 1).indices
        is_item = best != PADDING
        best = best.gather(1, (~is_item).to(torch.uint8).argsort(dim=1, stable=True))[:, :k]
        metric.update(best, target)
    found = (len(test) - unknown) / len(test)  # an unknown target is a miss, not left out
    return {name: value * found for name, value in metric.compute().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="file of sessions; default: sessions made here")
    parser.add_argument("--test", type=Path, help="file of sessions and next items")
    parser.add_argument("--body", choices=["gru", "sasrec"], default="gru")
    parser.add_argument("--dense", action="store_true", help="product with all items, for comparison")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128, help="sessions per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--active", type=int, help="rows per step")
    parser.add_argument("--steps", type=int, help="most steps per epoch")
    parser.add_argument("--evaluate-every", type=int, help="steps between evaluations; default: an epoch")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    if arguments.train is None:
        num_items = 20_000
        train, test = made_sessions(num_items, 20_000)
    else:
        numbers: dict[str, int] = {}
        train = read_sessions(arguments.train, numbers)
        test = read_test(arguments.test, numbers)
        num_items = len(numbers)
    longest = max(map(len, [*train, *test]))
    model = SessionModel(num_items, arguments.width, arguments.body, arguments.dropout, longest, not arguments.dense)
    if arguments.active is not None:
        torch_lsh.sampler_of(model.items.weight, torch_lsh.LSHConfig(active=arguments.active))
    options: dict[str, Any] = {"lr": arguments.lr, "weight_decay": 0.0}
    optimizer = (
        torch.optim.AdamW(model.parameters(), fused=True, **options)
        if arguments.dense
        else torch_lsh.optim.AdamW(model.parameters(), **options)
    )
    steps = -(-len(train) // arguments.batch_size)
    steps = min(steps, arguments.steps or steps)
    total = arguments.epochs * steps
    # A warm-up of a single step would be divided by zero.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, total_steps=max(total, 20), pct_start=0.1)
    stream = itertools.chain.from_iterable(
        itertools.islice(batches(train, arguments.batch_size, shuffle=True), steps) for _ in range(arguments.epochs)
    )
    evaluate_every = arguments.evaluate_every or steps
    seconds, cpu_seconds, losses = 0.0, 0.0, []
    for step, sessions in enumerate(stream, 1):
        started, cpu_started = time.perf_counter(), time.process_time()
        losses.append(train_step(model, sessions, optimizer, arguments.dense))
        schedule.step()
        seconds += time.perf_counter() - started
        cpu_seconds += time.process_time() - cpu_started
        if step % evaluate_every == 0 or step == total:
            result = evaluate(model, test)
            model.train()
            shown = "  ".join(f"{name} {value:.4f}" for name, value in result.items())
            loss = torch.stack(losses).mean()
            losses.clear()
            print(
                f"epoch {step / steps:.2f}  loss {loss:.3f}  {shown}  {seconds:.0f} s  {cpu_seconds:.0f} CPU s",
                flush=True,
            )


if __name__ == "__main__":
    main()
