"""Trains the SLIDE model at the size of Amazon-670K: sparse features -> 128 ReLU -> 670,091 labels.

    python examples/amazon670k.py                                        synthetic data
    python examples/amazon670k.py --train train.txt --test test.txt      files in the XMC format (also .gz, .xz)

Prints precision@1/3/5 after every epoch, compares the speed with a dense layer, and draws a plot.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import torch_lsh
from torch_lsh.data import XMCDataset, collate_xmc, synthetic_xmc
from torch_lsh.models import XMCClassifier


def dense_samples_per_second(train: XMCDataset, hidden: int, batch_size: int, steps: int = 3) -> float:
    """Speed of the same model with an nn.Linear output, trained by PyTorch's fused Adam."""
    model = XMCClassifier(train.num_features, train.num_labels, hidden, dense=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    seconds = []
    for step in range(steps + 1):
        begin = step * batch_size % max(1, len(train) - batch_size)
        x, y = collate_xmc(train.__getitems__(list(range(begin, min(begin + batch_size, len(train))))))
        start = time.perf_counter()
        model.loss(x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return batch_size / sorted(seconds[1:])[steps // 2]


def plot(history: list[dict[str, float]], dense_speed: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    epochs = [entry["epoch"] for entry in history]
    for k in (1, 3, 5):
        if f"precision@{k}" in history[0]:
            left.plot(epochs, [entry[f"precision@{k}"] for entry in history], marker="o", label=f"precision@{k}")
    left.set(xlabel="epoch", title="quality")
    left.legend()
    speed = history[-1]["samples_per_second"]
    right.barh(["nn.Linear", "LSHLinear"], [dense_speed, speed])
    right.set(xscale="log", xlabel="samples per second", title=f"{speed / dense_speed:.0f} times faster")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="training file; default: synthetic data")
    parser.add_argument("--test", help="test file")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the training data")
    parser.add_argument("--batch-size", type=int, default=256, help="samples per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--hidden", type=int, default=128, help="width of the hidden layer")
    parser.add_argument("--active", type=int, help="active rows per step")
    parser.add_argument("--checkpoint", help="file to save the run's state to and resume from")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the model and the plot")
    parser.add_argument("--rows", type=int, default=50_000, help="rows of synthetic data")
    arguments = parser.parse_args()

    if arguments.train is None:
        print("generating data at the size of Amazon-670K ...", flush=True)
        train, test = synthetic_xmc(arguments.rows, 2_000)
    else:
        train = XMCDataset(arguments.train, normalize="l2")
        test = None if arguments.test is None else XMCDataset(arguments.test, normalize="l2")
    print(f"training on {train}", flush=True)

    torch.manual_seed(0)
    config = torch_lsh.LSHConfig(active=arguments.active)
    model = XMCClassifier(train.num_features, train.num_labels, arguments.hidden, config)
    history = model.fit(
        train,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        eval_dataset=test,
        checkpoint=arguments.checkpoint,
    )
    for entry in history:
        print("  ".join(f"{key} {value:,.4g}" for key, value in entry.items()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.save(arguments.out / "model.pt")

    print("measuring the dense layer ...", flush=True)
    dense_speed = dense_samples_per_second(train, arguments.hidden, arguments.batch_size)
    speed = history[-1]["samples_per_second"]
    print(f"LSHLinear {speed:,.0f} samples/s, nn.Linear {dense_speed:,.0f} samples/s: {speed / dense_speed:.0f} times")
    plot(history, dense_speed, arguments.out / "amazon670k.png")
    print(f"wrote {arguments.out / 'model.pt'} and {arguments.out / 'amazon670k.png'}")


if __name__ == "__main__":
    main()
