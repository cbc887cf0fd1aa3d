"""Recommends items to users from what they had before: one embedding and a softmax over all items.

    python examples/recommender.py --train train.txt --test test.txt    # lines: user item item ...
    python examples/recommender.py --train train.txt                    # a part of every user's items is held out
    python examples/recommender.py                                      # users and items made here

A user is the mean of the vectors of his items: there is no table of users, and new users need no training. A step takes
some users, leaves out some of the items of each, and asks for all of them. Scores are cosines over a temperature and a
bias per item, which learns popularity. ``torch_lsh.linear_cross_entropy`` compares the users with the items that matter
for them, ``--dense`` with all items.

Mao et al., "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", CIKM 2021 (users as means, cosines);
Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018 (softmax over a user's items, some left
out of the input).
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

NO_ITEM = -100  # ends the items of users who have fewer than others


class Recommender(nn.Module):
    """Items of unit length, and a bias each. A user is the mean of his items, scored against every item."""

    def __init__(self, num_items: int, width: int, temperature: float, dense: bool) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items, width, sparse=not dense)
        nn.init.normal_(self.items.weight)
        self.scale_items(slice(None))
        self.bias = nn.Parameter(torch.zeros(num_items))
        self.temperature = temperature

    def forward(self, items: Tensor, given: Tensor) -> Tensor:
        """Users ``[B, width]`` to multiply the items with, from those of ``items [B, P]`` where ``given`` is True."""
        counts = given.sum(1)
        offsets = counts.cumsum(0) - counts
        mean = F.embedding_bag(items[given], self.items.weight, offsets, mode="mean", sparse=self.items.sparse)
        return F.normalize(mean, dim=1) / self.temperature

    @torch.no_grad()
    def scale_items(self, rows: Tensor | slice) -> None:
        self.items.weight.data[rows] = F.normalize(self.items.weight.data[rows], dim=1)


# --- users ------------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[list[int]]:
    """The items of every user, each once; a line has the number of a user, then items."""
    opener = lzma.open if path.suffix == ".xz" else open
    items: list[list[int]] = []
    with opener(path, "rt") as file:
        for line in file:
            if line.strip():
                user, *numbers = map(int, line.split())
                items.extend([] for _ in range(user + 1 - len(items)))
                items[user] += numbers
    return [list(dict.fromkeys(some)) for some in items]


def made(num_users: int = 5_000, num_items: int = 20_000) -> list[list[int]]:
    """Users of 200 tastes, each of which has 100 items."""
    generator = torch.Generator().manual_seed(0)
    tastes = torch.randint(num_items, (200, 100), generator=generator)
    order = torch.rand(num_users, 100, generator=generator).argsort(1)[:, :30]
    return tastes[torch.arange(num_users) % 200].gather(1, order).tolist()


def hold_out(items: list[list[int]], share: float = 0.15) -> tuple[list[list[int]], list[list[int]]]:
    """A random part of every user's items, as items to find."""
    generator = torch.Generator().manual_seed(0)
    train, test = [], []
    for some in items:
        held = torch.rand(len(some), generator=generator) < share
        train.append([item for item, is_held in zip(some, held.tolist()) if not is_held])
        test.append([item for item, is_held in zip(some, held.tolist()) if is_held])
    return train, test


def padded(items: list[list[int]], users: Tensor) -> Tensor:
    """The items of some users, ``[B, P]``."""
    rows = [torch.tensor(items[user], dtype=torch.int64) for user in users.tolist()]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_ITEM)


# --- training and evaluation ------------------------------------------------------------------------------------------


def loss_of(model: Recommender, items: Tensor, keep: float) -> Tensor:
    """Cross entropy of all items of each user, given some of them; the mean over all these items."""
    is_item = items != NO_ITEM
    vectors = model(items, is_item & (torch.rand(items.shape) < keep))
    counts = is_item.sum(1)
    if not model.items.sparse:
        scores = F.linear(vectors, model.items.weight, model.bias).log_softmax(1)
        losses = -scores.gather(1, items.clamp(min=0)).where(is_item, 0.0).sum(1) / counts
    else:
        losses = torch_lsh.linear_cross_entropy(
            vectors, model.items.weight, items, model.bias, reduction="none", ignore_index=NO_ITEM
        )
    return (losses * counts).sum() / counts.sum()


