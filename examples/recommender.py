"""Recommends items to users from what they had before: embeddings of users and items and a softmax over all items.

    python examples/recommender.py --train train.txt --test test.txt    # lines: user item item ...
    python examples/recommender.py                                      # users and items made here

A user is the mean of their items, and a vector of their own. In training, an item is predicted from the other items
of its user. Scores are cosines over a temperature. ``torch_lsh.linear_cross_entropy`` compares the users of a step with
the items that matter for them instead of all items. The evaluation leaves out what a user had in training, as published
tables do.

Mao et al., "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", CIKM 2021; Wu et al., "On the
Effectiveness of Sampled Softmax Loss for Item Recommendation", ACM TOIS 2024.
"""

from __future__ import annotations

import argparse
import lzma
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_lsh

PADDING = 0  # the number of no item; the others are one more than in the file


class Recommender(nn.Module):
    """Users as means of their items, scored against the embedding of every item."""

    def __init__(self, num_users: int, num_items: int, width: int, temperature: float, dropout: float) -> None:
        super().__init__()
        self.users = nn.Embedding(num_users, width, sparse=True)
        self.items = nn.Embedding(num_items + 1, width, sparse=True)
        self.temperature, self.dropout = temperature, dropout
        nn.init.zeros_(self.users.weight)
        nn.init.normal_(self.items.weight)
        self.scale_items(torch.arange(num_items + 1))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """What items are multiplied with, ``[B, width]``, from the items ``[B, T]`` of users."""
        return self._vectors(self.users(users), (self.items(items) * (items != PADDING).unsqueeze(2)).sum(1))

    def without_each(self, users: Tensor, items: Tensor) -> Tensor:
        """The same from all items of a user but one, ``[B, T, width]``; random ones are missing, too."""
        known = items != PADDING
        vectors = self.items(items)
        kept = vectors * (known & (torch.rand(items.shape) >= self.dropout)).unsqueeze(2)
        return self._vectors(self.users(users).unsqueeze(1), kept.sum(1, keepdim=True) - kept)

    def _vectors(self, users: Tensor, sums: Tensor) -> Tensor:
        return F.normalize(users + F.normalize(sums, dim=-1), dim=-1) / self.temperature

    @torch.no_grad()
    def scale_items(self, rows: Tensor) -> None:
        """Scales items to unit length, so that scores are cosines."""
        self.items.weight.data[rows] = F.normalize(self.items.weight.data[rows], dim=1)


def read(path: Path) -> list[list[int]]:
    """The items of every user; a line has the number of a user, then items."""
    opener = lzma.open if path.suffix == ".xz" else open
    items: list[list[int]] = []
    with opener(path, "rt") as file:
        for line in file:
            user, *numbers = map(int, line.split())
            items.extend([] for _ in range(user + 1 - len(items)))
            items[user] += [number + 1 for number in numbers]
    return items


def made(num_users: int = 5_000, num_items: int = 20_000) -> tuple[list[list[int]], list[list[int]]]:
    """Users of 200 tastes, each of which has 100 items."""
    generator = torch.Generator().manual_seed(0)
    tastes = torch.randint(1, num_items + 1, (200, 100), generator=generator)
    order = torch.rand(num_users, 100, generator=generator).argsort(1)[:, :30]
    items = tastes[torch.arange(num_users) % 200].gather(1, order).tolist()
    return [some[:24] for some in items], [some[24:] for some in items]


def padded(rows: list[list[int]], numbers: Tensor, padding: int = PADDING) -> Tensor:
    """Some rows as ``[B, T]``."""
    return nn.utils.rnn.pad_sequence([torch.tensor(rows[i]) for i in numbers.tolist()], True, padding)


def batches(rows: list[list[int]], pairs: int) -> list[Tensor]:
    """Numbers of rows that have about as many items, and ``pairs`` items together; the groups in random order."""
    lengths = torch.tensor([len(row) for row in rows])
    order = (lengths + torch.rand(len(rows))).argsort()
    order = order[lengths[order] > 1]
    groups = lengths[order].cumsum(0) // pairs
    parts = order.split(groups.unique_consecutive(return_counts=True)[1].tolist())
    return [parts[i] for i in torch.randperm(len(parts)).tolist()]


@torch.no_grad()
def evaluate(model: Recommender, train: list[list[int]], test: list[list[int]], k: int = 20) -> dict[str, float]:
    """Recall and nDCG at k over all items but those of training."""
    model.eval()
    metric = torch_lsh.metrics.RankingMetrics(("recall", "ndcg"), (k,))
    users = torch.tensor([user for user, items in enumerate(test) if items and train[user]])
    users = users[torch.tensor([len(train[user]) for user in users.tolist()]).argsort()]  # of about equal numbers
    for some in users.split(256):
        had = padded(train, some)
        no_items = F.pad(had, (0, 1), value=PADDING)  # and the number of no item
        depth = min(k + no_items.shape[1], model.items.num_embeddings)
        best = torch_lsh.linear_topk(model(some, had), model.items.weight, depth).indices
        pairs = torch.stack([torch.arange(len(some)).repeat_interleave(no_items.shape[1]), no_items.flatten()], 1)
        metric.update(best, padded(test, some, -100), pairs)
    return metric.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="file of users and items; default: users made here")
    parser.add_argument("--test", type=Path, help="file of what to find")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.5, help="share of a user's items that is left out in a step")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2048, help="pairs of user and item per step, about")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--active", type=int, help="items per step; default: as the library chooses")
    parser.add_argument("--every", type=int, default=5, help="epochs between evaluations")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    train, test = made() if arguments.train is None else (read(arguments.train), read(arguments.test))
    test += [[] for _ in range(len(train) - len(test))]
    num_items = max(item for items in (*train, *test) for item in items)
    model = Recommender(len(train), num_items, arguments.width, arguments.temperature, arguments.dropout)
    if arguments.active is not None:
        torch_lsh.sampler_of(model.items.weight, torch_lsh.LSHConfig(active=arguments.active))
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=arguments.lr)
    total = arguments.epochs * len(batches(train, arguments.batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, total_steps=total, pct_start=0.1)
    seconds = 0.0
    for epoch in range(1, arguments.epochs + 1):
        model.train()
        started = time.process_time()
        for users in batches(train, arguments.batch_size):
            items = padded(train, users)
            vectors = model.without_each(users, items)
            known = items != PADDING
            loss = torch_lsh.linear_cross_entropy(vectors[known], model.items.weight, items[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.scale_items(model.items.weight.grad._indices()[0])
            schedule.step()
        seconds += time.process_time() - started
        if epoch % arguments.every == 0 or epoch == arguments.epochs:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in evaluate(model, train, test).items())
            print(f"epoch {epoch}  loss {loss.detach():.3f}  {shown}  {seconds:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
