"""The commands ``train``, ``evaluate``, ``predict`` and ``inspect`` on XMC models, and on archives of tensors."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import LSHConfig
from ..data import XMCDataset, XMCStream, collate_xmc, synthetic_xmc
from ..index.config import INDEX_NAMES
from ..io import check_can_write, format_of, load_archive
from ..metrics import METRIC_NAMES, PROPENSITY_CONSTANTS
from ..models import XMCClassifier
from ..models.evaluation import propensities_of
from ..models.rows import label_counts, num_rows
from ..models.training import FORMAT as CHECKPOINT_FORMAT
from ..models.xmc import FORMAT
from . import inspect as inspection
from .arguments import active_rows, budget, positive


def _config(arguments: argparse.Namespace) -> LSHConfig:
    return LSHConfig.from_options(arguments.hash, active=arguments.active, seed=arguments.seed)


def _read(arguments: argparse.Namespace) -> XMCDataset:
    return XMCDataset(arguments.data, normalize=arguments.normalize)


def _add_normalize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--normalize", choices=["l2"], help="scale each row to unit length")


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics", nargs="+", choices=METRIC_NAMES, help="what to measure; default: precision")
    parser.add_argument("--ks", nargs="+", type=positive, default=[1, 3, 5], help="numbers of labels to look at")


# --- train ------------------------------------------------------------------------------------------------------------


def train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", help="training file (plain, .gz, .xz)")
    parser.add_argument("--generate", action="store_true", help="train on generated data in place of a file")
    parser.add_argument("--model", default="model.pt", help="file to write the model to")
    parser.add_argument("--stream", action="store_true", help="read the file in blocks at every epoch: it may be large")
    _add_normalize(parser)
    parser.add_argument("--test", help="file to measure metrics on after every epoch")
    _add_metrics(parser)
    parser.add_argument("--epochs", type=positive, default=5, help="passes over the data")
    parser.add_argument("--budget", type=budget, help="time to train at most: seconds, or such as 90s, 5m, 1h")
    parser.add_argument("--batch-size", type=positive, default=256, help="rows per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam")
    parser.add_argument("--hidden", type=positive, default=128, help="width of the hidden layer")
    parser.add_argument("--active", type=active_rows, help="active rows per step: a number, or a fraction such as 0.01")
    parser.add_argument("--hash", default="simhash", help=f"hash family or kind of index: {', '.join(INDEX_NAMES)}")
    parser.add_argument("--dense", action="store_true", help="use an nn.Linear output layer, for comparison")
    parser.add_argument("--checkpoint", help="file of the run's state; an interrupted run resumes from it")
    parser.add_argument("--checkpoint-every", type=positive, help="steps between checkpoints; default: one epoch")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the data loader")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, row order and hash functions")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar (it needs tqdm anyway)")


def _check_train_files(arguments: argparse.Namespace) -> None:
    """Raises what would otherwise end a run after hours, or cost a file."""
    if (arguments.data is None) != arguments.generate:
        raise ValueError("wanted either DATA, a training file, or --generate")
    if arguments.stream and arguments.generate:
        raise ValueError("--stream was given beside --generate, whose rows are in memory")
    check_can_write(arguments.model, FORMAT)
    if arguments.checkpoint is not None:
        check_can_write(arguments.checkpoint, CHECKPOINT_FORMAT)
        if os.path.realpath(arguments.checkpoint) == os.path.realpath(arguments.model):
            raise ValueError(f"--checkpoint and --model are both {arguments.model}; wanted a file for each")


def train(arguments: argparse.Namespace) -> int:
    train: XMCDataset | XMCStream
    test: XMCDataset | None
    config = _config(arguments)
    _check_train_files(arguments)
    if arguments.data is None:
        if arguments.test is not None:
            raise ValueError("--test was given beside --generate; generated data comes with test rows of its own")
        train, test = synthetic_xmc(seed=arguments.seed)
    else:
        train = (
            XMCStream.from_file(arguments.data, normalize=arguments.normalize) if arguments.stream else _read(arguments)
        )
        test = None if arguments.test is None else XMCDataset(arguments.test, normalize=arguments.normalize)
    print(f"training on {train}", flush=True)
    torch.manual_seed(arguments.seed)
    model = XMCClassifier(train.num_features, train.num_labels, arguments.hidden, config, arguments.dense)
    history = model.fit(
        train,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        eval_dataset=test,
        metrics=arguments.metrics or ("precision",),
        ks=arguments.ks,
        budget=arguments.budget,
        checkpoint=arguments.checkpoint,
        checkpoint_every=arguments.checkpoint_every,
        num_workers=arguments.workers,
        seed=arguments.seed,
        progress=not arguments.quiet and importlib.util.find_spec("tqdm") is not None,
    )
    model.save(arguments.model)  # before anything is printed: standard output may be closed
    for entry in history:
        shown = "  ".join(
            f"{key} {value:.4f}" for key, value in entry.items() if "@" in key and not key.startswith("validation")
        )
        speed = f"{entry['samples_per_second']:,.0f} samples/s"
        print(f"epoch {entry['epoch']:.0f}  loss {entry['loss']:.4f}  {speed}  {shown}", flush=True)
    print(f"saved {arguments.model}")
    return 0


# --- evaluate and predict ---------------------------------------------------------------------------------------------


def evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="file of rows with labels")
    parser.add_argument("--model", required=True, help="file of the model")
    _add_metrics(parser)
    parser.add_argument("--filter", help="file of lines 'row label': pairs that do not count as predicted")
    parser.add_argument(
        "--propensities",
        choices=list(PROPENSITY_CONSTANTS),
        help="origin of the data, which decides the constants of psp, psrecall and psndcg; default: other",
    )
    parser.add_argument("--train", help="training file whose labels give propensities; default: what the model keeps")
    _add_normalize(parser)


def evaluate(arguments: argparse.Namespace) -> int:
    model = XMCClassifier.load(arguments.model)
    likely = arguments.propensities
    if arguments.train is not None:
        rows = XMCDataset(arguments.train).rows
        likely = propensities_of(label_counts(rows, model.num_labels), num_rows(rows), likely)
    result = model.evaluate(
        _read(arguments),
        arguments.ks,
        metrics=arguments.metrics or ("precision",),
        propensities=likely,
        excluded=arguments.filter,
    )
    # rows without labels have a precision of NaN, which JSON lacks
    print(json.dumps({name: None if math.isnan(value) else value for name, value in result.items()}))
    return 0


def predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="file of rows; their labels are ignored")
    parser.add_argument("--model", required=True, help="file of the model")
    parser.add_argument("-k", type=positive, default=5, help="labels per row")
    _add_normalize(parser)


def predict(arguments: argparse.Namespace) -> int:
    scores, classes = XMCClassifier.load(arguments.model).predict(_read(arguments), arguments.k)
    for row_scores, row_classes in zip(scores.tolist(), classes.tolist()):
        print(" ".join(f"{label}:{score:.4f}" for label, score in zip(row_classes, row_scores)))
    return 0


# --- inspect ----------------------------------------------------------------------------------------------------------


def inspect_options(parser: argparse.ArgumentParser) -> None:
    inspection.add_options(parser)
    _add_normalize(parser)


def inspect(arguments: argparse.Namespace) -> int:
    inspection.check(arguments)
    if not (format_of(arguments.model) or "").startswith("torch_lsh.XMCClassifier/"):
        content = load_archive(arguments.model)
        for key in ("weights", "state_dict", "model"):  # of checkpoints
            if isinstance(content, dict) and isinstance(content.get(key), Mapping):
                content = content[key]
        return inspection.show(inspection.layers_of_tensors(content, arguments), arguments)
    model = XMCClassifier.load(arguments.model)
    inputs = None if arguments.data is None else _hidden_rows(model, arguments)
    model.complete()
    return inspection.show([inspection.layer_of_model(model.output, inputs, arguments)], arguments)


@torch.no_grad()
def _hidden_rows(model: XMCClassifier, arguments: argparse.Namespace) -> Tensor:
    """Hidden activations of a random choice of the rows of ``--data``."""
    dataset = _read(arguments)
    if len(dataset) == 0 or dataset.num_features != model.num_features:
        raise ValueError(
            f"{arguments.data} has {len(dataset)} rows of {dataset.num_features} features; "
            f"wanted some of {model.num_features}"
        )
    rows = inspection.random_choice(len(dataset))
    return model.hidden(collate_xmc([dataset[row] for row in rows])[0])
