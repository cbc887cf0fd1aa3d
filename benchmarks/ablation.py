"""Precision@1 after equal training time: what each setting of LSHConfig is worth.

    python benchmarks/ablation.py --json out.jsonl --plot out.png
    python benchmarks/ablation.py --data yso-en --only sampler=uniform active=x2 bolt --seed 0 1 2

Each variation differs from LSHConfig() in one setting. All train the SLIDE model (sparse features -> 128 ReLU ->
labels) from the same initial weights on the same batches of 256 with torch_lsh.optim.Adam, at one learning rate: the
better of 1e-3 and 2e-3 for LSHConfig() and for in-batch labels. With several labels per sample, the correction is
"even" unless the variation names another.

Variations take turns. After every turn the test rows are evaluated with the full output layer. The time counts steps,
building of tables and re-hashes, not evaluation.

- slide, bolt: published settings. They train for longer, as does the default beside them; the output names the time at
  which the default reaches their final precision.
- autotune: the settings that torch_lsh.autotune picks for the layer of a model that the default settings trained for a
  while. The search does not count.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from classification import BATCH, Batch, Trainee, Weights, first_at, some_batches
from corpora import check_present, read_xmc
from torch import Tensor

from torch_lsh import Drift, FixedInterval, LSHConfig, autotune, plots
from torch_lsh.benchmarking import harness, systems
from torch_lsh.data import XMCDataset, collate_xmc

SECONDS = {"citeulike-t": 3.0, "yso-en": 30.0}
LEARNING_RATES = {"citeulike-t": 1e-3, "yso-en": 2e-3}
PUBLISHED = ("slide", "bolt")
TUNED_ON = 512  # inputs
NEVER = FixedInterval(10**9)
SAMPLERS = ("uniform", "log_uniform", "frequency", "in_batch")
CHUNK = 8  # batches that are made at a time

VARIATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"sampler={name}": {"sampler": name} for name in SAMPLERS},
    **{f"sampler={name},stratified": {"sampler": name, "correction": "stratified"} for name in SAMPLERS},
    **{f"hash={name}": {"hash": name} for name in ("learned", "simhash_hadamard", "dwta")},
    "scope=sample": {"scope": "sample"},
    "correction=stratified": {"correction": "stratified"},
    "correction=none": {"correction": "none"},
    "carry=0": {"carry": 0.0},
    "rehash=every10": {"rehash": FixedInterval(10)},
    "rehash=every1000": {"rehash": FixedInterval(1000)},
    "rehash=never": {"rehash": NEVER},
    "rehash=drift": {"rehash": Drift()},
}
ACTIVE = {"active=x0.25": 0.25, "active=x0.5": 0.5, "active=x2": 2, "active=x4": 4}  # times the default
NAMES = (*VARIATIONS, *ACTIVE, "autotune", *PUBLISHED, "dense")


def config_of(name: str, labels: int, share: float, seed: int) -> LSHConfig:
    """The settings of a variation for a layer of so many labels; ``share``: active rows of BOLT's setting."""
    if name == "slide":
        config = LSHConfig.slide_amazon670k()
    elif name == "bolt":
        config = LSHConfig.bolt(labels, share)
    elif name in ACTIVE:
        config = LSHConfig(active=round(ACTIVE[name] * LSHConfig().active_rows(labels)))
    else:
        config = LSHConfig.from_options(**VARIATIONS[name])
    return replace(config, seed=seed)


class Task(NamedTuple):
    """A data set, and where training starts from."""

    train: XMCDataset
    test: list[Batch]
    weights: Weights
    label_counts: Tensor  # [num_labels], of the training rows
    lr: float
    seed: int

    def batches(self, first: int, count: int) -> list[Batch]:
        """The batches of steps ``first``, ``first + 1``, ...; every epoch in an order of its own."""
        steps = -(-len(self.train) // BATCH)
        found = []
        for step in range(first, first + count):
            epoch, at = divmod(step, steps)
            rows = _order(len(self.train), self.seed * 100_003 + epoch)[at * BATCH : (at + 1) * BATCH]
            found.append(collate_xmc(self.train.__getitems__(rows.tolist())))
        return found

    def by_frequency(self) -> Task:
        """The same with labels numbered by decreasing frequency, as the log-uniform sampler wants them."""
        order = self.label_counts.argsort(descending=True, stable=True)
        number = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        rows = self.train.rows
        train = XMCDataset.from_rows(rows._replace(labels=number[rows.labels.long()].int()))
        test = [(x, torch.where(y < 0, y, number[y.clamp(min=0)])) for x, y in self.test]
        weights = self.weights._replace(labels=self.weights.labels[order])
        return self._replace(train=train, test=test, weights=weights, label_counts=self.label_counts[order])


@functools.lru_cache(maxsize=16)
def _order(rows: int, seed: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))


