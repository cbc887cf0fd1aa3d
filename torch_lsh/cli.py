"""The command line: train, evaluate, predict, bench; what is about texts is in cli_text, inspect in cli_inspect."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import __version__, cli_inspect
from .benchmarking.overview import overview
from .config import LSHConfig
from .data import XMCDataset, synthetic_xmc
from .index.config import INDEX_NAMES
from .models import XMCClassifier
from .models.xmc import check_can_write
from .text import cli as cli_text


def _config(arguments: argparse.Namespace) -> LSHConfig:
    return LSHConfig.from_options(arguments.hash, active=arguments.active, seed=arguments.seed)


def _active(text: str) -> int | float:
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of rows nor a fraction such as 0.01") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _print_epoch(entry: dict[str, float]) -> None:
    print(
        f"epoch {entry['epoch']:.0f}  loss {entry['loss']:.4f}  {entry['samples_per_second']:,.0f} samples/s  "
        + "  ".join(f"{key} {value:.4f}" for key, value in entry.items() if key.startswith("precision")),
        flush=True,
    )


def _train(arguments: argparse.Namespace) -> int:
    test: XMCDataset | None
    config = _config(arguments)
    check_can_write(Path(arguments.model))  # before, not after, hours of training
    if arguments.data is None:
        if arguments.test is not None:
            raise ValueError("--test needs a training file; generated data comes with rows to test on")
        train, test = synthetic_xmc(seed=arguments.seed)
    else:
        train = XMCDataset(arguments.data, normalize=arguments.normalize)
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
        checkpoint=arguments.checkpoint,
        checkpoint_every=arguments.checkpoint_every,
        num_workers=arguments.workers,
        seed=arguments.seed,
        progress=not arguments.quiet and importlib.util.find_spec("tqdm") is not None,
    )
    for entry in history:
        _print_epoch(entry)
    model.save(arguments.model)
    print(f"saved {arguments.model}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    if cli_text.is_text_model(arguments.model):
        return cli_text.evaluate(arguments)
    model = XMCClassifier.load(arguments.model)
    dataset = XMCDataset(arguments.data, normalize=arguments.normalize)
    precision = model.evaluate(dataset)
    # JSON has no NaN, which is what rows without labels have
    print(json.dumps({name: None if math.isnan(value) else value for name, value in precision.items()}))
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    if cli_text.is_text_model(arguments.model):
        return cli_text.predict(arguments)
    model = XMCClassifier.load(arguments.model)
    dataset = XMCDataset(arguments.data, normalize=arguments.normalize)
    scores, classes = model.predict(dataset, arguments.k)
    for row_scores, row_classes in zip(scores.tolist(), classes.tolist()):
        print(" ".join(f"{label}:{score:.4f}" for label, score in zip(row_classes, row_scores)))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.plot is not None:
        check_can_write(Path(arguments.plot))
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError("--plot needs matplotlib: pip install matplotlib")
    overview(
        rows=arguments.rows,
        width=arguments.width,
        batch=arguments.batch,
        active=arguments.active,
        rounds=arguments.rounds,
        threads=arguments.threads,
        plot=arguments.plot,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torch_lsh", description="Very wide PyTorch layers on CPUs.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--threads", type=_positive, help="threads to compute with; default: PyTorch's")
    commands = parser.add_subparsers(required=True)

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--normalize", choices=["l2"], help="divide each row by its length")

    train = commands.add_parser("train", parents=[data], help="train a model on a file in the XMC format")
    train.add_argument("model", help="file to write the model to")
    train.add_argument("data", nargs="?", help="training file (plain, .gz, .xz); default: generated data")
    train.add_argument("--test", help="file to measure precision on after every epoch")
    train.add_argument("--epochs", type=_positive, default=5)
    train.add_argument("--batch-size", type=_positive, default=256)
    train.add_argument("--lr", type=float, default=1e-3)
    train.add_argument("--hidden", type=_positive, default=128)
    train.add_argument("--active", type=_active, help="active rows per step: a number, or a fraction such as 0.01")
    train.add_argument("--hash", default="simhash", help=f"hash family or kind of index: {', '.join(INDEX_NAMES)}")
    train.add_argument("--dense", action="store_true", help="nn.Linear output, for comparison")
    train.add_argument("--checkpoint", help="file of the run's state; an interrupted run goes on from it")
    train.add_argument("--checkpoint-every", type=_positive, help="steps between checkpoints; default: one per epoch")
    train.add_argument("--workers", type=int, default=0, help="of the data loader")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--quiet", action="store_true", help="no progress bar (nor is there one without tqdm)")
    train.set_defaults(run=_train)

    columns = cli_text.column_options()
    evaluate = commands.add_parser("evaluate", parents=[data, columns], help="quality of a model on a file")
    evaluate.add_argument("model")
    evaluate.add_argument("data")
    evaluate.set_defaults(run=_evaluate)

    predict = commands.add_parser(
        "predict",
        parents=[data, columns],
        help="the best labels of each row, as label:logit; of a text model, as JSON lines with probabilities",
    )
    predict.add_argument("model")
    predict.add_argument("data")
    predict.add_argument("-k", type=_positive, default=5)
    predict.set_defaults(run=_predict)

    cli_text.add_commands(commands, columns, _positive)
    cli_inspect.add_commands(commands, data, _positive)

    benchmark = commands.add_parser(
        "bench", help="a training step and the best classes beside PyTorch's, on this machine"
    )
    benchmark.add_argument("--rows", type=_positive, default=670_091)
    benchmark.add_argument("--width", type=_positive, default=128)
    benchmark.add_argument("--batch", type=_positive, default=256)
    benchmark.add_argument("--active", type=_positive, default=8192)
    benchmark.add_argument("--rounds", type=_positive, default=5)
    benchmark.add_argument("--plot", help="file to draw the result to (needs matplotlib)")
    benchmark.set_defaults(run=_bench)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; bad input is one line on standard error and exit status 2."""
    parsed = _parser().parse_args(arguments)
    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    try:
        status = int(parsed.run(parsed))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`); Python would complain at exit when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if not _is_users(error):
            raise
        print("torch_lsh:", " ".join(str(error).removeprefix("torch_lsh: ").split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("torch_lsh: interrupted", file=sys.stderr)
        return 130


def _is_users(error: Exception) -> bool:
    """Whether the message alone will do: bad input, files, memory. Other errors are ours; their traceback is needed."""
    # The operators name the argument that does not fit, in a RuntimeError; PyTorch's allocator says how much it wanted.
    text = str(error)
    return not isinstance(error, RuntimeError) or text.startswith("torch_lsh: ") or "can't allocate memory" in text
