"""The part of the command line about texts: train-text, serve, and what predict and evaluate do with a text model."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from ..models.xmc import check_can_write
from .classifier import TextClassifier
from .files import TextFile
from .hashed_text import HashedText

_PREDICTED_AT_A_TIME = 4096


def is_text_model(path: str) -> bool:
    """Whether the file is a text classifier, not an XMC one: safetensors, not a zip archive."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def column_options() -> argparse.ArgumentParser:
    """Options that say where a CSV, TSV, JSONL or Parquet file holds its texts and labels."""
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("columns of text files (names, or numbers from 0 where there is no header)")
    group.add_argument("--text", nargs="+", type=_column, default=["text"], help="column(s) of the text")
    group.add_argument("--label", type=_column, default="label", help="column of the label")
    group.add_argument("--separator", help="cells hold several labels, separated by this")
    return options


def _column(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _columns(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"text": arguments.text, "label": arguments.label, "label_separator": arguments.separator}


def train(arguments: argparse.Namespace) -> int:
    check_can_write(Path(arguments.model))
    features = None
    if arguments.bits is not None or arguments.char_ngrams is not None:
        lengths = None if arguments.char_ngrams is None else tuple(arguments.char_ngrams)
        features = HashedText(bits=arguments.bits or 20, char_ngrams=lengths, norm=None)
    model = TextClassifier(
        features=features,
        hidden=arguments.hidden,
        neighbours=arguments.neighbours,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        patience=arguments.patience,
        seed=arguments.seed,
        progress=not arguments.quiet and importlib.util.find_spec("tqdm") is not None,
    )
    model.fit(arguments.data, **_columns(arguments), validation=arguments.validation)
    for entry in model.history_:
        shown = "  ".join(f"{key} {value:.4f}" for key, value in entry.items() if "loss" in key or "validation" in key)
        print(f"epoch {entry['epoch']:.0f}  {shown}  {entry['texts_per_second']:,.0f} texts/s")
    if arguments.test is not None:
        print(json.dumps({"test": model.evaluate(arguments.test, **_columns(arguments))}))
    model.save(arguments.model)
    print(
        f"saved {arguments.model}: {len(model.classes_):,} labels, {Path(arguments.model).stat().st_size / 1e6:.1f} MB"
    )
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    model = TextClassifier.load(arguments.model)
    print(json.dumps(model.evaluate(arguments.data, **_columns(arguments))))
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """One JSON object a line: the best labels and their probabilities."""
    model = TextClassifier.load(arguments.model)
    k = min(arguments.k, len(model.classes_))
    texts: list[str] = []

    def flush() -> None:
        for labels, probabilities in zip(*(some.tolist() for some in model.top_k(texts, k))):
            print(json.dumps({"labels": labels, "probabilities": [round(p, 6) for p in probabilities]}))
        texts.clear()

    for row in TextFile(arguments.data, arguments.text, label=None):
        texts.append(row.text)
        if len(texts) == _PREDICTED_AT_A_TIME:
            flush()
    flush()
    return 0


def serve(arguments: argparse.Namespace) -> int:
    from .server import Server  # needs packages that the rest does not

    model = TextClassifier.load(arguments.model)
    server = Server(model, arguments.max_bytes, arguments.max_texts, arguments.max_batch)
    server.run(arguments.host, arguments.port)
    return 0


def add_commands(commands: Any, columns: argparse.ArgumentParser, positive: Any) -> None:
    training = commands.add_parser(
        "train-text", parents=[columns], help="train a text classifier on a CSV, TSV, ... file"
    )
    training.add_argument("data", help=".csv, .tsv, .jsonl (also .gz, .xz, .bz2) or .parquet")
    training.add_argument("--model", default="model.safetensors", help="file to write the model to")
    training.add_argument("--validation", help="file to stop by; default: texts held out from the data")
    training.add_argument("--test", help="file to evaluate the model on")
    training.add_argument("--hidden", type=int, help="units of the hidden layer; 0: linear; default: by the labels")
    training.add_argument("--neighbours", type=int, help="training texts that take part in a prediction; 0: none")
    training.add_argument("--epochs", type=positive)
    training.add_argument("--batch-size", type=positive)
    training.add_argument("--lr", type=float)
    training.add_argument("--patience", type=positive, default=2)
    training.add_argument("--bits", type=positive, help="2**bits features; default: by the amount of text")
    training.add_argument("--char-ngrams", type=positive, nargs=2, metavar=("LEAST", "LARGEST"))
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--quiet", action="store_true", help="no progress bar (nor is there one without tqdm)")
    training.set_defaults(run=train)

    serving = commands.add_parser("serve", help="answer HTTP requests with a text classifier")
    serving.add_argument("model")
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--port", type=int, default=8000, help="0: any free one")
    serving.add_argument("--max-bytes", type=positive, default=1 << 20, help="of a request")
    serving.add_argument("--max-texts", type=positive, default=256, help="of a request")
    serving.add_argument("--max-batch", type=positive, default=64, help="texts that are predicted together")
    serving.set_defaults(run=serve)