def tuned_config(task: Task, seconds: float, arguments: argparse.Namespace) -> LSHConfig:
    """What autotune picks after so many seconds of training with the defaults."""
    trainee = make_trainee("default", task, seconds, arguments)
    while trainee.seconds < seconds:
        trainee.train(task.batches(trainee.steps, CHUNK), seconds)
    with torch.no_grad():
        inputs = torch.cat([trainee.input(x) for x, _ in task.batches(trainee.steps, TUNED_ON // BATCH)])
    config, table = autotune(trainee.output.layer, inputs, batch_size=BATCH)
    pick = next(trial for trial in table if trial.stage == "steps" and trial.config == config)
    print(f"autotune: {pick.describe()}, recall {pick.recall.mean:.3f}, {pick.milliseconds:.2f} ms a step of the layer")
    return config


def make_trainee(name: str, task: Task, seconds: float, arguments: argparse.Namespace) -> Trainee:
    """``seconds``: how long "autotune" trains before it picks."""
    lr, layer = task.lr, task.weights.output_layer()
    if name == "dense":
        output: Any = systems.Dense(layer, lr, active=layer.out_features)
        return Trainee(name, systems.SparseInput(task.weights.features, lr, "dense"), output)
    if name == "autotune":
        config = replace(tuned_config(task, seconds, arguments), seed=task.seed)
    else:
        config = config_of(name, layer.out_features, arguments.bolt_active, task.seed)
    output = systems.LSH(layer, lr, **vars(config))
    if config.sampler in ("frequency", "in_batch"):
        output.layer.set_label_counts(task.label_counts, len(task.train))
    return Trainee(name, systems.SparseInput(task.weights.features, lr, "torch_lsh"), output)


class Result(NamedTuple):
    name: str
    active: int | str
    curve: list[dict[str, Any]]


def run(name: str, train: XMCDataset, test: XMCDataset, seed: int, arguments: argparse.Namespace) -> list[Result]:
    """Trains all chosen variations in turn."""
    seconds = arguments.seconds or SECONDS.get(name, 3.0)
    task = Task(
        train,
        some_batches(test, arguments.test_rows),
        Weights.draw(train, arguments.input_std, seed),
        torch.bincount(train.rows.labels.long(), minlength=train.num_labels),
        arguments.lr or LEARNING_RATES.get(name, 1e-3),
        seed,
    )
    sorted_task = task.by_frequency()
    task_of = {chosen: sorted_task if "log_uniform" in chosen else task for chosen in arguments.only}
    trainees = [make_trainee(chosen, task_of[chosen], seconds, arguments) for chosen in arguments.only]
    print(f"\n{name}: {train}, {seconds} s each, rate {task.lr}, seed {seed}")
    # A process's first steps are slower. It lives on, or its memory would make the next one's first step faster.
    warm_up = make_trainee("default", task, seconds, arguments)
    warm_up.train(task.batches(0, 3))
    longest = arguments.published_times if any(chosen in PUBLISHED for chosen in arguments.only) else 1
    for point in range(1, round(arguments.points * longest) + 1):
        until = point * seconds / arguments.points
        for trainee in trainees:
            if point > arguments.points and trainee.name not in ("default", *PUBLISHED):
                continue
            own = task_of[trainee.name]
            while trainee.seconds < until:
                trainee.train(own.batches(trainee.steps, CHUNK), until)
            trainee.evaluate(own.test, trainee.steps * BATCH / len(train))
    del warm_up
    return [Result(trainee.name, _active(trainee), trainee.curve) for trainee in trainees]


def report(name: str, runs: list[list[Result]], points: int) -> None:
    """Precision of each variation, the median of all seeds, after equal time; then the published and tuned settings."""
    of_default = [point["precision@1"] for point in (results[0].curve[points - 1] for results in runs)]
    rows = []
    for results in zip(*runs):
        at = [result.curve[points - 1] for result in results]
        half = [result.curve[max(0, points // 2 - 1)]["precision@1"] for result in results]
        values = [point["precision@1"] for point in at]
        rows.append(
            (
                results[0].name,
                results[0].active,
                statistics.median(point["seconds"] for point in at),
                statistics.median(1e3 * point["seconds"] / point["steps"] for point in at),
                statistics.median(point["epoch"] for point in at),
                f"{statistics.median(half):.4f}",
                f"{statistics.median(values):.4f}",
                f"{min(values):.4f}-{max(values):.4f}",
                f"{100 * statistics.median(ours - base for ours, base in zip(values, of_default)):+.2f}",
            )
        )
    header = ("variation", "active", "seconds", "ms/step", "epochs", "P@1 half-way", "P@1", "of all seeds", "+ points")
    print(f"\n{name}, medians of {len(runs)} seeds\n" + harness.table(rows, header))
    rows = []
    for results in runs:
        for result in results:
            if result.name not in (*PUBLISHED, "autotune"):
                continue
            last = result.curve[-1]
            goal, total = last["precision@1"], last["seconds"]
            reached = first_at(results[0].curve, goal)
            if goal == 0:
                rows.append((result.name, total, "0", "", "it learned nothing yet"))
            elif reached is None:
                rows.append((result.name, total, f"{goal:.4f}", "not reached", ""))
            else:
                rows.append((result.name, total, f"{goal:.4f}", reached, f"{100 * reached / total:.1f} %"))
    if rows:
        header = ("compared with", "seconds", "its last P@1", "default has it at s", "default needs of its time")
        print("\n" + harness.table(rows, header))


def _active(trainee: Trainee) -> int | str:
    if not isinstance(trainee.output, systems.LSH):
        return "all"
    config = trainee.output.layer.config
    return "labels" if config.sampler == "in_batch" else config.active_rows(trainee.output.layer.out_features)


def plot(records: list[dict[str, Any]], path: str) -> None:
    """A row per data set, a panel per setting, the default in each; of the first seed."""
    records = [record for record in records if record["seed"] == records[0]["seed"]]
    datasets = list(dict.fromkeys(record["dataset"] for record in records))
    panels = list(dict.fromkeys(_panel(record["system"]) for record in records if record["system"] != "default"))
    panels = panels or ["default"]
    drawn = [functools.partial(_draw, records, dataset, panel) for dataset in datasets for panel in panels]
    plots.draw(path, *drawn, columns=len(panels))


def _draw(records: list[dict[str, Any]], dataset: str, panel: str, axis: Any) -> None:
    points = [r for r in records if r["dataset"] == dataset and _panel(r["system"]) in ("default", panel)]
    last = max(r["seconds"] for r in points if _panel(r["system"]) == panel)
    for system in dict.fromkeys(r["system"] for r in points):
        curve = [r for r in points if r["system"] == system and r["seconds"] <= 1.05 * last]
        style = {"color": "black", "linewidth": 2} if system == "default" else {}
        axis.plot([r["seconds"] for r in curve], [r["precision@1"] for r in curve], label=system, **style)
    axis.set(title=f"{dataset}: {panel}", xlabel="seconds of training", ylabel="precision@1")
    axis.legend(fontsize="small")


def _panel(system: str) -> str:
    return "published" if system in PUBLISHED else system.split("=")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(SECONDS), help="folders in the one that TORCH_LSH_DATA names")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"beside default: {', '.join(NAMES[1:])}")
    parser.add_argument("--dense", action="store_true", help="add nn.Linear with torch.optim.Adam")
    parser.add_argument("--seconds", type=float, help="of training for each; default: 3 (yso-en: 30)")
    parser.add_argument(
        "--published-times", type=float, default=4, help="factor of the time for slide, bolt and default"
    )
    parser.add_argument("--bolt-active", type=float, default=0.005, help="share of active rows in BOLT's setting")
    parser.add_argument("--points", type=int, default=10, help="evaluations of each")
    parser.add_argument("--test-rows", type=int, default=5166, help="test rows to evaluate on")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of weights, order of rows and hash functions")
    parser.add_argument("--lr", type=float, help="learning rate; default: 1e-3 (yso-en: 2e-3)")
    parser.add_argument("--input-std", type=float, default=0.1, help="of the input table; nn.EmbeddingBag's is 1")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--plot", help="draw a plot into this file")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.only or () if name not in NAMES]
    if unknown:
        parser.error(f"--only names {', '.join(unknown)}; wanted some of {', '.join(NAMES)}")
    if arguments.points < 1 or arguments.published_times < 1 or (arguments.seconds or 1) <= 0:
        parser.error("--points and --published-times must be at least 1, --seconds more than 0")
    try:
        check_present(arguments.data)
    except FileNotFoundError as error:
        parser.error(str(error))
    chosen = {*(arguments.only or NAMES[:-1]), "default", *(["dense"] if arguments.dense else [])}
    arguments.only = [name for name in NAMES if name in chosen]
    info = harness.machine(arguments.threads)
    print(info)
    records: list[dict[str, Any]] = []
    for dataset in arguments.data:
        train, test = read_xmc(dataset)
        runs = []
        for seed in arguments.seed:
            results = run(dataset, train, test, seed, arguments)
            of_run = [{"dataset": dataset, "seed": seed, **point} for r in results for point in r.curve]
            harness.write_json(
                [{"benchmark": "ablation", "machine": info, **point} for point in of_run], arguments.json
            )
            records += of_run
            runs.append(results)
        report(dataset, runs, arguments.points)
    if arguments.plot:
        plot(records, arguments.plot)


if __name__ == "__main__":
    main()
