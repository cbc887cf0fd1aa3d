"""The commands of text models: ``train-text``, ``serve``, and ``evaluate``, ``predict`` and ``inspect`` on them."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cli import inspect as inspection
from ..cli.arguments import budget, positive, seconds
from ..io import check_can_write, format_of, load_safetensors
from ..models.service import XMCService
from ..serving.service import Limits
from .classifier import TextClassifier
from .files import TextFile
from .hashed_text import HashedText
from .model_file import FORMAT
from .service import TextService

_PREDICTED_AT_A_TIME = 4096
_READ_TEXTS = 65_536  # to draw inputs from, because a file may be sorted by label


def _add_columns(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("columns of text files (names, or numbers from 0 where there is no header)")
    group.add_argument("--text", nargs="+", type=_column, default=["text"], help="column(s) of the text")
    group.add_argument("--label", type=_column, default="label", help="column of the label")
    group.add_argument("--delimiter", help="of the fields of CSV and TSV files; default: a comma or a tab")
    group.add_argument("--encoding", default="utf-8", help="of the files")
    group.add_argument("--format", help="such as .csv, in place of the name's own end; of '-', standard input: .txt")
    group.add_argument("--separator", help="separator of several labels in one cell")


def _column(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _columns(arguments: argparse.Namespace) -> dict[str, Any]:
    form = {"delimiter": arguments.delimiter, "encoding": arguments.encoding, "format": arguments.format}
    return {"text": arguments.text, "label": arguments.label, "label_separator": arguments.separator, **form}


# --- train-text -------------------------------------------------------------------------------------------------------


def train_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help=".csv, .tsv, .jsonl, fastText's .txt (also .gz, .xz, .bz2) or .parquet")
    parser.add_argument("--model", default="model.safetensors", help="file to write the model to")
    parser.add_argument("--validation", help="file that decides when to stop; default: texts held out from the data")
    parser.add_argument("--test", help="file to evaluate the model on")
    parser.add_argument("--hidden", type=int, help="width of the hidden layer; 0: none; default: by the labels")
    parser.add_argument("--neighbours", type=int, help="nearest training texts that vote in a prediction; 0: none")
    parser.add_argument("--epochs", type=positive, help="most passes over the data")
    parser.add_argument("--budget", type=budget, help="time to train at most: seconds, or such as 90s, 5m, 1h")
    parser.add_argument("--batch-size", type=positive, help="texts per step")
    parser.add_argument("--lr", type=float, help="learning rate of Adam")
    parser.add_argument("--patience", type=positive, default=2, help="epochs without improvement before training stops")
    parser.add_argument("--bits", type=positive, help="hash into 2**bits features; default: by the amount of text")
    parser.add_argument("--char-ngrams", type=positive, nargs=2, metavar=("MIN", "MAX"), help="lengths of n-grams")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order of the texts and split")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar (it needs tqdm anyway)")
    _add_columns(parser)


def train_text(arguments: argparse.Namespace) -> int:
    check_can_write(arguments.model, FORMAT)
    for path in filter(None, (arguments.validation, arguments.test)):
        next(iter(TextFile(path, **_columns(arguments))), None)  # now, not after hours of training
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
    model.fit(arguments.data, **_columns(arguments), validation=arguments.validation, budget=arguments.budget)
    model.save(arguments.model)  # before what may fail: a row of the test file, a closed standard output
    for entry in model.history_:
        shown = "  ".join(f"{key} {value:.4f}" for key, value in entry.items() if "loss" in key or "validation" in key)
        trained = f"epoch {entry['epoch']:.0f}" if "loss" in entry else "network not trained (--epochs trains it)"
        print(f"{trained}  {shown}  {entry['texts_per_second']:,.0f} texts/s")
    if arguments.test is not None:
        print(f'{{"test": {_json(model.evaluate(arguments.test, **_columns(arguments)))}}}')
    print(
        f"saved {arguments.model}: {len(model.classes_):,} labels, {Path(arguments.model).stat().st_size / 1e6:.1f} MB"
    )
    return 0


# --- evaluate and predict ---------------------------------------------------------------------------------------------


def evaluate_options(parser: argparse.ArgumentParser) -> None:
    _add_columns(parser)


def evaluate(arguments: argparse.Namespace) -> int:
    model = TextClassifier.load(arguments.model)
    if arguments.train is not None:
        raise ValueError("--train is for XMC models; label counts of text models are in their files")
    result = model.evaluate(
        arguments.data,
        **_columns(arguments),
        metrics=arguments.metrics or (),
        ks=arguments.ks,
        propensities=arguments.propensities,
        excluded=arguments.filter,
    )
    print(_json(result))
    return 0


def _json(result: dict[str, float]) -> str:
    return json.dumps({name: None if math.isnan(value) else value for name, value in result.items()})


def predict_options(parser: argparse.ArgumentParser) -> None:
    _add_columns(parser)


def predict(arguments: argparse.Namespace) -> int:
    """Prints one JSON object per text: the likeliest labels and their probabilities."""
    model = TextClassifier.load(arguments.model)
    k = min(arguments.k, len(model.classes_))
    texts: list[str] = []

    def flush() -> None:
        for labels, probabilities in zip(*(some.tolist() for some in model.top_k(texts, k))):
            print(json.dumps({"labels": labels, "probabilities": [round(p, 6) for p in probabilities]}))
        texts.clear()

    for row in TextFile(arguments.data, **{**_columns(arguments), "label": None}):
        texts.append(row.text)
        if len(texts) == _PREDICTED_AT_A_TIME:
            flush()
    flush()
    return 0


# --- inspect ----------------------------------------------------------------------------------------------------------


def inspect_options(parser: argparse.ArgumentParser) -> None:
    _add_columns(parser)


def inspect(arguments: argparse.Namespace) -> int:
    inspection.check(arguments)
    tensors, metadata = load_safetensors(arguments.model)
    if metadata.get("format") != FORMAT:
        return inspection.show(inspection.layers_of_tensors(tensors, arguments), arguments)
    model = TextClassifier.load(arguments.model)
    model.network_.complete()
    output = getattr(model.network_, "output", None)
    if output is None:
        raise ValueError(f"{arguments.model} is a linear model; wanted one with an output layer, whose rows are hashed")
    inputs = None if arguments.data is None else _hidden_texts(model, arguments)
    return inspection.show([inspection.layer_of_model(output, inputs, arguments)], arguments)


@torch.no_grad()
def _hidden_texts(model: TextClassifier, arguments: argparse.Namespace) -> Tensor:
    """Hidden activations of a random choice of the first texts of ``--data``."""
    rows = TextFile(arguments.data, **{**_columns(arguments), "label": None})
    texts = [row.text for row in itertools.islice(rows, _READ_TEXTS)]
    if not texts:
        raise ValueError(f"{arguments.data} has no texts")
    return model.hidden_activations([texts[number] for number in inspection.random_choice(len(texts))])


# --- serve ------------------------------------------------------------------------------------------------------------


def serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="file of the model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any free one")
    default = Limits()
    for name, kind, help in (
        ("max_bytes", positive, "most bytes of a request's body"),
        ("max_inputs", positive, "most texts of a request"),
        ("max_batch", positive, "most texts to predict together"),
        ("max_waiting", positive, "most texts that wait; requests beyond are refused with status 503"),
        ("max_connections", positive, "most open connections; default: 1024, or what ulimit -n allows"),
        ("request_timeout", seconds, "seconds to send the head of a request, its body, and to take the answer"),
        ("idle_timeout", seconds, "seconds that a connection without a request is kept"),
        ("stop_timeout", seconds, "seconds that accepted requests have after SIGTERM"),
        ("workers", positive, "threads that predict"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(default, name), help=help)
    parser.add_argument("--reuse-port", action="store_true", help="let several processes serve on the port")
    parser.add_argument("--log-requests", action="store_true", help="log every request, as JSON lines")


def serve(arguments: argparse.Namespace) -> int:
    from ..serving import logs
    from ..serving.server import Server, listen  # needs starlette and uvicorn

    limits = Limits(**{field.name: getattr(arguments, field.name) for field in fields(Limits)})
    is_xmc = (format_of(arguments.model) or "").startswith("torch_lsh.XMCClassifier/")
    load = XMCService.load if is_xmc else TextService.load
    server = Server(functools.partial(load, arguments.model), limits, arguments.log_requests)
    logs.start()
    server.run(listen(arguments.host, arguments.port, arguments.reuse_port))
    return 0
