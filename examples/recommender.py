"""Recommends items to users from what they had before: two embeddings and a softmax over all items.

    python examples/recommender.py --train train.txt --test test.txt    # lines: user item item ...
    python examples/recommender.py                                      # users and items made here

Scores are cosines over a temperature. A step takes some pairs of user and item, and ``torch_lsh.linear_cross_entropy``
compares each user with the items that matter for these users instead of all items. The evaluation leaves out what a
user had in training, as published tables do.

Wu et al., "On the Effectiveness of Sampled Softmax Loss for Item Recommendation", ACM TOIS 2024.
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


class TwoTowers(nn.Module):
    """A vector of unit length per user and per item."""

    def __init__(self, num_users: int, num_items: int, width: int, temperature: float) -> None:
        super().__init__()
        self.users = nn.Embedding(num_users, width, sparse=True)
        self.items = nn.Embedding(num_items, width, sparse=True)
        self.temperature = temperature
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, users: Tensor) -> Tensor:
        """What the items are multiplied with, ``[B, width]``."""
        return F.normalize(self.users(users), dim=1) / self.temperature

    @torch.no_grad()
    def scale_items(self, rows: Tensor | slice) -> None:
        self.items.weight.data[rows] = F.normalize(self.items.weight.data[rows], dim=1)


def read(path: Path) -> list[list[int]]:
    """The items of every user; a line has the number of a user, then items."""
    opener = lzma.open if path.suffix == ".xz" else open
    items: list[list[int]] = []
    with opener(path, "rt") as file:
        for line in file:
            user, *numbers = map(int, line.split())
            items.extend([] for _ in range(user + 1 - len(items)))
            items[user] += numbers
    return items


def made(num_users: int = 5_000, num_items: int = 20_000) -> tuple[list[list[int]], list[list[int]]]:
    """Users of 200 tastes, each of which has 100 items."""
    generator = torch.Generator().manual_seed(0)
    tastes = torch.randint(num_items, (200, 100), generator=generator)
    order = torch.rand(num_users, 100, generator=generator).argsort(1)[:, :30]
    items = tastes[torch.arange(num_users) % 200].gather(1, order).tolist()
    return [some[:24] for some in items], [some[24:] for some in items]


@torch.no_grad()
def evaluate(model: TwoTowers, train: list[list[int]], test: list[list[int]], k: int = 20) -> dict[str, float]:
    """Recall and nDCG at k over all items but those of training."""
    model.eval()
    metric = torch_lsh.metrics.RankingMetrics(("recall", "ndcg"), (k,))
    users = torch.tensor([user for user, items in enumerate(test) if items])
    users = users[torch.tensor([len(train[user]) for user in users.tolist()]).argsort()]  # of about equal numbers
    for some in users.split(256):
        had = [(row, item) for row, user in enumerate(some.tolist()) for item in train[user]]
        most = max(len(train[user]) for user in some.tolist())
        depth = min(k + most, model.items.num_embeddings)
        best = torch_lsh.linear_topk(model(some), model.items.weight, depth).indices
        labels = nn.utils.rnn.pad_sequence([torch.tensor(test[user]) for user in some.tolist()], True, -100)
        metric.update(best, labels, torch.tensor(had).view(-1, 2))
    return metric.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="file of users and items; default: users made here")
    parser.add_argument("--test", type=Path, help="file of what to find")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1024, help="pairs per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--active", type=int, help="items per step; default: as the library chooses")
    parser.add_argument("--every", type=int, default=5, help="epochs between evaluations")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    train, test = made() if arguments.train is None else (read(arguments.train), read(arguments.test))
    test += [[] for _ in range(len(train) - len(test))]
    pairs = torch.tensor([(user, item) for user, items in enumerate(train) for item in items])
    num_items = 1 + max(item for items in (*train, *test) for item in items)
    model = TwoTowers(len(train), num_items, arguments.width, arguments.temperature)
    model.scale_items(slice(None))
    if arguments.active is not None:
        torch_lsh.sampler_of(model.items.weight, torch_lsh.LSHConfig(active=arguments.active))
    optimizer = torch_lsh.optim.Adam(model.parameters(), lr=arguments.lr)
    total = arguments.epochs * -(-len(pairs) // arguments.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, total_steps=total, pct_start=0.1)
    seconds = 0.0
    for epoch in range(1, arguments.epochs + 1):
        model.train()
        started = time.perf_counter()
        for some in torch.randperm(len(pairs)).split(arguments.batch_size):
            users, items = pairs[some].unbind(1)
            loss = torch_lsh.linear_cross_entropy(model(users), model.items.weight, items)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.scale_items(model.items.weight.grad._indices()[0])
            schedule.step()
        seconds += time.perf_counter() - started
        if epoch % arguments.every == 0 or epoch == arguments.epochs:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in evaluate(model, train, test).items())
            print(f"epoch {epoch}  loss {loss.detach():.3f}  {shown}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