def train_step(model: Recommender, items: Tensor, optimizer: torch.optim.Optimizer, keep: float) -> Tensor:
    loss = loss_of(model, items, keep)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    gradient = model.items.weight.grad
    assert gradient is not None
    model.scale_items(gradient._indices()[0] if gradient.is_sparse else slice(None))
    return loss.detach()


@torch.no_grad()
def evaluate(model: Recommender, train: list[list[int]], test: list[list[int]], k: int = 20) -> dict[str, float]:
    """Recall and nDCG at k over all items but those of training, as published tables have them."""
    model.eval()
    metric = torch_lsh.metrics.RankingMetrics(("recall", "ndcg"), (k,))
    users = torch.tensor([user for user, items in enumerate(test) if items])
    users = users[torch.tensor([len(train[user]) for user in users.tolist()]).argsort()]  # of about equal numbers
    for some in users.split(256):
        had = padded(train, some)
        is_item = had != NO_ITEM
        depth = min(k + had.shape[1], model.items.num_embeddings)
        best = torch_lsh.linear_topk(model(had, is_item), model.items.weight, depth, model.bias).indices
        excluded = torch.stack([is_item.nonzero()[:, 0], had[is_item]], 1)
        metric.update(best, padded(test, some), excluded)
    model.train()
    return metric.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="file of users and items; default: users made here")
    parser.add_argument("--test", type=Path, help="file of what to find; default: held out of training")
    parser.add_argument("--dense", action="store_true", help="product with all items, for comparison")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.11)
    parser.add_argument("--keep", type=float, default=0.7, help="share of a user's items in the mean, in training")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256, help="users per step")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--active", type=int, default=16384, help="items per step")
    parser.add_argument("--every", type=int, default=5, help="epochs between evaluations")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    train = made() if arguments.train is None else read(arguments.train)
    train, test = hold_out(train) if arguments.test is None else (train, read(arguments.test))
    train += [[] for _ in range(len(test) - len(train))]
    num_items = 1 + max(item for items in (*train, *test) for item in items)
    model = Recommender(num_items, arguments.width, arguments.temperature, arguments.dense)
    # The labels of all users leave little room: half of the rows are drawn at random, as they stand for all the others.
    active = min(arguments.active, num_items)
    config = torch_lsh.LSHConfig(active=active, random_fraction=0.5, correction="stratified")
    torch_lsh.sampler_of(model.items.weight, config)
    optimizer = (
        torch.optim.Adam(model.parameters(), lr=arguments.lr, fused=True)
        if arguments.dense
        else torch_lsh.optim.Adam(model.parameters(), lr=arguments.lr)
    )
    users = torch.tensor([user for user, items in enumerate(train) if items])
    total = arguments.epochs * -(-len(users) // arguments.batch_size)
    # A warm-up of a single step would be divided by zero.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, total_steps=max(total, 20), pct_start=0.1)
    seconds, cpu_seconds = 0.0, 0.0
    for epoch in range(1, arguments.epochs + 1):
        started, cpu_started, losses = time.perf_counter(), time.process_time(), []
        for some in users[torch.randperm(len(users))].split(arguments.batch_size):
            losses.append(train_step(model, padded(train, some), optimizer, arguments.keep))
            schedule.step()
        seconds += time.perf_counter() - started
        cpu_seconds += time.process_time() - cpu_started
        if epoch % arguments.every == 0 or epoch == arguments.epochs:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in evaluate(model, train, test).items())
            loss = torch.stack(losses).mean()
            print(
                f"epoch {epoch}  loss {loss:.3f}  {shown}  {seconds:.0f} s  {cpu_seconds:.0f} CPU s",
                flush=True,
            )


if __name__ == "__main__":
    main()
