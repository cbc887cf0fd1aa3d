"""Precision@k by seconds of training: dense, uniformly sampled, LSH-sampled.

    python benchmarks/time_to_accuracy.py citeulike-t yso-en --json out.jsonl --plot out.png

All systems train the SLIDE model (sparse features -> 128 ReLU -> labels) with Adam from the same initial weights on the
same batches of 256. They take turns and are evaluated with the full output layer; evaluation does not count.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import torch
from classification import BATCH, Trainee, Weights, first_at, some_batches
from corpora import read_xmc

from torch_lsh import plots
from torch_lsh.benchmarking import harness, systems
from torch_lsh.data import collate_xmc

SYSTEMS = {
    system.name: system
    for system in (
        systems.Dense,
        systems.Uniform,
        systems.LSH,
        systems.LSHInBackward,
        systems.LSHBFloat16,
        systems.LSHBFloat16Weights,
    )
}


def parse_system(text: str) -> tuple[str, dict]:
    """``torch_lsh:random_fraction=0.5,hash=dwta`` -> name and options of LSHConfig."""
    name, options = harness.parse_options(text)
    if name not in SYSTEMS:
        raise SystemExit(f"--systems names {name!r}; wanted {', '.join(SYSTEMS)}")
    return name, options


def run(dataset: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    train, test = read_xmc(dataset)
    active = arguments.active or {"yso-en": 2048, "citeulike-t": 3072}.get(dataset, 2048)
    test_batches = some_batches(test, arguments.test_rows)
    weights = Weights.draw(train, arguments.input_std, seed=1)
    trainees = []
    for text in arguments.systems:
        kind, options = parse_system(text)
        lr, rows = options.pop("lr", arguments.lr), options.pop("active", active)
        trainees.append(
            Trainee(
                text,
                systems.SparseInput(weights.features, lr, systems.INPUT_OF.get(kind, "torch_lsh")),
                SYSTEMS[kind](weights.output_layer(), lr, rows, **(options if kind.startswith("torch_lsh") else {})),
            )
        )
    print(f"\n{dataset}: {train}, {active} active rows, {min(len(test), arguments.test_rows)} test rows")
    epochs = {text: arguments.dense_epochs if text == "dense" else arguments.epochs for text in arguments.systems}
    steps_per_epoch = -(-len(train) // BATCH)
    chunk = max(1, steps_per_epoch // arguments.points)
    for epoch in range(max(epochs.values())):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch)).split(BATCH)
        for begin in range(0, steps_per_epoch, chunk):
            batches = [collate_xmc(train.__getitems__(rows)) for rows in order[begin : begin + chunk]]
            for trainee in trainees:
                if epoch < epochs[trainee.name]:
                    torch.manual_seed(epoch * 100_003 + begin)
                    trainee.train(batches)
                    trainee.evaluate(test_batches, epoch + min(steps_per_epoch, begin + chunk) / steps_per_epoch)
    report(dataset, trainees)
    return [{"dataset": dataset, "active": active, **point} for trainee in trainees for point in trainee.curve]


def report(dataset: str, trainees: list[Trainee]) -> None:
    reference = next((trainee for trainee in trainees if trainee.name == "dense"), trainees[0])
    goal = reference.curve[-1]["precision@1"]
    rows = []
    for trainee in trainees:
        reached = first_at(trainee.curve, goal)
        best = max(point["precision@1"] for point in trainee.curve)
        total = trainee.curve[-1]["seconds"]
        rows.append(
            (
                trainee.name,
                best,
                trainee.curve[-1]["precision@5"],
                total,
                trainee.seconds / trainee.steps * 1e3,
                "not reached" if reached is None else reached,
                "" if reached is None else reference.curve[-1]["seconds"] / reached,
            )
        )
    header = ("system", "best P@1", "last P@5", "seconds", "ms/step", f"s to P@1 {goal:.4f}", "times faster")
    print(f"\n{dataset}\n" + harness.table(rows, header))


def plot(records: list[dict[str, Any]], path: str) -> None:
    """Draws precision@1 by seconds of training, a panel per data set."""
    datasets = list(dict.fromkeys(record["dataset"] for record in records))
    plots.draw(path, *[functools.partial(_draw, records, dataset) for dataset in datasets])


def _draw(records: list[dict[str, Any]], dataset: str, axis: Any) -> None:
    for system in dict.fromkeys(record["system"] for record in records):
        points = [r for r in records if r["dataset"] == dataset and r["system"] == system]
        axis.plot([p["seconds"] for p in points], [p["precision@1"] for p in points], marker=".", label=system)
    axis.set(title=dataset, xscale="log", xlabel="seconds of training", ylabel="precision@1")
    axis.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="names of data sets")
    parser.add_argument("--systems", nargs="+", default=["dense", "uniform", "torch_lsh"], help="what to compare")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training data")
    parser.add_argument("--dense-epochs", type=int, default=6, help="epochs of the dense system")
    parser.add_argument("--points", type=int, default=4, help="evaluations per epoch")
    parser.add_argument("--test-rows", type=int, default=5166, help="test rows to evaluate on")
    parser.add_argument("--active", type=int, help="active rows per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--input-std", type=float, default=0.1, help="of the input table; nn.EmbeddingBag's is 1")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--plot", help="draw a plot into this file")
    arguments = parser.parse_args()
    info = harness.machine(arguments.threads)
    print(info)
    records = []
    for dataset in arguments.datasets:
        records += run(dataset, arguments)
    harness.write_json(
        [{"benchmark": "time_to_accuracy", "machine": info, **record} for record in records], arguments.json
    )
    if arguments.plot:
        plot(records, arguments.plot)


if __name__ == "__main__":
    main()
